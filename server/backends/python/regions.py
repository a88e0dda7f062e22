"""Where in a memory there is room: the first gap that is large enough."""

from __future__ import annotations

from bisect import insort


class Regions:
    """The used regions of a memory that begins at `start`. Offsets and sizes are bytes."""

    def __init__(self, start: int) -> None:
        self._start = start
        self._used: list[tuple[int, int]] = []  # offset, size; ascending

    def __len__(self) -> int:
        return len(self._used)

    def take(self, size: int) -> int:
        """Return the offset of a new region; the caller sees to it that there is memory."""
        size = max(size, 1)
        offset = self._start
        for used, length in self._used:
            if used - offset >= size:
                break
            offset = used + length
        insort(self._used, (offset, size))
        return offset

    def give(self, offset: int) -> bool:
        """Free the region at `offset`; return whether there was one."""
        for index, (used, _) in enumerate(self._used):
            if used == offset:
                del self._used[index]
                return True
        return False
