"""How long a run of so many rows will take, from the runs there were.

A run costs a fixed part and a part per row, so what one row took says little of what 256 will take:
each power of two has its own average.
"""

from __future__ import annotations

_WEIGHT = 0.2
# One run that a busy machine held up must not look like a slow model: a run counts for at most
# this many times what was expected. A model that did become slow is still known within ten runs.
_OUTLIER = 8.0


class RunTimes:
    """Moving averages of run times, ns, by the bit length of the row count."""

    def __init__(self) -> None:
        self._averages: dict[int, float] = {}

    def learn(self, rows: int, run_ns: int) -> None:
        """Take in a run of `rows` rows."""
        size = rows.bit_length()
        average = self._averages.get(size)
        if average is None:
            self._averages[size] = float(run_ns)
        else:
            taken = min(run_ns, average * _OUTLIER)
            self._averages[size] = average + (taken - average) * _WEIGHT

    def expected_ns(self, rows: int) -> float:
        """Return what a run of `rows` rows will take: at most so, where such a run is unknown.

        0 before the first run.
        """
        size = rows.bit_length()
        average = self._averages.get(size)
        if average is not None:
            return average
        smaller = [known for known in self._averages if known < size]
        if smaller:
            nearest = max(smaller)
            return self._averages[nearest] * float(1 << (size - nearest))
        return self._averages[min(self._averages)] if self._averages else 0.0
