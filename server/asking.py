"""What a worker asks of its supervisor: an event on stdout, later a line on stdin."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from headrace.errors import HeadraceError


class Asking:
    """Asks by `say`, and hands the outcomes out by the number of what was asked."""

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        self._say = say
        self._last_id = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    def ask(self, event: dict[str, Any]) -> asyncio.Future[Any]:
        """Ask now; the future is the outcome."""
        self._last_id += 1
        own = self._last_id
        self._waiting[own] = outcome = asyncio.get_running_loop().create_future()
        outcome.add_done_callback(partial(self._forget, own))
        self._say({**event, "id": own})
        return outcome

    def hear(self, outcome: dict[str, Any]) -> None:
        """Take an outcome; one that nobody waits for any more is passed over."""
        waiting = self._waiting.get(outcome["id"])
        if waiting is not None and not waiting.done():
            waiting.set_result(outcome["error"])

    def leave_alone(self, error: HeadraceError | None) -> None:
        """Nobody will answer any more: whoever waits hears this."""
        for waiting in list(self._waiting.values()):
            if waiting.done():
                continue
            if error is None:
                waiting.set_result(None)
            else:
                waiting.set_exception(error)

    def _forget(self, own: int, _: asyncio.Future[Any]) -> None:
        del self._waiting[own]
