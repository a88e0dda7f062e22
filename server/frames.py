"""Frames between a worker and the collector on their unix socket.

A frame is a 5-byte header and a payload: the payload's length in bytes as a little-endian uint32
(the header not counted), then one byte that says its kind.
"""

from __future__ import annotations

import asyncio
import struct

from headrace.errors import InvalidArgumentError

LOG = 1
TRUTH = 2
TRUTH_OK = 3  # msgpack [call, accepted]
TRUTH_ERROR = 4  # msgpack [call, code, text], a code of `headrace.errors`; once [call, text]

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


def _check_size(size_bytes: int) -> None:
    if size_bytes > FRAME_BYTES_MAX:
        raise InvalidArgumentError(
            "frame too large",
            expected=f"at most {FRAME_BYTES_MAX} bytes",
            got=f"{size_bytes} bytes",
        )
