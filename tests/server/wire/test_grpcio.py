"""The handler table on grpc.aio."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc import aio

from headrace.errors import STATUS, HeadraceError
from server.wire.grpcio import GrpcServer
from server.wire.handlers import Context


class World:
    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.context = Context()

    async def echo(self, message: bytes, context: Context) -> bytes:
        self.context = context
        return message

    async def broken(self, message: bytes, context: Context) -> bytes:
        raise ValueError("a secret of /home/machine")

    async def fail(self, message: bytes, context: Context) -> bytes:
        code = message.decode()
        kind = next(kind for kind in HeadraceError.__subclasses__() if kind.code == code)
        raise kind("é 100%\n", where="here")

    async def wait(self, message: bytes, context: Context) -> bytes:
        self.entered.set()
        await self.gate.wait()
        return b"done"


@pytest.fixture
async def world() -> World:
    return World()


@pytest.fixture
async def server(world: World) -> AsyncIterator[GrpcServer]:
    server = GrpcServer(
        {"/a.B/Echo": world.echo, "/a.B/Broken": world.broken, "/a.B/Fail": world.fail,
         "/a.B/Wait": world.wait}
    )  # fmt: skip
    await server.start("127.0.0.1", 0)
    yield server
    await server.drain(0)


@pytest.fixture
async def channel(server: GrpcServer) -> AsyncIterator[aio.Channel]:
    async with aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


async def test_bytes_metadata_and_deadline_reach_the_handler(
    world: World, channel: aio.Channel
) -> None:
    call = channel.unary_unary("/a.B/Echo")
    assert await call(b"hi", metadata=(("who", "me"), ("x-bin", b"\x00"))) == b"hi"
    assert world.context.metadata["who"] == "me"
    assert "x-bin" not in world.context.metadata
    assert world.context.deadline_ns is None
    await call(b"hi", timeout=5)
    assert world.context.deadline_ns is not None
    world.context.check_deadline("here")


async def test_a_message_far_above_the_default_limit_passes(server: GrpcServer) -> None:
    options = [("grpc.max_receive_message_length", -1)]
    async with aio.insecure_channel(f"127.0.0.1:{server.port}", options=options) as channel:
        message = b"x" * (16 << 20)
        assert await channel.unary_unary("/a.B/Echo")(message) == message


@pytest.mark.parametrize("code", sorted(STATUS))
async def test_every_error_has_its_status(channel: aio.Channel, code: str) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await channel.unary_unary("/a.B/Fail")(code.encode())
    assert caught.value.code().value[0] == STATUS[code].grpc
    assert caught.value.details() == "here: é 100%\n"


async def test_an_exception_is_internal_and_leaks_nothing(
    channel: aio.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await channel.unary_unary("/a.B/Broken")(b"")
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (caught.value.details() or "")
    assert "a secret" in caplog.text
    assert await channel.unary_unary("/a.B/Echo")(b"on") == b"on"


async def test_an_unknown_method_is_unimplemented(channel: aio.Channel) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await channel.unary_unary("/a.B/None")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_drain_finishes_calls_that_are_under_way(
    world: World, server: GrpcServer, channel: aio.Channel
) -> None:
    call = channel.unary_unary("/a.B/Wait")(b"")
    waiting = asyncio.ensure_future(call)
    await world.entered.wait()
    drained = asyncio.create_task(server.drain(5))
    await asyncio.sleep(0)
    world.gate.set()
    assert await waiting == b"done"
    await drained


async def test_a_port_of_someone_else_is_an_error() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="in use"):
            await GrpcServer({}, reuse_port=True).start("127.0.0.1", other.getsockname()[1])


def test_a_passed_deadline_is_noticed_before_work() -> None:
    context = Context(deadline_ns=1)
    with pytest.raises(HeadraceError, match="deadline passed"):
        context.check_deadline("here")
    context = Context()
    context.shorten_deadline(10**12)
    first = context.deadline_ns
    context.shorten_deadline(10**15)
    assert context.deadline_ns == first
