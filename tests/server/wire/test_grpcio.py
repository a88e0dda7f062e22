"""The handler table on grpc.aio."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc import aio

from headrace.errors import STATUS, HeadraceError, NotFoundError
from server.wire.grpcio import GrpcServer
from server.wire.handlers import Context, Kind, Method


class World:
    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.context = Context()
        self.closed = asyncio.Event()

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

    async def cancels_itself(self, message: bytes, context: Context) -> bytes:
        raise asyncio.CancelledError

    async def join(self, messages: AsyncIterator[bytes], context: Context) -> bytes:
        return b",".join([message async for message in messages])

    async def split(self, message: bytes, context: Context) -> AsyncIterator[bytes]:
        context.initial_metadata = [("x-first", "1"), ("x-first", "2"), ("x-bin", b"\x00\xff")]
        for part in message.split(b","):
            if part == b"!":
                raise NotFoundError("no such part")
            yield part
        context.trailing_metadata = [("x-last-bin", b"")]

    async def upper(self, messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        try:
            async for message in messages:
                yield message.upper()
        finally:
            self.closed.set()

    async def refuse(self, message: bytes, context: Context) -> bytes:
        context.initial_metadata = [("x-first", "1")]
        context.trailing_metadata = [("x-last", "2")]
        raise NotFoundError("nothing here")


@pytest.fixture
async def world() -> World:
    return World()


@pytest.fixture
async def server(world: World) -> AsyncIterator[GrpcServer]:
    server = GrpcServer(
        {
            "/a.B/Echo": world.echo,
            "/a.B/Broken": world.broken,
            "/a.B/Fail": world.fail,
            "/a.B/Wait": world.wait,
            "/a.B/CancelsItself": world.cancels_itself,
            "/a.B/Refuse": world.refuse,
            "/a.B/Join": Method(Kind.CLIENT_STREAM, world.join),
            "/a.B/Split": Method(Kind.SERVER_STREAM, world.split),
            "/a.B/Upper": Method(Kind.BIDI_STREAM, world.upper),
        }
    )
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


async def test_fields_hold_all_metadata_with_repeats(world: World, channel: aio.Channel) -> None:
    sent = [("x-a", "2"), ("x-b-bin", b"\x00"), ("x-a", "1"), ("x-b-bin", b"")]
    await channel.unary_unary("/a.B/Echo")(b"", metadata=sent)
    fields = [tuple(pair) for pair in world.context.fields if pair[0].startswith("x")]
    # grpc brings a key's values together; their order is what it keeps.
    assert fields == [("x-a", "2"), ("x-a", "1"), ("x-b-bin", b"\x00"), ("x-b-bin", b"")]
    assert world.context.metadata["x-a"] == "1"
    assert world.context.peer.startswith("ipv4:127.0.0.1:")


async def test_a_client_streams(channel: aio.Channel) -> None:
    assert await channel.stream_unary("/a.B/Join")(iter([b"a", b"", b"c"])) == b"a,,c"
    assert await channel.stream_unary("/a.B/Join")(iter([])) == b""


async def test_a_server_streams_between_its_metadata(channel: aio.Channel) -> None:
    call = channel.unary_stream("/a.B/Split")(b"a,b")
    assert [part async for part in call] == [b"a", b"b"]
    initial = [tuple(pair) for pair in await call.initial_metadata()]
    assert initial == [("x-first", "1"), ("x-first", "2"), ("x-bin", b"\x00\xff")]
    assert [tuple(pair) for pair in await call.trailing_metadata()] == [("x-last-bin", b"")]


async def test_an_error_ends_a_stream_after_its_messages(channel: aio.Channel) -> None:
    call = channel.unary_stream("/a.B/Split")(b"a,!,b")
    assert await call.read() == b"a"
    with pytest.raises(aio.AioRpcError, match="no such part"):
        await call.read()
    assert await call.code() is grpc.StatusCode.NOT_FOUND


async def test_both_stream_in_turns(world: World, channel: aio.Channel) -> None:
    call = channel.stream_stream("/a.B/Upper")()
    for message in (b"a", b"b"):
        await call.write(message)
        assert await call.read() == message.upper()
    assert not world.closed.is_set()
    await call.done_writing()
    assert await call.read() is aio.EOF
    assert world.closed.is_set()


async def test_a_cancelled_stream_closes_its_generator(world: World, channel: aio.Channel) -> None:
    call = channel.stream_stream("/a.B/Upper")()
    await call.write(b"a")
    assert await call.read() == b"A"
    call.cancel()
    await asyncio.wait_for(world.closed.wait(), 5)


async def test_an_error_carries_both_metadata(channel: aio.Channel) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await channel.unary_unary("/a.B/Refuse")(b"")
    assert [tuple(pair) for pair in caught.value.initial_metadata()] == [("x-first", "1")]
    assert [tuple(pair) for pair in caught.value.trailing_metadata()] == [("x-last", "2")]


async def test_a_handler_that_cancels_itself_leaves_nobody_waiting(channel: aio.Channel) -> None:
    with pytest.raises(aio.AioRpcError) as caught:
        await channel.unary_unary("/a.B/CancelsItself")(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_drain_finishes_a_stream_that_is_under_way(
    server: GrpcServer, channel: aio.Channel
) -> None:
    call = channel.stream_stream("/a.B/Upper")()
    await call.write(b"a")
    assert await call.read() == b"A"
    drained = asyncio.create_task(server.drain(5))
    await asyncio.sleep(0)
    await call.write(b"b")
    assert await call.read() == b"B"
    await call.done_writing()
    assert await call.read() is aio.EOF
    await drained


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
