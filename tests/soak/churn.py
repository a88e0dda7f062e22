"""What clients do to a server, hour after hour: honest calls, broken ones, hostile ones.

An honest action checks its answer; whatever else happens to the connection is the server's to bear.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import grpc
from grpc import aio
from tritonclient.grpc import service_pb2 as pb

from tests.server.protocol.infer_worlds import rows_of
from tests.support.attacker import fields_for, message
from tests.support.frame_factory import Pair
from tests.support.raw_client import RawClient

PATIENCE_S = 30.0
_CANCEL = 8
_SERVICE = "/inference.GRPCInferenceService/"
_INFER = f"{_SERVICE}ModelInfer"
_WATCH = "/grpc.health.v1.Health/Watch"
_REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
_LIST_SERVICES = b"\x3a\x00"  # ServerReflectionRequest.list_services = ""
_REST_INFER = "/v2/models/mlp/infer"
_ROWS = [[0.1, 0.2, 0.3]]


@dataclass(frozen=True)
class Address:
    """Where a server is, and how to speak to it; without TLS both contexts are None."""

    name: str
    grpc_port: int
    http_port: int
    grpc_tls: ssl.SSLContext | None = None
    http_tls: ssl.SSLContext | None = None
    credentials: grpc.ChannelCredentials | None = None


class WrongAnswerError(Exception):
    """An honest client did not get what it should."""


def _check(right: bool, what: object) -> None:
    if not right:
        raise WrongAnswerError(str(what))


# Connections.


@contextlib.asynccontextmanager
async def h2(at: Address, *, window: int = 65_535) -> AsyncIterator[RawClient]:
    """A gRPC connection by exact frames."""
    client = RawClient(*await asyncio.open_connection("127.0.0.1", at.grpc_port, ssl=at.grpc_tls))
    client.send(client.factory.preface({4: window}))
    try:
        yield client
    finally:
        client.writer.transport.abort()
        await client.close()


@contextlib.asynccontextmanager
async def tcp(
    port: int, tls: ssl.SSLContext | None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _head(client: RawClient, stream_id: int, path: str, *more: Pair) -> None:
    fields = [
        (name, path.encode() if name == b":path" else value)
        for name, value in fields_for("Method", *more)
    ]
    client.send(client.factory.headers(stream_id, fields))


def _call(client: RawClient, stream_id: int, path: str, data: bytes, *more: Pair) -> None:
    _head(client, stream_id, path, *more)
    client.send(client.factory.data(stream_id, message(data), end_stream=True))


async def _read_to_end(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while await reader.read(65_536):
            pass


# Honest gRPC.


async def infer(at: Address, random: Random) -> None:
    """Some calls on one connection, many at once."""
    async with h2(at) as client:
        for first in range(1, random.randint(1, 4) * 40, 40):
            ids = range(first, first + 2 * random.randint(1, 20), 2)
            for stream_id in ids:
                _call(client, stream_id, _INFER, rows_of(random.randint(1, 8)))
            for stream_id in ids:
                answer = await client.answer(stream_id)
                _check(answer.status == 0, (answer.status, answer.text))
                reply = pb.ModelInferResponse.FromString(answer.messages[0])
                _check(reply.model_name == "mlp", reply)


async def infer_by_grpcio(at: Address, random: Random) -> None:
    """Headers that vary, messages in gzip."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    where = f"localhost:{at.grpc_port}"
    channel = (
        aio.insecure_channel(where, options)
        if at.credentials is None
        else aio.secure_channel(where, at.credentials, options)
    )
    async with channel:
        ask = channel.unary_unary(_INFER)
        for _ in range(random.randint(1, 5)):
            reply = await ask(
                rows_of(random.randint(1, 8)),
                timeout=PATIENCE_S,
                metadata=[("traceparent", f"00-{random.getrandbits(128):032x}-01")],
                compression=random.choice([None, grpc.Compression.Gzip]),
            )
            _check(pb.ModelInferResponse.FromString(reply).model_name == "mlp", reply)


async def stream(at: Address, random: Random) -> None:
    """A server stream that never ends by itself, and a bidirectional one."""
    async with h2(at) as client:
        _call(client, 1, _WATCH, b"")
        _head(client, 3, _REFLECT)
        count = random.randint(1, 5)
        for _ in range(count):
            client.message(3, _LIST_SERVICES)
        client.send(client.factory.data(3, b"", end_stream=True))
        answer = await client.answer(3)
        _check(answer.status == 0, (answer.status, answer.text))
        _check(len(answer.messages) == count, len(answer.messages))
        await client.wait(lambda: len(client.body(1)) >= 7, "the first word of Watch")
        client.send(client.factory.rst_stream(1, _CANCEL))
        _call(client, 5, f"{_SERVICE}ServerLive", b"")
        _check((await client.answer(5)).status == 0, "ServerLive")


