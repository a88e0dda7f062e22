"""What a connection sends: answers, streams that wait for a window, resets.

A whole answer that fits the peer's windows is a few constant pieces around the stream id, written
for all answers of a tick at once. What does not fit becomes a `Stream` whose pieces wait; streams
take turns, a frame each, so that no large answer holds up the others.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import repeat

from server.wire.http2 import frames
from server.wire.http2.events import Event, Opened, Writable
from server.wire.http2.frames import END_HEADERS, END_STREAM, ErrorCode, FrameType
from server.wire.http2.headers import Head
from server.wire.http2.limits import Floods, Limits
from server.wire.http2.settings import PeerSettings
from server.wire.http2.stream import Input, State, Stream
from server.wire.http2.windows import WINDOW_DEFAULT

# What one `take_output` may hold: between two the transport can say that it is full.
OUTPUT_CHUNK_BYTES = 1 << 20
# A stream with so much waiting asks its producer to pause …
PENDING_HIGH_BYTES = 64 * 1024
# … until this much is left.
PENDING_LOW_BYTES = 16 * 1024
# Beside one for each stream that may be open: refused streams.
_RESETS_REMEMBERED = 256
# A DATA frame that a window cut shorter than this earns its client nothing: it may drip its window
# to us byte by byte (CVE-2019-9511), but not for ever.
_USEFUL_BYTES = 1_024
_EMPTY_TABLE = b"\x20"  # HPACK: dynamic table size update to 0 (RFC 7541 §6.3)


class _Answering:
    """The state of a stream whose whole request was handed over and that waits for its answer."""

    def __repr__(self) -> str:
        return "ANSWERING"


ANSWERING = _Answering()


class AnswerShape:
    """The constant pieces of answers that differ only in the last `tail_bytes` of their body.

    HEADERS, one DATA frame and trailers; `body_head` is what the body begins with.
    """

    __slots__ = ("_pieces", "blocks", "body_head", "data_bytes")

    def __init__(
        self, header_block: bytes, body_head: bytes, tail_bytes: int, trailer_block: bytes
    ) -> None:
        self.blocks = (header_block, trailer_block)
        self.body_head = body_head
        self.data_bytes = len(body_head) + tail_bytes
        head = frames.frame_head(len(header_block), FrameType.HEADERS, END_HEADERS)
        data = frames.frame_head(self.data_bytes, FrameType.DATA, 0)
        end = frames.frame_head(len(trailer_block), FrameType.HEADERS, END_HEADERS | END_STREAM)
        # head, id, block and data's head, id, body's head, tail, trailers' head, id, trailers
        self._pieces: list[bytes | memoryview] = [
            head, b"", header_block + data, b"", body_head, b"", end, b"", trailer_block,
        ]  # fmt: skip

    def answers(
        self, stream_ids: Sequence[int], tails: Sequence[bytes | memoryview]
    ) -> list[bytes | memoryview]:
        """Return the pieces of these streams' answers: whole columns are put in place."""
        pieces = self._pieces * len(stream_ids)
        pieces[1::9] = pieces[3::9] = pieces[7::9] = _id_bytes(stream_ids)
        pieces[5::9] = tails
        return pieces


def _id_bytes(stream_ids: Sequence[int]) -> Sequence[bytes]:
    """Return the ids as they stand in frames."""
    if len(stream_ids) == 1:
        return (stream_ids[0].to_bytes(4, "big"),)
    words = struct.pack(f">{len(stream_ids)}I", *stream_ids)
    return struct.unpack("4s" * len(stream_ids), words)


