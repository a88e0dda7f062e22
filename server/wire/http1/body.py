"""Request bodies: what all of them together may hold, and one that is streamed to its handler."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable

from headrace.errors import HeadraceError, ResourceExhaustedError


class HeldBytes:
    """A server's budget for the bodies that it holds; `abuse` counts what it does not reach for."""

    __slots__ = ("_abuse", "held", "held_max")

    def __init__(self, held_max: int, abuse: Counter[str]) -> None:
        self._abuse = abuse
        self.held_max = held_max
        self.held = 0

    def take(self, count: int) -> bool:
        """Take so many bytes; False, and nothing is taken, when the budget does not reach."""
        if self.held + count > self.held_max:
            self._abuse["held_bytes"] += 1
            return False
        self.held += count
        return True

    def give_back(self, count: int) -> None:
        """Return what was taken."""
        self.held -= count


class Holdings:
    """What one connection's requests hold of the budget, by their place."""

    __slots__ = ("_held", "by_place")

    def __init__(self, held: HeldBytes) -> None:
        self._held = held
        self.by_place: dict[int, int] = {}

    def keep(self, place: int, count: int) -> None:
        """Keep so many bytes, taken already, for this request."""
        if count:
            self.by_place[place] = self.by_place.get(place, 0) + count

    def take(self, place: int, count: int) -> None:
        """Take more for it. Raises ResourceExhaustedError when the budget does not reach."""
        if not self._held.take(count):
            raise ResourceExhaustedError("too many bytes of requests are held", mend="try again")
        self.keep(place, count)

    def release(self, place: int) -> None:
        """Give back what this request holds."""
        self._held.give_back(self.by_place.pop(place, 0))

    def release_all(self) -> None:
        """Give back everything."""
        self._held.give_back(sum(self.by_place.values()))
        self.by_place.clear()


class RequestBody:
    """The pieces of one body, as they come; for one reader.

    Above `bytes_max` it is `full`, and `resume` is called when there is room again. Reading it
    raises the error of `fail` once the pieces before are taken.
    """

    def __init__(self, bytes_max: int, held: HeldBytes, resume: Callable[[], None]) -> None:
        self._bytes_max = bytes_max
        self._held = held
        self._resume = resume
        self._pieces: deque[bytes] = deque()
        self._bytes = 0
        self._error: HeadraceError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.complete = False  # all of it has come

    @property
    def full(self) -> bool:
        """Whether its handler is behind."""
        return self._bytes >= self._bytes_max

    def put(self, data: bytes) -> bool:
        """Add a piece; False when the server's budget does not reach for it."""
        if not self._held.take(len(data)):
            return False
        self._pieces.append(data)
        self._bytes += len(data)
        self._wake()
        return True

    def finish(self) -> None:
        """Say that this was all."""
        self.complete = True
        self._wake()

    def fail(self, error: HeadraceError) -> None:
        """Say that the rest will never come."""
        self._error = error
        self._wake()

    def drop(self) -> None:
        """Throw away what nobody will read."""
        self._held.give_back(self._bytes)
        self._pieces.clear()
        self._bytes = 0

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> RequestBody:
        return self

    async def __anext__(self) -> bytes:
        while not self._pieces:
            if self.complete:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        was_full = self.full
        piece = self._pieces.popleft()
        self._bytes -= len(piece)
        self._held.give_back(len(piece))
        if was_full and not self.full:
            self._resume()
        return piece