async def wrong_call(at: Address, random: Random) -> None:
    """Errors are answers, too."""
    large = bytes(random.randint(1, 300_000))
    wrong = [
        (_INFER, rows_of(1, model="none"), 5),
        (_INFER, b"no message", 3),
        ("/no.Service/AtAll", b"", 12),
        (f"{_SERVICE}ModelMetadata", large, 3),
    ]
    async with h2(at) as client:
        for stream_id, (path, data, status) in zip(range(1, 99, 2), wrong, strict=False):
            _head(client, stream_id, path)
            framed = message(data)
            for start in range(0, len(framed), 16_384):
                end = start + 16_384 >= len(framed)
                client.send(
                    client.factory.data(stream_id, framed[start : start + 16_384], end_stream=end)
                )
                if len(client.frames) > 1 and client.ended:
                    break
            answer = await client.answer(stream_id)
            _check(answer.status == status, (path, answer.status, answer.text))


# gRPC that does not wait for its answer.


async def cancel(at: Address, random: Random) -> None:
    async with h2(at) as client:
        for stream_id in range(1, 2 * random.randint(1, 60), 2):
            _call(client, stream_id, random.choice([_INFER, _WATCH]), rows_of(4))
            if random.random() < 0.3:
                await client.writer.drain()
                await asyncio.sleep(0)
            client.send(client.factory.rst_stream(stream_id, _CANCEL))
        _call(client, 1001, _INFER, rows_of(1))
        _check((await client.answer(1001)).status == 0, "after cancelled ones")


async def too_late(at: Address, random: Random) -> None:
    """Deadlines that pass at once, soon, or in the middle."""
    async with h2(at) as client:
        ids = range(1, 2 * random.randint(1, 30), 2)
        for stream_id in ids:
            timeout = random.choice([b"0n", b"1n", b"50u", b"300u", b"2m"])
            _call(client, stream_id, _INFER, rows_of(8), (b"grpc-timeout", timeout))
        for stream_id in ids:
            answer = await client.answer(stream_id)
            _check(answer.status in {0, 4}, (answer.status, answer.text))
        _call(client, 1001, _WATCH, b"", (b"grpc-timeout", b"20m"))
        _check((await client.answer(1001)).status == 4, "a stream's deadline")


async def killed(at: Address, random: Random) -> None:
    """The connection is cut in the middle of calls, requests half sent or answers half read."""
    async with h2(at, window=random.choice([0, 100, 65_535])) as client:
        for stream_id in range(1, 2 * random.randint(1, 40), 2):
            framed = message(rows_of(8))
            _head(client, stream_id, random.choice([_INFER, _WATCH, _REFLECT]))
            client.send(client.factory.data(stream_id, framed[: random.randint(0, len(framed))]))
        if random.random() < 0.7:
            await client.writer.drain()
            await client.wait(lambda: client.frames, "settings")


async def bad_frames(at: Address, random: Random) -> None:
    """The end of a connection in many ways; the server closes it."""
    make = [
        lambda f: random.randbytes(random.randint(1, 3_000)),
        lambda f: struct.pack(">I", 1 << 31 | 5)[1:] + bytes(6),  # too long a frame
        lambda f: f.window_update(0, 0),
        lambda f: f.window_update(0, 2**31 - 1) * 2,
        lambda f: f.data(7, b"of no stream"),
        lambda f: f.settings({4: 2**31}),
        lambda f: f.headers(2, fields_for("Method")),
        lambda f: f.headers(1, [*fields_for("Method"), (b"Upper", b"case")]),
        lambda f: f.ping(b"12345678") * 3_000,
        lambda f: f.settings({}) * 3_000,
        lambda f: b"".join(
            f.headers(i, fields_for("Method")) + f.rst_stream(i, _CANCEL)
            for i in range(1, 4_001, 2)
        ),
    ]
    async with h2(at) as client:
        _call(client, 1, _INFER, rows_of(1))
        client.send(random.choice(make)(client.factory))
        client.send(client.factory.goaway())
        with contextlib.suppress(ConnectionError, TimeoutError, ssl.SSLError):
            async with asyncio.timeout(2.0):
                await client.closed()


