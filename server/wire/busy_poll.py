"""The pause between two ticks: none while answers follow on answers, a rest while threads work.

To put a core to sleep and to wake it costs tens of microseconds, on a virtual machine more than a
call's work. Where the gaps between ticks are that short, sleeping saves nothing and doubles the
caller's wait. So the loop stays awake through a gap if the last one was short, and else sleeps as
it always did: an idle or lightly loaded server spins never.

Where long runs in threads take every core that the process has, the opposite is right: a loop that
wakes for each packet takes from them what it cannot use, since what comes waits for them anyway. It
then rests for a moment after a short gap, and takes all that came in one tick. And where it sleeps,
it may have to wait for the core: what it then reads is as old as its last look.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Protocol

# So long a thread may keep the core from the loop, at most: a few slices of the scheduler's.
_AGE_MAX_NS = 5_000_000


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
        self._looked_ns = 0
        self._rested = False

    def came_ns(self, woken_ns: int, now_ns: int) -> int:
        """Return when what a tick read from `woken_ns` to `now_ns` came, at the earliest: after the
        last look, unless the loop slept since.

        A deadline counts from then: what is answered is then answered in time.
        """
        looked_ns, self._looked_ns = self._looked_ns, now_ns
        if self._rested or (self._threads is not None and self._threads.crowded()):
            self._rested = False
            return max(looked_ns, woken_ns - _AGE_MAX_NS)
        if woken_ns - self._idle_since_ns < self._spin_ns:
            return looked_ns
        return woken_ns

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
        self._looked_ns = time.monotonic_ns()
        threads.rest(for_ns)
        self._idle_since_ns = time.monotonic_ns()
        self._rested = True
