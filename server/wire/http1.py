"""A small HTTP/1.1 server: routes to async handlers, with every size and every wait bounded.

httptools (llhttp, strict mode) parses; this module holds the connection's order of events. It
carries the REST protocol, metrics and control's admin API. Bodies are whole (no streaming).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast
from urllib.parse import parse_qsl

import httptools

from server.wire.handlers import as_headrace_error
from server.wire.routes import Request, Response, Routes, error_response, json_response


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of one server. A hostile client meets one of these; an honest one never does."""

    head_bytes_max: int = 64 * 1024  # request line and headers (and trailers) together
    headers_max: int = 100
    body_bytes_max: int = 64 * 1024 * 1024  # Triton's default for HTTP input
    chunks_max: int = 65_536  # a body in one-byte chunks would cost far more than its bytes
    connections_max: int = 10_000
    head_timeout_s: float = 15.0  # from the first byte of a request to the end of its headers
    body_timeout_s: float = 120.0
    idle_timeout_s: float = 75.0  # keep-alive without a request
    write_timeout_s: float = 30.0  # a client that does not read its answer


class _Refused(Exception):  # noqa: N818 - it never leaves this module
    """The request breaks a rule: answer with this status, then close."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text


_REASONS = {status.value: status.phrase for status in HTTPStatus}
_CHUNK_SIZES_BYTES_MAX = 1 << 20
_LINGER_S = 2.0
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def _head(response: Response, length: int, keep_alive: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {response.status} {_REASONS.get(response.status, 'Unknown')}\r\n",
        f"Content-Type: {response.content_type}\r\nContent-Length: {length}\r\n",
    ]
    lines += [f"{name}: {value}\r\n" for name, value in response.headers]
    lines.append("\r\n" if keep_alive else "Connection: close\r\n\r\n")
    return "".join(lines).encode("latin-1")


class _Connection(asyncio.Protocol):
    """One client connection: parse, keep requests in order, run one handler at a time."""

    _headers: dict[str, str]
    _body: list[bytes]
    _body_bytes: int

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._limits = server.limits
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._peer = ""
        self._waiting: deque[Request | _Refused] = deque()
        self._task: asyncio.Task[None] | None = None
        self._reading_paused = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._closing = False
        self._phase = "idle"  # idle | head | body: what the parser waits for
        self._continue_due = False
        self._begun = False  # a request began in the piece of data that is being parsed
        self.expires_s = 0.0
        self._new_request()

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        peer = transport.get_extra_info("peername")
        self._peer = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else ""
        self._expire_after(self._limits.head_timeout_s)
        self._server.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._writable.set()
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()  # nobody waits for the answer any more
        self._server.closed(self)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self._begun = False
        try:
            self._parser.feed_data(data)
            self._count_unfinished(len(data))
        except httptools.HttpParserUpgrade:
            self._stop_parsing()  # we answer in HTTP/1.1 and close: every upgrade is optional
        except httptools.HttpParserCallbackError as error:
            refused = error.__context__
            if not isinstance(refused, _Refused):
                raise
            self._refuse(refused)
        except _Refused as refused:
            self._refuse(refused)
        except httptools.HttpParserError:
            self._refuse(_Refused(400, "malformed HTTP/1.1 request"))
        if self._waiting:
            self._run()
        if len(self._waiting) > 1 and not self._reading_paused and self._transport is not None:
            self._reading_paused = True  # pipelined requests wait in the socket, not in our memory
            self._transport.pause_reading()

    # The parser's callbacks, in the order in which they come.

    def on_message_begin(self) -> None:
        self._begun = True
        self._phase = "head"
        self._expire_after(self._limits.head_timeout_s)

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + 4)
        if self._phase == "body":
            return  # a trailer: counted, never merged with the headers
        self._header_count += 1
        if self._header_count > self._limits.headers_max:
            raise _Refused(431, f"more than {self._limits.headers_max} headers")
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1").strip()
        if key in self._headers:
            if key in {"content-length", "host", "transfer-encoding"}:
                raise _Refused(400, f"header {key} is repeated")
            text = f"{self._headers[key]}, {text}"
        self._headers[key] = text

    def on_headers_complete(self) -> None:
        headers = self._headers
        self._phase = "body"
        self._expire_after(self._limits.body_timeout_s)
        if "transfer-encoding" in headers:
            if "content-length" in headers:
                raise _Refused(400, "Content-Length and Transfer-Encoding together")
            if headers["transfer-encoding"].lower() != "chunked":
                raise _Refused(501, "the only transfer coding is chunked")
        version = self._parser.get_http_version()
        if "host" not in headers and version == "1.1":
            raise _Refused(400, "header Host is missing")
        length = int(headers.get("content-length", "0") or "0")
        if length > self._limits.body_bytes_max:
            raise _Refused(413, f"the body is larger than {self._limits.body_bytes_max} bytes")
        expect = headers.get("expect")
        if expect is not None and version == "1.1":
            if expect.lower() != "100-continue":
                raise _Refused(417, "the only expectation is 100-continue")
            self._continue_due = True
            self._send_continue()

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > self._limits.chunks_max:
            raise _Refused(413, f"the body has more than {self._limits.chunks_max} chunks")

    def on_body(self, data: bytes) -> None:
        self._continue_due = False
        self._body_bytes += len(data)
        if self._body_bytes > self._limits.body_bytes_max:
            raise _Refused(413, f"the body is larger than {self._limits.body_bytes_max} bytes")
        self._body.append(data)
        if len(self._body) > 1024:  # many small pieces cost more than their bytes
            self._body = [b"".join(self._body)]

    def on_message_complete(self) -> None:
        self._phase = "idle"
        self._expire_after(self._limits.idle_timeout_s)
        path, _, query = self._target().partition("?")
        method = self._parser.get_method().decode("latin-1")
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        request = Request(
            method,
            path,
            dict(parse_qsl(query, keep_blank_values=True)) if query else {},
            self._headers,
            body,
            peer=self._peer,
            keep_alive=self._parser.should_keep_alive(),
        )
        self._waiting.append(request)
        self._new_request()

    # Ours.

    def _new_request(self) -> None:
        self._url = b""
        self._headers = {}
        self._header_count = 0
        self._body = []
        self._body_bytes = 0
        self._head_bytes = 0
        self._unfinished_bytes = 0
        self._chunks = 0
        self._continue_due = False

    def _target(self) -> str:
        """Return the target's path and query; an absolute form loses its scheme and host."""
        text = self._url.decode("latin-1")
        if text.startswith("/") or text == "*":
            return text
        match = re.match(r"https?://[^/?#]*", text)
        if match is None:
            raise _Refused(400, "malformed request target")
        rest = text[match.end() :]
        return rest if rest.startswith("/") else f"/{rest}"

    def _count_head(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > self._limits.head_bytes_max:
            raise _Refused(431, f"the headers are larger than {self._limits.head_bytes_max} bytes")

    def _count_unfinished(self, count: int) -> None:
        """Bound what the parser holds back from us: half a header, half a trailer, chunk sizes.

        The piece in which a request begins is not counted (what came before belongs to another
        request); a piece is at most 256 KiB.
        """
        if self._begun or self._phase == "idle":
            return
        self._unfinished_bytes += count
        limit = self._limits.head_bytes_max
        if self._phase == "head":
            if self._unfinished_bytes > limit:
                raise _Refused(431, f"the headers are larger than {limit} bytes")
        elif self._unfinished_bytes > self._limits.body_bytes_max + limit + _CHUNK_SIZES_BYTES_MAX:
            raise _Refused(413, "the body's framing is larger than its content allows")

    def _expire_after(self, seconds: float) -> None:
        self.expires_s = self._server.now_s() + seconds

    def _send_continue(self) -> None:
        """Ask for the body, unless an earlier answer is still to be written."""
        if self._continue_due and self._task is None and not self._waiting and self._transport:
            self._continue_due = False
            self._transport.write(_CONTINUE)

    def _stop_parsing(self) -> None:
        if self._waiting and isinstance(last := self._waiting[-1], Request):
            last.keep_alive = False

    def _refuse(self, refused: _Refused) -> None:
        self._closing = True  # nothing after this can be parsed with confidence
        self._waiting.append(refused)

    def _run(self) -> None:
        if self._task is None:
            self._task = self._server.loop.create_task(self._answer_all())

    async def _answer_all(self) -> None:
        keep_alive = True
        while self._waiting and keep_alive:
            request = self._waiting.popleft()
            if isinstance(request, _Refused):
                refused = json_response({"error": request.text}, request.status)
                await self._write(refused, keep_alive=False)
                self._linger()
                return
            response = await self._server.answer(request)
            keep_alive = request.keep_alive and not self._server.draining
            await self._write(response, keep_alive, head_only=request.method == "HEAD")
        self._task = None
        if not keep_alive:
            self.close()
        elif self._reading_paused and self._transport is not None:
            self._reading_paused = False
            self._transport.resume_reading()
        self._send_continue()

    def _linger(self) -> None:
        """End our side, and throw away what still comes, so that the client can read the refusal.

        Closing with unread bytes would reset the connection and with it the answer.
        """
        self._task = None
        self._phase = "idle"
        self._expire_after(_LINGER_S)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    async def _write(
        self, response: Response, keep_alive: bool, *, head_only: bool = False
    ) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        body = response.body
        parts = body if isinstance(body, list) else [body]
        length = sum(len(part) for part in parts)
        head = _head(response, length, keep_alive)
        if head_only or length == 0:
            self._transport.write(head)
        elif len(parts) == 1 and length < 65_536:
            self._transport.write(head + parts[0])
        else:
            self._transport.writelines([head, *parts])
        if not self._writable.is_set():
            self._expire_after(self._limits.write_timeout_s)
            await self._writable.wait()
        self._expire_after(self._limits.idle_timeout_s)

    def expired(self, now_s: float) -> None:
        """Close when what we wait for from the client has not come in time."""
        handling = self._task is not None and self._writable.is_set()
        if now_s < self.expires_s or handling or self._transport is None:
            return
        if self._phase == "idle" or self._task is not None:
            self._transport.abort() if self._task is not None else self._transport.close()
            return
        self._refuse(_Refused(408, "the request did not arrive in time"))
        self._run()

    def close_if_idle(self) -> None:
        """Close a keep-alive connection that has nothing under way (the drain)."""
        if self._task is None and not self._waiting and self._phase == "idle":
            self.close()

    def close(self) -> None:
        """Close after what was written is sent."""
        self._closing = True
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close now; the drain's time is up."""
        if self._transport is not None:
            self._transport.abort()


class HttpServer:
    """Serves `routes` on one listening socket."""

    def __init__(self, routes: Routes, limits: HttpLimits | None = None) -> None:
        self.limits = limits or HttpLimits()
        self.draining = False
        self.port = 0
        self._routes = routes
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._all_closed = asyncio.Event()

    async def start(self, host: str, port: int, *, reuse_port: bool = False) -> int:
        """Listen on (host, port), 0 for any free one; return the port.

        Raises OSError when the port is taken.
        """
        self.loop = asyncio.get_running_loop()
        self.now_s = self.loop.time
        self._server = await self.loop.create_server(
            lambda: _Connection(self), host, port, reuse_port=reuse_port or None, backlog=1024
        )
        self.port = int(self._server.sockets[0].getsockname()[1])
        self._sweep = self.loop.call_later(1.0, self._sweep_expired)
        return self.port

    async def drain(self, grace_s: float) -> None:
        """Stop listening, finish what is under way within `grace_s`, then close everything."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close_if_idle()
        if self._connections:
            self._all_closed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_closed.wait(), grace_s)
        for connection in list(self._connections):
            connection.abort()
        if self._sweep is not None:
            self._sweep.cancel()
        await asyncio.sleep(0)  # aborted transports report their loss in the next tick

    @property
    def open_connections(self) -> int:
        """How many client connections are open."""
        return len(self._connections)

    async def answer(self, request: Request) -> Response:
        """Return the response of the route for `request`; every failure becomes one."""
        found = self._routes.find(request)
        if isinstance(found, Response):
            return found
        try:
            return await found(request)
        except Exception as error:  # noqa: BLE001 - the task boundary: one request's fault stays its own
            return error_response(as_headrace_error(error, f"{request.method} {request.path}"))

    def opened(self, connection: _Connection) -> None:
        """Count a new connection, or refuse it at the limit."""
        self._connections.add(connection)
        if len(self._connections) > self.limits.connections_max or self.draining:
            connection.abort()

    def closed(self, connection: _Connection) -> None:
        """Forget a connection that is gone."""
        self._connections.discard(connection)
        if not self._connections:
            self._all_closed.set()

    def _sweep_expired(self) -> None:
        now_s = self.now_s()
        for connection in list(self._connections):
            connection.expired(now_s)
        self._sweep = self.loop.call_later(1.0, self._sweep_expired)
