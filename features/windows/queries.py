"""The compiled query of one state at one time.

See `states` for the conventions of the arguments.
"""

from __future__ import annotations

import numpy as np

from features.types import FeatureStatus
from features.windows.cells import add_record, clear, merge, put, total_of
from features.windows.layout import (
    AT_FOLDED_CREATED,
    AT_FOLDED_EVENT,
    AT_LEVELS,
    L_AT_LEVELS,
    L_AT_OUTPUTS,
    L_AT_SLOTS,
    L_AT_WINDOWS,
    L_FIRST_TIME,
    L_INCLUDES_NOW,
    L_LEVELS,
    L_OPEN,
    L_TILE,
    L_WINDOWS,
    LEVEL_ROW,
    LEVEL_WORDS,
    OUT_MEAN_FLOAT,
    OUT_SUM_FLOAT,
    OUT_VARIANCE,
    OUTPUT_ROW,
    PREVIOUS,
    SLOT_ROW,
    WINDOW_ROW,
)
from features.windows.sessions import find_sessions
from features.windows.states import (
    TIME_LIMIT_US,
    header_words,
    is_folded,
    record_words,
    tail_start,
)
from features.windows.sums import rounded_sum
from headrace.compiled import apart, step

UNAVAILABLE = FeatureStatus.UNAVAILABLE


@step
def far_edge(layout, window, t):  # type: ignore[no-untyped-def]
    """Return where a window begins at time t, or a session could begin at the earliest."""
    row = layout[L_AT_WINDOWS] + WINDOW_ROW * window
    hop = layout[layout[L_AT_LEVELS] + LEVEL_ROW * layout[row]]
    return (t - layout[row + 1]) // hop * hop


@step
def kind_of(layout, window):  # type: ignore[no-untyped-def]
    """Return the kind of a window."""
    return layout[layout[L_AT_WINDOWS] + WINDOW_ROW * window + 2]


@step
def find_edges(layout, t, lows, highs):  # type: ignore[no-untyped-def]
    """Find where each window begins and ends at time t; returns where the first one begins."""
    lowest = t
    for window in range(layout[L_WINDOWS]):
        lows[window] = far_edge(layout, window, t)
        highs[window] = t + layout[L_INCLUDES_NOW]
        if kind_of(layout, window) == PREVIOUS:
            highs[window] = lows[window] + layout[layout[L_AT_WINDOWS] + WINDOW_ROW * window + 1]
        lowest = min(lowest, lows[window])
    return lowest


@step
def sort_windows(layout, lows, order):  # type: ignore[no-untyped-def]
    """Order the windows that end at the time of the query, the one that begins last first.

    Those that ended before it follow.
    """
    for window in range(layout[L_WINDOWS]):
        place = window
        while place > 0 and _goes_before(layout, lows, window, order[place - 1]):
            order[place] = order[place - 1]
            place -= 1
        order[place] = window


@step
def _goes_before(layout, lows, window, other):  # type: ignore[no-untyped-def]
    if kind_of(layout, window) == PREVIOUS:
        return False
    return lows[other] < lows[window] or kind_of(layout, other) == PREVIOUS


@step
def lower_bound(words, base, stride, low, high, start):  # type: ignore[no-untyped-def]
    """Index of the first of the tiles, or times, [low, high) that is at `start` or later."""
    while low < high:
        middle = (low + high) // 2
        if words[base + middle * stride] < start:
            low = middle + 1
        else:
            high = middle
    return low


@step
def make_scratch(layout):  # type: ignore[no-untyped-def]
    """Return what `query_one` needs: a tile for each window and one more, and of each window the
    order, where it begins and ends, and whether it can be answered.
    """
    windows = layout[L_WINDOWS]
    return (
        np.empty((windows + 1) * layout[L_TILE], dtype=np.int64),
        np.arange(windows),
        np.zeros(windows, dtype=np.int64),
        np.zeros(windows, dtype=np.int64),
        np.zeros(windows, dtype=np.bool_),
    )


@apart
def query_one(layout, words, at, length, t, scratch, out, out_floats, status, row, targets):  # type: ignore[no-untyped-def]
    """Answer every output at time t into out[row, targets[output]]; `scratch` of `make_scratch`."""
    cells, order, lows, highs, answerable = scratch
    folded = is_folded(layout, words, at, length)
    exact = -TIME_LIMIT_US < t < TIME_LIMIT_US
    if folded:
        # Every tile may be used only if no event in any tile is one that t must not see.
        exact = exact and words[at + AT_FOLDED_EVENT] < t + layout[L_INCLUDES_NOW]
        exact = exact and words[at + AT_FOLDED_CREATED] <= t
    answerable[:] = exact
    if exact:
        lowest = find_edges(layout, t, lows, highs)
        if layout[L_FIRST_TIME]:
            find_sessions(layout, words, at, length, t, lowest, lows)
        sort_windows(layout, lows, order)
        _add_tail(layout, words, at, length, t, lowest, scratch)
        if folded:
            _add_tiles(layout, words, at, t, scratch)
    for place in range(layout[L_WINDOWS]):
        window = order[place]
        answer(
            layout, window, answerable[place], cells, place * layout[L_TILE], t,
            min(t, highs[window]) - lows[window], out, out_floats, status, row, targets,
        )  # fmt: skip


