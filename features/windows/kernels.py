"""The compiled steps of the windows: insert, fold, query; one set for history and stream.

Every array is int64 and C-contiguous, so that each function is compiled once; what is cached
between processes is in `compiled`. `words` holds a state whose header is at `at`;
`sections[s]` = (base, first, capacity) says where its head (0) and level ℓ (ℓ + 1) lie in it: a
packed state has first 0 and no spare capacity, a working one has room to grow. `floats` is `words`
seen as float64.

Callers provide the room: nothing here checks capacity beyond moving a section down to its base.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from features.windows.layout import (
    AT_FOLDED_CREATED,
    AT_FOLDED_EVENT,
    AT_FORMAT,
    AT_HEAD_COUNT,
    AT_LAYOUT,
    AT_LEVELS,
    AT_MAX_CREATED,
    AT_MAX_EVENT,
    COUNT,
    EXACT_LAG_US,
    HEAD_FIXED,
    L_AT_LEVELS,
    L_AT_SLOTS,
    L_COLUMNS,
    L_FORMAT,
    L_LAYOUT,
    L_LEVELS,
    L_SLOTS,
    LEVEL_ROW,
    LEVEL_WORDS,
    MAX_FLOAT,
    MAX_INT,
    MIN_FLOAT,
    MIN_INT,
    NEVER,
    SLOT_ROW,
    SUM_FLOAT,
    SUM_INT,
)

# A step is only called by compiled code, so it needs no door to Python: a third less to compile.
step: Callable[..., Any] = njit(  # type: ignore[call-overload]
    no_cpython_wrapper=True, no_cfunc_wrapper=True
)

# Zero that is not a literal: numba compiles a function again for each literal it is given.
ORIGIN = np.int64(0)
INT_MAX = np.iinfo(np.int64).max
INT_MIN = np.iinfo(np.int64).min


@step
def header_words(layout):  # type: ignore[no-untyped-def]
    """Length of the header of a state."""
    return AT_LEVELS + LEVEL_WORDS * layout[L_LEVELS]


@step
def reset(layout, words, at):  # type: ignore[no-untyped-def]
    """Write the header of a state that has seen nothing."""
    words[at + AT_FORMAT] = layout[L_FORMAT]
    words[at + AT_LAYOUT] = layout[L_LAYOUT]
    for i in range(AT_MAX_EVENT, AT_HEAD_COUNT):
        words[at + i] = NEVER
    words[at + AT_HEAD_COUNT] = 0
    for level in range(layout[L_LEVELS]):
        words[at + AT_LEVELS + LEVEL_WORDS * level] = 0
        words[at + AT_LEVELS + LEVEL_WORDS * level + 1] = NEVER


@step
def place(layout, words, at, length, sections):  # type: ignore[no-untyped-def]
    """Find the sections of a packed state of `length` words; False when it is not one of ours."""
    header = header_words(layout)
    if length < header:
        return False
    if words[at + AT_FORMAT] != layout[L_FORMAT] or words[at + AT_LAYOUT] != layout[L_LAYOUT]:
        return False
    base = at + header
    end = at + length
    for section in range(layout[L_LEVELS] + 1):
        if section == 0:
            stride = HEAD_FIXED + layout[L_COLUMNS]
            count = words[at + AT_HEAD_COUNT]
        else:
            stride = 1 + layout[L_SLOTS]
            count = words[at + AT_LEVELS + LEVEL_WORDS * (section - 1)]
        # Divided, not multiplied: garbage must not overflow into a count that fits.
        if count < 0 or count > (end - base) // stride:
            return False
        sections[section, 0] = base
        sections[section, 1] = 0
        sections[section, 2] = count
        base += count * stride
    return base == end


@step
def lower_bound(words, base, stride, low, high, start):  # type: ignore[no-untyped-def]
    """Index of the first tile in [low, high) that starts at `start` or later."""
    while low < high:
        middle = (low + high) // 2
        if words[base + middle * stride] < start:
            low = middle + 1
        else:
            high = middle
    return low


@step
def move_down(words, sections, section, count, stride):  # type: ignore[no-untyped-def]
    """Give a section its spare room at the end."""
    base = sections[section, 0]
    source = base + sections[section, 1] * stride
    for i in range(count * stride):
        words[base + i] = words[source + i]
    sections[section, 1] = 0


@step
def new_tile(layout, words, floats, tile, start):  # type: ignore[no-untyped-def]
    """Write a tile that holds nothing yet."""
    words[tile] = start
    at_slots = layout[L_AT_SLOTS]
    for slot in range(layout[L_SLOTS]):
        kind = layout[at_slots + SLOT_ROW * slot]
        cell = tile + 1 + slot
        if kind == MIN_INT:
            words[cell] = INT_MAX
        elif kind == MAX_INT:
            words[cell] = INT_MIN
        elif kind == MIN_FLOAT:
            floats[cell] = np.inf
        elif kind == MAX_FLOAT:
            floats[cell] = -np.inf
        else:
            words[cell] = 0  # the bits of 0.0 too


@step
def add_to_tile(layout, words, floats, tile, records, record_floats, record):  # type: ignore[no-untyped-def]
    """Add the event at `record` to the slots of the tile at `tile`."""
    valid = records[record + 2]
    at_slots = layout[L_AT_SLOTS]
    for slot in range(layout[L_SLOTS]):
        kind = layout[at_slots + SLOT_ROW * slot]
        column = layout[at_slots + SLOT_ROW * slot + 1]
        cell = tile + 1 + slot
        if column >= 0 and (valid >> column) & 1 == 0:
            continue
        source = record + HEAD_FIXED + column
        if kind == COUNT:
            words[cell] += 1
        elif kind == SUM_INT:
            words[cell] += records[source]
        elif kind == MIN_INT:
            words[cell] = min(words[cell], records[source])
        elif kind == MAX_INT:
            words[cell] = max(words[cell], records[source])
        else:
            value = record_floats[source]
            if kind == SUM_FLOAT:
                floats[cell] += value
            # A NaN stays once it is there: no number compares with it.
            elif (
                np.isnan(value)
                or (kind == MIN_FLOAT and value < floats[cell])
                or (kind == MAX_FLOAT and value > floats[cell])
            ):
                floats[cell] = value


@step
def add_event(layout, words, floats, at, sections, level, records, record_floats, record):  # type: ignore[no-untyped-def]
    """Add an event to its tile of a level, which is made when it is not there."""
    hop = layout[layout[L_AT_LEVELS] + LEVEL_ROW * level]
    start = records[record] // hop * hop
    stride = 1 + layout[L_SLOTS]
    section = level + 1
    base = sections[section, 0]
    count_at = at + AT_LEVELS + LEVEL_WORDS * level
    count = words[count_at]
    if sections[section, 1] + count == sections[section, 2]:
        move_down(words, sections, section, count, stride)
    first = sections[section, 1]
    end = first + count
    if count == 0 or words[base + (end - 1) * stride] < start:
        place_index = end
    else:
        place_index = lower_bound(words, base, stride, first, end, start)
    tile = base + place_index * stride
    if place_index == end or words[tile] != start:
        # Backwards: the target overlaps its source.
        for i in range(base + end * stride - 1, tile - 1, -1):
            words[i + stride] = words[i]
        new_tile(layout, words, floats, tile, start)
        words[count_at] = count + 1
    add_to_tile(layout, words, floats, tile, records, record_floats, record)


@step
def fold_first(layout, words, floats, at, sections):  # type: ignore[no-untyped-def]
    """Take the oldest event out of the head into the tiles, and drop tiles that nobody can need."""
    stride = HEAD_FIXED + layout[L_COLUMNS]
    record = sections[0, 0] + sections[0, 1] * stride
    sections[0, 1] += 1
    words[at + AT_HEAD_COUNT] -= 1
    words[at + AT_FOLDED_EVENT] = max(words[at + AT_FOLDED_EVENT], words[record])
    words[at + AT_FOLDED_CREATED] = max(words[at + AT_FOLDED_CREATED], words[record + 1])
    tile_stride = 1 + layout[L_SLOTS]
    for level in range(layout[L_LEVELS]):
        hop = layout[layout[L_AT_LEVELS] + LEVEL_ROW * level]
        longest = layout[layout[L_AT_LEVELS] + LEVEL_ROW * level + 1]
        keep_from = (words[at + AT_MAX_EVENT] - EXACT_LAG_US - longest) // hop * hop
        count_at = at + AT_LEVELS + LEVEL_WORDS * level
        section = level + 1
        while words[count_at] > 0:
            start = words[sections[section, 0] + sections[section, 1] * tile_stride]
            if start >= keep_from:
                break
            words[count_at + 1] = max(words[count_at + 1], start)
            sections[section, 1] += 1
            words[count_at] -= 1
        start = words[record] // hop * hop
        if start < keep_from:
            words[count_at + 1] = max(words[count_at + 1], start)
        else:
            add_event(layout, words, floats, at, sections, level, words, floats, record)


@step
def fold(layout, words, floats, at, sections, event_before, created_through):  # type: ignore[no-untyped-def]
    """Fold from the front of the head, in order, what no coming query has to leave out."""
    stride = HEAD_FIXED + layout[L_COLUMNS]
    while words[at + AT_HEAD_COUNT] > 0:
        record = sections[0, 0] + sections[0, 1] * stride
        if words[record] >= event_before or words[record + 1] > created_through:
            break
        fold_first(layout, words, floats, at, sections)


@step
def insert(layout, words, floats, at, sections, head_cap, event, created, valid, values, row):  # type: ignore[no-untyped-def]
    """Append one event (row `row` of `values`) to the head and fold what has waited enough."""
    columns = layout[L_COLUMNS]
    stride = HEAD_FIXED + columns
    count = words[at + AT_HEAD_COUNT]
    if sections[0, 1] + count == sections[0, 2]:
        move_down(words, sections, 0, count, stride)
    record = sections[0, 0] + (sections[0, 1] + count) * stride
    words[record] = event
    words[record + 1] = created
    bitmap = 0
    for column in range(columns):
        words[record + HEAD_FIXED + column] = values[row, column]
        if valid[row, column]:
            bitmap |= 1 << column
    words[record + 2] = bitmap
    words[at + AT_HEAD_COUNT] = count + 1
    words[at + AT_MAX_EVENT] = max(words[at + AT_MAX_EVENT], event)
    words[at + AT_MAX_CREATED] = max(words[at + AT_MAX_CREATED], created)
    fold(
        layout,
        words,
        floats,
        at,
        sections,
        words[at + AT_MAX_EVENT] - EXACT_LAG_US,
        words[at + AT_MAX_CREATED] - EXACT_LAG_US,
    )
    while words[at + AT_HEAD_COUNT] > head_cap:
        fold_first(layout, words, floats, at, sections)


@step
def make_room(layout, words, head_capacity, level_capacity, sections):  # type: ignore[no-untyped-def]
    """Lay out the sections of a working state at 0 and empty it; returns the words it takes."""
    base = header_words(layout)
    sections[0, 0] = base
    sections[0, 1] = 0
    sections[0, 2] = head_capacity
    base += head_capacity * (HEAD_FIXED + layout[L_COLUMNS])
    for level in range(layout[L_LEVELS]):
        sections[level + 1, 0] = base
        sections[level + 1, 1] = 0
        sections[level + 1, 2] = level_capacity[level]
        base += level_capacity[level] * (1 + layout[L_SLOTS])
    if words.size > 0:
        reset(layout, words, ORIGIN)
    return base


@step
def copy_state(layout, source, source_at, source_sections, target, target_at, target_sections):  # type: ignore[no-untyped-def]
    """Copy header, head and tiles to the start of the target's sections."""
    for i in range(header_words(layout)):
        target[target_at + i] = source[source_at + i]
    for section in range(layout[L_LEVELS] + 1):
        if section == 0:
            stride = HEAD_FIXED + layout[L_COLUMNS]
            count = source[source_at + AT_HEAD_COUNT]
        else:
            stride = 1 + layout[L_SLOTS]
            count = source[source_at + AT_LEVELS + LEVEL_WORDS * (section - 1)]
        first = source_sections[section, 0] + source_sections[section, 1] * stride
        base = target_sections[section, 0]
        target_sections[section, 1] = 0
        for i in range(count * stride):
            target[base + i] = source[first + i]


@step
def packed_words(layout, words, at):  # type: ignore[no-untyped-def]
    """Length of the state when packed."""
    length = header_words(layout) + words[at + AT_HEAD_COUNT] * (HEAD_FIXED + layout[L_COLUMNS])
    for level in range(layout[L_LEVELS]):
        length += words[at + AT_LEVELS + LEVEL_WORDS * level] * (1 + layout[L_SLOTS])
    return length


@step
def pack_sections(layout, words, at, target_at, target_sections):  # type: ignore[no-untyped-def]
    """Lay out the sections of the packed form, at `target_at`, of the state at `at`."""
    base = target_at + header_words(layout)
    for section in range(layout[L_LEVELS] + 1):
        if section == 0:
            stride = HEAD_FIXED + layout[L_COLUMNS]
            count = words[at + AT_HEAD_COUNT]
        else:
            stride = 1 + layout[L_SLOTS]
            count = words[at + AT_LEVELS + LEVEL_WORDS * (section - 1)]
        target_sections[section, 0] = base
        target_sections[section, 1] = 0
        target_sections[section, 2] = count
        base += count * stride
