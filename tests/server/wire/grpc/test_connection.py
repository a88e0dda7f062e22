"""One connection as a client sees it: its limits, its windows, its age and its end."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from server.wire.grpc.server import GrpcServer
from server.wire.grpc.status import StatusCode
from server.wire.handlers import Context, Kind, Method
from server.wire.http2.sending import PENDING_HIGH_BYTES
from tests.server.wire.grpc.conftest import Connect, Serve
from tests.support.attacked_server import Services
from tests.support.attacker import message
from tests.support.frame_factory import DATA, GOAWAY, HEADERS, PING, RST_STREAM
from tests.support.raw_client import Goaway, RawClient, holds_nothing, sweep, until

NO_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 0, 7, 8, 11
LAST_ID = 2**31 - 1
SECOND_NS = 1_000_000_000


async def pinged(client: RawClient) -> bytes:
    """Wait for a ping of the server; return what it holds."""

    def asked() -> list[bytes]:
        return [frame.payload for frame in client.frames if (frame.kind, frame.flags) == (PING, 0)]

    await client.wait(asked, "a ping")
    return asked()[-1]


# Concurrency.


@pytest.mark.wire("B3-28")
@pytest.mark.parametrize("method", ["Slow", "Hold", "Endless"])
async def test_b3_28_streams_above_the_limit_are_refused_and_nothing_of_them_runs(
    serve: Serve, connect: Connect, services: Services, method: str
) -> None:
    client = await connect(await serve(streams_max=3), {4: 0})
    settings = (await client.wait_for(4)).payload
    assert b"\0\3\0\0\0\3" in [settings[at : at + 6] for at in range(0, len(settings), 6)]
    for stream_id in (1, 3, 5, 7, 9):
        client.begin(stream_id, method)
        client.message(stream_id, b"x", end=method != "Hold")
    assert await client.reset(7) == await client.reset(9) == REFUSED_STREAM
    await client.pong()
    assert services.begun == 3
    # One that ends makes room.
    client.send(client.factory.rst_stream(3, CANCEL))
    await until(lambda: services.running == 2)
    client.begin(11, method)
    client.message(11, b"x", end=method != "Hold")
    await until(lambda: services.begun == 4)
    await client.pong()
    assert not [frame for frame in client.of(11) if frame.kind == RST_STREAM]


@pytest.mark.wire("B3-28")
async def test_b3_28_grpcio_tries_a_refused_stream_again_only_later(
    serve: Serve, connect: Connect, services: Services
) -> None:
    """What is refused was never begun, whatever came of it before: head, body or both."""
    client = await connect(await serve(streams_max=1))
    client.begin(1, "Total")
    client.message(1, b"1234")
    client.begin(3, "Total")
    client.message(3, b"5", end=True)
    assert await client.reset(3) == REFUSED_STREAM
    client.send(client.factory.data(1, end_stream=True))
    assert (await client.answer(1)).messages == [b"4"]
    client.call(5)
    assert (await client.answer(5)).status == 0
    assert services.begun == 2


# Its end, in two steps.


@pytest.mark.wire("B3-29")
async def test_b3_29_a_drain_has_two_steps_and_loses_no_request(
    server: GrpcServer, client: RawClient, services: Services
) -> None:
    client.call(1, b"one", "Slow")
    client.begin(3, "Total")  # its body is still to come
    client.message(3, b"12")
    client.begin(5, "Method")  # as is all of this one's
    await until(lambda: services.begun == 2)
    (connection,) = server.connections
    connection.core.begin_drain()
    connection.touch()
    first = await client.wait_for(GOAWAY)
    opaque = await pinged(client)
    assert client.goaways() == [Goaway(LAST_ID, NO_ERROR, b"")]
    assert client.frames.index(first) < len(client.frames) - 1
    client.call(7, b"crossed the goaway")
    assert (await client.answer(7)).status == 0
    client.send(client.factory.ping(opaque, ack=True))
    await client.wait_for(GOAWAY, nth=2)
    assert client.goaways()[1] == Goaway(7, NO_ERROR, b"")
    client.call(9, b"too late")  # above the last id: nobody answers, and nobody resets
    client.message(3, b"345", end=True)
    client.message(5, b"five", end=True)
    services.gate.set()
    assert (await client.answer(1)).messages == [b"one"]
    assert (await client.answer(3)).messages == [b"5"]
    assert (await client.answer(5)).messages == [b"five"]
    assert len(await client.closed()) == 3
    assert client.of(9) == []
    assert server.calls.ended == {StatusCode.OK: 4}


@pytest.mark.wire("B3-29")
async def test_b3_29_an_idle_connection_is_closed_as_soon_as_it_acknowledges(
    server: GrpcServer, client: RawClient
) -> None:
    await client.pong()
    (connection,) = server.connections
    connection.core.begin_drain()
    connection.touch()
    client.send(client.factory.ping(await pinged(client), ack=True))
    goaways = await client.closed()
    assert [(goaway.last_id, goaway.code) for goaway in goaways[:2]] == [
        (LAST_ID, NO_ERROR), (0, NO_ERROR),
    ]  # fmt: skip


@pytest.mark.wire("B3-29")
async def test_b3_29_a_client_that_does_not_acknowledge_is_not_awaited(
    server: GrpcServer, client: RawClient
) -> None:
    client.call(1)
    await client.answer(1)
    (connection,) = server.connections
    connection.core.begin_drain()
    connection.touch()
    await client.wait_for(GOAWAY)
    sweep(server, 0.5)
    await client.pong()
    assert len(client.goaways()) == 1
    sweep(server, 1.5)
    goaways = await client.closed()
    assert goaways[1].last_id == 1


@pytest.mark.wire("B3-29")
async def test_b3_29_a_drain_has_a_deadline(
    server: GrpcServer, client: RawClient, services: Services
) -> None:
    client.call(1, b"", "Slow")
    await until(lambda: services.running == 1)
    (connection,) = server.connections
    connection.core.begin_drain()
    connection.touch()
    client.send(client.factory.ping(await pinged(client), ack=True))
    await client.wait_for(GOAWAY, nth=2)
    sweep(server, 29.0)
    await client.pong()
    assert services.running == 1
    sweep(server, 31.5)
    goaways = await client.closed()
    assert goaways[-1].debug == b"drain_timeout"
    await until(lambda: services.running == 0)


@pytest.mark.wire("B3-30")
async def test_b3_30_an_old_connection_is_drained_with_its_reason(
    serve: Serve, connect: Connect, services: Services
) -> None:
    server = await serve(age_max_ns=60 * SECOND_NS)
    client = await connect(server)
    client.call(1, b"one", "Slow")
    await until(lambda: services.running == 1)
    sweep(server, 53.0)
    await client.pong()
    assert client.goaways() == []
    sweep(server, 67.0)
    await client.wait_for(GOAWAY)
    assert client.goaways() == [Goaway(LAST_ID, NO_ERROR, b"max_age")]
    client.send(client.factory.ping(await pinged(client), ack=True))
    services.gate.set()
    assert (await client.answer(1)).messages == [b"one"]
    await client.closed()


@pytest.mark.wire("B3-30")
async def test_b3_30_ages_differ_by_ten_percent(serve: Serve, connect: Connect) -> None:
    server = await serve(age_max_ns=100 * SECOND_NS)
    ages = [server.jittered_age_ns() for _ in range(2_000)]
    assert 90 * SECOND_NS <= min(ages) < 92 * SECOND_NS
    assert 108 * SECOND_NS < max(ages) <= 110 * SECOND_NS
    for _ in range(4):
        await (await connect(server)).pong()
    own = {connection.core.age_max_ns for connection in server.connections}
    assert len(own) == 4


@pytest.mark.wire("B3-30")
async def test_b3_30_an_idle_connection_is_drained_and_one_with_a_call_is_not(
    serve: Serve, connect: Connect, services: Services
) -> None:
    server = await serve(idle_timeout_ns=60 * SECOND_NS)
    idle, busy = await connect(server), await connect(server)
    busy.call(1, b"", "Slow")
    await idle.pong()
    await until(lambda: services.running == 1)
    sweep(server, 10.0)
    sweep(server, 61.0)
    await idle.wait_for(GOAWAY)
    assert idle.goaways() == [Goaway(LAST_ID, NO_ERROR, b"max_idle")]
    await busy.pong()
    assert busy.goaways() == []


@pytest.mark.wire("B3-31")
@pytest.mark.parametrize("busy", [False, True])
async def test_b3_31_too_many_pings_end_the_connection(
    server: GrpcServer, client: RawClient, services: Services, busy: bool
) -> None:
    if busy:
        client.call(1, b"", "Slow")
        await until(lambda: services.running == 1)
    ping = client.factory.ping()
    client.send(ping * 3)  # the first is free, then two strikes
    await client.wait_for(PING, flags=1, nth=3)
    assert client.goaways() == []
    client.send(ping)
    (goaway,) = await client.closed()
    assert (goaway.code, goaway.debug) == (ENHANCE_YOUR_CALM, b"too_many_pings")
    assert server.abuse == {"too_many_pings": 1}
    await until(lambda: services.running == 0)


@pytest.mark.wire("B3-31")
async def test_b3_31_what_we_send_in_between_forgives_pings(
    server: GrpcServer, client: RawClient
) -> None:
    for stream_id in range(1, 41, 2):
        client.send(client.factory.ping() * 3)
        client.call(stream_id)
        assert (await client.answer(stream_id)).status == 0
    assert server.abuse == {}


@pytest.mark.wire("B3-31")
@pytest.mark.parametrize(("busy", "interval_s"), [(False, 7_200), (True, 300)])
async def test_b3_31_slow_pings_are_no_strikes(
    server: GrpcServer, client: RawClient, services: Services, busy: bool, interval_s: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if busy:
        client.call(1, b"", "Slow")
        await until(lambda: services.running == 1)
    await client.wait_for(4, flags=1)
    (connection,) = server.connections
    core = connection.core
    now_ns = core.now_ns
    for at in range(1, 8):
        core.receive(client.factory.ping(), now_ns + at * interval_s * SECOND_NS)
        assert not core.closed
    for at in range(1, 4):
        core.receive(client.factory.ping(), now_ns + (7 * interval_s + at) * SECOND_NS)
    assert core.closed
    connection.touch()
    assert [goaway.debug for goaway in await client.closed()] == [b"too_many_pings"]


@pytest.mark.wire("B3-32")
async def test_b3_32_a_silent_client_is_asked_and_a_dead_one_loses_its_calls(
    server: GrpcServer, client: RawClient, services: Services
) -> None:
    client.call(1, b"", "Slow")
    await until(lambda: services.running == 1)
    sweep(server, 7_199.0)
    await client.pong()
    assert not [frame for frame in client.frames if (frame.kind, frame.flags) == (PING, 0)]
    sweep(server, 7_201.0)
    assert await pinged(client) == b"alive\0\0\0"
    sweep(server, 7_220.0)
    assert services.running == 1
    sweep(server, 7_222.0)
    (goaway,) = await client.closed()
    assert goaway.debug == b"keepalive_timeout"
    await until(lambda: services.running == 0)
    assert server.abuse == {"keepalive_timeout": 1}


@pytest.mark.wire("B3-32")
async def test_b3_32_a_client_that_answers_lives_on(
    server: GrpcServer, client: RawClient, services: Services
) -> None:
    client.call(1, b"x", "Slow")
    await until(lambda: services.running == 1)
    sweep(server, 7_201.0)
    client.send(client.factory.ping(await pinged(client), ack=True))
    await client.pong()
    sweep(server, 30.0)
    services.gate.set()
    assert (await client.answer(1)).messages == [b"x"]
    assert server.abuse == {}


# Flow control.


class Producer:
    """A stream of `count` messages of `size` bytes; `made` is how far it is."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size, self.made = count, size, 0

    async def stream(self, _: bytes, __: Context) -> AsyncIterator[bytes]:
        for _at in range(self.count):
            self.made += 1
            yield bytes(self.size)


