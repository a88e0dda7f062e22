"""How long a connection may let us wait: pure arithmetic, the time is passed in (s, monotonic)."""

from __future__ import annotations

from server.wire.http1.limits import HttpLimits

_NEVER_S = float("inf")


class Timers:
    """The deadlines of one connection.

    A rate is held like this: a deadline is a grace away, every byte moves it by what a byte may
    take, and never further away than the grace.
    """

    __slots__ = (
        "_body_due_s", "_body_end_s", "_head_due_s", "_limits", "_over_s", "_unsent_bytes",
        "_write_due_s", "answered_s",
    )  # fmt: skip

    def __init__(self, limits: HttpLimits, now_s: float) -> None:
        self._limits = limits
        self._head_due_s = _NEVER_S
        # A client that says nothing at all has not even the time of keep-alive.
        self.answered_s = now_s + min(limits.head_timeout_s - limits.idle_timeout_s, 0.0)
        self._body_due_s = self._body_end_s = _NEVER_S
        self._write_due_s = _NEVER_S
        self._unsent_bytes = 0
        self._over_s = _NEVER_S

    def parsed(self, now_s: float, *, in_head: bool) -> None:
        """Say whether a head has begun and not ended."""
        if not in_head:
            self._head_due_s = _NEVER_S
        elif self._head_due_s == _NEVER_S:
            self._head_due_s = now_s + self._limits.head_timeout_s

    def head_is_late(self, now_s: float) -> bool:
        """Return whether a head takes too long."""
        return now_s >= self._head_due_s

    def body_begins(self, now_s: float, *, streams: bool) -> None:
        """Wait for a body."""
        self._body_due_s = now_s + self._limits.body_grace_s
        self._body_end_s = _NEVER_S if streams else now_s + self._limits.body_timeout_s

    def body_came(self, now_s: float, count: int) -> None:
        """Say that a piece came."""
        due_s = self._body_due_s + count / self._limits.body_bytes_per_s_min
        self._body_due_s = min(due_s, now_s + self._limits.body_grace_s)

    def reading_changes(self, now_s: float) -> None:
        """Say that it was we who did not read, or will not."""
        self._body_due_s = now_s + self._limits.body_grace_s

    def body_is_late(self, now_s: float) -> bool:
        """Return whether a body comes too slowly."""
        return now_s >= min(self._body_due_s, self._body_end_s)

    def is_idle(self, now_s: float) -> bool:
        """Return whether no request came for too long."""
        return now_s >= self.answered_s + self._limits.idle_timeout_s

    def writing_blocked(self, now_s: float, unsent_bytes: int) -> None:
        """Wait for the client to read."""
        self._write_due_s = now_s + self._limits.write_grace_s
        self._unsent_bytes = unsent_bytes

    def reads_too_slowly(self, now_s: float, unsent_bytes: int) -> bool:
        """Return whether it reads too slowly; `unsent_bytes` are left."""
        read_bytes = self._unsent_bytes - unsent_bytes
        self._unsent_bytes = unsent_bytes
        due_s = self._write_due_s + max(read_bytes, 0) / self._limits.write_bytes_per_s_min
        self._write_due_s = min(due_s, now_s + self._limits.write_grace_s)
        return now_s >= self._write_due_s

    def ends(self, now_s: float, *, lingers: bool) -> None:
        """The connection is closed; what is unsent, or still to be thrown away, has this long."""
        limits = self._limits
        self._over_s = now_s + (limits.linger_s if lingers else limits.write_grace_s)

    def is_over(self, now_s: float) -> bool:
        """Return whether a closed connection had its time."""
        return now_s >= self._over_s
