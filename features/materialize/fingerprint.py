"""Fingerprints of rows: 128 bits of what a row holds, the same in every process.

They tell rows that are there already from new ones, among rows that nobody forges: two rows of 10^9
fall together with a chance of 10^-20. Mixing is that of SplitMix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.arrow import Arrow, column_from_arrow, typed_kind
from features.offline.buckets import hash_texts
from features.types import ARRAYS
from features.variable import encode_cells

Hashes = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SEEDS = np.array([0x243F6A8885A308D3, 0x13198A2E03707344], np.uint64)
_MASK = (1 << 64) - 1


def row_hashes(table: pa.Table) -> Hashes:
    """Return uint64[rows, 2]: of every row of a table, in the types of `features.arrow`."""
    found = np.repeat(_SEEDS[None, :], table.num_rows, axis=0)
    for column in table.columns:
        valid = np.asarray(column.is_valid())
        words = np.where(valid, _words(column), np.uint64(0))
        found = _mix(found ^ _mix(words[:, None] + _SEEDS))
        found += valid[:, None].astype(np.uint64)
    return _mix(found)


def _words(column: Arrow) -> Hashes:
    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        return hash_texts(column)
    if pa.types.is_list(column.type):
        return hash_texts(_cells(column))
    filled = column.fill_null(False if pa.types.is_boolean(column.type) else 0)
    values = np.asarray(filled)
    if values.dtype != np.float64:
        values = values.astype(np.int64)
    return np.ascontiguousarray(values).view(np.uint64)


def _cells(lists: Arrow) -> Arrow:
    """Return the cell of each list, null where it is."""
    dtype = next(each for each in ARRAYS if typed_kind(each) == lists.type)
    column = column_from_arrow(pa.table({"lists": lists}), "lists", dtype, "rows")
    cells = zip(encode_cells(column, dtype), column.mask.tolist(), strict=True)
    return pa.chunked_array([pa.array([cell if ok else None for cell, ok in cells], pa.binary())])


def _mix(values: Hashes) -> Hashes:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def sum_of(hashes: Hashes, first: int = 0, before: str = "") -> str:
    """Return the sum of rows that follow `first` rows whose sum is `before`, as hex text.

    It hangs on each row and its place, and not on how rows are cut into pieces.
    """
    places = np.arange(first, first + len(hashes), dtype=np.uint64) * _GOLDEN
    lanes = _mix(hashes + places[:, None]).sum(axis=0, dtype=np.uint64).tolist()
    known = int(before or "0", 16)
    high, low = (known >> 64) + lanes[0], (known & _MASK) + lanes[1]
    return f"{(high & _MASK) << 64 | low & _MASK:032x}"
