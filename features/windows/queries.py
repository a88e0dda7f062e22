"""The compiled query of one state at one time.

See `kernels` for the conventions of the arguments.
"""

from __future__ import annotations

import numpy as np

from features.types import FeatureStatus
from features.windows.kernels import (
    INT_MAX,
    INT_MIN,
    ORIGIN,
    add_event,
    lower_bound,
    make_room,
    step,
)
from features.windows.layout import (
    AT_FOLDED_CREATED,
    AT_FOLDED_EVENT,
    AT_HEAD_COUNT,
    AT_LEVELS,
    COUNT,
    HEAD_FIXED,
    L_AT_LEVELS,
    L_AT_OUTPUTS,
    L_AT_SLOTS,
    L_AT_WINDOWS,
    L_COLUMNS,
    L_LEVELS,
    L_OUTPUTS,
    L_SLOTS,
    L_WINDOWS,
    LEVEL_ROW,
    LEVEL_WORDS,
    MAX_FLOAT,
    MAX_INT,
    MIN_FLOAT,
    MIN_INT,
    OUT_COUNT,
    OUT_FLOAT,
    OUT_INT,
    OUT_MEAN_INT,
    OUTPUT_ROW,
    SLOT_ROW,
    SUM_FLOAT,
    SUM_INT,
    WINDOW_ROW,
)

PRESENT = FeatureStatus.PRESENT
NULL = FeatureStatus.NULL
UNAVAILABLE = FeatureStatus.UNAVAILABLE
# Times beyond this (the year 70,000) are garbage, and arithmetic on them could overflow.
TIME_LIMIT_US = 1 << 61


@step
def merge_tiles(layout, words, floats, base, first, end, sums, float_sums):  # type: ignore[no-untyped-def]
    """Merge the tiles [first, end) of a level into one value per slot, from left to right."""
    stride = 1 + layout[L_SLOTS]
    at_slots = layout[L_AT_SLOTS]
    for slot in range(layout[L_SLOTS]):
        kind = layout[at_slots + SLOT_ROW * slot]
        cell = base + first * stride + 1 + slot
        if kind in (COUNT, SUM_INT):
            total = 0
            for _ in range(first, end):
                total += words[cell]
                cell += stride
            sums[slot] = total
        elif kind == MIN_INT:
            best = INT_MAX
            for _ in range(first, end):
                best = min(best, words[cell])
                cell += stride
            sums[slot] = best
        elif kind == MAX_INT:
            best = INT_MIN
            for _ in range(first, end):
                best = max(best, words[cell])
                cell += stride
            sums[slot] = best
        elif kind == SUM_FLOAT:
            float_total = 0.0
            for _ in range(first, end):
                float_total += floats[cell]
                cell += stride
            float_sums[slot] = float_total
        else:
            float_best = np.inf if kind == MIN_FLOAT else -np.inf
            for _ in range(first, end):
                value = floats[cell]
                if (
                    np.isnan(value)
                    or (kind == MIN_FLOAT and value < float_best)
                    or (kind == MAX_FLOAT and value > float_best)
                ):
                    float_best = value
                cell += stride
            float_sums[slot] = float_best


@step
def finish(kind, slot, count, sums, float_sums, cell, float_cell):  # type: ignore[no-untyped-def]
    """Put the word of an output into cell[0]; returns its status."""
    if kind == OUT_COUNT:
        cell[0] = count
        return PRESENT
    if count == 0:
        cell[0] = 0
        return NULL
    if kind == OUT_INT:
        cell[0] = sums[slot]
        return PRESENT
    if kind == OUT_FLOAT:
        value = float_sums[slot]
    elif kind == OUT_MEAN_INT:
        value = float(sums[slot]) / float(count)
    else:
        value = float_sums[slot] / float(count)
    # One NaN and one zero: neither the payload nor the sign may hang on the order of merging.
    float_cell[0] = np.nan if np.isnan(value) else value + 0.0
    return PRESENT


