"""Who of the workers of one machine holds how much of which resource: a table. No IO, no clock.

A row is a resource. In it each worker has what it holds, since when the worker waits (in all rows
the same, so that no two wait for each other), and when it last said so; nobody else writes these
while it lives. Whoever takes must be alone at it, which giving need not be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b

WORD_BYTES = 8
ROWS = 256
_HELD, _WAITS_NS, _SAID_NS, _CELLS = 0, 1, 2, 3
# Whoever waits says so every few milliseconds. One that has not hangs, or waits no more.
STALE_NS = 50_000_000


def table_bytes(slots: int) -> int:
    """Return the size of a table of `slots` workers."""
    return ROWS * _row_words(slots) * WORD_BYTES


def _row_words(slots: int) -> int:
    return 1 + slots * _CELLS


class ResourceTable:
    """Rows of int64 in memory that all share; `own` is this worker's place among `slots`."""

    def __init__(self, words: memoryview, slots: int, own: int) -> None:
        assert words.format == "q"
        assert len(words) * WORD_BYTES >= table_bytes(slots)
        self._words = words
        self._slots = slots
        self._own = own
        self._rows: dict[str, int] = {}  # where a row begins
        self._waits_ns = 0

    def enter(self) -> None:
        """Begin with nothing, whatever the worker held that had this place before."""
        for row in range(ROWS):
            self._clear(row * _row_words(self._slots), self._own)

    def take(
        self,
        needs: Mapping[str, int],
        counts: Mapping[str, int],
        now_ns: int,
        lives: Callable[[int], bool],
    ) -> bool:
        """Take what is needed of each if all of it is free and nobody has waited longer.

        `now_ns` is above 0, on a clock that all workers share. `lives` tells whether there is a
        worker at a place; it is asked only where something is in the way. What the table has no
        room for nobody counts.
        """
        rows = {row: name for name in needs if (row := self._row(name)) is not None}
        for row, name in rows.items():
            if self._in_the_way(row, needs[name], counts[name], now_ns):
                self._bury(row, lives)
                if self._in_the_way(row, needs[name], counts[name], now_ns):
                    self._wait(rows, now_ns)
                    return False
        for row, name in rows.items():
            self._words[self._at(row, self._own) + _HELD] += needs[name]
        self.give_up()  # what else it waits for is behind others' now
        return True

    def give(self, needs: Mapping[str, int]) -> None:
        """Give back what was taken."""
        for name, count in needs.items():
            row = self._row(name)
            if row is not None:
                self._words[self._at(row, self._own) + _HELD] -= count

    def give_up(self) -> None:
        """Wait for nothing any more."""
        self._waits_ns = 0
        for row in self._rows.values():
            self._words[self._at(row, self._own) + _WAITS_NS] = 0

    def _in_the_way(self, row: int, need: int, count: int, now_ns: int) -> bool:
        words = self._words
        held = sum(words[self._at(row, slot) + _HELD] for slot in range(self._slots))
        if held + need > count:
            return True
        since_ns = self._waits_ns or now_ns
        for slot in range(self._slots):
            at = self._at(row, slot)
            is_fresh = now_ns - words[at + _SAID_NS] < STALE_NS
            if slot != self._own and 0 < words[at + _WAITS_NS] < since_ns and is_fresh:
                return True
        return False

    def _wait(self, rows: Mapping[int, str], now_ns: int) -> None:
        self._waits_ns = self._waits_ns or now_ns
        for row in rows:
            at = self._at(row, self._own)
            self._words[at + _WAITS_NS] = self._waits_ns
            self._words[at + _SAID_NS] = now_ns

    def _bury(self, row: int, lives: Callable[[int], bool]) -> None:
        """Free what the dead hold."""
        for slot in range(self._slots):
            held = self._words[self._at(row, slot) + _HELD]
            if slot != self._own and held and not lives(slot):
                self._clear(row, slot)

    def _clear(self, row: int, slot: int) -> None:
        at = self._at(row, slot)
        for cell in range(_CELLS):
            self._words[at + cell] = 0

    def _at(self, row: int, slot: int) -> int:
        return row + 1 + slot * _CELLS

    def _row(self, name: str) -> int | None:
        """Find the row of a name, or begin one; None: there is no room for it."""
        found = self._rows.get(name)
        if found is not None:
            return found
        key = int.from_bytes(blake2b(name.encode(), digest_size=7).digest(), "little") + 1
        for number in range(ROWS):
            row = number * _row_words(self._slots)
            if self._words[row] in {0, key}:
                self._words[row] = key
                self._rows[name] = row
                return row
        return None
