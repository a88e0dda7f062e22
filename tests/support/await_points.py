"""Cutting a coroutine at its k-th await point, for k = 1, 2, 3 …

A task factory wraps what the server's tasks run. Each time one of them suspends, that is one more
await point; at the chosen one `cut` runs before anything else can happen to the task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from types import CodeType
from typing import Any

Wanted = Callable[[CodeType], bool]


class AwaitPoints:
    """Use in a `with` block, in the loop. `names` tells where each point was."""

    def __init__(self, wanted: Wanted, cut_at: int, cut: Callable[[], None]) -> None:
        self._wanted = wanted
        self._cut_at = cut_at
        self._cut = cut
        self._loop = asyncio.get_running_loop()
        self.names: list[str] = []
        self.was_cut = asyncio.Event()

    def __enter__(self) -> AwaitPoints:
        self._loop.set_task_factory(self._task)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.set_task_factory(None)

    def suspended(self, name: str) -> None:
        self.names.append(name)
        if len(self.names) == self._cut_at:
            # The first thing of the next iteration: what wakes the task comes later.
            self._loop.call_soon(self._do_cut)

    def _do_cut(self) -> None:
        self.was_cut.set()
        self._cut()

    def _task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
    ) -> asyncio.Task[Any]:
        code = getattr(coroutine, "cr_code", None)  # the loop closes generators by such tasks, too
        if code is not None and self._wanted(code) and not self.was_cut.is_set():
            coroutine = _Stepped(coroutine, self)
        return asyncio.Task(coroutine, loop=loop, **options)


class _Stepped(Coroutine[Any, Any, Any]):
    """A coroutine that tells of its suspensions."""

    def __init__(self, inner: Coroutine[Any, Any, Any], points: AwaitPoints) -> None:
        self._inner: Any = inner
        self._points = points
        self.__qualname__ = self._inner.__qualname__
        self.cr_code = self._inner.cr_code

    def send(self, value: Any) -> Any:
        waited_for = self._inner.send(value)
        self._points.suspended(self._place())
        return waited_for

    def throw(self, *error: Any) -> Any:
        waited_for = self._inner.throw(*error)
        self._points.suspended(self._place())
        return waited_for

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self._inner.__await__())

    def _place(self) -> str:
        """Say where the innermost coroutine waits."""
        inner, name = self._inner, self.__qualname__
        while inner is not None:
            frame = next(
                (getattr(inner, each) for each in _FRAMES if getattr(inner, each, None)), None
            )
            if frame is not None:
                name = f"{frame.f_code.co_qualname}:{frame.f_lineno}"
            inner = next((getattr(inner, each) for each in _AWAITED if hasattr(inner, each)), None)
        return name


_FRAMES = ("cr_frame", "ag_frame", "gi_frame")
_AWAITED = ("cr_await", "ag_await", "gi_yieldfrom")
