"""Runs of frames: what a busy client sends at once is alike but for stream ids and bodies.

One call of `struct` cuts a run apart, and whole columns are compared: a quarter of what it takes to
look at each frame. Nothing here decides that a frame is good. It finds the frames that follow on
one that its caller has looked at, and that are as this one, byte for byte, where they must be.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from server.wire.http2.frames import HEADER_BYTES

# With fewer frames, to look at each is as fast.
RUN_MIN = 4
_RUN_MAX = 128
START_BYTES = 5  # of a frame: length, type, flags; the stream id follows


def heads(data: bytes, at: int, block_bytes: int, count_max: int) -> Sequence[int]:
    """Return the stream ids of the HEADERS frame at `at` and of equal ones that follow on it."""
    cells = _cells(data, at, (block_bytes,), count_max)
    ids = cells[1::3]
    return ids[: min(_alike(cells[::3]), _alike(cells[2::3]), _rising(ids))]


def bodies(
    data: bytes, at: int, body_bytes: int, count_max: int
) -> tuple[Sequence[int], Sequence[bytes]]:
    """Return the stream ids and payloads of the DATA frame at `at` and of those that follow on it,
    with its length and flags."""
    cells = _cells(data, at, (body_bytes,), count_max)
    count = _alike(cells[::3])
    return cells[1::3][:count], cells[2::3][:count]


def requests(
    data: bytes, at: int, block_bytes: int, body_bytes: int, count_max: int
) -> tuple[Sequence[int], Sequence[bytes]]:
    """Return the stream ids and bodies of the request at `at` and of those that follow on it.

    A request is a HEADERS and a DATA frame, here with the block and the flags of the first one.
    """
    cells = _cells(data, at, (block_bytes + START_BYTES, body_bytes), count_max)
    ids, body_ids = cells[1::5], cells[3::5]
    count = min(_alike(cells[::5]), _alike(cells[2::5]), _rising(ids))
    if ids[:count] != body_ids[:count]:
        return (), ()
    return ids[:count], cells[4::5][:count]


def size_of(*payload_bytes: int) -> int:
    """Return how many bytes frames with such payloads are."""
    return sum(payload_bytes) + HEADER_BYTES * len(payload_bytes)


def _cells(data: bytes, at: int, sizes: tuple[int, ...], count_max: int) -> tuple[Any, ...]:
    """Cut what is from `at` into (start, id, so many bytes, id, so many bytes …), again and again.

    As often as the largest power of two that fits, so that few layouts are needed; nothing where
    that is less than RUN_MIN.
    """
    period = START_BYTES + sum(sizes) + 4 * len(sizes)
    count = min((len(data) - at) // period, count_max, _RUN_MAX)
    if count < RUN_MIN:
        return ()
    return _layout(sizes, 1 << count.bit_length() - 1).unpack_from(data, at)


@lru_cache(512)
def _layout(sizes: tuple[int, ...], count: int) -> struct.Struct:
    return struct.Struct(">" + ("5s" + "".join(f"I{size}s" for size in sizes)) * count)


def _alike(column: Sequence[bytes]) -> int:
    """Return how many values in front are equal."""
    count = len(column)
    if not count or column.count(column[0]) == count:
        return count
    return next(at for at, value in enumerate(column) if value != column[0])


def _rising(ids: Sequence[int]) -> int:
    """Return how many ids in front are each by two above the one before, as a client's next are."""
    if not ids:
        return 0
    expected = tuple(range(ids[0], ids[0] + 2 * len(ids), 2))
    if ids == expected:
        return len(ids)
    return next(at for at, (a, b) in enumerate(zip(ids, expected, strict=True)) if a != b)
