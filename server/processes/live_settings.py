"""Settings that clients change while the server runs: what one worker was asked, all of them do.

The worker has looked at it and done it; it says so on its stdout, and the supervisor tells every
worker, in one order, and those that start later. Whoever asked hears of it when all have done it. A
new start begins with what the settings say.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Protocol

from headrace.errors import UnavailableError
from server.processes.answers import Answers
from server.processes.child import Child, line_of

CHANGED = "settings_changed"  # an event on a worker's stdout, and a line on its stdin
DONE = "settings_done"  # the event that answers the line
OUTCOME = "settings_outcome"  # the line that answers the event
# One that hangs takes it when it wakes: nobody waits for that.
_TIMEOUT_S = 5.0


class Children(Protocol):
    """Who runs."""

    def taking(self) -> list[Child]:
        """Return the children that take lines; `ready` of one that is not ready yet is empty."""


class LiveSettings:
    """`changed` is what was asked since the start, by the extension's name."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._number = 0
        self._answers = Answers()
        self._tasks: set[asyncio.Task[None]] = set()
        self.changed: dict[str, Any] = {}

    def hear(self, child: Child, event: dict[str, Any]) -> None:
        """Take an event of a worker; one that is none of ours is passed over."""
        if event.get("event") == CHANGED:
            task = asyncio.create_task(self._change_for(child, event))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif event.get("event") == DONE:
            self._answers.hear(child, event["number"], None)

    async def change(self, name: str, value: dict[str, Any]) -> None:
        """Tell every worker of settings that have been looked at; wait until all that are ready
        have them, or 5 s."""
        self.changed.setdefault(name, {}).update(value)
        self._number += 1
        line = line_of({CHANGED: {"number": self._number, "settings": {name: value}}})
        children = self._children.taking()
        for child in children:
            if not child.ready:
                child.send_line(line)
        await asyncio.gather(
            *(self._tell(child, self._number, line) for child in children if child.ready)
        )

    async def _change_for(self, asker: Child, event: dict[str, Any]) -> None:
        await self.change(event["name"], event["value"])
        asker.send_line(line_of({OUTCOME: {"id": event["id"], "error": None}}))

    async def _tell(self, child: Child, number: int, line: bytes) -> None:
        with contextlib.suppress(UnavailableError):
            await self._answers.ask(child, number, line, _TIMEOUT_S)
