"""A TCP relay before a gRPC server that notes each message's compressed flag.

Neither grpc.aio's handlers nor its clients are told whether a message came compressed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from hyperframe.frame import DataFrame, Frame, HeadersFrame

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME_HEAD_BYTES = 9
_PREFIX_BYTES = 5


@dataclass
class Tap:
    """What passed: by call, in order, whether each message was compressed."""

    port: int = 0
    requests: list[list[bool]] = field(default_factory=list)
    responses: list[list[bool]] = field(default_factory=list)


@dataclass
class _Direction:
    """The gRPC messages that pass one way on a connection."""

    skip: int  # bytes of the preface still to come
    flags: dict[int, list[bool]]  # by stream
    began: Callable[[int], None] = lambda _: None
    data: bytearray = field(default_factory=bytearray)
    bodies: dict[int, bytearray] = field(default_factory=dict)

    def feed(self, data: bytes) -> None:
        self.data += data
        if len(self.data) < self.skip:
            return
        del self.data[: self.skip]
        self.skip = 0
        while len(self.data) >= _FRAME_HEAD_BYTES:
            head = memoryview(bytes(self.data[:_FRAME_HEAD_BYTES]))
            frame, length = Frame.parse_frame_header(head)
            end = _FRAME_HEAD_BYTES + length
            if len(self.data) < end:
                return
            frame.parse_body(memoryview(bytes(self.data[_FRAME_HEAD_BYTES:end])))
            del self.data[:end]
            if isinstance(frame, HeadersFrame):
                self.began(frame.stream_id)
            elif isinstance(frame, DataFrame):
                self._take(frame.stream_id, frame.data)

    def _take(self, stream_id: int, data: bytes) -> None:
        body = self.bodies.setdefault(stream_id, bytearray())
        body += data
        while len(body) >= _PREFIX_BYTES:
            end = _PREFIX_BYTES + int.from_bytes(body[1:_PREFIX_BYTES], "big")
            if len(body) < end:
                return
            self.flags[stream_id].append(bool(body[0]))
            del body[:end]


def _directions(seen: Tap) -> tuple[_Direction, _Direction]:
    """Return both ways of a new connection."""
    requests: dict[int, list[bool]] = {}
    responses: dict[int, list[bool]] = {}

    def began(stream_id: int) -> None:
        for flags, calls in ((requests, seen.requests), (responses, seen.responses)):
            flags[stream_id] = []
            calls.append(flags[stream_id])

    return _Direction(len(_PREFACE), requests, began), _Direction(0, responses)


@contextlib.asynccontextmanager
async def tap(target_port: int) -> AsyncIterator[Tap]:
    """Relay to 127.0.0.1:`target_port`."""
    seen = Tap()
    relays: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def relay(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: _Direction
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                direction.feed(data)
                writer.write(data)
                await writer.drain()
        writer.close()  # the one side's end is the other's

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target_port)
        writers.extend((writer, far_writer))
        there, back = _directions(seen)
        relays.add(asyncio.create_task(relay(reader, far_writer, there)))
        relays.add(asyncio.create_task(relay(far_reader, writer, back)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield seen
    finally:
        server.close()
        for task in relays:
            task.cancel()
        await asyncio.gather(*relays, return_exceptions=True)
        for writer in writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