@pytest.mark.wire("B3-33")
@pytest.mark.parametrize("closed", ["the stream's window", "the connection's window", "the socket"])
async def test_b3_33_a_producer_waits_for_its_client(
    serve: Serve, connect: Connect, closed: str
) -> None:
    size, count = 10_000, 2_000
    producer = Producer(count, size)
    server = await serve({"/test.Service/Produce": Method(Kind.SERVER_STREAM, producer.stream)})
    wide = 1 << 30
    client = await connect(server, {4: 50_000 if closed == "the stream's window" else wide})
    if closed != "the connection's window":
        client.send(client.factory.window_update(0, wide))
    client.call(1, b"", "Produce")
    if closed == "the socket":
        (connection,) = await _connections(server)
        await until(lambda: not connection.core.writable)
        # What the socket took, the transport's buffer, one turn of output, and what waits.
        bound = 8 << 20
    else:
        bound = 66_000 + PENDING_HIGH_BYTES
        await client.wait(lambda: len(client.body(1)) >= 50_000, "what the window allows")
    stopped_at = -1
    while producer.made != stopped_at:  # it makes no more, however often the loop runs
        stopped_at = producer.made
        for _ in range(50):
            await until(lambda: True)
        if closed != "the socket":
            await client.pong()
    assert stopped_at * size <= bound + 2 * size
    # It goes on as the client reads on.
    client.send(client.factory.window_update(1, wide if closed == "the stream's window" else 1))
    if closed == "the connection's window":
        client.send(client.factory.window_update(0, wide))
    answer = await client.answer(1)
    assert answer.status == 0
    assert len(answer.body) == count * (size + 5)
    assert producer.made == count


