"""A server on a port of its own, whose counters are all back at zero after each test."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

import pytest

from server.wire.grpc.connection import GrpcConnection
from server.wire.grpc.limits import ServerLimits
from server.wire.grpc.server import GrpcServer
from server.wire.handlers import Handlers
from server.wire.http2.limits import Limits
from tests.support.attacked_server import Services
from tests.support.raw_client import RawClient, leaving_nothing

Serve = Callable[..., Coroutine[Any, Any, GrpcServer]]
Connect = Callable[..., Coroutine[Any, Any, RawClient]]


@pytest.fixture
async def services() -> Services:
    return Services()


@pytest.fixture
async def serve(services: Services) -> AsyncIterator[Serve]:
    """Start a server of `services` and more handlers; keywords are limits of either kind."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            more: Handlers | None = None,
            *,
            doors: Mapping[str, Any] | None = None,
            server_limits: Mapping[str, Any] | None = None,
            **limits: int,
        ) -> GrpcServer:
            server = GrpcServer(
                {**services.table(), **(more or {})},
                limits=ServerLimits(**(server_limits or {})),
                connection_limits=Limits(**limits),
            )
            for path, door in (doors or {}).items():
                server.add_door(path, door(server))
            await server.start("127.0.0.1", 0)
            await stack.enter_async_context(leaving_nothing(server))
            return server

        yield start
        services.gate.set()


@pytest.fixture
async def server(serve: Serve) -> GrpcServer:
    """A server with the limits of production."""
    return await serve()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Open a connection to a server: preface and these SETTINGS are sent."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(
            server: GrpcServer, settings: Mapping[int, int] | None = None
        ) -> RawClient:
            client = await RawClient.open(server.port, settings)
            stack.push_async_callback(client.close)
            return client

        yield open_one


@pytest.fixture
async def client(server: GrpcServer, connect: Connect) -> RawClient:
    return await connect(server)


@pytest.fixture(params=["whole", "bytes"])
def split(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As what the server reads arrives: as it was sent, or byte by byte."""
    if request.param == "bytes":
        receive = GrpcConnection.data_received

        def chopped(self: GrpcConnection, data: bytes) -> None:
            for at in range(len(data)):
                receive(self, data[at : at + 1])

        monkeypatch.setattr(GrpcConnection, "data_received", chopped)
    return str(request.param)
