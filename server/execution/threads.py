"""The threads that long runs are in. The event loop is considerate while they need its core, and
while processes of models do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from server.execution.rate_limiter import RateLimiter

_T = TypeVar("_T")
_NS_PER_S = 1e9
# The loop rests for as long as a run is expected to take, but no longer than that: what comes then
# waits for the run's end anyway, but for what is no request of that model.
_REST_MAX_NS = 5e6


class RunThreads(ThreadPoolExecutor):
    """A pool of at most `threads_max` threads in a process that has `cores` for itself."""

    def __init__(self, threads_max: int, cores: int) -> None:
        super().__init__(threads_max, thread_name_prefix="run")
        self.cores = cores
        self.processes = 0  # that run for callers now
        self.rate_limiter: RateLimiter | None = None  # of all that run; None: not limited
        self._expected_ns: list[float] = []  # of what runs or waits for a thread
        self._ended = 0
        self._ended_lock = threading.Lock()
        self._end_seen = 0
        self._end = threading.Event()
        self._loop_worked = False

    def start(
        self, loop: asyncio.AbstractEventLoop, work: Callable[[], _T], expected_ns: float
    ) -> asyncio.Future[_T]:
        """Do `work` in a thread; call it in the loop."""
        self._expected_ns.append(expected_ns)
        future: asyncio.Future[_T] = loop.create_future()
        # Not by asyncio's own bridge: its two futures a run, with their callbacks, are half of it.
        self.submit(self._in_thread, loop, future, work, expected_ns)
        return future

    def _in_thread(
        self,
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[_T],
        work: Callable[[], _T],
        expected_ns: float,
    ) -> None:
        try:
            done = partial(future.set_result, work())
        except BaseException as error:  # noqa: BLE001 - it belongs to who awaits the run
            done = partial(future.set_exception, error)
        with self._ended_lock:
            self._ended += 1
        self._end.set()
        loop.call_soon_threadsafe(self._in_loop, loop, future, done, expected_ns)

    def _in_loop(
        self,
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[_T],
        done: Callable[[], None],
        expected_ns: float,
    ) -> None:
        # Right before what the end sets off, mostly the next run: a tick that came between the two
        # would not rest, and take the core from that run.
        loop.call_soon(self._see_end, expected_ns)
        if not future.done():  # else whoever awaited it has left
            done()

    def _see_end(self, expected_ns: float) -> None:
        self._end_seen += 1
        self._expected_ns.remove(expected_ns)

    def loop_works(self) -> None:
        """Hear that the loop has run a model itself: others wait for it, too."""
        self._loop_worked = True

    def crowded(self) -> bool:
        """Return whether they and the processes need every core."""
        return len(self._expected_ns) + self.processes >= self.cores

    def rest_ns(self) -> float:
        """Return how long the loop had better rest before it looks for more; 0: not at all.

        All that came of late then waits for threads that need its core.
        """
        worked, self._loop_worked = self._loop_worked, False
        if worked or len(self._expected_ns) < self.cores:  # a process cannot end the rest
            return 0.0
        return min(*self._expected_ns, _REST_MAX_NS)

    def rest(self, for_ns: float) -> None:
        """Leave the threads the core so long, or until one of them is done."""
        self._end.clear()
        if self._ended == self._end_seen:
            self._end.wait(for_ns / _NS_PER_S)
