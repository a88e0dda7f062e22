"""Settings that clients change while the server runs: what one worker was asked, all of them do.

The worker has looked at it and done it; it says so on its stdout, and the supervisor tells every
worker, in one order, and those that start later. A new start begins with what the settings say.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

from server.processes.child import Child

CHANGED = "settings_changed"  # an event on a worker's stdout, and a line on its stdin


class Children(Protocol):
    """Who runs."""

    def taking(self) -> list[Child]:
        """Return the children that take lines."""


class LiveSettings:
    """`changed` is what was asked since the start, by the extension's name."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self.changed: dict[str, Any] = {}

    def hear(self, child: Child, event: dict[str, Any]) -> None:
        """Take an event of a worker; one that is none of ours is passed over."""
        if event.get("event") != CHANGED:
            return
        self.changed.setdefault(event["name"], {}).update(event["value"])
        line = json.dumps({CHANGED: {event["name"]: event["value"]}}, separators=(",", ":"))
        for each in self._children.taking():
            each.send_line(line.encode())