async def _connections(server: GrpcServer) -> list:
    await until(lambda: server.connections)
    return list(server.connections)


@pytest.mark.wire("B3-33")
async def test_b3_33_one_stream_that_waits_does_not_hold_up_the_others(
    server: GrpcServer, connect: Connect
) -> None:
    client = await connect(server, {4: 1_000})
    client.call(1, b"100000", "Big")
    await client.wait(lambda: len(client.body(1)) == 1_000, "one window")
    for stream_id in range(3, 43, 2):
        client.call(stream_id, b"500", "Big")
        assert (await client.answer(stream_id)).messages == [bytes(500)]
    client.send(client.factory.window_update(1, 200_000), client.factory.window_update(0, 200_000))
    assert (await client.answer(1)).messages == [bytes(100_000)]


@pytest.mark.wire("B3-33")
async def test_b3_33_an_upload_is_paid_back_when_the_handler_takes_it(
    serve: Serve, connect: Connect, services: Services
) -> None:
    server = await serve(stream_window_bytes=10_000, connection_window_bytes=100_000)
    client = await connect(server)
    client.begin(1, "Hold")  # takes one message, then waits
    for _ in range(9):
        client.message(1, bytes(1_000))
    await client.pong()
    await until(lambda: services.running == 1)
    assert client.credit(1) == 0
    services.gate.set()
    await client.wait(lambda: client.credit(1) >= 9 * 1_005 - 5_000, "the window")
    for _ in range(3):
        client.message(1, bytes(1_000))
    client.message(1, b"", end=True)
    assert (await client.answer(1)).status == 0


