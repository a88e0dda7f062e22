"""The same echo server twice: over our connection and over h2's, for a comparison of the two.

Each keeps a `Record` of every request as the layer above has learnt it, and answers when it is
told to. `read_output` says what a server sent, by hyperframe and not by the code under test.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from h2.utilities import HeaderValidationFlags, validate_headers
from hyperframe.frame import Frame, GoAwayFrame, PingFrame, RstStreamFrame, SettingsFrame

from server.wire.http2.connection import Connection
from server.wire.http2.events import Body, Ended, Opened, Reset, Writable
from server.wire.http2.frames import ErrorCode
from server.wire.http2.headers import Head, HeadTable, Shape
from server.wire.http2.hpack import encode_fields
from server.wire.http2.limits import Limits
from server.wire.http2.sending import AnswerShape
from server.wire.http2.stream import Stream

Pair = tuple[bytes, bytes]
ANSWER_FIELDS: list[Pair] = [(b":status", b"200"), (b"content-type", b"application/grpc")]
ANSWER_TRAILERS: list[Pair] = [(b"grpc-status", b"0")]
EARLY_FIELDS: list[Pair] = [*ANSWER_FIELDS, (b"grpc-status", b"12")]
_BLOCK = encode_fields(ANSWER_FIELDS)
_TRAILER_BLOCK = encode_fields(ANSWER_TRAILERS)
_EARLY_BLOCK = encode_fields(EARLY_FIELDS)


@dataclass
class Record:
    """What a server knows of a request. `answer` is what it was answered, None before.

    `too_large`: the list of its fields is over the limits, and not whole here.
    """

    fields: tuple[bytes, ...]  # method, scheme, path, authority, then names and values
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False
    gone: bool = False  # reset, by whomever
    answer: bytes | None = None
    too_large: bool = False


@dataclass
class Output:
    """What a server said about errors, and its acknowledgements."""

    goaway: str = ""  # the code's name of the last GOAWAY
    resets: dict[int, str] = field(default_factory=dict)
    acks: list[bytes] = field(default_factory=list)  # b"" for SETTINGS

    @property
    def verdict(self) -> str:
        if self.goaway:
            return f"GOAWAY {self.goaway}"
        return " ".join(f"RST {code}" for code in sorted(set(self.resets.values()))) or "fine"


def read_output(data: bytes) -> Output:
    output = Output()
    at = 0
    while at < len(data):
        frame, length = Frame.parse_frame_header(memoryview(data[at : at + 9]))
        frame.parse_body(memoryview(data[at + 9 : at + 9 + length]))
        at += 9 + length
        if isinstance(frame, GoAwayFrame):
            output.goaway = ErrorCode(frame.error_code).name
        elif isinstance(frame, RstStreamFrame):
            output.resets[frame.stream_id] = ErrorCode(frame.error_code).name
        elif isinstance(frame, PingFrame) and "ACK" in frame.flags:
            output.acks.append(bytes(frame.opaque_data))
        elif isinstance(frame, SettingsFrame) and "ACK" in frame.flags:
            output.acks.append(b"")
    assert at == len(data), "the output ends within a frame"
    return output


def echo(body: bytes | bytearray, extra: int) -> bytes:
    """The answer to a request."""
    return b"echo:" + bytes(body) + b"+" * extra


class OurEcho:
    """`receive` and the rest return what was sent, all of it."""

    def __init__(self, limits: Limits) -> None:
        self.sink: list[tuple[Connection, int, Head, bytes]] = []
        self.records: dict[int, Record] = {}
        self.log: list[tuple[object, ...]] = []  # the events, in order
        self.held: list[tuple[Stream, int]] | None = None  # bodies that are not read yet
        self._open: dict[int, Stream] = {}
        self.connection = Connection(HeadTable(self._resolve), limits, now_ns=10**9)
        self.now_ns = 10**9
        self.greeting = self.connection.take_output()

    def _resolve(self, shape: Shape) -> None:
        shape.route = shape.path
        shape.sink = None if b"Stream" in shape.path else self.sink

    def receive(self, data: bytes) -> bytes:
        self.now_ns += 10**6
        self.connection.receive(data, self.now_ns)
        self._absorb()
        return self._output()

    def _output(self) -> bytes:
        connection = self.connection
        output = connection.take_output()
        while connection.more_output:
            connection.flush()
            more = connection.take_output()
            if not more:
                break
            output += more
        return output

    def _absorb(self) -> None:
        """Take the whole requests, then the events: a request comes before its reset."""
        for connection, stream_id, head, body in self.sink:
            assert connection is self.connection
            self.records[stream_id] = Record(_fields(head), bytearray(body), ended=True)
        self.sink.clear()
        for event in self.connection.events:
            if isinstance(event, Opened):
                head = event.stream.head
                assert head is not None
                record = Record(_fields(head), too_large=head.problem is not None)
                self.records[event.stream.id] = record
                self._open[event.stream.id] = event.stream
                self.log.append(("opened", event.stream.id))
            elif isinstance(event, Body):
                self.records[event.stream.id].body += event.data
                if self.held is None:
                    self.connection.consume(event.stream, len(event.data))
                else:
                    self.held.append((event.stream, len(event.data)))
                self.log.append(("body", event.stream.id, event.data))
            elif isinstance(event, Ended):
                self.records[event.stream.id].ended = True
                self.log.append(("ended", event.stream.id))
            elif isinstance(event, Reset):
                self.records[event.stream_id].gone = True
                self.log.append(("reset", event.stream_id))
            else:
                assert isinstance(event, Writable)
        self.connection.events.clear()

    def answer(self, extra: int, *, batch: bool) -> bytes:
        """Answer every whole request; with `batch` those of one size by `answer_all`."""
        ready = {
            stream_id: record
            for stream_id, record in sorted(self.records.items())
            if record.ended and not record.gone and record.answer is None
        }
        groups: dict[int, list[int]] = {}
        for stream_id, record in ready.items():
            record.answer = echo(record.body, extra)
            if batch:
                groups.setdefault(len(record.answer), []).append(stream_id)
            else:
                self.connection.answer(stream_id, _BLOCK, record.answer, _TRAILER_BLOCK)
        for size, stream_ids in groups.items():
            shape = AnswerShape(_BLOCK, b"echo:", size - 5, _TRAILER_BLOCK)
            tails = [(ready[stream_id].answer or b"")[5:] for stream_id in stream_ids]
            self.connection.answer_all(stream_ids, shape, tails)
        self._absorb()
        return self._output()

    def answer_early(self, stream_id: int) -> bytes:
        """Refuse a request that has not ended, by trailers only."""
        self.records[stream_id].gone = True
        self.connection.send_headers(self._open[stream_id], _EARLY_BLOCK, end_stream=True)
        return self._output()

    def cancel(self, stream_id: int) -> bytes:
        self.records[stream_id].gone = True
        self.connection.reset(stream_id, ErrorCode.CANCEL)
        return self._output()

    def hold(self, *, on: bool) -> bytes:
        """Read no bodies any more; or read them, those that wait first."""
        held = self.held or []
        self.held = held if on else None
        if not on:
            for stream, count in held:
                self.connection.consume(stream, count)
        return self._output()

    @property
    def unfinished(self) -> list[int]:
        """The requests that have not ended and may be answered all the same."""
        return [
            stream_id
            for stream_id, record in sorted(self.records.items())
            if not record.ended and not record.gone and stream_id in self._open
        ]


def _fields(head: Head) -> tuple[bytes, ...]:
    pseudo = (head.method, head.scheme, head.path, head.authority)
    return (*pseudo, *(text for pair in head.fields for text in pair))


def _fields_of(headers: list[Pair]) -> tuple[bytes, ...]:
    found = dict(headers)
    pseudo = [found.get(b":" + name, b"") for name in (b"method", b"scheme", b"path")]
    authority = found.get(b":authority", found.get(b"host", b""))
    regular = (text for name, value in headers if name[:1] != b":" for text in (name, value))
    return (*pseudo, authority, *regular)


class H2Echo:
    """The oracle. A malformed head is a stream error here, as RFC 9113 §8.1.1 has it; h2 itself
    would end the connection, and there would be nothing more to compare."""

    def __init__(self, limits: Limits) -> None:
        config = H2Configuration(
            client_side=False,
            header_encoding=None,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
        )
        self._limits = limits
        self.connection = H2Connection(config)
        self.connection.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
                SettingCodes.MAX_HEADER_LIST_SIZE: limits.header_list_bytes_max,
            },
        )
        self.connection.decoder.max_header_list_size = limits.header_list_bytes_max
        self.connection.initiate_connection()
        self.connection.increment_flow_control_window(limits.connection_window_bytes - 65_535)
        self.connection.data_to_send()
        self.records: dict[int, Record] = {}
        self.fault: ProtocolError | None = None
        self.held: list[tuple[int, int]] | None = None
        self._unsent: dict[int, bytes] = {}

    def receive(self, data: bytes) -> tuple[bytes, list[events.Event]]:
        try:
            found = self.connection.receive_data(data)
        except ProtocolError as error:
            self.fault = error
            return self.connection.data_to_send(), []
        for event in found:
            self._take(event)
        self._send()
        return self.connection.data_to_send(), found

    def _take(self, event: events.Event) -> None:
        connection = self.connection
        if isinstance(event, events.RequestReceived):
            stream_id = event.stream_id
            headers: list[Pair] = [(bytes(name), bytes(value)) for name, value in event.headers]
            if connection.open_inbound_streams > self._limits.streams_max:
                connection.reset_stream(stream_id, ErrorCode.REFUSED_STREAM)
            elif malformed(headers, trailers=False):
                connection.reset_stream(stream_id, ErrorCode.PROTOCOL_ERROR)
            else:
                self.records[stream_id] = Record(_fields_of(headers))
        elif isinstance(event, events.TrailersReceived):
            headers = [(bytes(name), bytes(value)) for name, value in event.headers]
            record = self.records.get(event.stream_id)
            if malformed(headers, trailers=True) and record is not None and not record.gone:
                record.gone = True
                connection.reset_stream(event.stream_id, ErrorCode.PROTOCOL_ERROR)
        elif isinstance(event, events.DataReceived):
            held = self.held
            if held is None:
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            else:
                held.append((event.stream_id, event.flow_controlled_length))
            if event.stream_id in self.records:
                self.records[event.stream_id].body += event.data
        elif isinstance(event, events.StreamEnded):
            if event.stream_id in self.records and not self.records[event.stream_id].gone:
                self.records[event.stream_id].ended = True
        elif isinstance(event, events.StreamReset):
            if event.stream_id in self.records:
                self.records[event.stream_id].gone = True
            self._unsent.pop(event.stream_id, None)

    def answer(self, extra: int) -> bytes:
        for stream_id, record in sorted(self.records.items()):
            if record.ended and not record.gone and record.answer is None:
                record.answer = echo(record.body, extra)
                self.connection.send_headers(stream_id, ANSWER_FIELDS)
                self._unsent[stream_id] = record.answer
        self._send()
        return self.connection.data_to_send()

    def answer_early(self, stream_id: int) -> bytes:
        self.records[stream_id].gone = True
        self.connection.send_headers(stream_id, EARLY_FIELDS, end_stream=True)
        self.connection.reset_stream(stream_id, ErrorCode.NO_ERROR)
        return self.connection.data_to_send()

    def cancel(self, stream_id: int) -> bytes:
        self.records[stream_id].gone = True
        self.connection.reset_stream(stream_id, ErrorCode.CANCEL)
        return self.connection.data_to_send()

    def hold(self, *, on: bool) -> None:
        held = self.held or []
        self.held = held if on else None
        if not on:
            for stream_id, count in held:
                self.connection.acknowledge_received_data(count, stream_id)

    def _send(self) -> None:
        """Send what the windows allow."""
        connection = self.connection
        for stream_id, body in list(self._unsent.items()):
            window = connection.local_flow_control_window(stream_id)
            at = 0
            while at < len(body) and window > at:
                stop = min(at + connection.max_outbound_frame_size, window, len(body))
                connection.send_data(stream_id, body[at:stop])
                at = stop
            if at < len(body):
                self._unsent[stream_id] = body[at:]
                continue
            connection.send_headers(stream_id, ANSWER_TRAILERS, end_stream=True)
            del self._unsent[stream_id]


def malformed(headers: list[Pair], *, trailers: bool) -> bool:
    """What h2 says of a header list."""
    flags = HeaderValidationFlags(
        is_client=False, is_trailer=trailers, is_response_header=False, is_push_promise=False
    )
    try:
        list(validate_headers(headers, flags))
    except ProtocolError:
        return True
    return False
