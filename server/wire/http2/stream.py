"""A stream that is more than one request in one frame: its states (RFC 9113 §5.1) and buffers.

Most streams never need one of these: a whole unary request is a tuple in a list, and its stream an
entry of `Connection.streams` (see `connection`).
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from server.wire.http2.frames import ConnectionFault, ErrorCode
from server.wire.http2.headers import Head
from server.wire.http2.windows import ReceiveWindow


class State(Enum):
    """The states that a client's stream has for us; `idle` has no Stream yet."""

    OPEN = "open"
    HALF_CLOSED_REMOTE = "half-closed (remote)"
    HALF_CLOSED_LOCAL = "half-closed (local)"
    CLOSED = "closed"


class Input(Enum):
    """What moves a stream."""

    RECEIVE = "DATA or HEADERS arrive"
    RECEIVE_END = "END_STREAM arrives"
    RECEIVE_RESET = "RST_STREAM arrives"
    SEND = "we send DATA or HEADERS"
    SEND_END = "we send END_STREAM"
    SEND_RESET = "we send RST_STREAM"


# (state, input) → next state. What is not here is an error: by the peer (STREAM_CLOSED, which ends
# the connection: §5.1 allows no frame after END_STREAM), or by us (an assertion).
TRANSITIONS = {
    (State.OPEN, Input.RECEIVE): State.OPEN,
    (State.OPEN, Input.RECEIVE_END): State.HALF_CLOSED_REMOTE,
    (State.OPEN, Input.RECEIVE_RESET): State.CLOSED,
    (State.OPEN, Input.SEND): State.OPEN,
    (State.OPEN, Input.SEND_END): State.HALF_CLOSED_LOCAL,
    (State.OPEN, Input.SEND_RESET): State.CLOSED,
    (State.HALF_CLOSED_REMOTE, Input.RECEIVE_RESET): State.CLOSED,
    (State.HALF_CLOSED_REMOTE, Input.SEND): State.HALF_CLOSED_REMOTE,
    (State.HALF_CLOSED_REMOTE, Input.SEND_END): State.CLOSED,
    (State.HALF_CLOSED_REMOTE, Input.SEND_RESET): State.CLOSED,
    (State.HALF_CLOSED_LOCAL, Input.RECEIVE): State.HALF_CLOSED_LOCAL,
    (State.HALF_CLOSED_LOCAL, Input.RECEIVE_END): State.CLOSED,
    (State.HALF_CLOSED_LOCAL, Input.RECEIVE_RESET): State.CLOSED,
    (State.HALF_CLOSED_LOCAL, Input.SEND_RESET): State.CLOSED,
}
_BY_PEER = frozenset({Input.RECEIVE, Input.RECEIVE_END, Input.RECEIVE_RESET})


class Stream:
    """One stream. `pending` is what waits for the peer's window, `trailers` what ends it."""

    __slots__ = (
        "body_bytes",
        "head",
        "id",
        "marked_bytes",
        "pending",
        "pending_bytes",
        "progress_bytes",
        "progress_ns",
        "receive_window",
        "send_window",
        "state",
        "trailers",
    )

    def __init__(
        self, stream_id: int, head: Head | None, receive_bytes: int, send_window: int, now_ns: int
    ) -> None:
        self.id = stream_id
        self.head = head
        self.state = State.OPEN
        self.receive_window = ReceiveWindow(receive_bytes)
        self.send_window = send_window
        self.body_bytes = 0
        self.marked_bytes = 0  # body bytes when the pace of bodies was last looked at
        self.pending: deque[bytes | memoryview] = deque()
        self.pending_bytes = 0
        self.trailers: bytes | None = None
        # Since `progress_ns` it sent `progress_bytes`: too few to count.
        self.progress_ns = now_ns
        self.progress_bytes = 0

    def move(self, what: Input) -> None:
        """Go to the next state. Raises ConnectionFault when the peer may not do this now."""
        state = TRANSITIONS.get((self.state, what))
        if state is None:
            assert what in _BY_PEER, f"{what.value} in state {self.state.value}"
            raise ConnectionFault(
                ErrorCode.STREAM_CLOSED, f"a frame on a stream that is {self.state.value}"
            )
        self.state = state

    def received(self, count: int, *, ended: bool) -> bool:
        """Note body bytes; False when they are not what content-length said (§8.1.1)."""
        self.body_bytes += count
        announced = self.head.content_length if self.head is not None else -1
        if announced < 0:
            return True
        return self.body_bytes == announced if ended else self.body_bytes <= announced