@pytest.mark.wire("B3-33")
async def test_b3_33_a_message_larger_than_the_window_comes_through(
    serve: Serve, connect: Connect
) -> None:
    server = await serve(stream_window_bytes=10_000, connection_window_bytes=66_000)
    client = await connect(server)
    client.begin(1, "Total")
    body = message(bytes(200_000)) + message(b"123")
    sent = 0
    while sent < len(body):
        count = min(10_000 + client.credit(1), 65_535 + client.credit(0), len(body)) - sent
        if count <= 0:
            await client._read()
            continue
        client.send(client.factory.data(1, body[sent : sent + min(count, 16_384)]))
        sent += min(count, 16_384)
    client.send(client.factory.data(1, end_stream=True))
    assert (await client.answer(1)).messages == [b"200003"]


@pytest.mark.wire("B3-33")
@pytest.mark.parametrize("seed", range(4))
async def test_b3_33_the_connections_window_never_leaks(
    serve: Serve, connect: Connect, seed: int
) -> None:
    """Uploads of every kind, ended in every way, and afterwards the whole window is there."""
    size = 70_000
    server = await serve(stream_window_bytes=8_000, connection_window_bytes=size)
    client = await connect(server)
    random_ = random.Random(seed)
    methods = ["Method", "Total", "Hold", "Chat", "Nowhere", "Big", "Stubborn", "StubbornStream"]
    sent = 0
    stream_id = -1
    for _ in range(150):
        stream_id += 2
        client.begin(stream_id, random_.choice(methods), (b"grpc-timeout", b"1H"))
        left = 8_000
        for _ in range(random_.randrange(4)):
            kind = random_.randrange(4)
            data = message(bytes(random_.randrange(1, 1_500)), flag=2 if kind == 3 else 0)
            padding = random_.choice([None, 0, 200])
            cost = len(data) + (0 if padding is None else padding + 1)
            if kind == 2:
                data = data[:-1]  # an unfinished one
                cost -= 1
            if cost > min(left, size + client.credit(0) - sent - (size - 65_535)):
                await client.pong()
                break
            client.send(client.factory.data(stream_id, data, padding=padding))
            sent += cost
            left -= cost
        end = random_.randrange(3)
        if end == 0:
            client.send(client.factory.rst_stream(stream_id, CANCEL))
        elif end == 1:
            client.send(client.factory.headers(stream_id, [(b"x", b"1")], end_stream=True))
        if random_.randrange(8) == 0:
            client.call(stream_id + 2)  # lets pings be forgiven
            sent += 10
            stream_id += 2
            await client.answer(stream_id)
    for number in range(1, stream_id + 1, 2):
        client.send(client.factory.rst_stream(number, CANCEL))
    await client.pong()
    (connection,) = server.connections
    await until(lambda: not connection.core.streams)
    _release_stubborn(server)
    await until(lambda: holds_nothing(server))
    window = connection.core._window
    assert window.left + window.consumed == size
    # The client's own account says the same: what is not paid back is less than half.
    assert size // 2 <= size + client.credit(0) - (size - 65_535) - sent + (size - 65_535)
    await client.pong()
    owed = sent + (size - 65_535) - client.credit(0)
    assert 0 <= owed + 0 < size // 2 + 1


