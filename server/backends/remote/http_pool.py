"""Connections to one HTTP/1.1 server that are kept, each for one request at a time."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from http import HTTPStatus
from typing import NamedTuple

import httptools

from server.backends.remote.settings import Tls

_REPLY_BYTES_MAX = 1 << 30
_HEAD_BYTES_MAX = 1 << 16


class BrokenError(Exception):
    """A request that nothing whole came back to."""


class Reply(NamedTuple):
    """A whole HTTP response."""

    status: int
    body: bytes


class HttpPool:
    """Opens connections as they are needed, up to a limit. Use it in the loop that it was made in.

    Who comes when all are taken waits; the connection that was used last is taken first, so that
    those that are not needed stay idle until the server closes them.
    """

    def __init__(self, address: str, size_max: int, tls: Tls | None) -> None:
        """`address` is `host:port`."""
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._authority = address
        self._tls = None if tls is None else _context(tls)
        self._places = asyncio.Semaphore(size_max)
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()

    async def exchange(self, method: str, path: str, body: bytes, timeout_ns: int) -> Reply:
        """Return the response to a request; `path` is quoted, a body is JSON.

        Raises BrokenError where the server cannot be reached or goes away, TimeoutError. Who leaves
        or is late closes the connection: the server may still be at it.
        """
        async with asyncio.timeout(timeout_ns / 1e9), self._places:
            connection = self._idle.pop() if self._idle else await self._opened()
            try:
                reply = await connection.exchange(self._written(method, path, body))
            except BaseException:
                connection.abort()
                raise
            if connection.reusable:
                self._idle.append(connection)
            else:
                connection.abort()
            return reply

    async def close(self) -> None:
        """Close the connections; requests end."""
        for connection in list(self._open):
            connection.abort()

    def _written(self, method: str, path: str, body: bytes) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"host: {self._authority}"]
        if body:
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body

    async def _opened(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(loop, self._lost), self._host, self._port, ssl=self._tls
            )
        except OSError as error:  # ssl.SSLError is one, too
            raise BrokenError(str(error)) from error
        self._open.add(connection)
        return connection

    def _lost(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


class _Connection(asyncio.Protocol):
    """Reads one response after another."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, lost: Callable[[_Connection], None]
    ) -> None:
        self._loop = loop
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Reply] | None = None
        self.reusable = False

    async def exchange(self, request: bytes) -> Reply:
        if self._transport is None:
            raise BrokenError("the connection is closed")
        self.reusable = False
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._body_bytes = self._head_bytes = self._heard = self._unheard_bytes = 0
        self._waiting = self._loop.create_future()
        self._transport.write(request)
        return await self._waiting

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._waiting is None:  # nothing was asked
            self._fail("the server spoke out of turn")
            return
        heard = self._heard
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(str(error))
        # The parser keeps what it has not told yet, a header that does not end.
        self._unheard_bytes = 0 if self._heard != heard else self._unheard_bytes + len(data)
        if self._unheard_bytes > _HEAD_BYTES_MAX:
            self._fail("the response's head is too large")

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._fail("the connection was closed")
        self._lost(self)

    # What httptools calls.

    def on_message_begin(self) -> None:
        if self._waiting is None:  # it would be taken for the next request's
            self._fail("the server spoke out of turn")

    def on_status(self, status: bytes) -> None:
        self._count_head(len(status))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value))

    def on_body(self, body: bytes) -> None:
        self._heard += 1
        self._body_bytes += len(body)
        if self._body_bytes > _REPLY_BYTES_MAX:
            self._fail("the response is too large")
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._waiting is None or self._waiting.done():
            return
        status = int(self._parser.get_status_code())
        if status < HTTPStatus.OK:  # a word before the response, which is still to come
            return
        self.reusable = bool(self._parser.should_keep_alive())
        reply = Reply(status, b"".join(self._body))
        self._waiting.set_result(reply)
        self._waiting = None

    def _count_head(self, size: int) -> None:
        self._heard += 1
        self._head_bytes += size
        if self._head_bytes > _HEAD_BYTES_MAX:
            self._fail("the response's head is too large")

    def _fail(self, why: str) -> None:
        self.reusable = False
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(BrokenError(why))
        self._waiting = None
        self.abort()


def _context(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=tls.ca.decode("ascii", "replace"))
    if tls.certificate is not None and tls.key is not None:
        # OpenSSL takes a chain by its path alone: a file in memory that has no name.
        handle = os.memfd_create("tls", os.MFD_CLOEXEC)
        try:
            os.write(handle, tls.certificate + b"\n" + tls.key)
            context.load_cert_chain(f"/proc/self/fd/{handle}")
        finally:
            os.close(handle)
    return context
