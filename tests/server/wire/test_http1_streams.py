"""Bodies that are streamed, answers in order, and splits of the same bytes, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
from collections.abc import AsyncIterator, Mapping
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.wire.http1.limits import HttpLimits
from server.wire.http1.server import HttpServer
from server.wire.routes import Answers, Call, ReplyStart, Request, Response, Routes, json_response
from tests.support.raw_client import until


class Doorkeeper:
    """A door that answers what begins with "d" in its own time, and leaves the rest."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.sizes: list[int] = []
        self.answers: Answers

    def lane(self, params: Mapping[str, str], headers: Mapping[str, str]) -> object | None:
        return None if "x-no-door" in headers else "lane"

    def take(self, calls: list[Call], now_ns: int, answers: Answers) -> list[Call]:
        self.answers = answers
        taken = [call for call in calls if call[3].startswith(b"d")]
        self.sizes.append(len(taken))
        held = [call for call in taken if call[3].startswith(b"d-later")]
        self.calls += held
        now = [call for call in taken if call not in held]
        if now:
            answers.reply_all(now, ReplyStart(b"<"), [call[3] + b">" for call in now])
        return [call for call in calls if call not in taken]

    def let_go(self) -> None:
        for call in reversed(self.calls):  # the last first: order is the wire's business
            self.answers.reply_all([call], ReplyStart(b"<"), [call[3] + b">"])
        self.calls.clear()


class World:
    def __init__(self) -> None:
        self.door = Doorkeeper()
        self.closed = asyncio.Event()
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        routes = Routes()
        routes.add("POST", "/door", self.echo, door=self.door)
        routes.add("POST", "/echo", self.echo)
        routes.add("GET", "/pieces", self.pieces)
        routes.add("GET", "/endless", self.endless)
        routes.add("GET", "/breaks", self.breaks)
        routes.add("GET", "/none", self.none)
        routes.add("GET", "/split", self.split)
        routes.add("PUT", "/sum", self.sum, streams=True, body_bytes_max=1 << 30)
        routes.add("PUT", "/first", self.first, streams=True)
        self.server = HttpServer(routes, HttpLimits(body_bytes_max=1 << 20))

    async def echo(self, request: Request) -> Response:
        return Response(200, b"[" + request.body + b"]")

    async def pieces(self, request: Request) -> Response:
        async def made() -> AsyncIterator[bytes]:
            for number in range(int(request.query["n"])):
                yield b"" if number % 3 == 2 else b"piece %d\n" % number
                await asyncio.sleep(0)

        return Response(200, made(), "text/plain")

    async def endless(self, _: Request) -> Response:
        async def made() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield bytes(1000)
                    self.entered.set()
                    await asyncio.sleep(0)
            finally:
                self.closed.set()

        return Response(200, made())

    async def breaks(self, _: Request) -> Response:
        async def made() -> AsyncIterator[bytes]:
            yield b"begun"
            raise ValueError("a secret")

        return Response(200, made())

    async def none(self, _: Request) -> Response:
        return Response(204)

    async def split(self, _: Request) -> Response:
        return Response(200, b"", headers=(("X-Name", "a\r\nSet-Cookie: b"),))

    async def sum(self, request: Request) -> Response:
        self.entered.set()
        size = total = 0
        async for piece in request.stream:
            size += len(piece)
            total += sum(piece)
        return json_response([size, total])

    async def first(self, request: Request) -> Response:
        async for piece in request.stream:
            return Response(200, piece[:1])
        return Response(200, b"nothing")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.server.start("127.0.0.1", 0)
    yield world
    await world.server.drain(0)
    server = world.server
    assert (server.calls.live, server.held.held, server.open_connections) == (0, 0, 0)
    assert server.calls.started == server.calls.ended.total()


