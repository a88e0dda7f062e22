"""A client of exact frames for a server in the same event loop, and the server's other test gear.

`FrameFactory` writes, `struct` and `hpack` read: nothing here mends what either side sends.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from hpack import Decoder

from server.wire.grpc import server as grpc_server
from server.wire.grpc.server import GrpcServer
from tests.support.attacker import fields_for, message
from tests.support.frame_factory import (
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    RST_STREAM,
    WINDOW_UPDATE,
    FrameFactory,
    Pair,
)

PATIENCE_S = 10.0
_SERVER_FOLDER = str(Path(grpc_server.__file__).parents[2])


class Frame(NamedTuple):
    """One frame that the server sent; `fields` of HEADERS only."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes
    fields: list[Pair]

    @property
    def ends(self) -> bool:
        return self.kind in {DATA, HEADERS} and bool(self.flags & END_STREAM)


class Goaway(NamedTuple):
    """A GOAWAY frame."""

    last_id: int
    code: int
    debug: bytes


class RawClient:
    """One connection. `frames` holds all that came, in order; `ended` that the server closed."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.factory = FrameFactory()
        self.frames: list[Frame] = []
        self.ended = False
        self._decoder = Decoder()
        self._rest = b""

    @classmethod
    async def open(cls, port: int, settings: Mapping[int, int] | None = None) -> Self:
        """Connect, and send preface and SETTINGS."""
        client = cls(*await asyncio.open_connection("127.0.0.1", port))
        client.send(client.factory.preface(settings))
        return client

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    def send(self, *pieces: bytes) -> None:
        self.writer.write(b"".join(pieces))

    def call(
        self, stream_id: int, data: bytes = b"hello", method: str = "Method", *more: Pair
    ) -> None:
        """Send a whole unary request."""
        self.begin(stream_id, method, *more)
        self.send(self.factory.data(stream_id, message(data), end_stream=True))

    def begin(self, stream_id: int, method: str, *more: Pair) -> None:
        """Send a head."""
        self.send(self.factory.headers(stream_id, fields_for(method, *more)))

    def message(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        """Send one message in a DATA frame of its own."""
        self.send(self.factory.data(stream_id, message(data), end_stream=end))

    async def _read(self) -> None:
        try:
            data = await self._reader.read(1 << 18)
        except ConnectionError:
            data = b""
        self.ended = not data
        self._rest += data
        at = 0
        while len(self._rest) - at >= 9:
            length = int.from_bytes(self._rest[at : at + 3], "big")
            if len(self._rest) - at < 9 + length:
                break
            kind, flags, stream_id = struct.unpack(">BBI", self._rest[at + 3 : at + 9])
            payload = self._rest[at + 9 : at + 9 + length]
            fields = self._decoder.decode(payload, raw=True) if kind == HEADERS else []
            self.frames.append(Frame(kind, flags, stream_id, payload, [(a, b) for a, b in fields]))
            at += 9 + length
        self._rest = self._rest[at:]

    async def wait(self, found: Callable[[], object], what: str) -> None:
        """Read until `found`. AssertionError when the server closes or nothing comes."""
        async with asyncio.timeout(PATIENCE_S):
            while not found():
                assert not self.ended, f"closed while waiting for {what}: {self.frames[-3:]}"
                await self._read()

    async def wait_for(
        self, kind: int, stream_id: int = 0, *, flags: int = 0, nth: int = 1
    ) -> Frame:
        """Read until the nth such frame is there."""

        def found() -> list[Frame]:
            return [
                frame
                for frame in self.frames
                if (frame.kind, frame.stream_id, frame.flags & flags) == (kind, stream_id, flags)
            ]

        await self.wait(lambda: len(found()) >= nth, f"frame {kind} on stream {stream_id}")
        return found()[nth - 1]

    def of(self, stream_id: int) -> list[Frame]:
        """Return the frames of a stream so far, without window updates."""
        return [
            frame
            for frame in self.frames
            if frame.stream_id == stream_id and frame.kind != WINDOW_UPDATE
        ]

    async def answer(self, stream_id: int) -> Answer:
        """Wait for the end of a response."""
        await self.wait(lambda: any(frame.ends for frame in self.of(stream_id)), "an answer")
        return Answer(self.of(stream_id))

    async def reset(self, stream_id: int) -> int:
        """Wait for RST_STREAM; return its code."""
        return int.from_bytes((await self.wait_for(RST_STREAM, stream_id)).payload, "big")

    async def pong(self) -> None:
        """Let everything that was sent so far be handled; its answers are read."""
        opaque = struct.pack(">Q", len(self.frames))
        self.send(self.factory.ping(opaque))
        await self.wait(
            lambda: any(frame.kind == 6 and frame.payload == opaque for frame in self.frames),
            "a pong",
        )

    async def closed(self) -> list[Goaway]:
        """Read until the server closes; return its GOAWAYs."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.ended:
                await self._read()
        return self.goaways()

    def goaways(self) -> list[Goaway]:
        """Return the GOAWAYs so far."""
        return [
            Goaway(*struct.unpack(">II", frame.payload[:8]), frame.payload[8:])
            for frame in self.frames
            if frame.kind == GOAWAY
        ]

    def body(self, stream_id: int) -> bytes:
        return b"".join(frame.payload for frame in self.of(stream_id) if frame.kind == DATA)

    def credit(self, stream_id: int) -> int:
        """Return what window the server gave back so far."""
        return sum(
            int.from_bytes(frame.payload, "big")
            for frame in self.frames
            if frame.kind == WINDOW_UPDATE and frame.stream_id == stream_id
        )


