"""Who waits for an engine's answers: when the last of them has left, the engine may end."""

from __future__ import annotations

import asyncio


class Callers:
    """Counts those who wait, in one loop. Each one who comes leaves."""

    def __init__(self) -> None:
        self._count = 0
        self._gone = asyncio.Event()

    def __len__(self) -> int:
        return self._count

    def come(self) -> None:
        """One more waits."""
        self._count += 1

    def leave(self) -> None:
        """One of them waits no more."""
        self._count -= 1
        if not self._count:
            self._gone.set()

    async def gone(self) -> None:
        """Return when nobody waits."""
        while self._count:
            self._gone.clear()
            await self._gone.wait()