@contextlib.asynccontextmanager
async def connected(
    world: World,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.server.port)
    yield reader, writer
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def post(path: str, body: bytes, more: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def bodies(reader: asyncio.StreamReader, count: int) -> list[bytes]:
    found = []
    for _ in range(count):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        found.append(await reader.readexactly(length))
    return found


async def test_answers_keep_their_order_whoever_gives_them(world: World) -> None:
    async with connected(world) as (reader, writer):
        writer.write(
            post("/door", b"d-1") + post("/echo", b"2") + post("/door", b"d-later-3")
            + post("/door", b"4") + post("/door", b"d-later-5") + post("/door", b"d-6")
            + post("/echo", b"7")
        )  # fmt: skip
        assert await bodies(reader, 2) == [b"<d-1>", b"[2]"]
        await until(lambda: len(world.door.calls) == 2)
        world.door.let_go()
        rest = [b"<d-later-3>", b"[4]", b"<d-later-5>", b"<d-6>", b"[7]"]
        assert await bodies(reader, 5) == rest


async def test_a_known_head_is_answered_as_an_unknown_one(world: World) -> None:
    async with connected(world) as (reader, writer):
        for number in range(5):
            writer.write(post("/door", b"d%d" % number))
            assert await bodies(reader, 1) == [b"<d%d>" % number]
        writer.write(post("/door", b"d", "X-No-Door: 1\r\n"))
        assert await bodies(reader, 1) == [b"[d]"]
    assert sum(world.door.sizes) == 5


async def test_a_tick_s_requests_come_to_the_door_together(world: World) -> None:
    async with connected(world) as (reader, writer):
        writer.write(post("/door", b"d") * 40)
        assert await bodies(reader, 40) == [b"<d>"] * 40
    assert max(world.door.sizes) == 40


@pytest.mark.parametrize("path", ["/door", "/echo"])
@pytest.mark.parametrize("cut", [1, 40, 1000])
async def test_an_offer_to_upgrade_is_passed_over(world: World, path: str, cut: int) -> None:
    offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAM\r\n"
    chunked = f"POST {path} HTTP/1.1\r\nHost: x\r\n{offer}Transfer-Encoding: chunked\r\n\r\n"
    data = (
        post(path, b"whole", offer) + post(path, b"", offer) + post(path, b"plain")
        + chunked.encode() + b"3\r\nchu\r\n3\r\nnks\r\n0\r\n\r\n" + post(path, b"after", offer)
    )  # fmt: skip
    for _ in range(2):
        async with connected(world) as (reader, writer):
            for at in range(0, len(data), cut):
                writer.write(data[at : at + cut])
                await asyncio.sleep(0)
            said = [b"[whole]", b"[]", b"[plain]", b"[chunks]", b"[after]"]
            assert await bodies(reader, 5) == said


async def test_a_drain_answers_what_a_door_holds_and_closes(world: World) -> None:
    async with connected(world) as (reader, writer):
        writer.write(post("/door", b"d-later"))
        await until(lambda: world.door.calls)
        drained = asyncio.create_task(world.server.drain(5))
        await until(lambda: world.server.draining)
        world.door.let_go()
        answer = await reader.read()
        assert b"Connection: close\r\n" in answer
        assert answer.endswith(b"<d-later>")
        await drained


async def test_a_client_that_leaves_a_door_costs_nothing(world: World) -> None:
    async with connected(world) as (_, writer):
        writer.write(post("/door", b"d-later"))
        await until(lambda: world.door.calls)
    await until(lambda: not world.server.open_connections)
    assert not world.door.answers.is_open(world.door.calls[0])
    world.door.answers.drop(world.door.calls.pop())


SCRIPT = (
    post("/door", b"d-1") + post("/door", b"d-1") + post("/echo", b"two\r\n\r\n")
    + b"PUT /sum HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"4\r\n\r\n\r\n\r\n3;e=1\r\n\x01\x02\x03\r\n0\r\nT: v\r\n\r\n"
    + b"\r\nPUT /sum HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    + post("/door", b"d-1") + b"POST /echo HTTP/1.1\r\nHost: x\r\n\r\n"
)  # fmt: skip
ANSWERS = [b"<d-1>", b"<d-1>", b"[two\r\n\r\n]", b"[7,52]", b"[3,294]", b"<d-1>", b"[]"]


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, len(SCRIPT) - 1), max_size=12))
def test_the_same_bytes_cut_anywhere_are_answered_alike(cuts: list[int]) -> None:
    async def run() -> list[bytes]:
        world = World()
        await world.server.start("127.0.0.1", 0)
        async with connected(world) as (reader, writer):
            places = sorted({0, *cuts, len(SCRIPT)})
            for begin, end in pairwise(places):
                writer.write(SCRIPT[begin:end])
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            found = await bodies(reader, len(ANSWERS))
        await world.server.drain(0)
        return found

    assert asyncio.run(run()) == ANSWERS