@step
def with_head(layout, words, floats, at, sections, level, low, t, scratch):  # type: ignore[no-untyped-def]
    """Copy the tiles from `low` on and add what t may see of the head; returns their number.

    The copy is in `scratch`, where the section of this level begins.
    """
    tmp, tmp_floats, tmp_sections = scratch[0], scratch[1], scratch[2]
    stride = 1 + layout[L_SLOTS]
    base = sections[level + 1, 0]
    first = sections[level + 1, 1]
    count_at = AT_LEVELS + LEVEL_WORDS * level
    end = first + words[at + count_at]
    first = lower_bound(words, base, stride, first, end, low)
    for i in range((end - first) * stride):
        tmp[tmp_sections[level + 1, 0] + i] = words[base + first * stride + i]
    tmp_sections[level + 1, 1] = 0
    tmp[count_at] = end - first
    record_words = HEAD_FIXED + layout[L_COLUMNS]
    record = sections[0, 0] + sections[0, 1] * record_words
    for _ in range(words[at + AT_HEAD_COUNT]):
        if low <= words[record] < t and words[record + 1] <= t:
            add_event(layout, tmp, tmp_floats, ORIGIN, tmp_sections, level, words, floats, record)
        record += record_words
    return tmp[count_at]


@step
def answer(layout, window, exact, scratch, sums, out, status, row, targets):  # type: ignore[no-untyped-def]
    """Write the outputs of one window, whose merged slots are in the sums."""
    cell, float_cell, float_sums = scratch[3], scratch[4], scratch[5]
    at = layout[L_AT_OUTPUTS]
    for output in range(layout[L_OUTPUTS]):
        target = targets[output]
        if layout[at] == window and target >= 0:
            if exact:
                count = sums[layout[at + 3]]
                status[row, target] = finish(
                    layout[at + 1], layout[at + 2], count, sums, float_sums, cell, float_cell
                )
                out[row, target] = cell[0]
            else:
                status[row, target] = UNAVAILABLE
                out[row, target] = 0
        at += OUTPUT_ROW


@step
def sees_head(layout, words, at, sections, t):  # type: ignore[no-untyped-def]
    """Whether the head holds an event that a query at t may see."""
    record_words = HEAD_FIXED + layout[L_COLUMNS]
    record = sections[0, 0] + sections[0, 1] * record_words
    for _ in range(words[at + AT_HEAD_COUNT]):
        if words[record] < t and words[record + 1] <= t:
            return True
        record += record_words
    return False


@step
def query_one(layout, words, floats, at, sections, t, scratch, sums, out, status, row, targets):  # type: ignore[no-untyped-def]
    """Answer every output at time t into out[row, targets[output]].

    `scratch` is of `make_scratch`, with room for the tiles and the head of this state.
    """
    stride = 1 + layout[L_SLOTS]
    # Every tile may be used only if no event in any tile is one that t must not see.
    exact = words[at + AT_FOLDED_EVENT] < t and words[at + AT_FOLDED_CREATED] <= t
    exact = exact and -TIME_LIMIT_US < t < TIME_LIMIT_US
    headed = exact and sees_head(layout, words, at, sections, t)
    for level in range(layout[L_LEVELS]):
        hop = layout[layout[L_AT_LEVELS] + LEVEL_ROW * level]
        longest = layout[layout[L_AT_LEVELS] + LEVEL_ROW * level + 1]
        evicted = words[at + AT_LEVELS + LEVEL_WORDS * level + 1]
        base = sections[level + 1, 0]
        first = sections[level + 1, 1]
        end = first + words[at + AT_LEVELS + LEVEL_WORDS * level]
        source, source_floats = words, floats
        if headed:
            low = (t - longest) // hop * hop
            end = with_head(layout, words, floats, at, sections, level, low, t, scratch)
            source, source_floats = scratch[0], scratch[1]
            base = scratch[2][level + 1, 0]
            first = 0
        window_at = layout[L_AT_WINDOWS]
        for window in range(layout[L_WINDOWS]):
            if layout[window_at] == level:
                low = (t - layout[window_at + 1]) // hop * hop
                answerable = exact and evicted < low
                if answerable:
                    begin = lower_bound(source, base, stride, first, end, low)
                    merge_tiles(layout, source, source_floats, base, begin, end, sums, scratch[5])
                answer(layout, window, answerable, scratch, sums, out, status, row, targets)
            window_at += WINDOW_ROW


@step
def make_scratch(layout, capacity):  # type: ignore[no-untyped-def]
    """Return what `query_one` needs when no level, with the head in it, has more tiles."""
    sections = np.zeros((layout[L_LEVELS] + 1, 3), dtype=np.int64)
    length = make_room(layout, np.empty(0, dtype=np.int64), ORIGIN, capacity, sections)
    words = np.empty(length, dtype=np.int64)
    cell = np.zeros(1, dtype=np.int64)
    float_sums = np.zeros(layout[L_SLOTS], dtype=np.float64)
    return words, words.view(np.float64), sections, cell, cell.view(np.float64), float_sums
