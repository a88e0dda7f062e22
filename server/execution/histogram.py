"""A histogram of durations, as Prometheus counts them: cumulative only when it is read."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

_US = 1_000
# From what a small model takes in one tick to what nobody waits for, about 2.5 times each.
BOUNDS_NS = tuple(
    step * _US
    for step in (
        100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
        1_000_000, 2_500_000, 5_000_000, 10_000_000,
    )
)  # fmt: skip


@dataclass(slots=True)
class Histogram:
    """How many durations were at most each of BOUNDS_NS, and above all of them."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_NS) + 1))
    total_ns: int = 0

    def observe(self, duration_ns: int, times: int = 1) -> None:
        """Count a duration."""
        self.counts[bisect_left(BOUNDS_NS, duration_ns)] += times
        self.total_ns += duration_ns * times

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Yield (bound in seconds, how many were at most that), the last bound without end."""
        bounds = (*(bound / 1e9 for bound in BOUNDS_NS), float("inf"))
        return zip(bounds, accumulate(self.counts), strict=True)