async def strangers(at: Address, random: Random) -> None:
    """Who speaks no HTTP/2, half of TLS, or nothing at all."""
    port, tls = random.choice([(at.grpc_port, at.grpc_tls), (at.http_port, at.http_tls)])
    said = random.choice(
        [b"", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n", b"\x16\x03\x01\x02\x00\x01"]
    )
    speak_tls = tls if random.random() < 0.5 else None
    with contextlib.suppress(ConnectionError, TimeoutError, ssl.SSLError):
        async with tcp(port, speak_tls) as (reader, writer):
            writer.write(said)
            async with asyncio.timeout(random.random()):
                await _read_to_end(reader)


# REST.


def _request(method: str, path: str, body: bytes = b"", *more: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *more]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def _response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length:")[2].partition("\r\n")[0])
    return int(head.split(" ", 2)[1]), await reader.readexactly(length)


def _rest_infer() -> bytes:
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": _ROWS}
    return _request("POST", _REST_INFER, json.dumps({"inputs": [tensor]}).encode())


async def rest(at: Address, random: Random) -> None:
    """Keep-alive and pipelining; answers in order."""
    async with tcp(at.http_port, at.http_tls) as (reader, writer):
        for _ in range(random.randint(1, 4)):
            count = random.randint(1, 8)
            writer.write(_rest_infer() * count + _request("GET", "/v2/models/none"))
            for _at in range(count):
                status, body = await _response(reader)
                _check(status == 200, (status, body))
                _check(json.loads(body)["model_name"] == "mlp", body)
            status, body = await _response(reader)
            _check(status in {400, 404}, (status, body))


async def rest_killed(at: Address, random: Random) -> None:
    """Requests cut short, and requests that are none."""
    whole = _rest_infer()
    said = random.choice(
        [
            whole[: random.randint(1, len(whole) - 1)],
            whole * random.randint(1, 50),
            random.randbytes(500),
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal",
            _request("POST", _REST_INFER, bytes(random.randint(1, 200_000))),
        ]
    )
    async with tcp(at.http_port, at.http_tls) as (reader, writer):
        writer.write(said)
        if random.random() < 0.5:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await _read_to_end(reader)


Action = Callable[[Address, Random], Awaitable[None]]
# Each with how often it is chosen. What `_check` says of an honest one fails the soak.
ACTIONS: list[tuple[Action, int]] = [
    (infer, 10), (infer_by_grpcio, 3), (stream, 3), (wrong_call, 2), (cancel, 4), (too_late, 3),
    (killed, 4), (bad_frames, 3), (strangers, 2), (rest, 6), (rest_killed, 3),
]  # fmt: skip
# These may be cut by the server while they write: what they meet then is no fault.
HOSTILE: set[Any] = {killed, bad_frames, strangers, rest_killed}


class Churn:
    """`actors` tasks that do one action after another, on any of the addresses."""

    def __init__(self, addresses: list[Address], seed: int) -> None:
        self.done: Counter[str] = Counter()
        self.faults: list[str] = []
        self._began_s = time.monotonic()
        self._addresses = addresses
        self._seed = seed
        self._stopping = False

    async def run(self, actors: int) -> None:
        """Run until `stop`."""
        await asyncio.gather(*(self._act(number) for number in range(actors)))

    def stop(self) -> None:
        """End with the actions that are under way."""
        self._stopping = True

    async def _act(self, number: int) -> None:
        random = Random(f"{self._seed} {number}")
        actions, weights = zip(*ACTIONS, strict=True)
        while not self._stopping:
            (action,) = random.choices(actions, weights)
            at = random.choice(self._addresses)
            name = f"{action.__name__} {at.name}"
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await action(at, random)
            except (OSError, ssl.SSLError, asyncio.IncompleteReadError, AssertionError) as error:
                # A RawClient says by an AssertionError that the server closed.
                if action not in HOSTILE:
                    self._fault(name, error)
            except (WrongAnswerError, aio.AioRpcError, TimeoutError) as error:
                self._fault(name, error)
            self.done[name] += 1

    def _fault(self, name: str, error: Exception) -> None:
        at_s = time.monotonic() - self._began_s
        text = f"{name} at {at_s:.0f} s: {type(error).__name__} {str(error)[:200]}"
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
            if frame.tb_frame.f_code.co_filename == __file__:
                text += f" < {frame.tb_frame.f_code.co_name}:{frame.tb_lineno}"
        self.faults.append(text)
