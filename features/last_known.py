"""The compiled reading of last-known rows: many piles at once, straight into an assembly.

It does what `row.last_known` and `RowCodec.unpack` do, which stay the way for text and say what is
wrong with a row that cannot be read.
"""

from __future__ import annotations

import numpy as np

from features import row as row_layout
from features.row import FIXED_WORDS, NO_TTL
from features.types import FeatureStatus
from headrace.compiled import kept, step

PRESENT, NULL = FeatureStatus.PRESENT, FeatureStatus.NULL
NOT_FOUND, EXPIRED = FeatureStatus.NOT_FOUND, FeatureStatus.EXPIRED
UNAVAILABLE = FeatureStatus.UNAVAILABLE
NONE, BAD = -1, -2
_ROWS = 0x7FFF_FFFF_FFFF_FFFF

_SIGNATURE = (
    "int64(int64[::1], int64[::1], int64[::1], int64[::1], int64, int64, int64[::1], "
    "int64[:, ::1], uint8[:, ::1])"
)


@step
def _find_row(joined, at, end, t, row_words, schema_id):  # type: ignore[no-untyped-def]
    """Return where the last row known at t begins in a pile; NONE without one, or BAD."""
    left = joined[at] & _ROWS
    at += 1
    while left > 0:
        if at + FIXED_WORDS > end:
            return BAD
        length_bytes = (joined[at] >> 32) & 0xFFFF_FFFF
        length = length_bytes >> 3
        if length_bytes & 7 or length < row_words or at + length > end:
            return BAD
        if joined[at] & 0xFFFF_FFFF != schema_id:
            return BAD
        if joined[at + 1] <= t and joined[at + 2] <= t:
            return at
        at += length
        left -= 1
    return NONE


@step
def _put_fields(joined, at, targets, words, status, row):  # type: ignore[no-untyped-def]
    """Write the fields of the row whose bitmap is at joined[at]."""
    values = at + ((targets.size + 63) >> 6)
    for field in range(targets.size):
        target = targets[field]
        if target >= 0:
            is_null = (joined[at + (field >> 6)] >> (field & 63)) & 1
            words[row, target] = 0 if is_null else joined[values + field]
            status[row, target] = NULL if is_null else PRESENT


@kept(row_layout, signature=_SIGNATURE)
def read_piles(joined, offsets, places, times, ttl, schema_id, targets, words, status):  # type: ignore[no-untyped-def]
    """Answer row r from the pile joined[offsets[p]:offsets[p + 1]], p = places[r], at times[r].

    joined: the piles' words; an empty pile has no rows, and a place below 0 is no pile: both are
    NOT_FOUND. ttl: microseconds, or NO_TTL. Field f goes to words[r, targets[f]] and
    status[r, targets[f]], where that is 0 or more.
    Returns the row of the first pile that cannot be read, or -1.
    """
    row_words = FIXED_WORDS + ((targets.size + 63) >> 6) + targets.size
    for row in range(places.size):
        outcome = NOT_FOUND
        if places[row] >= 0 and offsets[places[row]] < offsets[places[row] + 1]:
            pile, end = offsets[places[row]], offsets[places[row] + 1]
            found = _find_row(joined, pile, end, times[row], row_words, schema_id)
            if found == BAD:
                return row
            if found == NONE:
                # Bit 63: older rows were dropped.
                outcome = UNAVAILABLE if joined[pile] < 0 else NOT_FOUND
            elif ttl != NO_TTL and times[row] - joined[found + 1] > ttl:
                outcome = EXPIRED
            else:
                _put_fields(joined, found + FIXED_WORDS, targets, words, status, row)
                continue
        for target in targets:
            if target >= 0:
                words[row, target] = 0
                status[row, target] = outcome
    return -1


def joined_piles(piles: list[bytes | None]) -> tuple[np.ndarray, np.ndarray]:
    """Return piles as one array of words, and where each begins and the last ends.

    A pile that is no whole number of words becomes one that cannot be read.
    """
    parts = [b"" if pile is None else pile for pile in piles]
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    if (lengths & 7).any():
        parts = [_CUT if len(part) & 7 else part for part in parts]
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum(lengths >> 3, out=offsets[1:])
    return np.frombuffer(bytearray().join(parts), np.int64), offsets


_CUT = (1).to_bytes(8, "little")  # says that it has a row
