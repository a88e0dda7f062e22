"""Cancellation at every await point leaves nothing behind.

Each kind of method is run again and again. In run k the call is cut at the k-th place where its
handler, or the transport under it, waits: by the client's reset, by the loss of its connection, by
its deadline, by the end of the server, and by two of them at once. Afterwards every counter is at
zero, no task is left, and a connection that still stands answers the next call.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from itertools import count
from types import CodeType
from typing import Any

import pytest

from server.wire.grpc.connection import GrpcConnection
from server.wire.grpc.server import GrpcServer
from server.wire.handlers import Context, Handlers, Kind, Method
from tests.support.attacked_server import HoldingDoor, Services
from tests.support.attacker import message
from tests.support.await_points import AwaitPoints
from tests.support.frame_factory import DATA, SETTINGS, FrameFactory
from tests.support.raw_client import PATIENCE_S, RawClient, holds_nothing, server_tasks, until

_CANCEL = 8
_INITIAL_WINDOW_SIZE = 4
_HOUR = (b"grpc-timeout", b"1H")
_LARGE_BYTES = 100_000  # more than a stream holds before its handler has to wait
_POINTS_MAX = 200  # a run that has more waits in circles


class Walk:
    """Handlers that wait in every way there is, in their work and in what they do at its end."""

    def __init__(self) -> None:
        self.running = 0
        self.children = 0
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def _at_work(self) -> AsyncIterator[None]:
        self.running += 1
        try:
            yield
        finally:
            try:
                await asyncio.sleep(0)
            finally:
                self.running -= 1

    async def _child(self) -> None:
        self.children += 1
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
        finally:
            self.children -= 1

    async def _walk(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)
        async with self._lock, asyncio.timeout(PATIENCE_S):
            answer = loop.create_future()
            timer = loop.call_later(0.001, answer.set_result, None)
            try:
                await answer
            finally:
                timer.cancel()
        await asyncio.gather(self._child(), self._child())
        await loop.run_in_executor(None, int)
        await asyncio.wait_for(self._child(), PATIENCE_S)

    async def unary(self, request: bytes, context: Context) -> bytes:
        async with self._at_work():
            context.trailing_metadata = [("x-walked", "far")]
            await self._walk()
            return request

    async def server_stream(self, request: bytes, _: Context) -> AsyncIterator[bytes]:
        async with self._at_work():
            await self._walk()
            for _at in range(3):
                yield bytes(_LARGE_BYTES)
                await asyncio.sleep(0)

    async def client_stream(self, requests: AsyncIterator[bytes], _: Context) -> bytes:
        async with self._at_work():
            total = 0
            async for each in requests:
                await asyncio.sleep(0)
                total += len(each)
            await self._walk()
            return b"%d" % total

    async def bidi_stream(self, requests: AsyncIterator[bytes], _: Context) -> AsyncIterator[bytes]:
        async with self._at_work():
            async for each in requests:
                await asyncio.sleep(0)
                yield each
            yield bytes(_LARGE_BYTES)
            await asyncio.sleep(0)
            yield b"the end"

    def table(self) -> Handlers:
        return {
            "/test.Service/Unary": self.unary,
            "/test.Service/ServerStream": Method(Kind.SERVER_STREAM, self.server_stream),
            "/test.Service/ClientStream": Method(Kind.CLIENT_STREAM, self.client_stream),
            "/test.Service/BidiStream": Method(Kind.BIDI_STREAM, self.bidi_stream),
            "/test.Service/Batched": self.unary,
        }


# What the client does, step by step. It leaves the server waiting for messages and for windows.


async def settled(client: RawClient) -> None:
    """Let the server handle what was sent so far. Not by pings: gRPC counts those."""
    acks = sum(frame.kind == SETTINGS and frame.flags for frame in client.frames)
    client.send(client.factory.settings())
    await client.wait_for(SETTINGS, flags=1, nth=acks + 1)


async def _open_window(client: RawClient, stream_id: int) -> None:
    """Let answers through bit by bit, until they end."""
    while not any(frame.ends for frame in client.of(stream_id)):
        had = len(client.body(stream_id))
        client.send(
            client.factory.window_update(stream_id, 30_000),
            client.factory.window_update(0, 30_000),
        )
        await client.wait(
            lambda had=had: (
                len(client.body(stream_id)) >= had + 30_000  # type: ignore[misc]
                or any(frame.ends for frame in client.of(stream_id))
            ),
            "more of the answer",
        )


async def ask_unary(client: RawClient, _: Services) -> None:
    """In one piece: the way of whole requests."""
    client.call(1, b"hello", "Unary", _HOUR)
    assert (await client.answer(1)).messages == [b"hello"]


async def ask_unary_in_pieces(client: RawClient, _: Services) -> None:
    framed = message(b"hello")
    client.begin(1, "Unary", _HOUR)
    for at in range(0, len(framed), 4):
        client.send(client.factory.data(1, framed[at : at + 4]))
        await settled(client)
    client.send(client.factory.data(1, b"", end_stream=True))
    assert (await client.answer(1)).messages == [b"hello"]


async def ask_server_stream(client: RawClient, _: Services) -> None:
    client.call(1, b"hello", "ServerStream", _HOUR)
    await _open_window(client, 1)
    assert (await client.answer(1)).messages == [bytes(_LARGE_BYTES)] * 3


async def ask_client_stream(client: RawClient, _: Services) -> None:
    client.begin(1, "ClientStream", _HOUR)
    for size in (1, 20, 9_000, 3):
        client.message(1, bytes(size))
        await settled(client)
    client.send(client.factory.data(1, b"", end_stream=True))
    assert (await client.answer(1)).messages == [b"9024"]


async def ask_client_stream_in_one(client: RawClient, _: Services) -> None:
    """All messages wait when the handler begins."""
    client.begin(1, "ClientStream", _HOUR)
    client.message(1, b"a")
    client.message(1, b"bc")
    client.message(1, bytes(9_000), end=True)
    assert (await client.answer(1)).messages == [b"9003"]


async def ask_bidi_stream(client: RawClient, _: Services) -> None:
    client.begin(1, "BidiStream", _HOUR)
    for at, text in enumerate((b"one", b"two", b"three"), 1):
        client.message(1, text)
        await client.wait_for(DATA, 1, nth=at)
    client.send(client.factory.data(1, b"", end_stream=True))
    await _open_window(client, 1)
    said = (await client.answer(1)).messages
    assert said == [b"one", b"two", b"three", bytes(_LARGE_BYTES), b"the end"]


async def ask_door(client: RawClient, services: Services) -> None:
    client.call(1, b"hello", "Batched", _HOUR)
    await settled(client)
    services.gate.set()
    assert (await client.answer(1)).messages == [b"hello"]


Script = Callable[[RawClient, Services], Coroutine[Any, Any, None]]
# What a client does, and how often its call waits at least: less, and the points are not counted.
SCRIPTS: dict[str, tuple[Script, int]] = {
    "unary": (ask_unary, 6),
    "unary_in_pieces": (ask_unary_in_pieces, 6),
    "server_stream": (ask_server_stream, 12),
    "client_stream": (ask_client_stream, 12),
    "client_stream_in_one": (ask_client_stream_in_one, 8),
    "bidi_stream": (ask_bidi_stream, 8),
    "door": (ask_door, 1),
}


# How it is cut.


def reset(server: GrpcServer, connection: GrpcConnection) -> None:
    """The client takes its request back: the frame arrives now."""
    connection.data_received(FrameFactory().rst_stream(1, _CANCEL))


def lose(server: GrpcServer, connection: GrpcConnection) -> None:
    connection.abort()


def expire(server: GrpcServer, connection: GrpcConnection) -> None:
    """The deadline's timer fires."""
    for call in list(connection.calls.values()):
        call._expire()


