"""A blocking connection to the store, for callers without an event loop.

One command at a time: send, then wait for its reply. A connection on which anything went wrong, a
timeout among it, is closed and never used again, so that no reply can reach another call.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import hiredis

from features.online.address import parse_address
from features.online.resp import gone
from features.online.store import refusal
from features.online.timeouts import CALL_TIMEOUT_S, CONNECT_TIMEOUT_S
from headrace.errors import DeadlineExceededError

_READ_BYTES = 256 << 10
_NOTHING = object()


class BlockingStore:
    """A store by its URL. Safe to call from threads: one call at a time has its turn.

    Every call raises UnavailableError while the store is gone, and DeadlineExceededError when it
    has not answered in time.
    """

    def __init__(self, url: str) -> None:
        self._address = parse_address(url)
        self._turn = threading.Lock()
        self._socket: socket.socket | None = None
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        # The store this process has read from: see `ServiceReader`, which refuses another.
        self.store_id: str | None = None

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        with self._turn:
            self._drop()

    def execute(self, *command: str | bytes | int) -> Any:
        """Run one command and return its reply. Raises what `OnlineStore.execute` does."""
        packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
        return self.ask(packed, str(command[0]), CALL_TIMEOUT_S)

    def ask(self, packed: bytes, name: str, timeout_s: float) -> Any:
        """Send one command that only reads, as RESP has it, and return its reply."""
        until_s = time.monotonic() + timeout_s
        if not self._turn.acquire(timeout=timeout_s):
            raise _too_late()
        try:
            reply = self._ask(packed, until_s)
            if isinstance(reply, hiredis.ReplyError):
                raise refusal(name, reply)
            return reply
        except BaseException:
            self._drop()
            raise
        finally:
            self._turn.release()

    def _ask(self, packed: bytes, until_s: float) -> Any:
        # It may have been closed while it lay idle, and a read may be asked again.
        for attempts_left in range(1 if self._socket is not None else 0, -1, -1):
            try:
                return self._exchange(packed, until_s)
            except TimeoutError:
                raise _too_late() from None
            except (OSError, hiredis.ProtocolError):
                self._drop()
                if not attempts_left:
                    raise gone("the store cannot be reached") from None
        raise AssertionError

    def _exchange(self, packed: bytes, until_s: float) -> Any:
        connection = self._socket
        if connection is None:
            connection = self._connect()
        connection.settimeout(max(until_s - time.monotonic(), 1e-3))
        connection.sendall(packed)
        while (reply := self._reader.gets()) is _NOTHING:
            data = connection.recv(_READ_BYTES)
            if not data:
                raise ConnectionResetError
            self._reader.feed(data)
            connection.settimeout(max(until_s - time.monotonic(), 1e-3))
        return reply

    def _connect(self) -> socket.socket:
        address = self._address
        if address.path is not None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(CONNECT_TIMEOUT_S)
            connection.connect(address.path)
        else:
            connection = socket.create_connection((address.host, address.port), CONNECT_TIMEOUT_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if address.tls is not None:
            connection = address.tls.wrap_socket(connection, server_hostname=address.host)
        self._socket = connection
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        for command in address.handshake:
            packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
            reply = self._exchange(packed, time.monotonic() + CALL_TIMEOUT_S)
            if isinstance(reply, hiredis.ReplyError):
                raise refusal(command[0], reply)
        return connection

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _too_late() -> DeadlineExceededError:
    return DeadlineExceededError("the store did not answer in time", where="online store")
