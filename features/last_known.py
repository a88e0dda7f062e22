"""The compiled reading of last-known rows: many piles at once, straight into an assembly.

It does what `row.last_known` and `RowCodec.unpack` do, which stay the way for text and say what is
wrong with a row that cannot be read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from features import row as row_layout
from features import status as status_rule
from features.row import FIXED_WORDS
from features.status import PRESENT, put_absent, put_value, status_at
from features.types import FeatureStatus
from headrace.compiled import borrowing_step, kept

NOT_FOUND, UNAVAILABLE = FeatureStatus.NOT_FOUND, FeatureStatus.UNAVAILABLE
NONE, BAD = -1, -2
_ROWS = 0x7FFF_FFFF_FFFF_FFFF

_SIGNATURE = (
    "int64(int64[::1], int64[::1], int64[::1], int64[::1], int64, int64, int64[::1], "
    "int64[:, ::1], uint8[:, ::1])"
)


@borrowing_step
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


@borrowing_step
def _put_fields(joined, at, targets, words, status, row):  # type: ignore[no-untyped-def]
    """Write the fields of the row whose bitmap is at joined[at]."""
    values = at + ((targets.size + 63) >> 6)
    for field in range(targets.size):
        target = targets[field]
        if target >= 0:
            is_null = (joined[at + (field >> 6)] >> (field & 63)) & 1
            put_value(words, status, row, target, joined[values + field], is_null)


@kept(row_layout, status_rule, signature=_SIGNATURE)
def read_piles(joined, lengths, places, times, ttl, schema_id, targets, words, status):  # type: ignore[no-untyped-def]
    """Answer row r from pile p = places[r], at times[r].

    joined: the words of all piles, lengths: the bytes of each; an empty pile has no rows, and a
    place below 0 is no pile: both are NOT_FOUND. ttl: microseconds, or `row.NO_TTL`. Field f goes
    to words[r, targets[f]] and status[r, targets[f]], where that is 0 or more.
    Returns the row of the first pile that cannot be read, or -1.
    """
    offsets = np.zeros(lengths.size + 1, dtype=np.int64)
    for pile in range(lengths.size):
        if lengths[pile] & 7:
            return np.int64(np.argmax(places == pile))
        offsets[pile + 1] = offsets[pile] + (lengths[pile] >> 3)
    row_words = FIXED_WORDS + ((targets.size + 63) >> 6) + targets.size
    for row in range(places.size):
        outcome, found = NOT_FOUND, NONE
        if places[row] >= 0 and offsets[places[row]] < offsets[places[row] + 1]:
            pile, end = offsets[places[row]], offsets[places[row] + 1]
            found = _find_row(joined, pile, end, times[row], row_words, schema_id)
            if found == BAD:
                return row
            if found == NONE:
                # Bit 63: older rows were dropped.
                outcome = UNAVAILABLE if joined[pile] < 0 else NOT_FOUND
            else:
                outcome = status_at(joined[found + 1], times[row], ttl)
        if outcome == PRESENT:
            _put_fields(joined, found + FIXED_WORDS, targets, words, status, row)
        else:
            put_absent(words, status, row, targets, outcome)
    return -1


def joined_piles(piles: Sequence[bytes | None]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return piles as one array of words, and how many bytes each has: what `read_piles` takes."""
    parts: list[bytes] = [pile or b"" for pile in piles]
    joined = bytearray().join(parts)
    joined += bytes(-len(joined) % 8)
    return np.frombuffer(joined, np.int64), np.fromiter(map(len, parts), np.int64, len(parts))
