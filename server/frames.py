"""Frames between a worker and the collector on their unix socket.

A frame is a 5-byte header and a payload: the payload's length in bytes as a little-endian uint32
(the header not counted), then one byte that says its kind. Parsing touches no socket, so that it is
tested byte by byte.
"""

from __future__ import annotations

import asyncio
import struct

from headrace.errors import InvalidArgumentError

LOG = 1
TRUTH = 2
TRUTH_OK = 3
TRUTH_ERROR = 4

# A tap batch of one second at 50,000 rows/s and 600 bytes a row is 30 MB; twice that is no honest
# frame.
FRAME_BYTES_MAX = 64 * 1024 * 1024

_HEADER = struct.Struct("<IB")
HEADER_BYTES = _HEADER.size


def frame(kind: int, payload: bytes) -> bytes:
    """Return the bytes of one frame. Raises InvalidArgumentError above the size limit."""
    _check_size(len(payload))
    return _HEADER.pack(len(payload), kind) + payload


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Read one frame as (kind, payload).

    Raises asyncio.IncompleteReadError at the end of the stream (`partial` is empty between frames)
    and InvalidArgumentError for a frame above the size limit.
    """
    size_bytes, kind = _HEADER.unpack(await reader.readexactly(HEADER_BYTES))
    _check_size(size_bytes)
    return kind, await reader.readexactly(size_bytes)


class FrameReader:
    """Cuts a byte stream into frames, however it was split on the way."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending_bytes(self) -> int:
        """How many bytes of an unfinished frame are held: not 0 at the end means a torn
        connection."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Add `data` and return the frames that are now whole, as (kind, payload).

        Raises InvalidArgumentError for a frame above the size limit; the connection is of no use
        then.
        """
        self._buffer += data
        frames: list[tuple[int, bytes]] = []
        start = 0
        while len(self._buffer) - start >= HEADER_BYTES:
            size_bytes, kind = _HEADER.unpack_from(self._buffer, start)
            _check_size(size_bytes)
            end = start + HEADER_BYTES + size_bytes
            if len(self._buffer) < end:
                break
            frames.append((kind, bytes(self._buffer[start + HEADER_BYTES : end])))
            start = end
        del self._buffer[:start]
        return frames


def _check_size(size_bytes: int) -> None:
    if size_bytes > FRAME_BYTES_MAX:
        raise InvalidArgumentError(
            "frame too large",
            expected=f"at most {FRAME_BYTES_MAX} bytes",
            got=f"{size_bytes} bytes",
        )
