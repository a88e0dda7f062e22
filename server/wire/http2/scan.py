"""Whole unary requests of a read, found by compiled code: what a busy client sends, in one call.

`scan` walks frames as long as they are what most of them are: HEADERS whose block one of the
connection's templates recognises, the one DATA frame of such a request, and the WINDOW_UPDATE that
gRPC's own clients send between the two. It decides nothing
else: the first frame that is anything more, or wrong, is left to `Connection`, which would have
taken all of these as well, at ten times the cost.

The kernels have one signature each and are compiled (or loaded from numba's cache) when this module
is imported: in the parent, never in a worker.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import numpy as np
from numba import njit, types

from headrace.compiled import kept
from server.wire.http2 import frames, huffman, templates
from server.wire.http2.frames import END_HEADERS, END_STREAM, FRAME_BYTES_MAX, FrameType
from server.wire.http2.huffman import BYTES
from server.wire.http2.templates import BLOCK_BYTES_MAX, TEMPLATES_MAX, TIMEOUT_MAX_NS

REQUESTS_MAX: Final = 128  # of one scan
SIZE_BITS: Final = 22
DATA_BYTES_MAX: Final = (1 << SIZE_BITS) - 1  # of a read that is scanned
COUNT_BITS: Final = 8
TEMPLATE_BITS: Final = 4
CHANGED: Final = 1 << COUNT_BITS + TEMPLATE_BITS
WHOLE: Final = CHANGED << 1
GRANTED: Final = CHANGED << 2
STOP_AT: Final = COUNT_BITS + TEMPLATE_BITS + 3
COUNT_MASK: Final = (1 << COUNT_BITS) - 1
TEMPLATE_MASK: Final = (1 << TEMPLATE_BITS) - 1
assert REQUESTS_MAX <= COUNT_MASK
assert TEMPLATES_MAX <= TEMPLATE_MASK + 1

_WHOLE_HEAD = int(FrameType.HEADERS) << 8 | END_HEADERS
_WHOLE_BODY = int(FrameType.DATA) << 8 | END_STREAM
_GRANT_FRAME = int(FrameType.WINDOW_UPDATE) << 8
_HEADER_BYTES = 9
_NO_MATCH = -(1 << 62)

# Rows of what a scan found; a column is a request.
_ID, _BODY_START, _BODY_STOP, _BLOCK_START, _BLOCK_STOP, _TIMEOUT, _TEMPLATE, _GRANT = range(8)
_ROW_COUNT = _LAST = 8  # behind them, what they say of the last request

_ROWS = types.int64[:, ::1]
_SCRATCH = types.uint8[::1]
_part: Callable[..., Any] = njit()
_compiled: Callable[..., Callable[..., Any]] = partial(kept, frames, huffman, templates)


@_part
def _u16(code, at):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    return np.int64(code[at]) | np.int64(code[at + 1]) << 8


@_part
def _i64(code, at):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    value = np.int64(0)
    for i in range(8):
        value |= np.int64(code[at + i]) << (8 * i)
    return value


@_part
def _equal(left, at, right, right_at, count):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Compare bytes. Unsigned places and no way out: so it is compiled to vectors."""
    here, there = np.uint64(at), np.uint64(right_at)
    different = np.uint8(0)
    for i in range(np.uint64(count)):
        different |= left[here + i] ^ right[there + i]
    return different == 0


@_part
def _read_value(block, at, stop, scratch):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Read the string at `at` to `scratch`: (bytes, where it ends); −1 bytes where it is none,
    or no legal value, or long."""
    if at >= stop:
        return -1, at
    first = np.int64(block[at])
    length = first & 0x7F
    at += 1
    if length == 0x7F:
        for shift in (0, 7):
            if at >= stop:
                return -1, at
            byte = np.int64(block[at])
            at += 1
            length += (byte & 0x7F) << shift
            if byte < 0x80:
                break
        else:
            return -1, at
    if length > stop - at or huffman.ROOM * length > len(scratch):
        return -1, at
    end = at + length
    if first >= 0x80:
        size = huffman.decode_to(block, at, end, scratch)
    else:
        size = length
        here = np.uint64(at)
        for i in range(np.uint64(length)):
            scratch[i] = block[here + i]
    illegal = False
    for i in range(np.uint64(max(size, 0))):
        octet = scratch[i]
        illegal |= (octet == 0) | (octet == 10) | (octet == 13)
    if size > 0:
        head, tail = scratch[0], scratch[size - 1]
        illegal |= (head == 32) | (head == 9) | (tail == 32) | (tail == 9)
    if illegal:
        return -1, end
    return size, end


@_part
def _read_timeout(scratch, size):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Return the nanoseconds of a grpc-timeout; −1 where `headers.timeout_ns` must look at it."""
    if size < 2 or size > 9:
        return -1
    value = np.int64(0)
    for i in range(size - 1):
        digit = np.int64(scratch[i]) - 48
        if digit < 0 or digit > 9:
            return -1
        value = value * 10 + digit
    unit = scratch[size - 1]
    if unit == 110:  # n
        unit_ns = np.int64(1)
    elif unit == 117:  # u
        unit_ns = np.int64(1_000)
    elif unit == 109:  # m
        unit_ns = np.int64(1_000_000)
    elif unit == 83:  # S
        unit_ns = np.int64(1_000_000_000)
    elif unit == 77:  # M
        unit_ns = np.int64(60_000_000_000)
    elif unit == 72:  # H
        unit_ns = np.int64(3_600_000_000_000)
    else:
        return -1
    if value > TIMEOUT_MAX_NS // unit_ns:
        return -1
    return value * unit_ns


