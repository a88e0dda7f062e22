"""The part of a connection that is about the connection: settings, pings, windows, its end.

Its age, its idleness, its keepalive and its drain follow gRPC's proposals A8 and A9. Time is passed
in: `expire` is called now and then, and does what has become due.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from server.wire.http2 import frames
from server.wire.http2.events import Reset
from server.wire.http2.frames import (
    ACK,
    STREAM_ID_MAX,
    ConnectionFault,
    ErrorCode,
    FrameType,
)
from server.wire.http2.limits import Limits
from server.wire.http2.sending import ANSWERING, Sending
from server.wire.http2.settings import Setting
from server.wire.http2.stream import State, Stream
from server.wire.http2.windows import WINDOW_DEFAULT, WINDOW_MAX, ReceiveWindow, opened

_DRAIN_PING = b"drain\0\0\0"
_KEEPALIVE_PING = b"alive\0\0\0"
_DRAIN_PONG_TIMEOUT_NS = 1_000_000_000
NO_GOAWAY = STREAM_ID_MAX + 1
_NS_PER_S = 1_000_000_000


class Control(Sending):
    """`owner` is the shell's; `abuse` counts by reason, for all connections of a server.

    `closed` is set once nothing will be received any more: write the output, then close. `fault` is
    what ended it, where that was a mistake of the peer.
    """

    __slots__ = (
        "_block_since_ns",
        "_born_ns",
        "_control_queued",
        "_drain_since_ns",
        "_goaway_id",
        "_idle_id",
        "_idle_since_ns",
        "_last_id",
        "_mark_id",
        "_mark_ns",
        "_ping_frames_sent",
        "_ping_last_ns",
        "_ping_strikes",
        "_pong_due_ns",
        "_received_ns",
        "_settings_seen",
        "_tail_since_ns",
        "_window",
        "abuse",
        "age_max_ns",
        "closed",
        "fault",
        "owner",
    )

    def __init__(self, limits: Limits, now_ns: int, abuse: Counter[str]) -> None:
        super().__init__(limits, now_ns)
        self.owner: Any = None
        self.age_max_ns = limits.age_max_ns  # each connection may have its own: they must not all
        # grow old in the same second
        self.abuse = abuse
        self.closed = False
        self.fault: ConnectionFault | None = None
        self._settings_seen = False
        self._last_id = 0
        self._window = ReceiveWindow(limits.connection_window_bytes)
        self._block_since_ns = 0  # 0: no header block is incomplete
        self._tail_since_ns = 0  # 0: no frame is incomplete
        self._control_queued = 0
        self._born_ns = self._idle_since_ns = self._received_ns = now_ns
        self._idle_id = 0  # the last stream when it was last found busy
        # Streams up to `_mark_id` have been there since `_mark_ns`.
        self._mark_id = 0
        self._mark_ns = now_ns
        self._ping_last_ns = 0
        self._ping_strikes = 0
        self._ping_frames_sent = 0  # frames that we had sent at the peer's last ping
        self._pong_due_ns = 0  # 0: we wait for none
        self._drain_since_ns = 0  # 0: not draining
        self._goaway_id = NO_GOAWAY  # streams above it are not answered
        self._greet()

    def _greet(self) -> None:
        limits = self.limits
        values = {
            Setting.MAX_CONCURRENT_STREAMS: limits.streams_max,
            Setting.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
            Setting.MAX_HEADER_LIST_SIZE: limits.header_list_bytes_max,
        }
        self.out.append(frames.settings({int(key): value for key, value in values.items()}))
        increment = limits.connection_window_bytes - WINDOW_DEFAULT
        if increment > 0:
            self.out.append(frames.window_update(0, increment))

    @property
    def requests(self) -> int:
        """How many streams the peer opened."""
        return (self._last_id + 1) // 2

    @property
    def born_ns(self) -> int:
        """When the connection began, by the clock of the times passed in."""
        return self._born_ns

    @property
    def draining(self) -> bool:
        """Whether the client was asked to open no more streams here."""
        return self._drain_since_ns != 0

    # Windows that we give back.

    def consume(self, stream: Stream, count: int) -> None:
        """Give the window of `count` body bytes back: the application has taken them."""
        if not count:
            return
        self._give_back(count)
        increment = stream.receive_window.consume(count)
        if increment and stream.state is State.OPEN:
            self.out.append(frames.window_update(stream.id, increment))

    def _give_back(self, count: int) -> None:
        increment = self._window.consume(count)
        if increment:
            self.out.append(frames.window_update(0, increment))

    # Frames about the connection.

    def _control_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == FrameType.WINDOW_UPDATE:
            self._window_update(stream_id, payload)
        elif kind == FrameType.SETTINGS:
            self._settings(flags, stream_id, payload)
        elif kind == FrameType.PING:
            self._ping(flags, stream_id, payload)
        elif kind == FrameType.PRIORITY:
            if stream_id == 0:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
            if len(payload) != 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY is not 5 bytes")
            self.floods.spend("priority_flood", self.now_ns)
        elif kind == FrameType.GOAWAY:
            if stream_id != 0:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
            if len(payload) < 8:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY too short")
            self.floods.spend("unknown_frame_flood", self.now_ns)
        elif kind == FrameType.PUSH_PROMISE:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client may not push")
        else:
            self.floods.spend("unknown_frame_flood", self.now_ns)

    def _window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE is not 4 bytes")
        increment = int.from_bytes(payload, "big") & STREAM_ID_MAX
        self.floods.spend("window_update_flood", self.now_ns)
        if stream_id == 0:
            self.send_window = opened(self.send_window, increment)
            self.flush()
            return
        state = self.streams.get(stream_id)
        if state is None:
            self._check_opened(stream_id)
            return
        if not isinstance(state, Stream):
            window = self.peer.window
            granted = self.grants.get(stream_id, 0)
            self.grants[stream_id] = opened(window + granted, increment) - window
            return
        state.send_window = opened(state.send_window, increment)
        self._queue(state)
        self.flush()

    def _settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id != 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS ack with a payload")
            self.floods.spend("settings_flood", self.now_ns)
            return
        self.floods.spend("settings_flood", self.now_ns)
        self._settings_seen = True
        peer = self.peer
        window, table = peer.window, peer.header_table_bytes_least
        peer.apply(payload, self.limits.settings_entries_max)
        if peer.header_table_bytes_least < table:
            self._table_update_due = True
        if peer.window != window:
            self._shift_windows(peer.window - window)
        self._send_control(frames.SETTINGS_ACK)
        self.flush()

    def _shift_windows(self, change: int) -> None:
        """§6.9.2. What is not a Stream yet has spent nothing: it begins with the new window."""
        widest = self.peer.window + max(self.grants.values(), default=0)
        for state in self.streams.values():
            if isinstance(state, Stream):
                state.send_window += change
                widest = max(widest, state.send_window)
                self._queue(state)
        if widest > WINDOW_MAX:
            raise ConnectionFault(
                ErrorCode.FLOW_CONTROL_ERROR, "a window above 2^31-1", "window_overflow"
            )

    def _ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id != 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING is not 8 bytes")
        if flags & ACK:
            self._pong(payload)
            return
        self.floods.spend("ping_flood", self.now_ns)
        self._send_control(frames.ping(payload, ack=True))
        self._count_ping()

    def _count_ping(self) -> None:
        """gRPC A8: pings that come too fast are strikes; what we send in between forgives them."""
        limits = self.limits
        interval_ns = limits.ping_interval_ns if self.streams else limits.ping_interval_idle_ns
        if self.floods.frames_sent != self._ping_frames_sent or not self._ping_last_ns:
            self._ping_strikes = 0
        elif self.now_ns - self._ping_last_ns < interval_ns:
            self._ping_strikes += 1
            if self._ping_strikes > limits.ping_strikes_max:
                raise ConnectionFault(
                    ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings", "too_many_pings"
                )
        self._ping_last_ns = self.now_ns
        self._ping_frames_sent = self.floods.frames_sent

    def _pong(self, payload: bytes) -> None:
        if payload == _DRAIN_PING and self.draining and self._goaway_id == NO_GOAWAY:
            self._last_goaway()
        elif payload == _KEEPALIVE_PING and self._pong_due_ns:
            self._pong_due_ns = 0
        else:
            self.floods.spend("ping_flood", self.now_ns)

    def _send_control(self, frame: bytes) -> None:
        """Send an answer that the peer can provoke; they queue up when it does not read."""
        self.out.append(frame)
        if self.writable:
            self._control_queued = 0
            return
        self._control_queued += 1
        if self._control_queued > self.limits.control_frames_queued_max:
            raise ConnectionFault(
                ErrorCode.ENHANCE_YOUR_CALM, "control_queue_full", "control_queue_full"
            )

    def _check_closed(self, stream_id: int, *, carries: bool = False) -> None:
        """Pass over a frame of a stream that ended, count it. Raises ConnectionFault for others.

        `carries`: it is DATA or HEADERS, which may only come when they crossed a reset.
        """
        self._check_opened(stream_id)
        if carries and stream_id not in self._reset_ids and stream_id <= self._goaway_id:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, "a frame on a closed stream")
        self.floods.spend("closed_stream_flood", self.now_ns)

    def _check_opened(self, stream_id: int) -> None:
        if stream_id > self._last_id or not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame on an idle stream")

    def _count_own_reset(self) -> None:
        self.floods.spend("made_you_reset", self.now_ns)

    # The connection's end.

    def begin_drain(self, debug: str = "") -> None:
        """Step one: no stream id is refused yet, but the client learns to go elsewhere."""
        if self.closed or self.draining:
            return
        self._drain_since_ns = max(self.now_ns, 1)
        self.out.append(frames.goaway(STREAM_ID_MAX, ErrorCode.NO_ERROR, debug))
        self.out.append(frames.ping(_DRAIN_PING))

    def _last_goaway(self) -> None:
        """Step two: the client has seen step one; streams from here on are not answered."""
        self._goaway_id = self._last_id
        self.out.append(frames.goaway(self._goaway_id, ErrorCode.NO_ERROR))

    @property
    def drained(self) -> bool:
        """Whether the drain is over: both steps are done, and every stream has ended."""
        return self._goaway_id != NO_GOAWAY and not self.streams

    def lose(self) -> None:
        """The transport is gone, or will be: every stream ends, and nothing is sent any more."""
        self.closed = True
        for stream_id, state in list(self.streams.items()):
            self._forget(stream_id, state)

    def close(self, code: ErrorCode, reason: str) -> None:
        """End the connection now: GOAWAY is its last frame."""
        if not self.closed:
            self.closed = True
            last_id = min(self._last_id, self._goaway_id)  # a later GOAWAY may not raise it (§6.8)
            self.out.append(frames.goaway(last_id, code, reason))

    def _fail(self, fault: ConnectionFault) -> None:
        # Its traceback would keep what was read until the garbage collector comes by.
        self.fault = fault.with_traceback(None)
        if fault.abuse:
            self.abuse[fault.abuse] += 1
        self.close(fault.code, fault.reason)

    def expire(self, now_ns: int) -> None:
        """Do what has become due. Call it about once a second."""
        if self.closed:
            return
        self.now_ns = now_ns
        limits = self.limits
        try:
            if not self._settings_seen and now_ns - self._born_ns > limits.preface_timeout_ns:
                raise ConnectionFault(
                    ErrorCode.SETTINGS_TIMEOUT, "preface_timeout", "preface_timeout"
                )
            if (
                self._block_since_ns
                and now_ns - self._block_since_ns > limits.header_block_timeout_ns
            ):
                raise ConnectionFault(
                    ErrorCode.ENHANCE_YOUR_CALM, "header_block_timeout", "header_block_timeout"
                )
            if self._tail_since_ns and now_ns - self._tail_since_ns > limits.body_timeout_ns:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "slow_frame", "slow_frame")
            if self.pending_bytes:
                self._expire_stalled(now_ns)
            if now_ns - self._mark_ns > limits.body_timeout_ns:
                self._expire_bodies(now_ns)
            self._expire_keepalive(now_ns)
        except ConnectionFault as fault:
            self._fail(fault)
            return
        self._expire_age(now_ns)

    def _expire_stalled(self, now_ns: int) -> None:
        """An answer that waits for a window that does not open: its stream ends (CVE-2019-9511)."""
        timeout_ns = self.limits.stall_timeout_ns
        for stream in list(self.streams.values()):
            if not isinstance(stream, Stream) or not stream.pending:
                continue
            if stream.send_window > 0:  # it waits for its turn, while others make progress
                stream.progress_ns = max(stream.progress_ns, self._progress_ns)
            if now_ns - stream.progress_ns > timeout_ns:
                self._end_slow(stream.id, stream, "stalled_stream")

    def _expire_bodies(self, now_ns: int) -> None:
        """A request whose body comes too slowly, or never: its stream ends.

        A look at all streams once a timeout is cheap, and finds each before twice the timeout.
        """
        bytes_min = self.limits.body_bytes_per_s_min * (now_ns - self._mark_ns) // _NS_PER_S
        # Who has no window cannot be blamed.
        may_send = self._window.left > 0
        for stream_id, state in list(self.streams.items()):
            slow = may_send and stream_id <= self._mark_id
            if isinstance(state, Stream):
                came = state.body_bytes - state.marked_bytes
                state.marked_bytes = state.body_bytes
                slow = slow and came < bytes_min and state.receive_window.left > 0
                slow = slow and state.state is State.OPEN
                # Without a sink the request is a stream itself, and may take its time.
                slow = slow and state.head is not None and state.head.sink is not None
            if slow and state is not ANSWERING:
                self._end_slow(stream_id, state, "slow_body")
        self._mark_id = self._last_id
        self._mark_ns = now_ns

    def _end_slow(self, stream_id: int, state: Any, reason: str) -> None:
        self.abuse[reason] += 1
        self.reset(stream_id, ErrorCode.CANCEL)
        if isinstance(state, Stream):  # of a bare head nobody above knows yet
            self.events.append(Reset(stream_id, state))
        self._count_own_reset()

    def _expire_keepalive(self, now_ns: int) -> None:
        limits = self.limits
        if self._pong_due_ns:
            if self._received_ns >= self._pong_due_ns - limits.keepalive_timeout_ns:
                self._pong_due_ns = 0
            elif now_ns > self._pong_due_ns:
                raise ConnectionFault(ErrorCode.NO_ERROR, "keepalive_timeout", "keepalive_timeout")
        elif now_ns - self._received_ns > limits.keepalive_ns:
            self._pong_due_ns = now_ns + limits.keepalive_timeout_ns
            self.out.append(frames.ping(_KEEPALIVE_PING))

    def _expire_age(self, now_ns: int) -> None:
        limits = self.limits
        if self.streams or self._last_id != self._idle_id:
            self._idle_since_ns = now_ns
            self._idle_id = self._last_id
        if self.draining:
            self._expire_drain(now_ns)
        elif self.age_max_ns and now_ns - self._born_ns > self.age_max_ns:
            self.begin_drain("max_age")
        elif now_ns - self._idle_since_ns > limits.idle_timeout_ns:
            self.begin_drain("max_idle")

    def _expire_drain(self, now_ns: int) -> None:
        waited_ns = now_ns - self._drain_since_ns
        if self._goaway_id == NO_GOAWAY and waited_ns > _DRAIN_PONG_TIMEOUT_NS:
            self._last_goaway()
        if self.drained:
            self.close(ErrorCode.NO_ERROR, "")
        elif waited_ns > self.limits.age_grace_ns:
            self.close(ErrorCode.NO_ERROR, "drain_timeout")
