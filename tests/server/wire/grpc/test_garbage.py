"""What a lost connection held is freed at once: nothing of it waits for the garbage collector.

A connection in a cycle keeps its transport, and over TLS that is 40 KiB, until a full collection,
which a busy server may see once in minutes.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Iterator

import pytest

from server.wire.grpc.calls import Call
from server.wire.grpc.connection import GrpcConnection
from server.wire.grpc.server import GrpcServer
from server.wire.http2.connection import Connection
from server.wire.http2.stream import Stream
from tests.server.wire.grpc.conftest import Connect, Serve
from tests.support.attacked_server import HoldingDoor, Services
from tests.support.frame_factory import GOAWAY
from tests.support.raw_client import RawClient, until

_KINDS = (GrpcConnection, Connection, Stream, Call)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def left() -> list[str]:
    return sorted(type(each).__name__ for each in gc.get_objects() if isinstance(each, _KINDS))


async def nothing(client: RawClient) -> None:
    await client.wait(lambda: client.frames, "settings")


async def unary(client: RawClient) -> None:
    client.call(1)
    assert (await client.answer(1)).status == 0


async def chat(client: RawClient) -> None:
    client.begin(1, "Chat")
    client.message(1, b"one", end=True)
    assert (await client.answer(1)).status == 0


async def open_calls(client: RawClient) -> None:
    """Handlers that wait for messages, for a gate and for a window."""
    client.begin(1, "Chat")
    client.begin(3, "Total")
    client.call(5, b"hello", "Slow")
    client.call(7, b"", "Endless")
    await client.wait_for(0, 7)


async def cancelled(client: RawClient) -> None:
    await open_calls(client)
    for stream_id in (1, 3, 5, 7):
        client.send(client.factory.rst_stream(stream_id, 8))


async def late(client: RawClient) -> None:
    """A batch that is answered when its connection is gone."""
    client.call(1, b"hello", "Batched")
    await nothing(client)


async def fault(client: RawClient) -> None:
    client.send(client.factory.window_update(0, 0))
    await client.wait_for(GOAWAY)


@pytest.mark.parametrize("act", [nothing, unary, chat, open_calls, cancelled, late, fault])
async def test_a_lost_connection_is_freed_at_once(
    serve: Serve,
    services: Services,
    connect: Connect,
    no_collector: None,
    act: Callable[[RawClient], Awaitable[None]],
) -> None:
    doors = {"/test.Service/Batched": lambda server: HoldingDoor(server, services)}
    server: GrpcServer = await serve(doors=doors)
    client = await connect(server)
    await act(client)
    client.writer.transport.abort()
    await until(lambda: not server.connections, "it is lost")
    services.gate.set()
    await until(lambda: server.calls.live == 0, "its calls have ended")
    await until(lambda: left() == [], f"all of it is freed: {left()}")
