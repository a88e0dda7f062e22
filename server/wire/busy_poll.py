"""The pause between two ticks: none while answers follow on answers, a rest while threads work.

To put a core to sleep and to wake it costs tens of microseconds, on a virtual machine more than a
call's work. Where the gaps between ticks are that short, sleeping saves nothing and doubles the
caller's wait. So the loop stays awake through a gap if the last one was short, and else sleeps as
it always did: an idle or lightly loaded server spins never.

Where long runs in threads take every core that the process has, the opposite is right: a loop that
wakes for each packet takes from them what it cannot use, since what comes waits for them anyway. It
then rests for a moment after a short gap, and takes all that came in one tick.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Protocol


class Threads(Protocol):
    """The threads that work for callers beside the loop."""

    def crowded(self) -> bool:
        """Return whether they need every core."""

    def rest_ns(self) -> float:
        """Return how long the loop had better rest before it looks for more; 0: not at all."""

    def rest(self, for_ns: float) -> None:
        """Wait so long, or until one of them is done."""


class BusyPoll:
    """Keeps `loop` awake for up to `spin_ns` after a tick if the gap before it was shorter, or lets
    it rest where `threads` need the core."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, spin_ns: int, threads: Threads | None = None
    ) -> None:
        self._loop = loop
        self._spin_ns = spin_ns
        self._threads = threads
        self._idle_since_ns = 0
        self._waiting = False
        self._rested_ns = 0

    def came_ns(self, now_ns: int) -> int:
        """Return when what is read at `now_ns` came, at the earliest: with the rest before, if any.

        A deadline counts from then: what is answered is then answered in time.
        """
        rested_ns, self._rested_ns = self._rested_ns, 0
        return now_ns - rested_ns

    def tick_over(self, began_ns: int) -> None:
        """Say that a tick that began at `began_ns` is over."""
        gap_ns = began_ns - self._idle_since_ns
        self._idle_since_ns = time.monotonic_ns()
        if gap_ns >= self._spin_ns or self._waiting:
            return
        self._waiting = True
        threads = self._threads
        if threads is not None and (rest_ns := threads.rest_ns()):
            self._loop.call_soon(self._rest, threads, rest_ns)
        else:
            self._loop.call_soon(self._look_again)

    def _look_again(self) -> None:
        """Be called in every round of the loop: it then polls without sleeping."""
        crowded = self._threads is not None and self._threads.crowded()
        if not crowded and time.monotonic_ns() - self._idle_since_ns < self._spin_ns:
            os.sched_yield()  # a client on the same core must not wait for us
            self._loop.call_soon(self._look_again)
        else:
            self._waiting = False

    def _rest(self, threads: Threads, for_ns: float) -> None:
        self._waiting = False
        began_ns = time.monotonic_ns()
        threads.rest(for_ns)
        self._idle_since_ns = time.monotonic_ns()
        self._rested_ns = self._idle_since_ns - began_ns