@_part
def _match(block, at, stop, code, p, scratch):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Compare the block [at, stop) with the template whose code is at `p`.

    Return its timeout << 1 | whether a string is not as expected, or _NO_MATCH.
    """
    room = _u16(code, p + 2)
    timeout = _i64(code, p + 12)
    slots = np.int64(code[p + 20])
    p += 21
    changed = np.int64(0)
    for _ in range(slots):
        piece = _u16(code, p)
        is_timeout = code[p + 2]
        expected = _u16(code, p + 3)
        size = _u16(code, p + 5)
        p += 7
        if piece > stop - at or not _equal(block, at, code, p, piece):
            return _NO_MATCH
        at += piece
        p += piece
        if expected > 0 and expected <= stop - at and _equal(block, at, code, p, expected):
            at += expected
        else:
            changed |= expected > 0
            size, at = _read_value(block, at, stop, scratch)
            if size < 0:
                return _NO_MATCH
            if is_timeout:
                timeout = _read_timeout(scratch, size)
                if timeout < 0:
                    return _NO_MATCH
        p += expected
        room -= size
    piece = _u16(code, p)
    if room < 0 or piece != stop - at or not _equal(block, at, code, p + 2, piece):
        return _NO_MATCH
    return timeout << 1 | changed


@_part
def _recognise(block, start, stop, code, scratch, likely, likely_p):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Find the template of a block; look at the likely one first.

    Return what `_match` says, its number, and the place of its code.
    """
    number = p = np.int64(0)
    if len(code) == 0:
        return _NO_MATCH, number, p
    found = _match(block, start, stop, code, likely_p, scratch)
    if found != _NO_MATCH:
        return found, likely, likely_p
    while p < len(code):
        if number != likely:
            found = _match(block, start, stop, code, p, scratch)
            if found != _NO_MATCH:
                break
        p += _u16(code, p)
        number += 1
    return found, number, p


@_compiled(signature=types.int64(BYTES, BYTES, _SCRATCH))
def _match_block(block, code, scratch):  # type: ignore[no-untyped-def]  # pragma: no cover
    first = np.int64(0)
    found, number, _ = _recognise(block, 0, len(block), code, scratch, first, first)
    if found == _NO_MATCH:
        return found
    return found << TEMPLATE_BITS | number


@_part
def _number(data, at, size):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    value = np.int64(0)
    for i in range(size):
        value = value << 8 | np.int64(data[at + i])
    return value


