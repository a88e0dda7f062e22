"""An event loop without sockets on a virtual clock: nothing waits, everything is repeatable."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Protocol


class Network(Protocol):
    """Where connections of this loop lead to."""

    async def connect(self, factory: Callable[[], Any]) -> Any: ...


class DeadlockError(AssertionError):
    """Everybody waits and no timer runs."""


class _Clock:
    """Stands where a loop has its selector: instead of waiting it moves the clock on."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def select(self, timeout_s: float | None) -> list[object]:
        if timeout_s is None:
            raise DeadlockError("everybody waits, and for nothing")
        self.now_s += max(timeout_s, 0.0)
        return []

    def close(self) -> None:
        pass


class SimLoop(asyncio.BaseEventLoop):
    """The standard loop's own scheduling over `_Clock`; every connection goes to `network`."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _Clock()
        self._clock_resolution = 1e-9
        self.network: Network | None = None
        # What nobody caught: a run with any is a failed run.
        self.uncaught: list[str] = []
        self.set_exception_handler(lambda _, context: self.uncaught.append(repr(context)))

    def time(self) -> float:
        return self._selector.now_s

    def time_ns(self) -> int:
        return int(self.time() * 1e9)

    def _process_events(self, event_list: list[object]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """Threads have no place on a virtual clock: the work is done at once."""
        done = self.create_future()
        done.set_result(func(*args))
        return done

    async def create_connection(self, factory: Callable[[], Any], *_: Any, **__: Any) -> Any:
        assert self.network is not None
        return await self.network.connect(factory)


def run_virtually(main: Callable[[SimLoop], Coroutine[Any, Any, None]]) -> list[str]:
    """Run to the end; returns what nobody caught."""
    loop = SimLoop()
    try:
        loop.run_until_complete(main(loop))
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        with contextlib.suppress(DeadlockError):  # until the cancelled ones have ended
            loop.run_forever()
        loop.close()
    return loop.uncaught
