"""An HTTP server that attacks are made on: `python -m tests.support.attacked_http`.

It reads one JSON command a line and answers each with a line of JSON. `start` begins a fresh
HttpServer with the limits that it names, and without the defences that it names; `counters` says
what that server holds; `settle` waits until it holds nothing; `release` lets handlers that wait go
on.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvloop

from server.protocol import oip_rest
from server.wire.http1 import head, parser, server
from server.wire.http1.limits import HttpLimits
from server.wire.http1.server import HttpServer
from server.wire.routes import Request, Response, Routes, json_response

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PIECE = bytes(64 * 1024)
_LENIENT = dict.fromkeys(
    (
        "lenient_headers", "lenient_chunked_length", "lenient_keep_alive",
        "lenient_transfer_encoding", "lenient_version", "lenient_data_after_close",
        "lenient_optional_lf_after_cr", "lenient_optional_cr_before_lf",
        "lenient_optional_crlf_after_chunk", "lenient_spaces_after_chunk_size",
    ),
    True,
)  # fmt: skip
_STRICT_CHECKED, _STRICT_PARSER = head.checked, parser.httptools.HttpRequestParser


def unchecked(
    method: str, target: bytes, version: str, headers: dict[str, str], keep_alive: bool
) -> head.Head:
    """What a head would be that nobody checks: a length wins, any coding is chunked."""
    text = headers.get("content-length", "0")
    length = int(text) if text.isdigit() else 0
    if "transfer-encoding" in headers:
        length = head.CHUNKED
    path = "/" + target.decode("latin-1").partition("//")[2].partition("/")[2]
    if target.startswith(b"/"):
        path = target.decode("latin-1").partition("?")[0].partition("#")[0]
    return head.Head(method, path, {}, headers, length, keep_alive, version == "1.0")


def lenient_parser(protocol: Any) -> Any:
    """llhttp as it is where everything is let through."""
    made = _STRICT_PARSER(protocol)
    made.set_dangerous_leniencies(**_LENIENT)
    return made


class Handlers:
    """`running` counts those at work, `paths` what they were asked for."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.running = 0
        self.begun = 0
        self.paths: list[str] = []
        self.produced_bytes = 0
        self.consumed_bytes = 0

    def routes(self) -> Routes:
        routes = Routes()
        for method, path, handler in (
            ("GET", "/", self.hello),
            ("GET", "/smuggled", self.hello),
            ("POST", "/echo", self.echo),
            ("POST", "/inflate", self.inflate),
            ("GET", "/wait", self.wait),
            ("GET", "/big", self.big),
            ("GET", "/endless", self.endless),
        ):
            routes.add(method, path, self._counted(handler))
        routes.add("PUT", "/stream", self._counted(self.stream), streams=True,
                   body_bytes_max=1 << 40)  # fmt: skip
        return routes

    def _counted(self, handler: Any) -> Any:
        async def counted(request: Request) -> Response:
            self.running += 1
            self.begun += 1
            self.paths.append(request.path)
            try:
                response: Response = await handler(request)
                return response
            finally:
                self.running -= 1

        return counted

    async def hello(self, _: Request) -> Response:
        return json_response("hello")

    async def echo(self, request: Request) -> Response:
        return Response(200, request.body)

    async def inflate(self, request: Request) -> Response:
        """What REST does with a compressed body."""
        return json_response(len(oip_rest._inflated(request)))

    async def wait(self, _: Request) -> Response:
        while not self.gate.is_set():  # cancelled or not, as work in a thread
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                continue
        return json_response("waited")

    async def big(self, _: Request) -> Response:
        return Response(200, bytes(8 << 20))

    async def stream(self, request: Request) -> Response:
        """Takes a piece at a time, the second one only after `release`."""
        size = 0
        async for piece in request.stream:
            size += len(piece)
            self.consumed_bytes += len(piece)
            await self.gate.wait()
        return json_response(size)

    async def endless(self, _: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            self.running += 1
            try:
                for _at in range((1 << 30) // len(_PIECE)):
                    self.produced_bytes += len(_PIECE)
                    yield _PIECE
            finally:
                self.running -= 1

        return Response(200, pieces(), "application/octet-stream")


class Attacked:
    """One server, and what there is to say about it."""

    def __init__(self, command: dict[str, Any]) -> None:
        without = command["without"]
        parser.checked = unchecked if "checks" in without else _STRICT_CHECKED  # type: ignore[attr-defined]
        parser.httptools.HttpRequestParser = (
            lenient_parser if "strict" in without else _STRICT_PARSER
        )
        oip_rest._INFLATED_BYTES_MAX = command["inflated_bytes_max"]
        server._SWEEP_INTERVAL_S = 0.01
        self.handlers = Handlers()
        self.server = HttpServer(self.handlers.routes(), HttpLimits(**command["limits"]))
        self.tls: ssl.SSLContext | None = None
        if command["tls"] is not None:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(*command["tls"])

    def counters(self) -> dict[str, Any]:
        served, handlers = self.server, self.handlers
        return {
            "live": served.calls.live,
            "held_bytes": served.held.held,
            "connections": len(served.connections),
            "open_connections": served.listener.open_connections,
            "abuse": dict(served.abuse),
            "running": handlers.running,
            "begun": handlers.begun,
            "paths": handlers.paths,
            "produced_bytes": handlers.produced_bytes,
            "consumed_bytes": handlers.consumed_bytes,
            "buffered_bytes": sum(
                each._transport.get_write_buffer_size() for each in served.connections
            ),
            "queued": max((len(each._waiting) for each in served.connections), default=0),
            "rss_bytes": rss_bytes(),
        }

    def is_quiet(self) -> bool:
        now = self.counters()
        return not any(
            now[name]
            for name in ("live", "held_bytes", "connections", "open_connections", "running")
        )

    async def settle(self, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while not self.is_quiet() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return self.counters()


def rss_bytes() -> int:
    """Return the resident set size of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES


async def obey(attacked: Attacked | None, command: dict[str, Any]) -> tuple[Attacked | None, Any]:
    """Do what the command says: (the server from now on, the answer)."""
    if command["do"] == "start":
        if attacked is not None:
            attacked.handlers.gate.set()
            await attacked.server.drain(0)
        attacked = Attacked(command)
        return attacked, await attacked.server.start("127.0.0.1", 0, attacked.tls)
    assert attacked is not None
    match command["do"]:
        case "settle":
            return attacked, await attacked.settle(command["timeout_s"])
        case "release":
            attacked.handlers.gate.set()
            return attacked, None
        case _:
            return attacked, attacked.counters()


async def main() -> None:
    """Obey until the commands end."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    attacked: Attacked | None = None
    while line := await reader.readline():
        attacked, answer = await obey(attacked, json.loads(line))
        print(json.dumps(answer), flush=True)  # noqa: T201 - the control line
    if attacked is not None:
        attacked.handlers.gate.set()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(main())
