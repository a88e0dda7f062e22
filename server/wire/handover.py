"""Passing accepted connections between the workers of one machine, before a byte of them is read.

A connection travels as a descriptor, on a unix socket of the worker that should have it. It is
never lost: who cannot be reached takes nothing, and the worker that accepted it keeps it.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import logging
import os
import resource
import socket
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from server.shared_table import map_table
from server.wire.balance import Table, table_bytes
from server.wire.listener import Listener

_LOG = logging.getLogger(__name__)

_MESSAGE = 2  # bytes: the sender's slot
_RECEIVED_AT_ONCE_MAX = 64
_HIGH_DESCRIPTOR = 16_383  # the kernel's table of descriptors grows to it: 128 KiB


class Handover:
    """One worker's end. `paths` are the sockets of all workers, `own` is the place of this one.

    `listeners` are its ports, in an order that all workers share.
    """

    def __init__(
        self, table: Path, paths: Sequence[Path], own: int, listeners: Sequence[Listener]
    ) -> None:
        self.passed_on = 0
        self.received = 0
        self._path = paths[own]
        self._paths = [str(path) for path in paths]
        self._own = own
        self._left = False
        self._listeners = listeners
        self._loop = asyncio.get_running_loop()
        self._memory = map_table(table, table_bytes(len(paths), len(listeners)))
        self._table = Table(memoryview(self._memory).cast("q"), len(paths), len(listeners), own)
        self._inbox = _high(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
        self._outbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def start(self) -> None:
        """Take and pass on connections from here on. Raises OSError."""
        self._path.unlink(missing_ok=True)  # of a run that was killed
        self._inbox.bind(str(self._path))
        self._path.chmod(0o600)
        self._loop.add_reader(self._inbox.fileno(), self._receive)
        self._table.enter(time.monotonic_ns())
        for kind, listener in enumerate(self._listeners):
            listener.watch = partial(self._table.set_count, kind)
            listener.watch(listener.open_connections)
            listener.pass_on = partial(self._pass_on, kind)

    def leave(self) -> None:
        """Take none any more: what comes from here on goes to others, where there are any."""
        if self._left:
            return
        self._left = True
        self._table.leave()
        # From here on senders are refused; what they have sent is still there to be read.
        self._inbox.shutdown(socket.SHUT_RD)
        self._loop.remove_reader(self._inbox.fileno())
        while self._receive_one():
            pass
        self._inbox.close()
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Pass on none any more either. The listeners are closed by now."""
        for listener in self._listeners:
            listener.pass_on = listener.watch = None
        self._outbox.close()

    def _pass_on(self, kind: int, sock: socket.socket) -> bool:
        """Give a connection to the worker that should have it; False: that is this one."""
        to = self._table.choose(kind)
        if to is None:
            return False
        message = bytes((kind,)) + self._own.to_bytes(_MESSAGE, "little")
        rights = array.array("i", [sock.fileno()])
        try:
            self._outbox.sendmsg(
                [message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], 0, self._paths[to]
            )
        except BlockingIOError:  # its inbox is full: it is busy enough
            return False
        except OSError:  # it is gone
            self._table.refused(to)
            return False
        self._table.sent(kind, to)
        self.passed_on += 1
        sock.close()
        return True

    def _receive(self) -> None:
        for _ in range(_RECEIVED_AT_ONCE_MAX):
            if not self._receive_one():
                return

    def _receive_one(self) -> bool:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._inbox, 1 + _MESSAGE, 1)
        except BlockingIOError:
            return False
        if not data:
            return False
        if len(data) != 1 + _MESSAGE or not descriptors:
            _LOG.error("a passed connection did not arrive: out of descriptors?")
            return True
        kind, by = data[0], int.from_bytes(data[1:], "little")
        os.set_inheritable(descriptors[0], False)
        sock = socket.socket(fileno=descriptors[0])
        self.received += 1
        self._table.received(kind, by)
        if not (self._left and self._pass_on(kind, sock)):
            self._listeners[kind].adopt(sock)
        return True


def _high(sock: socket.socket) -> socket.socket:
    """Return the same socket with a descriptor above those of connections.

    Linux closes what a killed process had open from the highest descriptor down. So its inbox is
    closed before its clients notice: none of those that connect anew is passed to the dead.
    """
    with sock:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        least = min(_HIGH_DESCRIPTOR, soft // 2)
        return socket.socket(fileno=fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, least))
