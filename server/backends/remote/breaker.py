"""A circuit breaker: what failed several times in a row is left alone for a while.

Closed, everybody is admitted. After so many failures in a row it is open, and nobody is; when that
time is over one probe is, and its outcome closes it or opens it again.
"""

from __future__ import annotations

from enum import Enum


class Admission(Enum):
    """As what an attempt was admitted."""

    PLAIN = "plain"
    PROBE = "probe"


class Outcome(Enum):
    """What became of an attempt. Of one that was given up early nothing is known."""

    ANSWERED = "answered"
    FAILED = "failed"
    GIVEN_UP = "given up"


class Breaker:
    """Counts failures; every attempt that was admitted is to be ended. Times are monotonic."""

    def __init__(self, failures_max: int, open_ns: int) -> None:
        self._failures_max = failures_max
        self._open_ns = open_ns
        self._failures = 0
        self._open_until_ns: int | None = None
        self._probing = False

    def opens_in_ns(self, now_ns: int) -> int:
        """Return when it admits somebody next; 0: now."""
        if self._open_until_ns is None:
            return 0
        if self._probing:
            return self._open_ns
        return max(self._open_until_ns - now_ns, 0)

    def admit(self, now_ns: int) -> Admission | None:
        """Return as what an attempt may be made now; None: not at all."""
        if self.opens_in_ns(now_ns):
            return None
        if self._open_until_ns is None:
            return Admission.PLAIN
        self._probing = True
        return Admission.PROBE

    def end(self, admission: Admission, outcome: Outcome, now_ns: int) -> None:
        """Say what became of an attempt."""
        if admission is Admission.PROBE:
            self._probing = False
            if outcome is Outcome.ANSWERED:
                self._open_until_ns = None
                self._failures = 0
            elif outcome is Outcome.FAILED:
                self._open_until_ns = now_ns + self._open_ns
        elif self._open_until_ns is None:  # else it began before: the probe knows better
            if outcome is Outcome.ANSWERED:
                self._failures = 0
            elif outcome is Outcome.FAILED:
                self._failures += 1
                if self._failures >= self._failures_max:
                    self._open_until_ns = now_ns + self._open_ns
