"""The cells of a tile: what each slot keeps of the events, how it is added to, merged, finished.

Every array is int64; `cells` holds a tile at `tile` (its start first, then the slots' cells).
A float's least and greatest are kept as an integer that sorts like it, NaN before or behind all.
"""

from __future__ import annotations

import numpy as np

from features.types import FeatureStatus
from features.windows.layout import (
    COUNT,
    L_AT_SLOTS,
    L_SLOTS,
    L_TILE,
    MAX_FLOAT,
    MAX_INT,
    MIN_FLOAT,
    MIN_INT,
    OUT_COUNT,
    OUT_INT,
    OUT_MAX_FLOAT,
    OUT_MEAN_FLOAT,
    OUT_MEAN_INT,
    OUT_MIN_FLOAT,
    RECORD_FIXED,
    SLOT_ROW,
    SUM_FLOAT,
    SUM_INT,
)
from features.windows.sums import NAN, add_float, flags_of, merge_sums
from headrace.compiled import step

INT_MAX = np.iinfo(np.int64).max
INT_MIN = np.iinfo(np.int64).min
PRESENT = FeatureStatus.PRESENT
NULL = FeatureStatus.NULL


@step
def sortable(word):  # type: ignore[no-untyped-def]
    """Return the integer that sorts like the double of these bits, and back; one zero."""
    if word == INT_MIN:  # -0.0
        return 0
    return word ^ ((word >> 63) & INT_MAX)


@step
def least_key(word):  # type: ignore[no-untyped-def]
    """Return what a least float is kept as: a NaN is less than all."""
    return INT_MIN if flags_of(word) == NAN else sortable(word)


@step
def greatest_key(word):  # type: ignore[no-untyped-def]
    """Return what a greatest float is kept as: a NaN is greater than all."""
    return INT_MAX if flags_of(word) == NAN else sortable(word)


@step
def is_taken(bitmap, bit):  # type: ignore[no-untyped-def]
    """Whether an event with this bitmap has what `bit` says (-1: always)."""
    return bit < 0 or (bitmap >> bit) & 1 != 0


@step
def clear(layout, cells, tile):  # type: ignore[no-untyped-def]
    """Empty the slots of the tile at `tile`."""
    cells[tile + 1 : tile + layout[L_TILE]] = 0
    row = layout[L_AT_SLOTS]
    for _ in range(layout[L_SLOTS]):
        kind = layout[row]
        if kind in (MIN_INT, MIN_FLOAT):
            cells[tile + layout[row + 2]] = INT_MAX
        elif kind in (MAX_INT, MAX_FLOAT):
            cells[tile + layout[row + 2]] = INT_MIN
        row += SLOT_ROW


@step
def add_record(layout, cells, tile, records, record):  # type: ignore[no-untyped-def]
    """Add the event at records[record] to the tile at `tile`."""
    valid = records[record + 2]
    row = layout[L_AT_SLOTS]
    for _ in range(layout[L_SLOTS]):
        kind = layout[row]
        bit = layout[row + 1]
        cell = tile + layout[row + 2]
        column = layout[row + 3]
        row += SLOT_ROW
        if not is_taken(valid, bit):
            continue
        if kind == COUNT:
            cells[cell] += 1
            continue
        word = records[record + RECORD_FIXED + column]
        if kind == SUM_FLOAT:
            add_float(cells, cell, word)
        elif kind == SUM_INT:
            cells[cell] += word
        elif kind == MIN_INT:
            cells[cell] = min(cells[cell], word)
        elif kind == MAX_INT:
            cells[cell] = max(cells[cell], word)
        elif kind == MIN_FLOAT:
            cells[cell] = min(cells[cell], least_key(word))
        else:
            cells[cell] = max(cells[cell], greatest_key(word))


@step
def merge(layout, cells, tile, others, first, count):  # type: ignore[no-untyped-def]
    """Merge `count` tiles that stand at others[first:], one after the other, into one."""
    stride = layout[L_TILE]
    row = layout[L_AT_SLOTS]
    for _ in range(layout[L_SLOTS]):
        kind = layout[row]
        cell = tile + layout[row + 2]
        other = first + layout[row + 2]
        row += SLOT_ROW
        if kind == SUM_FLOAT:
            for _ in range(count):
                merge_sums(cells, cell, others, other)
                other += stride
            continue
        value = cells[cell]
        if kind in (COUNT, SUM_INT):
            for _ in range(count):
                value += others[other]
                other += stride
        elif kind in (MIN_INT, MIN_FLOAT):
            for _ in range(count):
                value = min(value, others[other])
                other += stride
        else:
            for _ in range(count):
                value = max(value, others[other])
                other += stride
        cells[cell] = value


@step
def put(kind, count, value, total, out, out_floats, row, target):  # type: ignore[no-untyped-def]
    """Write an output to out[row, target], or its `out_floats` view; returns its status.

    value: the cell of an integer, a least or a greatest; total: the sum of floats.
    """
    if kind == OUT_COUNT:
        out[row, target] = count
        return PRESENT
    if count == 0:
        out[row, target] = 0
        return NULL
    if kind == OUT_INT:
        out[row, target] = value
        return PRESENT
    if kind in (OUT_MIN_FLOAT, OUT_MAX_FLOAT):
        if value == (INT_MIN if kind == OUT_MIN_FLOAT else INT_MAX):
            out_floats[row, target] = np.nan
        else:
            out[row, target] = sortable(value)
        return PRESENT
    if kind == OUT_MEAN_INT:
        total = float(value) / float(count)
    elif kind == OUT_MEAN_FLOAT:
        total /= float(count)
    # One NaN and one zero.
    out_floats[row, target] = np.nan if np.isnan(total) else total + 0.0
    return PRESENT