@_part
def _grant(rows, waiting, count, stream_id, data, start, stop, most):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Take down by how much the window of the last head's stream becomes wider: once, as its body
    has still to come. What else widens a window is rare."""
    last = count - 1
    if waiting == count or stop - start != 4 or rows[_ID, last] != stream_id or rows[_GRANT, last]:
        return False
    by = _number(data, start, 4)
    if by == 0 or by > most:
        return False
    rows[_GRANT, last] = by
    return True


@_part
def _pack(rows, at, count, whole, changed, body_bytes):  # type: ignore[no-untyped-def]  # pragma: no cover
    if count == 0:
        return np.int64(0)
    for row in range(_ROW_COUNT):
        rows[_LAST, row] = rows[row, count - 1]
    template = rows[_TEMPLATE, 0]
    for i in range(count):
        whole &= rows[_TEMPLATE, i] == template
    if whole:
        changed |= 2
    number = rows[_TEMPLATE, count - 1] & TEMPLATE_MASK
    places = np.int64(body_bytes) << SIZE_BITS | at
    return ((places << 3 | changed) << TEMPLATE_BITS | number) << COUNT_BITS | count


@_compiled(
    signature=types.int64(
        _ROWS, _SCRATCH, BYTES, types.int64, BYTES, types.int64, types.int64, types.int64,
        types.int64, types.int64,
    )
)  # fmt: skip
def _scan(  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    rows, scratch, data, at, code, last_id, id_stop, room, window, most
):
    if len(data) > DATA_BYTES_MAX:
        return 0
    room = min(room, REQUESTS_MAX)
    count = waiting = body_bytes = changed = granted = np.int64(0)
    number = p = np.int64(0)  # the last head's template, and the place of its code
    while at + _HEADER_BYTES <= len(data):
        start = at + _HEADER_BYTES
        length = _number(data, at, 3)
        stop = start + length
        if length > FRAME_BYTES_MAX or stop > len(data):
            break
        kind = _number(data, at + 3, 2)
        stream_id = _number(data, at + 5, 4)
        if kind == _WHOLE_HEAD:
            if stream_id <= last_id or stream_id >= id_stop or stream_id & 1 == 0 or count >= room:
                break
            found, other, place = _recognise(data, start, stop, code, scratch, number, p)
            if found == _NO_MATCH:
                break
            if other != number:
                number, p, changed = other, place, np.int64(0)
            changed |= found & 1
            rows[_ID, count] = last_id = stream_id
            rows[_BODY_STOP, count] = 0
            rows[_BLOCK_START, count] = start
            rows[_BLOCK_STOP, count] = stop
            rows[_TIMEOUT, count] = found >> 1
            rows[_TEMPLATE, count] = p << TEMPLATE_BITS | number
            rows[_GRANT, count] = 0
            count += 1
        elif kind == _WHOLE_BODY:
            # In turn alone: whole requests are handed over in the order of their ends.
            if waiting == count or rows[_ID, waiting] != stream_id:
                break
            announced = _i64(code, (rows[_TEMPLATE, waiting] >> TEMPLATE_BITS) + 4)
            if (announced >= 0 and announced != length) or body_bytes + length > window:
                break
            body_bytes += length
            rows[_BODY_START, waiting] = start
            rows[_BODY_STOP, waiting] = stop
            waiting += 1
        elif kind == _GRANT_FRAME and _grant(
            rows, waiting, count, stream_id, data, start, stop, most
        ):
            granted = np.int64(4)
        else:
            break
        at = stop
    return _pack(rows, at, count, waiting == count, changed | granted, body_bytes)


# They belong to the one thread of a worker that reads from connections.
_SCRATCH_ROOM = np.empty(huffman.ROOM * BLOCK_BYTES_MAX, np.uint8)
_ROWS_ROOM = np.empty((_ROW_COUNT + 1, REQUESTS_MAX), np.int64)
_LAST_VIEW = memoryview(_ROWS_ROOM[_LAST]).cast("B")
_LAST_ROW = struct.Struct(f"={_ROW_COUNT}q")


def match(block: bytes, code: bytes) -> tuple[int, int, bool] | None:
    """Return (number of the template that recognises the block, its timeout in ns, whether a
    string was another one than expected)."""
    found: int = _match_block(block, code, _SCRATCH_ROOM)
    if found == _NO_MATCH:
        return None
    return found & TEMPLATE_MASK, found >> TEMPLATE_BITS + 1, bool(found >> TEMPLATE_BITS & 1)


# scan(data, at, code, last_id, id_stop, room, window, grant_max): look for requests from `at`.
# Returns 0 where there is none, else what was found. Their ids are above `last_id` and below
# `id_stop`; there are at most `room`, and their bodies fit into `window`; none widens its stream's
# window by more than `grant_max`. What was found, from the lowest bit:
# - how many requests (COUNT_BITS), and the number of the last one's template (TEMPLATE_BITS);
# - CHANGED: a string of the last one, or of those right before it that are of its template, was
#   another one than expected;
# - WHOLE: all are of that template and have their bodies;
# - GRANTED: there are some that widen their stream's window (`grants`);
# - from STOP_AT, where they end (SIZE_BITS), and how many bytes their bodies have.
scan: Callable[[bytes, int, bytes, int, int, int, int, int], int] = partial(
    _scan, _ROWS_ROOM, _SCRATCH_ROOM
)


def last() -> tuple[int, ...]:
    """Return what `rows` yields of each for the last request of the last scan; in place of its
    template's number is one that says less."""
    return _LAST_ROW.unpack_from(_LAST_VIEW)


def bodies(count: int) -> list[list[int]]:
    """Return the stream ids, starts and stops of bodies of the last scan. No stop: no body yet."""
    columns: list[list[int]] = _ROWS_ROOM[:3, :count].tolist()
    return columns


def heads(count: int) -> list[list[int]]:
    """Return the starts and stops of blocks and the timeouts in ns of the last scan."""
    columns: list[list[int]] = _ROWS_ROOM[_BLOCK_START:_TEMPLATE, :count].tolist()
    return columns


def grants(count: int) -> Iterator[tuple[int, int]]:
    """Yield the stream ids of the last scan that widen their window, and by how much."""
    ids, by = _ROWS_ROOM[_ID, :count].tolist(), _ROWS_ROOM[_GRANT, :count].tolist()
    return (pair for pair in zip(ids, by, strict=True) if pair[1])


def rows(count: int) -> Iterator[tuple[int, ...]]:
    """Yield of each request of the last scan: its stream id, start and stop of body and block, its
    timeout in ns and the number of its template."""
    *columns, templates = _ROWS_ROOM[:_GRANT, :count].tolist()
    return zip(*columns, (number & TEMPLATE_MASK for number in templates), strict=True)
