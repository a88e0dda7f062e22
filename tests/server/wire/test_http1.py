"""The HTTP/1.1 transport, byte by byte over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import NotFoundError
from server.wire.http1.limits import HttpLimits
from server.wire.http1.server import HttpServer
from server.wire.routes import Request, Response, Routes, json_response

LIMITS = HttpLimits(head_bytes_max=4096, body_bytes_max=10_000, chunks_max=50)


class World:
    """A server with a few routes, and what its handlers saw."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.entered = asyncio.Event()
        routes = Routes()
        routes.add("GET", "/", self.hello)
        routes.add("POST", "/echo", self.echo)
        routes.add("GET", r"/models/(?P<model>[^/]+)", self.model)
        routes.add("GET", "/missing", self.missing)
        routes.add("GET", "/broken", self.broken)
        routes.add("GET", "/wait", self.wait)
        routes.add("GET", "/large", self.large)
        self.routes = routes

    async def hello(self, request: Request) -> Response:
        return json_response({"hello": request.query})

    async def echo(self, request: Request) -> Response:
        return Response(200, request.body, "application/octet-stream")

    async def model(self, request: Request) -> Response:
        return json_response(request.params)

    async def missing(self, request: Request) -> Response:
        raise NotFoundError("no such thing", where="shelf")

    async def broken(self, request: Request) -> Response:
        raise ValueError("a secret of /home/machine")

    async def wait(self, request: Request) -> Response:
        self.entered.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return json_response("done")

    async def large(self, request: Request) -> Response:
        return Response(200, [b"a" * 3_000_000, memoryview(b"b" * 3_000_000)])


