"""Which requests are traced: those whose caller records, and one in so many of the others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import msgspec

UNLIMITED: Final = -1


class Rule(msgspec.Struct, frozen=True):
    """What holds for one model, or for all that have none of their own.

    `rate`: one in so many traces that begin here (0: none; a caller's own are traced all the same).
    `count`: how many may begin here yet, UNLIMITED for any number.
    """

    on: bool = False
    rate: int = 1000
    count: int = UNLIMITED


class Sampler:
    """Draws which of the requests without a caller's trace begin one.

    The gaps between them are drawn, not the requests: most ticks cost one subtraction. They are
    geometric, so that every request has the chance of 1/rate, whatever rhythm they come in.
    `draw` returns a number in [0, 1).
    """

    def __init__(self, rate: int, count: int, draw: Callable[[], float]) -> None:
        self._rate = rate
        self.left = count
        self._draw = draw
        self._gap: float = self._next_gap()  # requests until the next one that is taken

    def picks(self, requests: int) -> list[int]:
        """Return which of so many requests are taken."""
        if self._gap >= requests:
            self._gap -= requests
            return []
        taken = []
        at = self._gap
        while at < requests and self.left:
            taken.append(int(at))
            self.left -= self.left > 0
            at += 1 + self._next_gap()
        self._gap = max(at - requests, 0)
        return taken

    def _next_gap(self) -> float:
        if self._rate < 1 or not self.left:
            return math.inf
        if self._rate == 1:
            return 0
        # Inversion: P(gap ≥ k) = (1 − 1/rate)^k.
        return int(math.log(1.0 - self._draw()) / math.log1p(-1.0 / self._rate))
