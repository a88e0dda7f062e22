"""SETTINGS (RFC 9113 §6.5): what the peer told us, checked."""

from __future__ import annotations

import struct
from enum import IntEnum

from server.wire.http2.frames import (
    FRAME_BYTES_LARGEST,
    FRAME_BYTES_MAX,
    ConnectionFault,
    ErrorCode,
)
from server.wire.http2.windows import WINDOW_DEFAULT, WINDOW_MAX


class Setting(IntEnum):
    """§6.5.2. Others are ignored."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


_ENTRY = struct.Struct(">HI")
HEADER_TABLE_DEFAULT = 4096


class PeerSettings:
    """The peer's settings, as far as they bind us. A server never opens streams, nor pushes."""

    __slots__ = ("frame_bytes_max", "header_table_bytes_least", "window")

    def __init__(self) -> None:
        self.window = WINDOW_DEFAULT
        self.frame_bytes_max = FRAME_BYTES_MAX
        self.header_table_bytes_least = HEADER_TABLE_DEFAULT  # that it ever said

    def apply(self, payload: bytes, entries_max: int) -> None:
        """Take the values of a SETTINGS frame, in order. Raises ConnectionFault for a bad one."""
        if len(payload) % _ENTRY.size:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a broken length")
        if len(payload) > entries_max * _ENTRY.size:
            raise ConnectionFault(
                ErrorCode.ENHANCE_YOUR_CALM, "too many entries in SETTINGS", "settings_entries"
            )
        for key, value in _ENTRY.iter_unpack(payload):
            if key == Setting.INITIAL_WINDOW_SIZE:
                if value > WINDOW_MAX:
                    raise ConnectionFault(
                        ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE above 2^31-1"
                    )
                self.window = value
            elif key == Setting.MAX_FRAME_SIZE:
                if not FRAME_BYTES_MAX <= value <= FRAME_BYTES_LARGEST:
                    raise ConnectionFault(
                        ErrorCode.PROTOCOL_ERROR, "MAX_FRAME_SIZE out of 2^14 to 2^24-1"
                    )
                self.frame_bytes_max = value
            elif key == Setting.ENABLE_PUSH:
                if value > 1:
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH is not 0 or 1")
            elif key == Setting.HEADER_TABLE_SIZE:
                self.header_table_bytes_least = min(self.header_table_bytes_least, value)
