"""When something that failed is tried again: after one look, two, four … and then every 64."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

_STEP_MAX = 64


class Retries:
    """Counts looks: `due` is called once for each."""

    def __init__(self) -> None:
        self._waits: dict[str, tuple[int, int]] = {}  # looks left, looks between

    def due(self, failing: AbstractSet[str]) -> set[str]:
        """Return which of the names that fail are to be tried now.

        One that fails no more is forgotten.
        """
        due = set()
        waits = {}
        for name in failing:
            left, step = self._waits.get(name, (1, 1))
            left -= 1
            if left == 0:
                due.add(name)
                step = min(2 * step, _STEP_MAX)
                left = step
            waits[name] = (left, step)
        self._waits = waits
        return due
