"""Every limit of an HTTP/2 connection, and every flood counter, in one place.

An attack on HTTP/2 is a cheap frame that costs the server more than the client. Each kind of cheap
frame has a budget here: a burst, a rate per second, and what the peer earns with honest traffic
(frames of answers that we sent it). Who runs out is told to calm down and is closed. The model is
Envoy's `protocol_constraints.cc`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from server.wire.http2.frames import ConnectionFault, ErrorCode
from server.wire.http2.windows import WINDOW_DEFAULT

_NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one connection. A hostile client meets one of these; an honest one never does."""

    streams_max: int = 256  # advertised MAX_CONCURRENT_STREAMS; also live handlers a connection
    stream_window_bytes: int = 1 << 20  # below 65,535 it is news that clients must wait for
    connection_window_bytes: int = 8 << 20
    header_list_bytes_max: int = 16_384  # advertised MAX_HEADER_LIST_SIZE
    header_fields_max: int = 128  # HTTP/2 Bomb: CVE-2026-49975, CVE-2026-47774
    header_block_frames_max: int = 64  # CONTINUATION flood: CVE-2024-27316 and its kin
    settings_entries_max: int = 64  # CVE-2019-9515
    empty_frames_max: int = 16  # in a row: CVE-2019-9518
    control_frames_queued_max: int = 1_000  # while the peer does not read: CVE-2019-9512, -9515
    output_bytes_max: int = (
        16 << 20
    )  # answers that wait for the peer's window: CVE-2019-9511, -9517
    preface_timeout_ns: int = 10 * _NS_PER_S
    header_block_timeout_ns: int = 10 * _NS_PER_S  # from HEADERS to END_HEADERS
    # A request's body, or one frame of it, that comes too slowly. Client streams may pause.
    body_timeout_ns: int = 60 * _NS_PER_S
    body_bytes_per_s_min: int = 1_000
    # An answer that waits for a window: so much must go out in this time (CVE-2019-9511).
    stall_timeout_ns: int = 30 * _NS_PER_S
    stall_bytes_min: int = 16_384
    idle_timeout_ns: int = 1_800 * _NS_PER_S  # a connection without a call
    age_max_ns: int = 0  # 0: connections may grow old (A9: max_connection_age)
    age_grace_ns: int = 30 * _NS_PER_S
    keepalive_ns: int = 7_200 * _NS_PER_S  # we ask whether a silent peer is still there (A9)
    keepalive_timeout_ns: int = 20 * _NS_PER_S
    ping_interval_ns: int = 300 * _NS_PER_S  # the peer's pings may not come faster (A8) …
    ping_interval_idle_ns: int = 7_200 * _NS_PER_S  # … nor these when it has no call
    ping_strikes_max: int = 2

    def __post_init__(self) -> None:
        """Raises ValueError for a window that honest clients would overrun: none can be told."""
        if self.connection_window_bytes < WINDOW_DEFAULT:
            raise ValueError(
                f"connection_window_bytes is {self.connection_window_bytes}: HTTP/2 clients begin"
                f" with {WINDOW_DEFAULT}"
            )


class Budget(NamedTuple):
    """`burst` at once, `per_second` always, `per_frame` for each DATA or HEADERS that we sent."""

    burst: int
    per_second: int
    per_frame: int


# What a peer may do that costs us. The name is the metric's `reason` and GOAWAY's debug data.
BUDGETS = {
    # CVE-2023-44487: nghttp2's burst and rate; a client whose deadlines pass earns its resets.
    "rapid_reset": Budget(1_000, 33, 1),
    # CVE-2025-8671 (MadeYouReset), CVE-2019-9514: resets that we are made to send.
    "made_you_reset": Budget(500, 33, 0),
    "settings_flood": Budget(100, 2, 0),  # CVE-2019-9515
    "ping_flood": Budget(1_000, 100, 1),  # CVE-2019-9512, beside gRPC's strikes
    "priority_flood": Budget(1_000, 10, 1),  # CVE-2019-9513; a few clients send one a stream
    "window_update_flood": Budget(2_000, 200, 4),  # Envoy: two for each DATA frame that we sent
    "unknown_frame_flood": Budget(1_000, 10, 1),
    # Frames that were on their way when we reset a stream.
    "closed_stream_flood": Budget(2_000, 100, 1),
}


class Floods:
    """The budgets of one connection. `frames_sent` is what the peer earns by."""

    __slots__ = ("_spent", "_started_ns", "empty_frames", "frames_sent")

    def __init__(self, now_ns: int) -> None:
        self._started_ns = now_ns
        # name → [what was spent, when it was last counted, frames sent by then]
        self._spent: dict[str, list[int]] = {}
        self.frames_sent = 0
        self.empty_frames = 0  # in a row

    def spend(self, name: str, now_ns: int) -> None:
        """Take one from a budget. Raises ConnectionFault (ENHANCE_YOUR_CALM) when it is empty."""
        budget = BUDGETS[name]
        account = self._spent.get(name)
        if account is None:
            account = self._spent[name] = [0, self._started_ns, 0]
        elapsed_s = (now_ns - account[1]) // _NS_PER_S
        earned = elapsed_s * budget.per_second
        earned += (self.frames_sent - account[2]) * budget.per_frame
        account[0] = max(account[0] - earned, 0) + 1
        account[1] += elapsed_s * _NS_PER_S
        account[2] = self.frames_sent
        if account[0] > budget.burst:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, name, name)

    def empty_frame(self, limit: int) -> None:
        """Count a frame that carries nothing. Raises ConnectionFault for too many in a row."""
        self.empty_frames += 1
        if self.empty_frames > limit:
            raise ConnectionFault(
                ErrorCode.ENHANCE_YOUR_CALM, "empty_frame_flood", "empty_frame_flood"
            )
