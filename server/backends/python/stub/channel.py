"""The model's end of the socket, for all of its threads.

Whoever waits for something reads, and hands on what is for others: so the thread that executes
reads its next batch itself, without another thread that would have to wake it.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable

from . import memory, messages

_READ_BYTES = 1 << 16
# Of the memory for what this process sends: then it waits until the server copied.
_UNREAD_BYTES_MAX = 256 << 20
_LOOK_AGAIN_S = 0.0005


class ClosedError(Exception):
    """The server is gone."""


class Channel:
    """Sends messages and tensors, and waits for what comes. `dispatch` gets every message, with
    the condition held."""

    def __init__(
        self, connection: socket.socket, received: memory.Memory, sent: memory.Memory
    ) -> None:
        self.received = received
        self._sent = sent
        self._connection = connection
        self._frames = messages.Frames()
        self._changed = threading.Condition()
        self._reading = False
        self._waiting = 0  # threads, while another one reads
        self._closed = False
        self._sending = threading.Lock()
        self._counted = 0  # messages with tensors so far
        self._offset = memory.HEADER_BYTES
        self.dispatch: Callable[[messages.FromServer], None] = lambda _: None

    def wait(self, arrived: Callable[[], object]) -> None:
        """Return when `arrived()` is true; it is called with the condition held.

        Raises ClosedError when the server is gone before.
        """
        with self._changed:
            while not arrived():
                if self._closed:
                    raise ClosedError
                if self._reading:
                    self._waiting += 1
                    self._changed.wait()
                    self._waiting -= 1
                    continue
                self._read_once(blocking=True)

    def look(self) -> None:
        """Take what has come, if nobody else is doing so."""
        with self._changed:
            if not self._reading and not self._closed:
                self._read_once(blocking=False)

    def _read_once(self, *, blocking: bool) -> None:
        """Read once, without the condition, and hand on what came."""
        self._reading = True
        self._changed.release()
        data: bytes | None = b""
        try:
            if blocking or select.select([self._connection], [], [], 0)[0]:
                data = self._connection.recv(_READ_BYTES)
            else:
                data = None
        except OSError:
            data = b""
        finally:
            self._changed.acquire()
            self._reading = False
        if data == b"":
            self._closed = True
        elif data is not None:
            for frame in self._frames.take(data):
                self.dispatch(messages.to_model.decode(frame))
        if self._waiting:
            self._changed.notify_all()

    def send(self, message: messages.FromModel) -> None:
        """Send a message without tensors."""
        with self._sending:
            self._send(message)

    def send_tensors(
        self,
        tensors: list[list[memory.Named]],
        make: Callable[[list[list[messages.Place]]], messages.FromModel],
    ) -> None:
        """Send what `make` makes of where several lists of tensors lie."""
        laid = [memory.sizes_of(some) for some in tensors]
        with self._sending:
            offset = self._room(sum(size for _, size in laid))
            places = []
            for some, (raws, size) in zip(tensors, laid, strict=True):
                places.append(memory.lay_out(self._sent, offset, some, raws))
                offset += size
            self._offset = offset
            self._counted += 1
            self._send(make(places))

    def _room(self, size: int) -> int:
        """Return where `size` bytes are free. All is free when the server copied all."""
        copied = self._sent.count == self._counted
        if not copied and self._offset + size > _UNREAD_BYTES_MAX:
            while self._sent.count != self._counted and not self._closed:
                # Rare, and short: the server copies as soon as it reads.
                select.select([], [], [], _LOOK_AGAIN_S)
            copied = True
        if copied:
            self._offset = memory.HEADER_BYTES
        self._sent.grow(self._offset + size)
        return self._offset

    def _send(self, message: messages.FromModel) -> None:
        try:
            self._connection.sendall(messages.framed(message))
        except OSError:
            self._closed = True
            raise ClosedError from None
