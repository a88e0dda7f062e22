"""HTTP/2 frames (RFC 9113 §4, §6): the constants, and the writers of what a server sends.

Reading frames is `connection`'s business, in one loop.
"""

from __future__ import annotations

import struct
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES = 9
# What we accept, and what every peer accepts unless it says more (§6.5.2).
FRAME_BYTES_MAX = 16_384
FRAME_BYTES_LARGEST = 2**24 - 1
STREAM_ID_MAX = 2**31 - 1


class FrameType(IntEnum):
    """§6. Others are ignored, and counted."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY = 0x20


class ErrorCode(IntEnum):
    """§7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class ConnectionFault(Exception):  # noqa: N818 - the RFC's "connection error", which Python has taken
    """A connection error (§5.4.1): GOAWAY with `code`, `reason` as its debug data, then close.

    `abuse` is the counter that it raises, "" for an honest mistake.
    """

    def __init__(self, code: ErrorCode, reason: str, abuse: str = "") -> None:
        self.code = code
        self.reason = reason
        self.abuse = abuse
        super().__init__(f"{code.name}: {reason}")


_HEADER = struct.Struct(">HBBBI")
_TWO_WORDS = struct.Struct(">II")
_SETTING = struct.Struct(">HI")


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    length = len(payload)
    return _HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream_id) + payload


def frame_head(length: int, kind: int, flags: int) -> bytes:
    """Return the first five bytes of a frame: all of its head but the stream id."""
    return length.to_bytes(3, "big") + bytes((kind, flags))


def settings(values: dict[int, int]) -> bytes:
    """Return a SETTINGS frame."""
    payload = b"".join(_SETTING.pack(key, value) for key, value in values.items())
    return frame(FrameType.SETTINGS, 0, 0, payload)


SETTINGS_ACK = frame(FrameType.SETTINGS, ACK, 0)


def ping(opaque: bytes, *, ack: bool = False) -> bytes:
    """Return a PING frame; `opaque` is eight bytes."""
    return frame(FrameType.PING, ACK if ack else 0, 0, opaque)


def goaway(last_stream_id: int, code: int, debug: str = "") -> bytes:
    """Return a GOAWAY frame."""
    payload = _TWO_WORDS.pack(last_stream_id, code) + debug.encode()
    return frame(FrameType.GOAWAY, 0, 0, payload)


def rst_stream(stream_id: int, code: int) -> bytes:
    """Return an RST_STREAM frame."""
    return frame(FrameType.RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))


def window_update(stream_id: int, increment: int) -> bytes:
    """Return a WINDOW_UPDATE frame."""
    return frame(FrameType.WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4, "big"))


def headers(stream_id: int, block: bytes, *, end_stream: bool, frame_bytes_max: int) -> bytes:
    """Return HEADERS, and CONTINUATION frames where the block is longer than one frame may be."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= frame_bytes_max:
        return frame(FrameType.HEADERS, flags | END_HEADERS, stream_id, block)
    pieces = [block[at : at + frame_bytes_max] for at in range(0, len(block), frame_bytes_max)]
    last = len(pieces) - 1
    frames = [frame(FrameType.HEADERS, flags, stream_id, pieces[0])]
    frames += [
        frame(FrameType.CONTINUATION, END_HEADERS if at == last else 0, stream_id, pieces[at])
        for at in range(1, len(pieces))
    ]
    return b"".join(frames)
