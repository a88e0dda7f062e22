"""Memory of models that are gone, back to the system.

An onnxruntime session frees its arena when it ends, but glibc keeps most of what was freed for
later: a server that unloaded a large model would look as if it still had it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import weakref
from collections.abc import Iterable
from concurrent.futures import Executor
from typing import Any

# From the end of a model to the end of its session, and of others that end with it.
_AFTER_S = 0.2
_trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> None:
    """Give what was freed back to the system. Takes milliseconds."""
    if _trim is not None:
        _trim(0)


class Reclaimer:
    """Gives freed memory back, a moment after models are really gone."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._due = False

    def watch(self, models: Iterable[object]) -> None:
        """Do it when these, which nobody new gets any more, are forgotten by all. In the loop."""
        loop = asyncio.get_running_loop()
        for model in models:
            finalizer = weakref.finalize(model, self._gone, loop)
            finalizer.atexit = False

    def _gone(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the process
            loop.call_soon_threadsafe(self._later, loop)

    def _later(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._due:
            self._due = True
            loop.call_later(_AFTER_S, self._give_back)

    def _give_back(self) -> None:
        self._due = False
        with contextlib.suppress(RuntimeError):  # shut down
            self._executor.submit(give_back)  # not in the loop
