"""Settings that clients change while the server runs, at a worker among others.

The supervisor passes them on (`processes.live_settings`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from headrace.errors import UnavailableError
from server.asking import Asking
from server.processes.live_settings import CHANGED


class SharedSettings:
    """Tells by `say`; `shared` says whether a supervisor hears it."""

    def __init__(self, say: Callable[[dict[str, Any]], None], *, shared: bool) -> None:
        self._say = say
        self._asking = Asking(say)
        self._shared = shared
        self._alone = False  # the supervisor is gone

    def tell(self, name: str, value: dict[str, Any]) -> Awaitable[None]:
        """Have all workers change settings as this one does; what is returned waits for them.

        Raises UnavailableError when the supervisor is gone.
        """
        event = {"event": CHANGED, "name": name, "value": value}
        if not self._shared:  # nobody answers
            self._say(event)
            return asyncio.sleep(0)
        if self._alone:
            raise UnavailableError(
                "settings cannot be changed: the supervisor is gone",
                mend="start headrace serve again",
            )
        return self._asking.ask(event)

    def hear(self, outcome: dict[str, Any]) -> None:
        """Hear that all workers have a change."""
        self._asking.hear(outcome)

    def leave_alone(self) -> None:
        """The supervisor is gone: who waits has changed this worker, at least."""
        self._alone = True
        self._asking.leave_alone(None)