def _release_stubborn(server: GrpcServer) -> None:
    for connection in server.connections:
        for call in list(connection.calls.values()):
            services = call.route.method.call.__self__
            services.gate.set()


# Stream ids.


@pytest.mark.wire("B3-34")
async def test_b3_34_before_its_ids_end_the_client_is_asked_to_open_another_connection(
    client: RawClient, server: GrpcServer
) -> None:
    client.call(LAST_ID - 2_002)
    await client.answer(LAST_ID - 2_002)
    assert client.goaways() == []
    client.call(LAST_ID - 1_998)
    assert (await client.answer(LAST_ID - 1_998)).status == 0
    assert client.goaways() == [Goaway(LAST_ID, NO_ERROR, b"stream ids used up")]
    client.call(LAST_ID)  # the very last one is still served
    assert (await client.answer(LAST_ID)).status == 0
    client.send(client.factory.ping(await pinged(client), ack=True))
    assert (await client.closed())[1] == Goaway(LAST_ID, NO_ERROR, b"")


@pytest.mark.wire("B3-34")
async def test_b3_34_nothing_of_the_last_requests_is_lost(
    client: RawClient, server: GrpcServer, services: Services
) -> None:
    ids = range(LAST_ID - 20, LAST_ID + 1, 2)
    for stream_id in ids:
        client.call(stream_id, b"%d" % stream_id, "Slow")
    client.send(client.factory.ping(await pinged(client), ack=True))
    services.gate.set()
    for stream_id in ids:
        assert (await client.answer(stream_id)).messages == [b"%d" % stream_id]
    await client.closed()
    assert HEADERS in [frame.kind for frame in client.of(LAST_ID)]
    assert DATA in [frame.kind for frame in client.of(LAST_ID)]
