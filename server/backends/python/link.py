"""Our end of a model's socket: what is sent goes out at once, and what comes can be waited for.

The loop's transport reads it, too, and writes what the socket has no room for. Both are used in the
loop only.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket

_READ_BYTES = 1 << 16


class Link:
    """A socket that does not block. Set `transport`, made of the same one, before its first use."""

    transport: asyncio.Transport

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection.dup()
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def send(self, data: bytes) -> None:
        """Send it behind what was sent before; to one that is gone nothing is sent."""
        sent = 0
        if not self.transport.get_write_buffer_size():
            with contextlib.suppress(OSError):  # no room, or its end: the transport's to hear
                sent = self._socket.send(data)
        # A closed transport of uvloop raises where asyncio's is silent.
        if sent < len(data) and not self.transport.is_closing():
            self.transport.write(data[sent:])

    def wait(self, max_ms: int) -> bytes:
        """Return what comes within this time, and hold up the loop as long; empty: nothing."""
        if self._poll.poll(max_ms):
            with contextlib.suppress(OSError):
                return self._socket.recv(_READ_BYTES)
        return b""

    def close(self) -> None:
        """Close it; the transport closes its own."""
        self._socket.close()
        self.transport.abort()
