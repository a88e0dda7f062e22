"""The steps on one state: whether it is one of ours, what may enter it, compaction.

Every array is int64 and C-contiguous, so that each function is compiled once. A state of `length`
words is at words[at:]; what `layout` calls header, tiles and tail lies in it as written there.
"""

from __future__ import annotations

import numpy as np

from features.definitions import FUTURE_TOLERANCE_US
from features.windows.cells import add_record, clear
from features.windows.layout import (
    AT_FOLDED_CREATED,
    AT_FOLDED_EVENT,
    AT_FORMAT,
    AT_LAYOUT,
    AT_LEVELS,
    AT_WORDS,
    EXACT_LAG_US,
    L_AT_LEVELS,
    L_COLUMNS,
    L_FORMAT,
    L_LAYOUT,
    L_LEVELS,
    L_TAG,
    L_TILE,
    LEVEL_ROW,
    LEVEL_WORDS,
    NEVER,
    RECORD_FIXED,
    TAG_SHIFT,
    TAIL_KEPT,
    TAIL_MAX,
)
from headrace.compiled import apart, step

# Times beyond this (the year 70,000) are garbage, and arithmetic on them could overflow.
TIME_LIMIT_US = 1 << 61


@step
def is_refused(lateness, event, created):  # type: ignore[no-untyped-def]
    """Why an event is left out: 1, stamped too far ahead or no time at all; 2, too late; else 0."""
    if not (-TIME_LIMIT_US < event < TIME_LIMIT_US and -TIME_LIMIT_US < created < TIME_LIMIT_US):
        return 1
    if event > created + FUTURE_TOLERANCE_US:
        return 1
    return 2 if created - event > lateness else 0


@step
def record_words(layout):  # type: ignore[no-untyped-def]
    """Length of a record."""
    return RECORD_FIXED + layout[L_COLUMNS]


@step
def header_words(layout):  # type: ignore[no-untyped-def]
    """Length of a header."""
    return AT_LEVELS + LEVEL_WORDS * layout[L_LEVELS]


@step
def is_folded(layout, words, at, length):  # type: ignore[no-untyped-def]
    """Whether a state has a header: else it is a tail alone."""
    return length > 0 and words[at] == layout[L_FORMAT]


@step
def tail_start(layout, words, at, length):  # type: ignore[no-untyped-def]
    """Where the tail begins, from the start of the state."""
    return words[at + AT_WORDS] if is_folded(layout, words, at, length) else 0


@step
def is_ours(layout, words, at, length):  # type: ignore[no-untyped-def]
    """Whether words[at:at + length] can be a state of this layout."""
    start = 0
    if is_folded(layout, words, at, length):
        start = header_words(layout)
        if length < start or words[at + AT_LAYOUT] != layout[L_LAYOUT]:
            return False
        for level in range(layout[L_LEVELS]):
            count = words[at + AT_LEVELS + LEVEL_WORDS * level]
            # Divided, not multiplied: garbage must not overflow into a count that fits.
            if count < 0 or count > (length - start) // layout[L_TILE]:
                return False
            start += count * layout[L_TILE]
        if start != words[at + AT_WORDS]:
            return False
    stride = record_words(layout)
    if (length - start) % stride:
        return False
    for record in range(at + start, at + length, stride):
        if words[record + 2] >> TAG_SHIFT != layout[L_TAG]:
            return False
        if not (-TIME_LIMIT_US < words[record] < TIME_LIMIT_US):
            return False
    return True


@step
def write_record(tag, columns, bits, words, record, event, created, taken, values, row):  # type: ignore[no-untyped-def]
    """Write the record of an event (row `row` of `taken` and `values`)."""
    words[record] = event
    words[record + 1] = created
    bitmap = tag << TAG_SHIFT
    for column in range(columns):
        if taken[row, column]:
            bitmap |= 1 << column
            words[record + RECORD_FIXED + column] = values[row, column]
        else:
            words[record + RECORD_FIXED + column] = 0
    for bit in range(columns, bits):
        bitmap |= np.int64(taken[row, bit]) << bit
    words[record + 2] = bitmap


@step
def compacted_words_max(layout, words, at, length):  # type: ignore[no-untyped-def]
    """Room that `compact` needs for its result."""
    start = tail_start(layout, words, at, length)
    records = (length - start) // record_words(layout)
    tiles = records * layout[L_LEVELS] * layout[L_TILE]
    return header_words(layout) + length + tiles