class Sending:
    """The sending half of a connection; `Connection` adds the receiving half."""

    __slots__ = (
        "_output_bytes",
        "_progress_bytes",
        "_progress_ns",
        "_reset_ids",
        "_table_update_due",
        "blocked",
        "events",
        "floods",
        "grants",
        "limits",
        "now_ns",
        "out",
        "peer",
        "pending_bytes",
        "send_window",
        "streams",
        "writable",
    )

    def __init__(self, limits: Limits, now_ns: int) -> None:
        self.limits = limits
        self.now_ns = now_ns  # of the last call that brought a time
        # stream id → a Head (its body is still to come), ANSWERING, or a Stream
        self.streams: dict[int, Head | Stream | _Answering] = {}
        # stream id → by how much the peer widened its window while it is no Stream: only a large
        # answer asks for it
        self.grants: dict[int, int] = {}
        self.events: list[Event] = []
        self.out: list[bytes | memoryview] = []
        self.peer = PeerSettings()
        self.floods = Floods(now_ns)
        self.send_window = WINDOW_DEFAULT
        # Streams that wait for the connection's window or for the transport, in turn. Those that
        # wait for a window of their own are in `streams` only.
        self.blocked: dict[int, Stream] = {}
        self.pending_bytes = 0
        self.writable = True  # the transport takes more
        self._output_bytes = 0  # of DATA since the last take_output
        # As a stream's, of the DATA of all streams.
        self._progress_ns = now_ns
        self._progress_bytes = 0
        self._table_update_due = False
        self._reset_ids: dict[int, None] = {}  # the last streams that we ended before the peer did

    # Whole answers.

    def answer_all(
        self, stream_ids: Sequence[int], shape: AnswerShape, tails: Sequence[bytes | memoryview]
    ) -> None:
        """Answer whole requests: body i is `shape.body_head` + `tails[i]`.

        A stream that was reset meanwhile is passed over.
        """
        count = len(stream_ids)
        data_bytes = shape.data_bytes
        peer = self.peer
        if (
            count * data_bytes > self.send_window
            or data_bytes > peer.window
            or data_bytes > peer.frame_bytes_max
            or self._table_update_due
            or not self.writable
        ):
            self._answer_each(stream_ids, shape, tails)
            return
        states = list(map(self.streams.pop, stream_ids, repeat(None)))
        if states.count(ANSWERING) < count:
            self.streams.update(
                (stream_id, state)
                for stream_id, state in zip(stream_ids, states, strict=True)
                if state is not None
            )
            self._answer_each(stream_ids, shape, tails)
            return
        if self.grants:
            list(map(self.grants.pop, stream_ids, repeat(None)))
        self.out += shape.answers(stream_ids, tails)
        self.send_window -= count * data_bytes
        self.floods.frames_sent += count

    def _answer_each(
        self, stream_ids: Sequence[int], shape: AnswerShape, tails: Sequence[bytes | memoryview]
    ) -> None:
        header_block, trailer_block = shape.blocks
        for stream_id, tail in zip(stream_ids, tails, strict=True):
            self.answer(stream_id, header_block, shape.body_head + bytes(tail), trailer_block)

    def answer(
        self, stream_id: int, header_block: bytes, body: bytes, trailer_block: bytes
    ) -> None:
        """Answer a request: headers, body, trailers. Nothing happens when the stream is gone."""
        stream = self.stream(stream_id)
        if stream is None:
            return
        self.send_headers(stream, header_block)
        self.send_data(stream, body)
        self.send_trailers(stream, trailer_block)

    def end_with(self, stream_id: int, block: bytes) -> bool:
        """Answer a request with one block and nothing else; False when the stream is gone."""
        if self.streams.get(stream_id) is ANSWERING:
            del self.streams[stream_id]
            self.grants.pop(stream_id, None)
            self._write_block(stream_id, block, end_stream=True)
            return True
        stream = self.stream(stream_id)
        if stream is None:
            return False
        self.send_headers(stream, block, end_stream=True)
        return True

    # Streams.

    def stream(self, stream_id: int) -> Stream | None:
        """Return the stream that an answer is to go to; None when it is gone."""
        state = self.streams.get(stream_id)
        if state is ANSWERING:
            stream = self._promote(stream_id, None)
            stream.state = State.HALF_CLOSED_REMOTE
            return stream
        assert not isinstance(state, Head), "answered before the request was there"
        return state if isinstance(state, Stream) else None

    def _promote(self, stream_id: int, head: Head | None) -> Stream:
        """Turn an entry of `streams` into a Stream."""
        window = self.peer.window + self.grants.pop(stream_id, 0)
        stream = Stream(stream_id, head, self.limits.stream_window_bytes, window, self.now_ns)
        self.streams[stream_id] = stream
        return stream

    def begin(self, stream_id: int, head: Head) -> Stream:
        """Make a Stream of a request whose body does not come in one piece."""
        stream = self._promote(stream_id, head)
        self.events.append(Opened(stream))
        return stream

    def send_headers(self, stream: Stream, block: bytes, *, end_stream: bool = False) -> None:
        """Send a header block; with `end_stream` it is all there is (trailers-only)."""
        if stream.state is State.CLOSED:
            return
        stream.move(Input.SEND_END if end_stream else Input.SEND)
        self._write_block(stream.id, block, end_stream)
        if end_stream:
            self._sent_end(stream)

    def send_data(self, stream: Stream, data: bytes) -> None:
        """Send body bytes, or let them wait for a window. An empty body sends nothing."""
        if stream.state is State.CLOSED or not data:
            return
        stream.move(Input.SEND)
        if not stream.pending:
            stream.progress_ns = self.now_ns
            stream.progress_bytes = 0
        stream.pending.append(data)
        stream.pending_bytes += len(data)
        self.pending_bytes += len(data)
        self._turn(stream, frames_max=1 << 30)

    def send_trailers(self, stream: Stream, block: bytes) -> None:
        """End the stream once all of its data is sent."""
        if stream.state is State.CLOSED:
            return
        if stream.pending:
            stream.trailers = block
        else:
            self._write_trailers(stream, block)

    def is_full(self, stream: Stream) -> bool:
        """Return whether the stream's producer should wait for a Writable."""
        return stream.pending_bytes > PENDING_HIGH_BYTES

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        """End a stream at once, in both directions. Nothing happens when it is gone."""
        state = self.streams.get(stream_id)
        if state is None:
            return
        self.out.append(frames.rst_stream(stream_id, code))
        self._forget(stream_id, state)
        self._remember_reset(stream_id)

    def flush(self) -> None:
        """Send what waits, as far as windows and the transport allow; a frame a stream and turn."""
        blocked = self.blocked
        while blocked and self._may_send():
            self._turn(next(iter(blocked.values())), frames_max=1)

    @property
    def more_output(self) -> bool:
        """Whether `flush` would find something to send once the output was taken."""
        return bool(self.blocked) and self.writable and self.send_window > 0

    def take_output(self) -> bytes:
        """Return what is to be written now, and forget it."""
        out = self.out
        output = b"".join(out)
        out.clear()
        self._output_bytes = 0
        return output

    def _may_send(self) -> bool:
        return self.writable and self.send_window > 0 and self._output_bytes < OUTPUT_CHUNK_BYTES

    def _turn(self, stream: Stream, frames_max: int) -> None:
        """Send up to `frames_max` frames of a stream; with more to send it is the last in turn."""
        pending = stream.pending
        floods = self.floods
        high = stream.pending_bytes > PENDING_LOW_BYTES
        while pending and frames_max > 0:
            allowed = min(self.send_window, stream.send_window, self.peer.frame_bytes_max)
            if allowed <= 0 or not self._may_send():
                break
            piece: bytes | memoryview = pending[0]
            if len(piece) <= allowed:
                pending.popleft()
                floods.frames_sent += 1
            else:  # a view: cutting bytes again and again would copy them again and again
                view = memoryview(piece)
                piece = view[:allowed]
                pending[0] = view[allowed:]
                floods.frames_sent += allowed >= _USEFUL_BYTES
            self._write_data(stream, piece)
            frames_max -= 1
        self.blocked.pop(stream.id, None)
        if pending:
            self._queue(stream)
        elif stream.trailers is not None:
            self._write_trailers(stream, stream.trailers)
            return
        if high and stream.pending_bytes <= PENDING_LOW_BYTES:
            self.events.append(Writable(stream))

    def _queue(self, stream: Stream) -> None:
        """Let a stream have its turn, if it has something to send and a window for it."""
        if stream.pending and stream.send_window > 0:
            self.blocked.setdefault(stream.id, stream)

    def _write_data(self, stream: Stream, piece: bytes | memoryview) -> None:
        count = len(piece)
        head = frames.frame_head(count, FrameType.DATA, 0) + stream.id.to_bytes(4, "big")
        self.out += (head, piece)
        self.send_window -= count
        stream.send_window -= count
        stream.pending_bytes -= count
        self.pending_bytes -= count
        self._output_bytes += count
        stall_bytes_min = self.limits.stall_bytes_min
        stream.progress_bytes += count
        if stream.progress_bytes >= stall_bytes_min:
            stream.progress_ns = self.now_ns
            stream.progress_bytes = 0
        self._progress_bytes += count
        if self._progress_bytes >= stall_bytes_min:
            self._progress_ns = self.now_ns
            self._progress_bytes = 0

    def _write_trailers(self, stream: Stream, block: bytes) -> None:
        stream.trailers = None
        stream.move(Input.SEND_END)
        self._write_block(stream.id, block, end_stream=True)
        self._sent_end(stream)

    def _write_block(self, stream_id: int, block: bytes, end_stream: bool) -> None:
        if self._table_update_due:
            # Our blocks never use the table; a peer that shrinks it must be told so once.
            self._table_update_due = False
            block = _EMPTY_TABLE + block
        self.out.append(
            frames.headers(
                stream_id,
                block,
                end_stream=end_stream,
                frame_bytes_max=self.peer.frame_bytes_max,
            )
        )
        self.floods.frames_sent += 1

    def _sent_end(self, stream: Stream) -> None:
        """Our half is over. Who still sends is told to stop (gRPC: RST_STREAM with NO_ERROR)."""
        if stream.state is State.CLOSED:
            self._forget(stream.id, stream)
        else:
            self.reset(stream.id, ErrorCode.NO_ERROR)

    def _forget(self, stream_id: int, state: Head | Stream | _Answering) -> None:
        del self.streams[stream_id]
        self.grants.pop(stream_id, None)
        if isinstance(state, Stream):
            state.state = State.CLOSED
            self.pending_bytes -= state.pending_bytes
            state.pending.clear()
            state.pending_bytes = 0
            state.trailers = None
            self.blocked.pop(stream_id, None)

    def _remember_reset(self, stream_id: int) -> None:
        self._reset_ids[stream_id] = None
        if len(self._reset_ids) > _RESETS_REMEMBERED + self.limits.streams_max:
            del self._reset_ids[next(iter(self._reset_ids))]
