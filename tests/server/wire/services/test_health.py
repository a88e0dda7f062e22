"""Health, through grpc.aio and its client; only how watchers pace themselves is driven by hand."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc import aio

from headrace.errors import InvalidArgumentError, NotFoundError, ResourceExhaustedError
from server.wire.grpc.server import GrpcServer
from server.wire.handlers import Context, Kind
from server.wire.services.health import HealthService, ServingStatus

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = b"\x08\1", b"\x08\2", b"\x08\3"


def asking(service: str) -> bytes:
    """A HealthCheckRequest, encoded by hand."""
    name = service.encode()
    return b"\x0a" + bytes((len(name),)) + name if name else b""


@pytest.fixture
async def health() -> HealthService:
    return HealthService(["a.B", "c.D"], watchers_max=2)


@pytest.fixture
async def server(health: HealthService) -> AsyncIterator[GrpcServer]:
    server = GrpcServer(health.table())
    await server.start("127.0.0.1", 0)
    yield server
    await server.drain(0)


@pytest.fixture
async def channel(server: GrpcServer) -> AsyncIterator[aio.Channel]:
    async with aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


def watch(health: HealthService, service: str) -> AsyncIterator[bytes]:
    method = health.table()[WATCH]
    assert method.kind is Kind.SERVER_STREAM
    return method.call(asking(service), Context())


@pytest.mark.wire("B3-35")
async def test_b3_35_check_tells_the_status_of_each_service(health, channel):
    check = channel.unary_unary(CHECK)
    assert await check(asking("")) == NOT_SERVING
    health.set("a.B", ServingStatus.SERVING)
    assert await check(asking("a.B")) == SERVING
    assert await check(asking("c.D")) == NOT_SERVING
    assert await check(asking("a.B") + b"\x9a\x06\1x") == SERVING  # an unknown field
    health.set_all(ServingStatus.SERVING)
    assert [await check(asking(name)) for name in ("", "a.B", "c.D")] == [SERVING] * 3
    health.set("e.F", ServingStatus.UNKNOWN)
    assert await check(asking("e.F")) == b""


@pytest.mark.wire("B3-35")
@pytest.mark.parametrize("name", ["no.Such", "a.b", "a.B "])
async def test_b3_35_check_of_an_unknown_service_is_not_found(channel, name):
    with pytest.raises(aio.AioRpcError) as caught:
        await channel.unary_unary(CHECK)(asking(name))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.wire("B3-35")
async def test_b3_35_watch_tells_the_status_and_its_changes(health, channel):
    call = channel.unary_stream(WATCH)(asking("a.B"))
    assert await call.read() == NOT_SERVING
    health.set("c.D", ServingStatus.SERVING)  # another service's change tells nothing
    health.set("a.B", ServingStatus.SERVING)
    assert await call.read() == SERVING
    call.cancel()


@pytest.mark.wire("B3-35")
async def test_b3_35_watch_of_an_unknown_service_waits_until_it_is_known(health, channel):
    call = channel.unary_stream(WATCH)(asking("e.F"))
    assert await call.read() == SERVICE_UNKNOWN
    health.set("e.F", ServingStatus.SERVING)
    assert await call.read() == SERVING
    call.cancel()


@pytest.mark.wire("B3-35")
async def test_b3_35_shutting_down_flips_everything_tells_watchers_and_ends_them(health, channel):
    health.set_all(ServingStatus.SERVING)
    known = channel.unary_stream(WATCH)(asking("a.B"))
    unknown = channel.unary_stream(WATCH)(asking("no.Such"))
    assert await known.read() == SERVING
    assert await unknown.read() == SERVICE_UNKNOWN
    health.shut_down()
    assert await channel.unary_unary(CHECK)(asking("")) == NOT_SERVING
    assert [await known.read(), await known.read()] == [NOT_SERVING, aio.EOF]
    assert await unknown.read() == aio.EOF
    assert await known.code() is await unknown.code() is grpc.StatusCode.OK
    health.set_all(ServingStatus.SERVING)
    assert await channel.unary_unary(CHECK)(asking("a.B")) == NOT_SERVING
    assert health.watchers == 0
    late = channel.unary_stream(WATCH)(asking("a.B"))
    assert [await late.read(), await late.read()] == [NOT_SERVING, aio.EOF]


@pytest.mark.wire("B3-35")
async def test_b3_35_open_watches_do_not_hold_up_a_drain(health, server, channel):
    call = channel.unary_stream(WATCH)(asking("a.B"))
    assert await call.read() == NOT_SERVING
    health.shut_down()
    async with asyncio.timeout(5):
        await server.drain(60)
    assert await call.read() == aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_a_slow_watcher_is_told_the_last_status_only(health):
    messages = watch(health, "a.B")
    assert await anext(messages) == NOT_SERVING
    for status in (ServingStatus.SERVING, ServingStatus.NOT_SERVING, ServingStatus.SERVING):
        health.set("a.B", status)
    assert await anext(messages) == SERVING
    health.set("a.B", ServingStatus.NOT_SERVING)
    health.set("a.B", ServingStatus.SERVING)  # as before: nothing to tell
    health.shut_down()
    assert [message async for message in messages] == [NOT_SERVING]


async def test_a_status_that_stays_wakes_nobody(health):
    messages = watch(health, "a.B")
    assert await anext(messages) == NOT_SERVING
    waiting = asyncio.ensure_future(anext(messages))
    await asyncio.sleep(0)
    health.set("a.B", ServingStatus.NOT_SERVING)
    health.set("c.D", ServingStatus.SERVING)
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert health.watchers == 0


async def test_watchers_are_bounded_and_one_that_leaves_makes_room(health):
    first, second = watch(health, "a.B"), watch(health, "c.D")
    await anext(first)
    await anext(second)
    assert health.watchers == 2
    with pytest.raises(ResourceExhaustedError, match="too many health watchers"):
        await anext(watch(health, ""))
    await first.aclose()
    assert await anext(watch(health, "")) == NOT_SERVING
    await second.aclose()


async def test_a_long_name_and_junk_are_refused(health):
    check = health.table()[CHECK]
    with pytest.raises(InvalidArgumentError, match="name is too long"):
        await check(b"\x0a\x80\x20" + b"x" * 4096, Context())
    with pytest.raises(InvalidArgumentError, match="the message is not a"):
        await check(b"\xff", Context())
    with pytest.raises(NotFoundError):
        await check(b"\x0a\x64" + b"x" * 100, Context())
