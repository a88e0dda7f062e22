"""The cells of a tile: what each slot keeps of the events, how it is added to, merged, finished.

Every array is int64; `cells` holds a tile at `tile` (its start first, then the slots' cells).
A float's least and greatest are kept as an integer that sorts like it, NaN before or behind all.
"""

from __future__ import annotations

import numpy as np

from features.types import FeatureStatus
from features.windows.bits import bits_of_float
from features.windows.decay import decayed_sum, weight_of, weighted
from features.windows.layout import (
    COUNT,
    DECAYED,
    FIRST_FLOAT,
    FIRST_INT,
    L_AT_SLOTS,
    L_SLOTS,
    L_TILE,
    LAST_FLOAT,
    LAST_INT,
    MAX_FLOAT,
    MAX_INT,
    MIN_FLOAT,
    MIN_INT,
    ONE,
    OUT_COUNT,
    OUT_DECAYED_COUNT,
    OUT_DECAYED_MEAN,
    OUT_INT,
    OUT_MAX_FLOAT,
    OUT_MEAN_FLOAT,
    OUT_MEAN_INT,
    OUT_MIN_FLOAT,
    OUT_RATE,
    OUT_SECONDS_SINCE,
    OUT_STDDEV,
    OUT_VARIANCE,
    RECORD_FIXED,
    SLOT_ROW,
    SQUARES,
    SUM_FLOAT,
    SUM_INT,
)
from features.windows.moments import SQUARE_LIMBS, add_square, variance
from features.windows.sums import LIMBS, NAN, add_float, flags_of, merge_sums
from headrace.compiled import apart, step

INT_MAX = np.iinfo(np.int64).max
INT_MIN = np.iinfo(np.int64).min
ONE_BITS = 0x3FF << 52  # of the double 1.0
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
        elif kind in (FIRST_INT, FIRST_FLOAT):
            cells[tile + layout[row + 2] + 1] = INT_MAX
        elif kind in (LAST_INT, LAST_FLOAT):
            cells[tile + layout[row + 2] + 1] = INT_MIN
        row += SLOT_ROW


@step
def double_of(word, is_int):  # type: ignore[no-untyped-def]
    """Return the bits of a value as a double."""
    return bits_of_float(float(word)) if is_int else word  # type: ignore[call-arg]


@step
def value_key(kind, word):  # type: ignore[no-untyped-def]
    """Return what a first or last value is kept as: it sorts like the value, NaN behind all."""
    return greatest_key(word) if kind in (FIRST_FLOAT, LAST_FLOAT) else word


@step
def keep_end(kind, cells, cell, value, event, created):  # type: ignore[no-untyped-def]
    """Keep the first or last of the value of a cell and this one (a `value_key`).

    Of values of one event time that of the later created time is the later one, then the greater.
    """
    is_after = event > cells[cell + 1]
    if event == cells[cell + 1]:
        is_after = created > cells[cell + 2]
        if created == cells[cell + 2]:
            is_after = value > cells[cell]
    if is_after == (kind in (LAST_INT, LAST_FLOAT)):
        cells[cell] = value
        cells[cell + 1] = event
        cells[cell + 2] = created


@step
def add_record(layout, cells, tile, records, record):  # type: ignore[no-untyped-def]
    """Add the event at records[record] to the tile at `tile`."""
    valid = records[record + 2]
    row = layout[L_AT_SLOTS]
    for _ in range(layout[L_SLOTS]):
        kind = layout[row]
        bit = layout[row + 1]
        cell = tile + layout[row + 2]
        column = layout[row + 4]
        row += SLOT_ROW
        if not is_taken(valid, bit):
            continue
        if kind == COUNT:
            cells[cell] += 1
            continue
        word = records[record + RECORD_FIXED + column]
        if kind == SUM_FLOAT:
            add_float(cells, cell, double_of(word, layout[row - 2]), 0)
        elif kind == SUM_INT:
            cells[cell] += word
        elif kind == MIN_INT:
            cells[cell] = min(cells[cell], word)
        elif kind == MAX_INT:
            cells[cell] = max(cells[cell], word)
        elif kind == MIN_FLOAT:
            cells[cell] = min(cells[cell], least_key(word))
        elif kind == MAX_FLOAT:
            cells[cell] = max(cells[cell], greatest_key(word))
        else:
            _add_other(layout, row - SLOT_ROW, cells, cell, records, record)


@apart
def _add_other(layout, row, cells, cell, records, record):  # type: ignore[no-untyped-def]
    """Add an event to a slot (whose row is at `row`) of a kind that few views have."""
    kind, column, is_int, half_life = layout[row], layout[row + 4], layout[row + 5], layout[row + 6]
    event, created = records[record], records[record + 1]
    word = ONE_BITS if column == ONE else records[record + RECORD_FIXED + column]
    if kind == SQUARES:
        add_square(cells, cell, double_of(word, is_int))
    elif kind == DECAYED:
        weight, scale = weight_of(event, half_life)
        add_float(cells, cell, weighted(double_of(word, is_int), weight), scale)
    else:
        keep_end(kind, cells, cell, value_key(kind, word), event, created)


@apart
def _merge_other(kind, cells, cell, others, other):  # type: ignore[no-untyped-def]
    """Merge the cell of a slot of a kind that few views have."""
    if kind == SQUARES:
        merge_sums(cells, cell, others, other, SQUARE_LIMBS)
    elif kind == DECAYED:
        merge_sums(cells, cell, others, other, LIMBS)
    else:
        keep_end(kind, cells, cell, others[other], others[other + 1], others[other + 2])


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
                merge_sums(cells, cell, others, other, LIMBS)
                other += stride
            continue
        if kind >= SQUARES:
            for _ in range(count):
                _merge_other(kind, cells, cell, others, other)
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


@apart
def total_of(kind, cells, cell, others, other, count, t, half_life):  # type: ignore[no-untyped-def]
    """Return what an output from OUT_VARIANCE on is made of, from one cell or two."""
    if kind in (OUT_VARIANCE, OUT_STDDEV):
        return variance(cells, cell, others, other, count) if count > 1 else 0.0
    total = decayed_sum(cells, cell, t, half_life)
    if kind == OUT_DECAYED_MEAN and count:
        total /= decayed_sum(others, other, t, half_life)
    return total


@step
def put(kind, count, value, total, t, span, out, out_floats, row, target):  # type: ignore[no-untyped-def]
    """Write an output to out[row, target], or its `out_floats` view; returns its status.

    value: the cell of an integer, a least or a greatest; total: see `total_of`; span: how long the
    window is at t, in microseconds.
    """
    if kind == OUT_COUNT:
        out[row, target] = count
        return PRESENT
    if kind == OUT_RATE and span > 0:
        out_floats[row, target] = float(count) * 1e6 / float(span)
        return PRESENT
    least_count = 2 if kind in (OUT_VARIANCE, OUT_STDDEV) else 1
    if (count < least_count and kind != OUT_DECAYED_COUNT) or kind == OUT_RATE:
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
    elif kind == OUT_SECONDS_SINCE:
        total = float(t - value) / 1e6
    elif kind == OUT_STDDEV:
        total = np.sqrt(total)
    # One NaN and one zero.
    out_floats[row, target] = np.nan if np.isnan(total) else total + 0.0
    return PRESENT