@apart
def compact(layout, words, at, length, out, to):  # type: ignore[no-untyped-def]
    """Write the state, with the old part of its tail in tiles, to out[to:]; returns its length.

    Returns 0, and what stands at out[to:] is of no use, where the state had better stay as it is.
    """
    stride = record_words(layout)
    start = tail_start(layout, words, at, length)
    records = (length - start) // stride
    tail = at + start
    chosen, newest = _to_fold(layout, words, at, start, tail, records)
    if chosen.size == 0:
        return 0
    folded_event = folded_created = NEVER
    if start:
        folded_event = words[at + AT_FOLDED_EVENT]
        folded_created = words[at + AT_FOLDED_CREATED]
    is_left = np.ones(records, dtype=np.bool_)
    for record in chosen:
        folded_event = max(folded_event, words[record])
        folded_created = max(folded_created, words[record + 1])
        is_left[(record - tail) // stride] = False
    out[to + AT_FORMAT] = layout[L_FORMAT]
    out[to + AT_LAYOUT] = layout[L_LAYOUT]
    out[to + AT_FOLDED_EVENT] = folded_event
    out[to + AT_FOLDED_CREATED] = folded_created
    end = to + header_words(layout)
    old = at + header_words(layout)
    for level in range(layout[L_LEVELS]):
        old_count = words[at + AT_LEVELS + LEVEL_WORDS * level] if start else 0
        evicted = words[at + AT_LEVELS + LEVEL_WORDS * level + 1] if start else NEVER
        end = _fold_level(
            layout, level, newest, words, old, old_count, evicted, chosen, out, to, end
        )
        old += old_count * layout[L_TILE]
    out[to + AT_WORDS] = end - to
    for i in range(records):
        if is_left[i]:
            record = tail + i * stride
            out[end : end + stride] = words[record : record + stride]
            end += stride
    return 0 if end - to >= length and records < TAIL_MAX else end - to


@step
def _to_fold(layout, words, at, start, tail, records):  # type: ignore[no-untyped-def]
    """Return the records to fold, by their event times, and the newest event time of the state."""
    stride = record_words(layout)
    newest = words[at + AT_FOLDED_EVENT] if start else NEVER
    newest_created = words[at + AT_FOLDED_CREATED] if start else NEVER
    for i in range(records):
        newest = max(newest, words[tail + i * stride])
        newest_created = max(newest_created, words[tail + i * stride + 1])
    takes = np.zeros(records, dtype=np.bool_)
    count = 0
    for i in range(records):
        record = tail + i * stride
        if words[record] < newest - EXACT_LAG_US and (
            words[record + 1] <= newest_created - EXACT_LAG_US
        ):
            takes[i] = True
            count += 1
    i = 0
    while records - count > TAIL_KEPT:
        if not takes[i]:
            takes[i] = True
            count += 1
        i += 1
    chosen = np.empty(count, dtype=np.int64)
    count = 0
    for i in range(records):
        if takes[i]:
            record = tail + i * stride
            # Insertion sort: they come almost in order, and are few.
            place = count
            while place > 0 and words[chosen[place - 1]] > words[record]:
                chosen[place] = chosen[place - 1]
                place -= 1
            chosen[place] = record
            count += 1
    return chosen, newest


@step
def _fold_level(layout, level, newest, words, old, old_count, evicted, chosen, out, to, end):  # type: ignore[no-untyped-def]
    """Merge a level's tiles and the records into out[end:], without what nobody can need any more.

    Returns where they end.
    """
    hop = layout[layout[L_AT_LEVELS] + LEVEL_ROW * level]
    longest = layout[layout[L_AT_LEVELS] + LEVEL_ROW * level + 1]
    keep_from = (newest - EXACT_LAG_US - longest) // hop * hop
    tile_words = layout[L_TILE]
    count = 0
    i = j = 0
    while i < old_count or j < chosen.size:
        tile = old + i * tile_words
        begin = words[chosen[j]] // hop * hop if j < chosen.size else 0
        if i < old_count and (j == chosen.size or words[tile] <= begin):
            begin = words[tile]
            i += 1
            if begin >= keep_from:
                out[end : end + tile_words] = words[tile : tile + tile_words]
        elif begin >= keep_from:
            out[end] = begin
            clear(layout, out, end)
        while j < chosen.size and words[chosen[j]] // hop * hop == begin:
            if begin >= keep_from:
                add_record(layout, out, end, words, chosen[j])
            j += 1
        if begin >= keep_from:
            end += tile_words
            count += 1
        else:
            evicted = max(evicted, begin)
    out[to + AT_LEVELS + LEVEL_WORDS * level] = count
    out[to + AT_LEVELS + LEVEL_WORDS * level + 1] = evicted
    return end