async def test_single_bytes_are_answered_alike(world: World) -> None:
    async with connected(world) as (reader, writer):
        for at in range(len(SCRIPT)):
            writer.write(SCRIPT[at : at + 1])
            await asyncio.sleep(0)
        assert await bodies(reader, len(ANSWERS)) == ANSWERS


async def by_http_client(
    world: World, *request: object, **more: object
) -> tuple[int, dict[str, str], bytes]:
    """What Python's own client makes of an answer: it knows nothing of httptools."""

    def ask() -> tuple[int, dict[str, str], bytes]:
        client = http.client.HTTPConnection("127.0.0.1", world.server.port, timeout=20)
        with contextlib.closing(client):
            client.request(*request, **more)  # type: ignore[arg-type]
            answer = client.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    return await asyncio.to_thread(ask)


@pytest.mark.parametrize("count", [0, 1, 3, 100])
async def test_a_stream_is_read_by_another_client(world: World, count: int) -> None:
    status, headers, body = await by_http_client(world, "GET", f"/pieces?n={count}")
    assert (status, headers["transfer-encoding"]) == (200, "chunked")
    assert body == b"".join(b"piece %d\n" % n for n in range(count) if n % 3 != 2)
    status, headers, body = await by_http_client(world, "HEAD", f"/pieces?n={count}")
    assert (status, body) == (200, b"")


async def test_http_1_0_gets_a_stream_until_the_end(world: World) -> None:
    async with connected(world) as (reader, writer):
        writer.write(b"GET /pieces?n=2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert b"chunked" not in head
        assert body == b"piece 0\npiece 1\n"


async def test_a_streamed_request_is_read_by_its_handler(world: World) -> None:
    data = bytes(range(256)) * 8_000
    status, _, body = await by_http_client(world, "PUT", "/sum", data)
    assert (status, body) == (200, b"[%d,%d]" % (len(data), sum(data)))
    chunks = iter([data[:70_000], data[70_000:]])
    status, _, body = await by_http_client(world, "PUT", "/sum", chunks, encode_chunked=True)
    assert (status, body) == (200, b"[%d,%d]" % (len(data), sum(data)))


async def test_a_streamed_handler_begins_before_its_body_is_there(world: World) -> None:
    async with connected(world) as (reader, writer):
        writer.write(
            b"PUT /sum HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        )
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await world.entered.wait()
        writer.write(b"\x01\x02")
        assert await bodies(reader, 1) == [b"[2,3]"]


async def test_a_body_that_its_handler_leaves_unread_ends_the_connection(world: World) -> None:
    async with connected(world) as (reader, writer):
        writer.write(b"PUT /first HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nxyz")
        answer = await reader.read()
        assert answer.endswith(b"\r\n\r\nx")
        assert b"Connection: close" in answer


async def test_a_broken_chunk_in_a_stream_is_the_client_s_fault(world: World) -> None:
    async with connected(world) as (reader, writer):
        writer.write(b"PUT /sum HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx")
        await world.entered.wait()
        writer.write(b"yz")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    assert world.server.abuse == {"malformed": 1}


async def test_a_client_that_leaves_ends_a_stream(world: World) -> None:
    async with connected(world) as (_, writer):
        writer.write(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        await world.entered.wait()
    await asyncio.wait_for(world.closed.wait(), 10)


async def test_a_stream_that_fails_is_not_taken_for_whole(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        await by_http_client(world, "GET", "/breaks")
    assert "a secret" in caplog.text


async def test_no_content_has_none(world: World) -> None:
    status, headers, body = await by_http_client(world, "GET", "/none")
    assert (status, body) == (204, b"")
    assert not headers.keys() & {"content-length", "transfer-encoding", "content-type"}


async def test_a_header_cannot_end_its_line(world: World, caplog: pytest.LogCaptureFixture) -> None:
    status, headers, _ = await by_http_client(world, "GET", "/split")
    assert status == 500
    assert "set-cookie" not in headers
    assert "line break" in caplog.text


async def test_a_handler_has_a_deadline() -> None:
    async def forever(_: Request) -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    routes = Routes()
    routes.add("GET", "/", forever)
    server = HttpServer(routes, HttpLimits(handler_timeout_s=0.05))
    await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b" 504 " in await reader.readuntil(b"\r\n")
    writer.close()
    await server.drain(1)
    assert server.calls.ended == {504: 1}
