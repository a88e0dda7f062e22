"""A client of scripted bytes in front of our HTTP/2 connection, without sockets and clocks.

What it sends may be chopped into reads of any size; what comes back is read by hyperframe and
hpack, never by the code under test. Time passes only in `wait`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from hpack import Decoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from server.wire.http2.connection import Connection
from server.wire.http2.events import Body, Event, Opened
from server.wire.http2.frames import ErrorCode
from server.wire.http2.headers import Head, HeadTable, Shape
from server.wire.http2.hpack import encode_fields
from server.wire.http2.limits import Limits
from server.wire.http2.sending import AnswerShape
from server.wire.http2.stream import Stream
from tests.support.frame_factory import GRPC_FIELDS, FrameFactory, Pair

SECOND_NS = 1_000_000_000
Chop = Callable[[bytes], Iterable[bytes]]

STREAMED: list[Pair] = [
    (name, b"/test.Service/Stream" if name == b":path" else value) for name, value in GRPC_FIELDS
]
OPENING: list[Pair] = [(b":status", b"200"), (b"content-type", b"application/grpc")]
ENDING: list[Pair] = [(b"grpc-status", b"0")]
OPENING_BLOCK = encode_fields(OPENING)
ENDING_BLOCK = encode_fields(ENDING)
# Wide enough that only what a test is about ends a connection.
PATIENT = Limits(ping_strikes_max=1 << 30)


def with_limits(**limits: int) -> Limits:
    return replace(PATIENT, **limits)


def shape(tail_bytes: int, body_head: bytes = b"\0\0\0\0\1") -> AnswerShape:
    return AnswerShape(OPENING_BLOCK, body_head, tail_bytes, ENDING_BLOCK)


def parse(data: bytes) -> Iterator[Frame]:
    """Whole frames; anything else fails."""
    at = 0
    while at < len(data):
        frame, length = Frame.parse_frame_header(memoryview(data[at : at + 9]))
        body = data[at + 9 : at + 9 + length]
        assert len(body) == length, "the output ends within a frame"
        frame.parse_body(memoryview(body))
        yield frame
        at += 9 + length


@dataclass
class Said:
    """What the server sent."""

    frames: list[Frame]

    @property
    def kinds(self) -> list[str]:
        return [type(frame).__name__.removesuffix("Frame") for frame in self.frames]

    @property
    def goaways(self) -> list[tuple[str, int, str]]:
        """(code, last stream id, debug data) of each."""
        return [
            (ErrorCode(frame.error_code).name, frame.last_stream_id, frame.additional_data.decode())
            for frame in self.frames
            if isinstance(frame, GoAwayFrame)
        ]

    @property
    def fault(self) -> tuple[str, str] | None:
        """(code, debug data) of the GOAWAY; it must be the last frame."""
        if not self.goaways:
            return None
        assert isinstance(self.frames[-1], GoAwayFrame)
        code, _, debug = self.goaways[-1]
        return code, debug

    @property
    def resets(self) -> dict[int, str]:
        return {
            frame.stream_id: ErrorCode(frame.error_code).name
            for frame in self.frames
            if isinstance(frame, RstStreamFrame)
        }

    @property
    def pings(self) -> list[tuple[bytes, bool]]:
        """(opaque data, whether it is an answer) of each."""
        return [
            (bytes(frame.opaque_data), "ACK" in frame.flags)
            for frame in self.frames
            if isinstance(frame, PingFrame)
        ]

    @property
    def settings_acks(self) -> int:
        return sum(
            isinstance(frame, SettingsFrame) and "ACK" in frame.flags for frame in self.frames
        )

    @property
    def increments(self) -> list[tuple[int, int]]:
        """(stream id, increment) of each WINDOW_UPDATE."""
        return [
            (frame.stream_id, frame.window_increment)
            for frame in self.frames
            if isinstance(frame, WindowUpdateFrame)
        ]

    @property
    def data(self) -> list[tuple[int, int]]:
        """(stream id, length) of each DATA frame."""
        return [
            (frame.stream_id, len(frame.data))
            for frame in self.frames
            if isinstance(frame, DataFrame)
        ]

    def body(self, stream_id: int) -> bytes:
        return b"".join(
            bytes(frame.data)
            for frame in self.frames
            if isinstance(frame, DataFrame) and frame.stream_id == stream_id
        )

    def ended(self, stream_id: int) -> bool:
        return any(
            frame.stream_id == stream_id and "END_STREAM" in frame.flags for frame in self.frames
        )

    def blocks(self, stream_id: int) -> list[bytes]:
        blocks: list[bytes] = []
        for frame in self.frames:
            if frame.stream_id != stream_id:
                continue
            if isinstance(frame, HeadersFrame):
                blocks.append(bytes(frame.data))
            elif isinstance(frame, ContinuationFrame):
                blocks[-1] += bytes(frame.data)
        return blocks

    def fields(self, stream_id: int, decoder: Decoder | None = None) -> list[list[Pair]]:
        """The header blocks of a stream, decoded."""
        decoder = decoder or Decoder()
        return [
            [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
            for block in self.blocks(stream_id)
        ]


class CoreClient:
    """`send` feeds the connection and returns what it said; `whole` and `events` are for the test.

    Requests to a path with «Stream» in it have no sink: they are Streams from the start.
    """

    def __init__(
        self,
        limits: Limits = PATIENT,
        *,
        chop: Chop = lambda data: [data],
        settings: Mapping[int, int] | None = None,
        preface: bool = True,
    ) -> None:
        self.make = FrameFactory()
        self.whole: list[tuple[Connection, int, Head, bytes]] = []
        self.abuse: Counter[str] = Counter()
        self.now_ns = 5 * SECOND_NS
        self.heads = HeadTable(self._resolve)
        self.connection = Connection(self.heads, limits, self.now_ns, abuse=self.abuse)
        self._chop = chop
        self.greeting = self.read()
        if preface:
            self.send(self.make.preface(settings))

    def _resolve(self, shape: Shape) -> None:
        shape.sink = None if b"Stream" in shape.path else self.whole

    def send(self, *frames: bytes) -> Said:
        """Everything in reads as the test has them chopped."""
        for piece in self._chop(b"".join(frames)):
            self.connection.receive(piece, self.now_ns)
        return self.read()

    def read(self) -> Said:
        """What a transport would write, which takes all that it is given."""
        connection = self.connection
        output = connection.take_output()
        while connection.more_output:
            connection.flush()
            more = connection.take_output()
            assert more, "more_output, but there is none"
            output += more
        return Said(list(parse(output)))

    def wait(self, seconds: float, *, step: float = 1.0) -> Said:
        """Let time pass, with a sweep each `step`."""
        frames = []
        end_ns = self.now_ns + int(seconds * SECOND_NS)
        while self.now_ns < end_ns:
            self.now_ns = min(self.now_ns + int(step * SECOND_NS), end_ns)
            self.connection.expire(self.now_ns)
            frames += self.read().frames
        return Said(frames)

    def warm(self) -> None:
        """Let the connection know the usual head by its bytes; the streams 1 and 3 wait afterwards.

        The first block teaches the encoder's table, and what comes again is remembered.
        """
        for stream_id in (1, 3, 5, 7):
            self.send(self.request(stream_id))
            assert self.take_whole() == [(stream_id, b"body")]
            if stream_id > 3:
                self.answer(stream_id, b"answer")
        assert self.make.block() in self.connection._decoder.cache

    def take_events(self) -> list[Event]:
        events = self.connection.events.copy()
        self.connection.events.clear()
        return events

    def take_whole(self) -> list[tuple[int, bytes]]:
        """(stream id, body) of the whole requests so far."""
        found = [(stream_id, body) for _, stream_id, _, body in self.whole]
        self.whole.clear()
        return found

    def request(
        self, stream_id: int, body: bytes = b"body", fields: Sequence[Pair] = GRPC_FIELDS
    ) -> bytes:
        """The frames of a request."""
        return self.make.headers(stream_id, fields) + self.make.data(
            stream_id, body, end_stream=True
        )

    def open(self, stream_id: int, fields: Sequence[Pair] = STREAMED) -> Stream:
        """Begin a request that goes on; return its Stream."""
        said = self.send(self.make.headers(stream_id, fields))
        assert said.fault is None
        opened = self.take_events()[-1]
        assert isinstance(opened, Opened)
        return opened.stream

    def answer(self, stream_id: int, body: bytes) -> Said:
        self.connection.answer(stream_id, OPENING_BLOCK, body, ENDING_BLOCK)
        return self.read()

    def give(self, *, stream_id: int = 0, increment: int) -> Said:
        """Open a window."""
        return self.send(self.make.window_update(stream_id, increment))


def kinds(client: CoreClient) -> list[type[Event]]:
    return [type(event) for event in client.take_events()]


def body_of(events: Iterable[Event]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, Body))