@step
def _add_tiles(layout, words, at, t, scratch):  # type: ignore[no-untyped-def]
    """Merge the tiles of a folded state into those of the windows."""
    cells, order, lows, highs, answerable = scratch
    tile = layout[L_TILE]
    base = at + header_words(layout)
    for level in range(layout[L_LEVELS]):
        count = words[at + AT_LEVELS + LEVEL_WORDS * level]
        evicted = words[at + AT_LEVELS + LEVEL_WORDS * level + 1]
        # The windows of a level share its tiles: each adds those that the one before did not have.
        running = layout[L_WINDOWS] * tile
        clear(layout, cells, running)
        end = count
        for place in range(layout[L_WINDOWS]):
            window = order[place]
            if layout[layout[L_AT_WINDOWS] + WINDOW_ROW * window] != level:
                continue
            if place >= layout[L_OPEN]:
                clear(layout, cells, running)
                end = lower_bound(words, base, tile, 0, count, highs[window])
            answerable[place] = evicted < far_edge(layout, window, t)
            begin = lower_bound(words, base, tile, 0, end, lows[window])
            merge(layout, cells, running, words, base + begin * tile, end - begin)
            end = begin
            merge(layout, cells, place * tile, cells, running, 1)
        base += count * tile


@step
def _add_tail(layout, words, at, length, t, lowest, scratch):  # type: ignore[no-untyped-def]
    """Put what t may see of the tail into one tile per window, in their order."""
    cells, order, lows, highs, _ = scratch
    tile = layout[L_TILE]
    windows, opens = layout[L_WINDOWS], layout[L_OPEN]
    for place in range(windows):
        clear(layout, cells, place * tile)
    # First only into the open window that begins last of those that hold it …
    before = t + layout[L_INCLUDES_NOW]
    stride = record_words(layout)
    start = at + tail_start(layout, words, at, length)
    for record in range(start, at + length, stride):
        event = words[record]
        if not (lowest <= event < before and words[record + 1] <= t):
            continue
        place = 0
        while place < windows:
            window = order[place]
            if lows[window] <= event < highs[window]:
                add_record(layout, cells, place * tile, words, record)
                if place < opens:
                    place = opens - 1
            place += 1
    # … then each of these takes over what those before it have.
    for place in range(1, opens):
        merge(layout, cells, place * tile, cells, (place - 1) * tile, 1)


@step
def answer(layout, window, exact, cells, tile, t, span, out, out_floats, status, row, targets):  # type: ignore[no-untyped-def]
    """Write the outputs of a window, `span` long, whose merged cells are in the tile at `tile`."""
    ends = layout[L_AT_WINDOWS] + WINDOW_ROW * window + 3
    at = layout[L_AT_OUTPUTS] + OUTPUT_ROW * layout[ends]
    slots = layout[L_AT_SLOTS]
    summed = -1  # sum and mean of a column share the rounding
    total = 0.0
    for _ in range(layout[ends], layout[ends + 1]):
        target = targets[layout[at + 4]]
        if target >= 0 and exact:
            kind = layout[at]
            slot = layout[at + 1]
            cell = tile + layout[slots + SLOT_ROW * slot + 2]
            count = cells[tile + layout[slots + SLOT_ROW * layout[at + 2] + 2]]
            if kind in (OUT_SUM_FLOAT, OUT_MEAN_FLOAT):
                if slot != summed:
                    total = rounded_sum(cells, cell, 0)
                    summed = slot
            elif kind >= OUT_VARIANCE:
                other = tile + layout[slots + SLOT_ROW * layout[at + 3] + 2]
                half_life = layout[slots + SLOT_ROW * slot + 6]
                total = total_of(kind, cells, cell, cells, other, count, t, half_life)
                summed = -1
            status[row, target] = put(
                kind, count, cells[cell], total, t, span, out, out_floats, row, target
            )  # fmt: skip
        elif target >= 0:
            status[row, target] = UNAVAILABLE
            out[row, target] = 0
        at += OUTPUT_ROW
