"""Guards on both wires: a credential is judged before the body that it came with is there."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from server.access.callers import check_caller
from server.access.gate import Gate
from server.access.guard import GuardedRoutes, guarded_handlers
from server.access.principal import Scope
from server.wire.grpc.server import GrpcServer
from server.wire.handlers import Context
from server.wire.http1.server import HttpServer
from server.wire.routes import Request, Response
from tests.server.access.test_gate import KEY, gate
from tests.support.attacker import fields_for, message
from tests.support.raw_client import RawClient

UNAUTHENTICATED, PERMISSION_DENIED = 16, 7
INFER = b"/inference.GRPCInferenceService/ModelInfer"
LOAD = b"/inference.GRPCInferenceService/RepositoryModelLoad"
LARGE = 40 << 20


async def _echo(request: bytes, _: Context) -> bytes:
    check_caller(Scope.INFER, "m")
    return request


async def _length(request: Request) -> Response:
    return Response(200, str(len(request.body)).encode())


@contextlib.asynccontextmanager
async def called(
    found: Gate, path: bytes, credential: str | None
) -> AsyncIterator[tuple[GrpcServer, RawClient]]:
    """A server, and a client that has sent the head of a call on stream 1."""
    server = GrpcServer(guarded_handlers({path.decode(): _echo}, found, admin_only=False))
    await server.start("127.0.0.1", 0)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(server.drain, 0)
        client = await RawClient.open(server.port)
        stack.push_async_callback(client.close)
        fields = [(name, path if name == b":path" else value) for name, value in fields_for("x")]
        fields += [] if credential is None else [(b"x-api-key", credential.encode())]
        client.send(client.factory.headers(1, fields))
        yield server, client


@pytest.mark.parametrize(
    ("path", "credential", "status"),
    [
        (INFER, None, UNAUTHENTICATED),
        (INFER, "hr_", UNAUTHENTICATED),
        (LOAD, KEY, PERMISSION_DENIED),
    ],
)
async def test_grpc_refuses_before_the_message_is_there(
    path: bytes, credential: str | None, status: int
) -> None:
    found, _ = gate()
    async with called(found, path, credential) as (server, client):
        client.send(client.factory.data(1, message(bytes(1000), length=LARGE)))
        assert (await client.answer(1)).status == status
        assert server.held_bytes == 0
        assert sum(found.refused.values()) == 1


async def test_grpc_hears_whom_it_knows_to_the_end() -> None:
    found, _ = gate()
    async with called(found, INFER, KEY) as (_, client):
        whole = message(bytes(1000))
        client.send(client.factory.data(1, whole[:500]))
        client.send(client.factory.data(1, whole[500:], end_stream=True))
        assert (await client.answer(1)).messages == [bytes(1000)]


async def answer_of(found: Gate, *lines: bytes, body: bytes = b"") -> tuple[int, bytes, bool]:
    """Status, body and whether the server closed, of a request to the path that `infer` needs."""
    routes = GuardedRoutes(found, admin_only=False)
    routes.add("POST", "/v2/models/(?P<model>[^/]+)/infer", _length)
    server = HttpServer(routes)
    await server.start("127.0.0.1", 0)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = b"\r\n".join((b"POST /v2/models/m/infer HTTP/1.1", b"host: x", *lines, b"", b""))
        writer.write(head + body)
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        text = await reader.readexactly(length)
        closes = b"connection: close" in answer.lower()
        writer.close()
        return int(answer[9:12]), text, closes
    finally:
        await server.drain(0)


@pytest.mark.parametrize("framing", [b"content-length: %d" % LARGE, b"transfer-encoding: chunked"])
@pytest.mark.parametrize("credential", [[], [b"x-api-key: hr_"]])
@pytest.mark.parametrize("more", [[], [b"expect: 100-continue"]])
async def test_http1_refuses_before_the_body_is_there(
    framing: bytes, credential: list[bytes], more: list[bytes]
) -> None:
    found, _ = gate()
    status, text, closes = await answer_of(found, framing, *credential, *more)
    assert (status, closes) == (401, True)
    assert json.loads(text)["code"] == "unauthenticated"
    assert sum(found.refused.values()) == 1


async def test_http1_asks_for_no_small_body_either_of_whom_it_refuses() -> None:
    found, _ = gate()
    status, _, closes = await answer_of(found, b"content-length: 10", b"expect: 100-continue")
    assert (status, closes) == (401, True)


async def test_http1_asks_whom_it_knows_for_the_body() -> None:
    found, _ = gate()
    key = b"x-api-key: " + KEY.encode()
    asked = await answer_of(found, key, b"content-length: 100000", b"expect: 100-continue")
    assert asked == (100, b"", False)
    body = bytes(100_000)
    heard = await answer_of(found, key, b"content-length: 100000", body=body)
    assert heard == (200, b"100000", False)


async def test_http1_keeps_the_connection_of_a_small_refused_request() -> None:
    found, _ = gate()
    status, _, closes = await answer_of(found, b"content-length: 10", body=bytes(10))
    assert (status, closes) == (401, False)
    assert sum(found.refused.values()) == 1