_DRAINS: set[asyncio.Task[None]] = set()


def drain(server: GrpcServer, connection: GrpcConnection) -> None:
    task = asyncio.get_running_loop().create_task(server.drain(0))
    _DRAINS.add(task)
    task.add_done_callback(_DRAINS.discard)


Cut = Callable[[GrpcServer, GrpcConnection], None]
CUTS: dict[str, tuple[Cut, ...]] = {
    "reset": (reset,),
    "lost": (lose,),
    "deadline": (expire,),
    "drain": (drain,),
    "reset_and_lost": (reset, lose),
    "deadline_and_reset": (expire, reset),
    "drain_and_lost": (drain, lose),
    "drain_and_deadline": (drain, expire),
}
_CONNECTION_STANDS = {"reset", "deadline", "deadline_and_reset"}


def is_of_a_call(code: CodeType) -> bool:
    return code.co_qualname in {"Call._run", "HoldingDoor._run"}


async def _cut_at(point: int, script: Script, cuts: tuple[Cut, ...], stands: bool) -> list[str]:
    """Run a call and cut it at its `point`-th wait; return the points. Fewer: it ran to its end."""
    walk, services = Walk(), Services()
    server = GrpcServer({**services.table(), **walk.table()})
    server.add_door("/test.Service/Batched", HoldingDoor(server, services))
    await server.start("127.0.0.1", 0)
    before = asyncio.all_tasks()
    client = await RawClient.open(server.port, {_INITIAL_WINDOW_SIZE: 1_000})
    await settled(client)
    (connection,) = server.connections

    def cut() -> None:
        for each in cuts:
            each(server, connection)

    with AwaitPoints(is_of_a_call, point, cut) as points:
        acting = asyncio.ensure_future(script(client, services))
        cutting = asyncio.ensure_future(points.was_cut.wait())
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait({acting, cutting}, return_when=asyncio.FIRST_COMPLETED)
        cutting.cancel()
    if points.was_cut.is_set():
        acting.cancel()
        with contextlib.suppress(asyncio.CancelledError, AssertionError, ConnectionError):
            await acting
    else:
        await acting  # it had its answer
    services.gate.set()
    where = f"cut at {points.names[-1:]}"
    await until(lambda: holds_nothing(server), f"all counters at zero, {where}")
    await until(lambda: walk.running == walk.children == 0, f"handlers have ended, {where}")
    if stands and points.was_cut.is_set():
        window = connection.core._window
        assert window.left + window.consumed == window.size, f"credit is lost, {where}"
        client.call(3)
        assert (await client.answer(3)).messages == [b"hello"], where
    await client.close()
    await server.drain(0)
    await until(lambda: not _DRAINS, "drains have ended")
    await until(lambda: not server_tasks(), f"no task of the server's, {where}")
    await until(lambda: server.listener.open_connections == 0, f"no connection, {where}")
    left = asyncio.all_tasks() - before
    await until(lambda: all(task.done() for task in left), f"no task is left of {left}, {where}")
    assert not server.abuse
    assert server.calls.started == server.calls.ended.total()
    return points.names


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", SCRIPTS)
async def test_a_call_cut_at_any_await_point_leaves_nothing(name: str, cut: str) -> None:
    script, points_min = SCRIPTS[name]
    if name == "door" and "deadline" in cut:
        pytest.skip("a batch looks at its deadlines by itself, before it runs")
    for point in count(1):
        assert point < _POINTS_MAX
        names = await _cut_at(point, script, CUTS[cut], cut in _CONNECTION_STANDS)
        if len(names) < point:
            assert point > points_min, f"only {names}"
            return
