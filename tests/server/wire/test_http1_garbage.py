"""What a lost HTTP/1.1 connection held is freed at once (see `grpc/test_garbage.py`)."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest

from server.wire.http1.connection import Connection
from server.wire.http1.reader import RequestReader
from server.wire.http1.server import HttpServer
from server.wire.routes import Request, Response, Routes
from tests.support.raw_client import until

_KINDS = (Connection, RequestReader)
_HELLO = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"
_POST = b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    async def hello(_: Request) -> Response:
        await asyncio.sleep(0)
        return Response(200, b"hello", "text/plain")

    async def wait(_: Request) -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    routes = Routes()
    routes.add("GET", "/hello", hello)
    routes.add("POST", "/hello", hello)
    routes.add("GET", "/wait", wait)
    server = HttpServer(routes)
    await server.start("127.0.0.1", 0)
    gc.collect()
    gc.disable()
    yield server
    gc.enable()
    await server.drain(0)


def left(server: HttpServer) -> list[str]:
    """What there is of the connections of this server."""
    return sorted(
        type(each).__name__
        for each in gc.get_objects()
        if isinstance(each, _KINDS) and each._server is server
    )


@pytest.mark.parametrize(
    ("said", "answered"),
    [
        (b"", False),
        (_HELLO, True),
        (_HELLO * 5, True),
        (_POST + b"123456789", True),
        (_POST + b"1234", False),
        (_HELLO[:10], False),
        (b"no HTTP\r\n\r\n", True),
        (_HELLO.replace(b"hello", b"wait"), False),
        (_HELLO.replace(b"hello", b"none"), True),
    ],
)
async def test_a_lost_connection_is_freed_at_once(
    server: HttpServer, said: bytes, answered: bool
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(said)
    await until(lambda: server.open_connections == 1, "it is open")
    if answered:
        assert (await reader.readline()).startswith(b"HTTP/1.1 ")
    writer.transport.abort()
    await until(lambda: server.open_connections == 0, "it is lost")
    await until(lambda: left(server) == [], f"all of it is freed: {left(server)}")