class Answer:
    """A response that has ended."""

    def __init__(self, frames: list[Frame]) -> None:
        self.kinds = [frame.kind for frame in frames]
        heads = [frame.fields for frame in frames if frame.kind == HEADERS]
        self.opening, self.trailers = heads[0], heads[-1]
        self.only_trailers = len(heads) == 1
        self.body = b"".join(frame.payload for frame in frames if frame.kind == DATA)
        self.fields = dict(self.trailers)
        self.http_status = int(dict(self.opening)[b":status"])
        self.status = int(self.fields.get(b"grpc-status", b"-1"))
        self.text = self.fields.get(b"grpc-message", b"").decode()

    @property
    def messages(self) -> list[bytes]:
        """The messages of the body, none of them compressed."""
        found, rest = [], self.body
        while rest:
            flag, length = struct.unpack(">BI", rest[:5])
            assert flag == 0
            assert len(rest) >= 5 + length
            found.append(rest[5 : 5 + length])
            rest = rest[5 + length :]
        return found


async def until(true: Callable[[], object], what: str = "it") -> None:
    """Let the loop run until this is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"{what} does not become true"
        await asyncio.sleep(0.001)


def sweep(server: GrpcServer, after_s: float) -> None:
    """Let the server's sweep find every connection at a time `after_s` from now."""
    now_ns = time.monotonic_ns() + round(after_s * 1e9)
    for connection in list(server.connections):
        server._expire(connection, now_ns)


def holds_nothing(server: GrpcServer) -> bool:
    """Whether nothing is left of any call, on connections that may be open."""
    return (
        server.calls.live == 0
        and server.held_bytes == 0
        and server.calls.started == server.calls.ended.total()
        and not any(
            connection.calls
            or connection.core.streams
            or connection.core.pending_bytes
            or connection.core.blocked
            for connection in server.connections
        )
    )


def server_tasks() -> list[str]:
    """Return the names of what the server's own tasks run."""
    coroutines: list[Any] = [task.get_coro() for task in asyncio.all_tasks()]
    return [
        coroutine.__qualname__
        for coroutine in coroutines
        if coroutine.cr_code.co_filename.startswith(_SERVER_FOLDER)
    ]


@contextlib.asynccontextmanager
async def leaving_nothing(server: GrpcServer) -> AsyncIterator[None]:
    """After the body and a drain no connection, call, byte or task of the server is left."""
    yield
    await server.drain(0)
    await until(lambda: holds_nothing(server), f"{server.calls.live} calls live, all at zero")
    assert not server.connections
    await until(lambda: server.listener.open_connections == 0, "all connections closed")
    await until(lambda: not server_tasks(), "no task of the server's")
