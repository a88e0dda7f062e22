"""One HTTP/2 connection of a server, without IO: bytes and time in, requests and events out.

`receive` walks the frames of what was read. The common ones — HEADERS whose block is like one
before, and a DATA frame that is a whole request body — are found by compiled code (`scan`) or in
the loop itself; everything else goes through the handlers below it. A whole request is appended to
its head's `sink` as (connection, stream id, head, body); what is not whole becomes a `Stream` and
events.

A mistake of the peer that the RFC lets us take as a connection error is one: GOAWAY names the
reason, and the connection ends. Only a malformed request costs no more than its stream.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from itertools import repeat
from typing import Any

from server.wire.http2 import frames, scan
from server.wire.http2.control import NO_GOAWAY, Control
from server.wire.http2.events import Body, Ended, Reset
from server.wire.http2.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES_MAX,
    HEADER_BYTES,
    PADDED,
    PREFACE,
    PRIORITY,
    STREAM_ID_MAX,
    ConnectionFault,
    ErrorCode,
    FrameType,
)
from server.wire.http2.headers import Head, HeadTable
from server.wire.http2.hpack import Decoder, HeaderBombError, HpackError
from server.wire.http2.limits import Limits
from server.wire.http2.sending import ANSWERING
from server.wire.http2.settings import HEADER_TABLE_DEFAULT, Setting
from server.wire.http2.stream import Input, Stream
from server.wire.http2.windows import WINDOW_MAX

_FRAME = struct.Struct(">HBHI").unpack_from  # length in two parts, type and flags, stream id
_WHOLE_BODY = FrameType.DATA << 8 | END_STREAM
_WHOLE_HEAD = FrameType.HEADERS << 8 | END_HEADERS
_NOTHING: dict[Any, Any] = {}
_RESTLESS_HEADS = 16  # each of which changed the table
# By how much a request's stream may be widened before its body comes: gRPC's own clients ask for
# the five bytes of a message's prefix. What asks for more goes the long way.
_GRANT_MAX = 1 << 16
_SCANS = 3  # in vain, of a read: some clients' requests are never alike
# So close to the last stream id the client is asked to open another connection.
_STREAM_IDS_LEFT = 1_000
_DRAIN_FROM_ID = STREAM_ID_MAX - 2 * _STREAM_IDS_LEFT


class Connection(Control):
    """The state of one connection. See `Control` and `Sending` for its other halves."""

    __slots__ = (
        "_block",
        "_block_flags",
        "_block_frames",
        "_block_stream",
        "_decoder",
        "_narrow",
        "_preface_left",
        "_table_refused",
        "_tail",
    )

    def __init__(
        self, heads: HeadTable, limits: Limits, now_ns: int, *, abuse: Counter[str] | None = None
    ) -> None:
        super().__init__(limits, now_ns, Counter() if abuse is None else abuse)
        self._decoder = Decoder(
            heads,
            table_bytes_max=HEADER_TABLE_DEFAULT,
            list_bytes_max=limits.header_list_bytes_max,
            fields_max=limits.header_fields_max,
        )
        self._table_refused = False
        self._tail = b""
        self._preface_left = PREFACE
        self._block: list[bytes] | None = None  # a header block that is not complete
        self._block_stream = 0
        self._block_flags = 0
        self._block_frames = 0
        # A frame may be more than a stream's window: the loop, which counts none, must not take it.
        self._narrow = limits.stream_window_bytes < FRAME_BYTES_MAX

    # Bytes in.

    def receive(self, data: bytes, now_ns: int) -> None:
        """Take what was read. After a fault nothing more is taken; `out` ends with the GOAWAY."""
        if self.closed:
            return
        self.now_ns = self._received_ns = now_ns
        try:
            if self._tail:
                data = self._tail + data
                self._tail = b""
            at = self._take_preface(data) if self._preface_left else 0
            self._walk(data, at)
        except ConnectionFault as fault:
            self._fail(fault)
        if self._drain_since_ns and self.drained:
            self.close(ErrorCode.NO_ERROR, "")

    def _take_preface(self, data: bytes) -> int:
        wanted = self._preface_left
        piece = data[: len(wanted)]
        if not wanted.startswith(piece):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no HTTP/2 connection preface")
        self._preface_left = wanted[len(piece) :]
        return len(piece)

    def _walk(self, data: bytes, at: int) -> None:
        """Handle all whole frames from `at`; keep the rest."""
        size = len(data)
        start = at
        streams, cache, code = self._open_ways()
        window = self._window
        scans_left = _SCANS
        whole_bytes = 0
        while (body := at + HEADER_BYTES) <= size:
            if code and scans_left:
                left = window.left
                stop = self._take_requests(data, at, streams, code)
                if stop > at:
                    whole_bytes += left - window.left
                    at = stop
                    code = self._decoder.code
                    continue
                scans_left -= 1
            high, low, kind, stream_id = _FRAME(data, at)
            length = high << 8 | low
            stop = body + length
            if stop > size or length > FRAME_BYTES_MAX:
                break
            at = stop
            if kind == _WHOLE_BODY:
                head = streams.get(stream_id)
                if (
                    head.__class__ is Head
                    and length <= window.left
                    and head.shape.content_length in {-1, length}
                ):
                    window.left -= length
                    whole_bytes += length
                    streams[stream_id] = ANSWERING
                    head.shape.sink.append((self, stream_id, head, data[body:stop]))
                    continue
            elif kind == _WHOLE_HEAD:
                head = cache.get(data[body:stop])
                if (
                    head is not None  # only heads with a sink are in the cache
                    and self._last_id < stream_id < _DRAIN_FROM_ID
                    and stream_id & 1
                    and len(streams) < self.limits.streams_max
                ):
                    self._last_id = stream_id
                    streams[stream_id] = head
                    continue
            self._frame(kind >> 8, kind & 0xFF, stream_id & STREAM_ID_MAX, data[body:stop])
            streams, cache, code = self._open_ways()
        if whole_bytes:  # not before: the peer cannot have known of it
            self._give_back(whole_bytes)
        self._keep_tail(data, at, started=at > start)

    def _take_requests(self, data: bytes, at: int, streams: dict[int, Any], code: bytes) -> int:
        """Take the whole requests from `at` that compiled code finds; return where they end."""
        room = self.limits.streams_max - len(streams)
        grant_max = min(_GRANT_MAX, WINDOW_MAX - self.peer.window)
        found = scan.scan(
            data, at, code, self._last_id, _DRAIN_FROM_ID, room, self._window.left, grant_max
        )
        if not found:
            return at
        count = found & scan.COUNT_MASK
        decoder = self._decoder
        template = decoder.templates[found >> scan.COUNT_BITS & scan.TEMPLATE_MASK]
        decoder.changes_in_a_row = 0
        places = found >> scan.STOP_AT
        self._window.left -= places >> scan.SIZE_BITS
        if found & scan.GRANTED:
            self.grants.update(scan.grants(count))
        if not found & scan.WHOLE:
            self._take_each(data, count, streams)
        elif count == 1:
            template.matched += 1
            stream_id, start, stop, block_start, block_stop, timeout_ns, *_ = scan.last()
            head = template.head
            if not template.constant:
                head = template.head_of(data[block_start:block_stop], timeout_ns)
            self._last_id = stream_id
            streams[stream_id] = ANSWERING
            template.sink.append((self, stream_id, head, data[start:stop]))
        else:
            template.matched += count
            ids, starts, stops = scan.bodies(count)
            heads: Iterator[Head] = repeat(template.head)
            if not template.constant:
                heads = template.heads_of(data, *scan.heads(count))
            bodies = [data[start:stop] for start, stop in zip(starts, stops, strict=True)]
            self._last_id = ids[-1]
            streams.update(dict.fromkeys(ids, ANSWERING))
            template.sink.extend(zip(repeat(self), ids, heads, bodies))
        if found & scan.CHANGED and template.worth_replacing:
            _, _, _, block_start, block_stop, *_ = scan.last()
            decoder.learn_anew(template, data[block_start:block_stop])
        return places & scan.DATA_BYTES_MAX

    def _take_each(self, data: bytes, count: int, streams: dict[int, Any]) -> None:
        """Take what a scan found that is not all alike, or has heads whose bodies are to come."""
        templates = self._decoder.templates
        for stream_id, start, stop, block_start, block_stop, timeout_ns, number in scan.rows(count):
            template = templates[number]
            template.matched += 1
            self._last_id = stream_id
            head = template.head_of(data[block_start:block_stop], timeout_ns)
            if stop:
                streams[stream_id] = ANSWERING
                template.sink.append((self, stream_id, head, data[start:stop]))
            else:
                streams[stream_id] = head

    def _keep_tail(self, data: bytes, at: int, *, started: bool) -> None:
        """Keep the frame that is not whole; `started` tells that it began in this read."""
        if at == len(data):
            self._tail_since_ns = 0
            return
        tail = data[at:]
        if len(tail) >= HEADER_BYTES and int.from_bytes(tail[:3], "big") > FRAME_BYTES_MAX:
            raise ConnectionFault(
                ErrorCode.FRAME_SIZE_ERROR, "a frame above SETTINGS_MAX_FRAME_SIZE"
            )
        self._tail = tail
        if started or not self._tail_since_ns:
            self._tail_since_ns = self.now_ns

    def _open_ways(self) -> tuple[dict[int, Any], dict[bytes, Head], bytes]:
        """Return what the loop may use: nothing while a rule asks for the long way."""
        if self._block is not None or not self._settings_seen or self._narrow:
            return _NOTHING, _NOTHING, b""
        if self._goaway_id != NO_GOAWAY or self.pending_bytes > self.limits.output_bytes_max:
            return self.streams, _NOTHING, b""
        return self.streams, self._decoder.cache, self._decoder.code

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Handle one frame, the long way. Raises ConnectionFault."""
        if self._block is not None and (
            kind != FrameType.CONTINUATION or stream_id != self._block_stream
        ):
            raise ConnectionFault(
                ErrorCode.PROTOCOL_ERROR, "another frame within a header block", "interleaved"
            )
        if not self._settings_seen and (kind != FrameType.SETTINGS or flags & ACK):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if kind == FrameType.DATA:
            self._data(flags, stream_id, payload)
        elif kind == FrameType.HEADERS:
            self._headers(flags, stream_id, payload)
        elif kind == FrameType.CONTINUATION:
            self._continuation(flags, payload)
        elif kind == FrameType.RST_STREAM:
            self._rst_stream(stream_id, payload)
        else:
            self._control_frame(kind, flags, stream_id, payload)

    # Header blocks.

    def _headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        fragment = _unpadded(payload) if flags & PADDED else payload
        if flags & PRIORITY:  # deprecated (RFC 9113 §5.3): read and passed over
            if len(fragment) < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short")
            fragment = fragment[5:]
        if flags & END_HEADERS:
            self._block_complete(flags, stream_id, fragment)
            return
        self._block = [fragment]
        self._block_stream = stream_id
        self._block_flags = flags
        self._block_frames = 1
        self._block_since_ns = self.now_ns

    def _continuation(self, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block.append(payload)
        self._block_frames += 1
        limits = self.limits
        if self._block_frames > limits.header_block_frames_max or (
            sum(map(len, self._block)) > 4 * limits.header_list_bytes_max
        ):
            raise ConnectionFault(
                ErrorCode.ENHANCE_YOUR_CALM, "continuation_flood", "continuation_flood"
            )
        if flags & END_HEADERS:
            block = b"".join(self._block)
            self._block = None
            self._block_since_ns = 0
            self._block_complete(self._block_flags, self._block_stream, block)

    def _block_complete(self, flags: int, stream_id: int, block: bytes) -> None:
        """A block is always decoded, whatever becomes of its stream: the table must follow."""
        end_stream = bool(flags & END_STREAM)
        try:
            if stream_id <= self._last_id:
                _, problem = self._decoder.decode_trailers(block)
                self._trailers(stream_id, end_stream, malformed=problem is not None)
                return
            head = self._decoder.cache.get(block) or self._decoder.decode(block)
            self._calm_table()
        except HeaderBombError:
            raise ConnectionFault(
                ErrorCode.ENHANCE_YOUR_CALM, "header_bomb", "header_bomb"
            ) from None
        except HpackError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        if not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client's stream id is even")
        self._open(stream_id, head, end_stream)

    def _calm_table(self) -> None:
        """Ask a client to index nothing (§4.3.1) when all that it indexes is new in every call.

        grpc-java and grpc-js index deadlines and traces, which do not come again: what they index
        for good is pushed out by these, and no block is like the one before.
        """
        if self._decoder.changes_in_a_row >= _RESTLESS_HEADS and not self._table_refused:
            self._table_refused = True
            self.out.append(frames.settings({Setting.HEADER_TABLE_SIZE: 0}))

    def _open(self, stream_id: int, head: Head, end_stream: bool) -> None:
        self._last_id = stream_id
        if stream_id > self._goaway_id:
            return  # opened after our GOAWAY: the client knows that nobody answers
        if (
            len(self.streams) >= self.limits.streams_max
            or self.pending_bytes > self.limits.output_bytes_max
        ):
            self.abuse["refused_stream"] += 1
            self._refuse_stream(stream_id, ErrorCode.REFUSED_STREAM)
            return
        problem = head.problem
        if problem is not None and not problem.too_large:
            self._refuse_stream(stream_id, ErrorCode.PROTOCOL_ERROR)
            return
        if stream_id >= _DRAIN_FROM_ID:
            self.begin_drain("stream ids used up")
        if head.sink is not None and problem is None and not end_stream:
            self.streams[stream_id] = head
            return
        stream = self.begin(stream_id, head)
        if end_stream:
            self._end(stream)

    def _trailers(self, stream_id: int, end_stream: bool, *, malformed: bool) -> None:
        """A second header block: the request's trailers, which gRPC does not use."""
        stream = self._receiving(stream_id)
        if stream is None:
            return
        stream.move(Input.RECEIVE)
        if malformed or not end_stream:
            self._malformed(stream)
            return
        self._end(stream)

    # Bodies.

    def _data(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._window.receive(len(payload))  # padding counts
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA on stream 0")
        data = _unpadded(payload) if flags & PADDED else payload
        stream = self._receiving(stream_id)
        if stream is None:
            self._give_back(len(payload))
            return
        stream.receive_window.receive(len(payload))
        stream.move(Input.RECEIVE)
        ended = bool(flags & END_STREAM)
        if not stream.received(len(data), ended=ended):
            self._give_back(len(payload))
            self._malformed(stream)
            return
        self.consume(stream, len(payload) - len(data))
        if data:
            self.floods.empty_frames = 0
            self.events.append(Body(stream, data))
        elif not ended:
            self.floods.empty_frame(self.limits.empty_frames_max)
        if ended:
            self._end(stream, counted=True)

    def _receiving(self, stream_id: int) -> Stream | None:
        """Return the stream that a frame of a request is for; None when it was reset.

        Raises ConnectionFault where no such frame may come.
        """
        state = self.streams.get(stream_id)
        if state.__class__ is Head:
            return self.begin(stream_id, state)
        if isinstance(state, Stream):
            return state
        if state is not None:  # ANSWERING
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, "a frame after END_STREAM")
        self._check_closed(stream_id, carries=True)
        return None

    def _end(self, stream: Stream, *, counted: bool = False) -> None:
        stream.move(Input.RECEIVE_END)
        if not counted and not stream.received(0, ended=True):
            self._malformed(stream)
            return
        self.events.append(Ended(stream))

    def _malformed(self, stream: Stream) -> None:
        """The request breaks a rule of HTTP: its stream ends, the connection goes on (§8.1.1)."""
        self.reset(stream.id, ErrorCode.PROTOCOL_ERROR)
        self.events.append(Reset(stream.id, stream))
        self._count_own_reset()

    def _refuse_stream(self, stream_id: int, code: ErrorCode) -> None:
        self.out.append(frames.rst_stream(stream_id, code))
        self._remember_reset(stream_id)
        self._count_own_reset()

    def _rst_stream(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM is not 4 bytes")
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "RST_STREAM on stream 0")
        state = self.streams.get(stream_id)
        if state is None:
            self._check_closed(stream_id)
            return
        self.floods.spend("rapid_reset", self.now_ns)
        self._forget(stream_id, state)
        self._remember_reset(stream_id)
        if state.__class__ is not Head:  # of a bare head nobody above knows yet
            stream = state if isinstance(state, Stream) else None
            self.events.append(Reset(stream_id, stream))


def _unpadded(payload: bytes) -> bytes:
    """Return what is between the pad length and the padding (§6.1)."""
    if not payload:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a padded frame without a pad length")
    padding = payload[0]
    if padding >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - padding]
