"""How many calls of a server are at work, and how they ended."""

from __future__ import annotations

from collections import Counter
from typing import Generic, TypeVar

_Status = TypeVar("_Status")


class Calls(Generic[_Status]):
    """Counts; who begins a call asks for room first. `ended` is by status."""

    __slots__ = ("ended", "live", "live_max", "started")

    def __init__(self, live_max: int) -> None:
        self.live_max = live_max
        self.live = 0
        self.started = 0
        self.ended: Counter[_Status] = Counter()

    def begin(self, count: int = 1) -> None:
        """Count calls that begin."""
        self.started += count
        self.live += count

    def end(self, status: _Status, count: int = 1) -> None:
        """Count calls that are over."""
        self.live -= count
        self.ended[status] += count
