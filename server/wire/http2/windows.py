"""Flow-control windows (RFC 9113 §5.2, §6.9): what the peer may send, and what we may.

Three rules. The peer spends its window when bytes arrive. It gets them back when the application
has consumed them, in one WINDOW_UPDATE for half a window at least (a window given back byte by byte
costs a frame a byte). A window that we spend may become negative when the peer shrinks it, and may
never grow past 2^31 − 1.
"""

from __future__ import annotations

from server.wire.http2.frames import ConnectionFault, ErrorCode

WINDOW_MAX = 2**31 - 1
WINDOW_DEFAULT = 65_535


class ReceiveWindow:
    """What the peer may still send. `left` + unreturned + held by the application = `size`."""

    __slots__ = ("consumed", "left", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.left = size
        self.consumed = 0  # taken by the application, not given back yet

    def receive(self, count: int) -> None:
        """Spend `count` bytes. Raises ConnectionFault (FLOW_CONTROL_ERROR) when it has fewer."""
        self.left -= count
        if self.left < 0:
            raise ConnectionFault(
                ErrorCode.FLOW_CONTROL_ERROR, "more data than the window allows", "window_overrun"
            )

    def consume(self, count: int) -> int:
        """Note that the application took `count` bytes; return the increment to send now, or 0."""
        self.consumed += count
        if self.consumed * 2 < self.size:
            return 0
        increment, self.consumed = self.consumed, 0
        self.left += increment
        return increment


def opened(window: int, increment: int) -> int:
    """Return a send window after a WINDOW_UPDATE. Raises ConnectionFault for 0 and for overflow.

    Both are stream errors on a stream, where the RFC lets us end the connection: an honest peer
    never does this, and resets that we can be made to send are an attack (CVE-2025-8671).
    """
    if increment == 0:
        raise ConnectionFault(
            ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE with increment 0", "window_update_zero"
        )
    window += increment
    if window > WINDOW_MAX:
        raise ConnectionFault(
            ErrorCode.FLOW_CONTROL_ERROR, "a window above 2^31-1", "window_overflow"
        )
    return window
