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
        if event.get("event") == CHANGED:
            self.change(event["name"], event["value"])

    def change(self, name: str, value: dict[str, Any]) -> None:
        """Tell every worker of settings that have been looked at."""
        self.changed.setdefault(name, {}).update(value)
        line = json.dumps({CHANGED: {name: value}}, separators=(",", ":"))
        for each in self._children.taking():
            each.send_line(line.encode())