class Client:
    """A raw socket: what it sends is what goes out."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
        head = await self.reader.readuntil(b"\r\n\r\n")
        status, *lines = head.decode().rstrip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        length = 0 if head_only else int(headers.get("content-length", "0"))
        return int(status.split()[1]), headers, await self.reader.readexactly(length)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def at_end(self) -> bool:
        return await self.reader.read() == b""


@pytest.fixture
async def world() -> World:
    return World()


@pytest.fixture
async def server(world: World) -> AsyncIterator[HttpServer]:
    server = HttpServer(world.routes, LIMITS)
    await server.start("127.0.0.1", 0)
    yield server
    await server.drain(0.1)


@pytest.fixture
async def client(server: HttpServer) -> Client:
    return await connect(server)


OPEN: list[Client] = []


async def connect(server: HttpServer) -> Client:
    client = Client(*await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 24))
    OPEN.append(client)
    return client


@pytest.fixture(autouse=True)
async def close_clients() -> AsyncIterator[None]:
    yield
    while OPEN:
        await OPEN.pop().close()


def request(method: str, path: str, body: bytes = b"", headers: str = "") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{length}{headers}\r\n".encode() + body


async def test_a_connection_answers_many_requests(client: Client) -> None:
    for _ in range(3):
        await client.send(request("GET", "/?a=1&b=%20c&d="))
        status, headers, body = await client.answer()
        assert (status, headers["content-type"]) == (200, "application/json")
        assert json.loads(body) == {"hello": {"a": "1", "b": " c", "d": ""}}


async def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    await client.send(b"".join(request("POST", "/echo", b"%d" % n) for n in range(50)))
    assert [(await client.answer())[2] for _ in range(50)] == [b"%d" % n for n in range(50)]


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 200), max_size=30))
def test_bytes_may_be_cut_anywhere(cuts: list[int]) -> None:
    stream = (
        request("POST", "/echo", b"hello")
        + b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nTrailer: ignored\r\n\r\n"
        + request("GET", "/models/a%2Fb")
    )

    async def run() -> list[bytes]:
        server = HttpServer(World().routes, LIMITS)
        await server.start("127.0.0.1", 0)
        client = await connect(server)
        raw = client.writer.get_extra_info("socket")
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start = 0
        for cut in [*cuts, len(stream)]:
            await client.send(stream[start : start + cut])
            start += cut
        bodies = [(await client.answer())[2] for _ in range(3)]
        OPEN.remove(client)
        await client.close()
        await server.drain(1)
        return bodies

    assert asyncio.run(run()) == [b"hello", b"abcde", b'{"model":"a/b"}']


async def test_head_is_answered_by_get_without_its_body(client: Client) -> None:
    await client.send(request("HEAD", "/") + request("GET", "/"))
    status, headers, _ = await client.answer(head_only=True)
    assert status == 200
    full = await client.answer()
    assert headers["content-length"] == full[1]["content-length"] != "0"


async def test_unknown_paths_and_wrong_verbs(client: Client) -> None:
    await client.send(request("GET", "/nowhere") + request("DELETE", "/echo"))
    status, _, body = await client.answer()
    assert (status, json.loads(body)) == (404, {"error": "Not Found"})
    status, headers, body = await client.answer()
    assert (status, json.loads(body)) == (405, {"error": "Method Not Allowed"})
    assert headers["allow"] == "post"


async def test_a_trailing_slash_is_another_path(client: Client) -> None:
    await client.send(request("GET", "/models/a/"))
    assert (await client.answer())[0] == 404


async def test_errors_become_json_and_leak_nothing(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    await client.send(request("GET", "/missing") + request("GET", "/broken"))
    status, _, body = await client.answer()
    assert status == 404
    assert json.loads(body) == {"error": "shelf: no such thing", "code": "not_found"}
    status, _, body = await client.answer()
    assert status == 500
    assert b"secret" not in body
    assert b"machine" not in body
    assert "a secret" in caplog.text
    await client.send(request("GET", "/"))
    assert (await client.answer())[0] == 200


async def test_expect_continue_is_answered_before_the_body(client: Client) -> None:
    await client.send(
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    )
    assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(b"hi")
    assert (await client.answer())[2] == b"hi"


async def test_continue_waits_for_the_answer_before_it(world: World, client: Client) -> None:
    await client.send(
        request("GET", "/wait")
        + b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    )
    await world.entered.wait()
    world.gate.set()
    assert (await client.answer())[2] == b'"done"'
    assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(b"hi")
    assert (await client.answer())[2] == b"hi"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"\x16\x03\x01 nonsense\r\n\r\n", 400, id="tls"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, id="http2-preface"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, id="no-host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, id="two-hosts"),
        pytest.param(b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, id="space-before-colon"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n", 400, id="folded-header"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nA: b\x00c\r\n\r\n", 400, id="nul"),
        pytest.param(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            id="length-and-chunked",
        ),
        pytest.param(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Length: 3\r\n\r\n0\r\n\r\n",
            400,
            id="chunked-and-length",
        ),
        pytest.param(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            400,
            id="two-lengths",
        ),
        pytest.param(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400, id="negative"
        ),
        pytest.param(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            501,
            id="unknown-coding",
        ),
        pytest.param(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n",
            413,
            id="declared-too-large",
        ),
        pytest.param(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            + 3 * (b"fff\r\n" + b"x" * 4095 + b"\r\n"),
            413,
            id="chunked-too-large",
        ),
        pytest.param(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"1\r\nx\r\n" * 51,
            413,
            id="too-many-chunks",
        ),
        pytest.param(b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n", 431, id="long-path"),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"a" * 5000 + b"\r\n\r\n", 431, id="long-header"
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A:b\r\n" * 101 + b"\r\n", 431, id="many-headers"
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n", 417, id="unknown-expectation"
        ),
    ],
)  # fmt: skip
async def test_what_breaks_a_rule_is_refused_and_closed(
    client: Client, server: HttpServer, data: bytes, status: int
) -> None:
    await client.send(data)
    answer, headers, body = await client.answer()
    assert answer == status, body
    assert "error" in json.loads(body)
    assert headers["connection"] == "close"
    assert await client.at_end()
    other = await connect(server)
    await other.send(request("GET", "/"))
    assert (await other.answer())[0] == 200


async def test_the_refusal_of_a_large_body_reaches_a_client_that_still_sends(
    client: Client,
) -> None:
    await client.send(request("POST", "/echo", b"x" * 5_000_000))
    assert (await client.answer())[0] == 413


async def test_a_header_that_never_ends_is_cut_off(client: Client) -> None:
    await client.send(b"GET / HTTP/1.1\r\nHost: x\r\nA: ")
    await client.send(b"a" * 1_000_000)  # far more than one read of the server
    assert (await client.answer())[0] == 431


async def test_http_1_0_closes_and_connection_close_is_kept(
    client: Client, server: HttpServer
) -> None:
    await client.send(b"GET / HTTP/1.0\r\n\r\n")
    assert (await client.answer())[0] == 200
    assert await client.at_end()
    other = await connect(server)
    await other.send(request("GET", "/", headers="Connection: close\r\n"))
    assert (await other.answer())[1]["connection"] == "close"
    assert await other.at_end()


async def test_an_upgrade_is_declined(client: Client) -> None:
    await client.send(request("GET", "/", headers="Connection: Upgrade\r\nUpgrade: h2c\r\n"))
    assert (await client.answer())[0] == 200
    await client.send(request("GET", "/"))
    assert (await client.answer())[0] == 200


async def test_a_large_answer_arrives_whole_at_a_slow_reader(client: Client) -> None:
    await client.send(request("GET", "/large"))
    _, _, body = await client.answer()
    assert body == b"a" * 3_000_000 + b"b" * 3_000_000


async def test_a_client_that_leaves_cancels_its_work(
    world: World, client: Client, server: HttpServer
) -> None:
    await client.send(request("GET", "/wait"))
    await world.entered.wait()
    client.writer.close()
    await asyncio.wait_for(world.cancelled.wait(), 5)
    assert server.open_connections == 0


async def test_drain_finishes_what_is_under_way(world: World, server: HttpServer) -> None:
    idle, busy = await connect(server), await connect(server)
    await idle.send(request("GET", "/"))
    await idle.answer()
    await busy.send(request("GET", "/wait"))
    await world.entered.wait()
    drained = asyncio.create_task(server.drain(5))
    assert await idle.at_end()
    with pytest.raises(ConnectionRefusedError):
        await connect(server)
    world.gate.set()
    status, headers, _ = await busy.answer()
    assert (status, headers["connection"]) == (200, "close")
    await drained
    assert server.open_connections == 0


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"GET / HT", 408), (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab", 408)],
)
async def test_a_request_that_stalls_is_given_up(world: World, data: bytes, status: int) -> None:
    limits = replace(LIMITS, head_timeout_s=0.1, body_grace_s=0.1)
    server = HttpServer(world.routes, limits)
    await server.start("127.0.0.1", 0)
    client = await connect(server)
    await client.send(data)
    assert (await client.answer())[0] == status
    assert await client.at_end()
    await server.drain(1)


async def test_too_many_connections_are_refused(world: World) -> None:
    server = HttpServer(world.routes, replace(LIMITS, connections_max=1))
    await server.start("127.0.0.1", 0)
    first = await connect(server)
    await first.send(request("GET", "/"))
    await first.answer()
    second = await connect(server)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await second.answer()
    await first.send(request("GET", "/"))
    assert (await first.answer())[0] == 200
    await server.drain(1)


async def test_a_busy_port_is_an_error(server: HttpServer, world: World) -> None:
    with pytest.raises(OSError, match="in use"):
        await HttpServer(world.routes).start("127.0.0.1", server.port)
