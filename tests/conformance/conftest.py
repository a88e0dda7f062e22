"""The interop service on each transport."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.interop_service import TestService
from tests.support.interop_tap import Tap, tap

TRANSPORTS = {"grpcio": "server.wire.grpcio", "headrace": "server.wire.grpc.server"}


def server_class(transport: str) -> Any:
    """Return the GrpcServer of `transport`."""
    name = TRANSPORTS[transport]
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} does not exist")
    return importlib.import_module(name).GrpcServer


@pytest.fixture(params=sorted(TRANSPORTS))
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def service() -> TestService:
    return TestService()


@pytest.fixture
async def port(transport: str, service: TestService) -> AsyncIterator[int]:
    """A server of the service; afterwards no handler lives."""
    server = server_class(transport)(service.handlers)
    yield await server.start("127.0.0.1", 0)
    await service.until(live=0)
    await server.drain(0)


@pytest.fixture
async def tapped(port: int, service: TestService) -> AsyncIterator[Tap]:
    """The same through a relay that sees which messages are compressed."""
    async with tap(port) as seen:
        service.tap = seen
        yield seen
