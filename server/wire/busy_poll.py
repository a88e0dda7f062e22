"""Adaptive busy polling: the loop looks again instead of sleeping, while answers follow on answers.

To put a core to sleep and to wake it costs tens of microseconds, on a virtual machine more than a
call's work. Where the gaps between ticks are that short, sleeping saves nothing and doubles the
caller's wait. So the loop stays awake through a gap if the last one was short, and else sleeps as
it always did: an idle or lightly loaded server spins never.
"""

from __future__ import annotations

import asyncio
import os
import time


class BusyPoll:
    """Keeps `loop` awake for up to `spin_ns` after a tick if the gap before it was shorter."""

    def __init__(self, loop: asyncio.AbstractEventLoop, spin_ns: int) -> None:
        self._loop = loop
        self._spin_ns = spin_ns
        self._idle_since_ns = 0
        self._spinning = False

    def tick_over(self, began_ns: int) -> None:
        """Say that a tick that began at `began_ns` is over."""
        gap_ns = began_ns - self._idle_since_ns
        self._idle_since_ns = time.monotonic_ns()
        if gap_ns < self._spin_ns and not self._spinning:
            self._spinning = True
            self._loop.call_soon(self._look_again)

    def _look_again(self) -> None:
        """Be called in every round of the loop: it then polls without sleeping."""
        if time.monotonic_ns() - self._idle_since_ns < self._spin_ns:
            os.sched_yield()  # a client on the same core must not wait for us
            self._loop.call_soon(self._look_again)
        else:
            self._spinning = False
