"""HTTP/2 as the load client speaks it: requests encoded beforehand, replies counted by a compiled
scanner, so that the client costs a few microseconds for each read, however many replies it holds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np

from benchmarks.common import model

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 0x4, 0x5
NO_ERROR = bytes(4)  # in RST_STREAM: the answer is complete, the request need not be
WINDOW_BYTES = 65_535  # of a connection, until its receiver widens it
WINDOW_BYTES_MAX = 2**31 - 1
HEAD_BYTES = 9
PAYLOAD_BYTES_MAX = 16_384  # of a frame, as long as its receiver does not allow more
REPLY_BYTES_MAX = 32_768  # of a frame of a reply: a longer answer is cut, and cannot be checked
# What became of an answer that is checked. CUT: it came in several frames, and is not looked at.
UNSEEN, RIGHT, WRONG, CUT = range(4)
# How far apart float32 answers may be, in steps of the last place: a batch sums in its own order.
STEPS_MAX = 256
_HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "localhost"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("user-agent", "headrace-benchmark"),
]


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    length = len(payload)
    return struct.pack(">BHBBI", length >> 16, length & 0xFFFF, kind, flags, stream_id) + payload


# What a client says first. It never holds the server back: both windows are at their widest.
OPENING = (
    PREFACE
    + frame(
        SETTINGS,
        0,
        0,
        struct.pack(">HI", INITIAL_WINDOW_SIZE, WINDOW_BYTES_MAX)
        + struct.pack(">HI", MAX_FRAME_SIZE, REPLY_BYTES_MAX),
    )
    + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW_BYTES_MAX - WINDOW_BYTES))
)


def constant_blocks(
    count: int, timeout_ms: int | None = None, path: str = model.GRPC_PATH
) -> Iterator[bytes]:
    """Yield blocks of which all but the first are indices into the dynamic table."""
    from hpack import Encoder

    deadline = [] if timeout_ms is None else [("grpc-timeout", f"{timeout_ms}m")]
    headers = [*_HEADERS[:2], (":path", path), *_HEADERS[2:], *deadline]
    encoder = Encoder()
    yield encoder.encode(headers)
    again = encoder.encode(headers)
    for _ in range(count - 1):
        yield again


def write_script(file: Path, blocks: Iterable[bytes], bodies: Sequence[bytes]) -> None:
    """Write the requests of a connection (one for each header block, the bodies in turns) to
    `file`, and where each starts and the last ends to `file` + `.npy`.
    """
    offsets = [0]
    with file.open("wb") as out:
        for number, block in enumerate(blocks):
            stream_id = 2 * number + 1
            request = frame(HEADERS, END_HEADERS, stream_id, block)
            request += _data(stream_id, bodies[number % len(bodies)])
            out.write(request)
            offsets.append(offsets[-1] + len(request))
    np.save(file.with_suffix(".npy"), np.array(offsets, np.int64))


def _data(stream_id: int, body: bytes) -> bytes:
    last = max(len(body) - 1, 0) // PAYLOAD_BYTES_MAX * PAYLOAD_BYTES_MAX
    pieces = [
        frame(DATA, 0, stream_id, body[at : at + PAYLOAD_BYTES_MAX])
        for at in range(0, last, PAYLOAD_BYTES_MAX)
    ]
    return b"".join((*pieces, frame(DATA, END_STREAM, stream_id, body[last:])))


class Counts:
    """Indices of the scanner's counters."""

    DATA_BYTES, WINDOW_BYTES, OTHERS = range(3)


@numba.njit("uint8(uint8[::1], int64, int64, uint32[::1])", cache=True)
def judge(buffer: Any, start: int, end: int, wanted: Any) -> int:  # pragma: no cover
    """Say whether the DATA payload `buffer[start:end]` ends with the `wanted` values.

    They are the bits of positive float32: as whole numbers these are in the values' order.
    """
    at = end - 4 * len(wanted)
    if at - start < 5:
        return CUT
    for bits in wanted:
        got = (
            np.int64(buffer[at])
            | (np.int64(buffer[at + 1]) << 8)
            | (np.int64(buffer[at + 2]) << 16)
            | (np.int64(buffer[at + 3]) << 24)
        )
        if abs(got - np.int64(bits)) > STEPS_MAX:
            return WRONG
        at += 4
    return RIGHT


@numba.njit(
    "UniTuple(int64, 2)(uint8[::1], int64, int64[::1], int64[::1], uint8[::1], uint32[:, ::1])",
    cache=True,
)
def scan(
    buffer: Any, fill: int, ended: Any, counts: Any, seen: Any, wanted: Any
) -> tuple[int, int]:  # pragma: no cover
    """Walk the whole frames in `buffer[:fill]`; return where the first unfinished one starts and
    how many streams ended with trailers: their ids are in `ended`.

    `counts` is added to: DATA bytes, window of the connection, frames of any other kind. With
    `wanted` (the values that answer each body, as `judge` takes them) every answer is checked, and
    `seen` says by call what it was.
    """
    at, found = 0, 0
    while fill - at >= 9:
        length = (
            (np.int64(buffer[at]) << 16)
            | (np.int64(buffer[at + 1]) << 8)
            | np.int64(buffer[at + 2])
        )
        end = at + 9 + length
        if end > fill:
            break
        kind, flags = buffer[at + 3], buffer[at + 4]
        number = (
            (np.int64(buffer[at + 5] & 0x7F) << 24)
            | (np.int64(buffer[at + 6]) << 16)
            | (np.int64(buffer[at + 7]) << 8)
            | np.int64(buffer[at + 8])
        )
        if kind == 0:
            counts[0] += length
            call = number >> 1
            if len(wanted) and length and call < len(seen):
                verdict = judge(buffer, at + 9, end, wanted[call % len(wanted)])
                seen[call] = verdict if seen[call] == UNSEEN else CUT
        elif kind == 1:
            if flags & 1:
                ended[found] = number
                found += 1
        elif kind == 8:
            if number == 0:
                counts[1] += (
                    (np.int64(buffer[at + 9]) << 24)
                    | (np.int64(buffer[at + 10]) << 16)
                    | (np.int64(buffer[at + 11]) << 8)
                    | np.int64(buffer[at + 12])
                )
        else:
            counts[2] += 1
        at = end
    return at, found


def walk(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (kind, flags, payload) of the whole frames in `data`."""
    at = 0
    while len(data) - at >= HEAD_BYTES:
        high, low, kind, flags, _ = struct.unpack_from(">BHBBI", data, at)
        end = at + HEAD_BYTES + (high << 16 | low)
        if end > len(data):
            return
        yield kind, flags, data[at + HEAD_BYTES : end]
        at = end
