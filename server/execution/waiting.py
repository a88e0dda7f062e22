"""Lots that wait for their batch, in the order in which they came, and how much that is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from headrace.errors import ResourceExhaustedError
from server.execution.batches import rows_of
from server.execution.lots import Lot

WAITING_MAX = 4096  # requests of one model that wait for their batch
# A full queue is searched for callers that left, but not again and again: a flood of requests
# would turn that into work of its own.
_SEARCH_AGAIN_NS = 10_000_000


class WaitingLots:
    """The bounded queue in front of a model. Times are monotonic nanoseconds."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._lots: deque[Lot] = deque()
        self.requests = 0
        self.rows = 0
        self._searched_ns = 0

    def __bool__(self) -> bool:
        return bool(self._lots)

    def __iter__(self) -> Iterator[Lot]:
        return iter(self._lots)

    def append(self, lot: Lot) -> None:
        """Let a lot wait behind all others."""
        self._lots.append(lot)
        self.requests += lot.count
        self.rows += lot.count * lot.rows

    def take(self, rows: int) -> list[Lot]:
        """Take the oldest lots out, until they have that many rows."""
        lots = []
        while self._lots and rows > 0:
            lot = self._lots.popleft()
            lots.append(lot)
            rows -= lot.count * lot.rows
            self.requests -= lot.count
            self.rows -= lot.count * lot.rows
        return lots

    def take_all(self) -> list[Lot]:
        """Take every lot out."""
        lots = list(self._lots)
        self._lots.clear()
        self.requests = self.rows = 0
        return lots

    def put_back(self, lots: list[Lot]) -> None:
        """Let what was taken out wait again, before all others."""
        self._lots.extendleft(reversed(lots))
        self.requests += sum([lot.count for lot in lots])
        self.rows += rows_of(lots)

    def room(self, wanted: int, clock_ns: Callable[[], int]) -> int:
        """Return how many requests of `wanted` there is room for; a full queue is searched for
        callers that have left."""
        room = WAITING_MAX - self.requests
        if room >= wanted:
            return wanted
        now_ns = clock_ns()
        if now_ns - self._searched_ns >= _SEARCH_AGAIN_NS:
            self._searched_ns = now_ns
            self.put_back(
                [lot for lot in self.take_all() if lot.keep_live(now_ns, now_ns, ask=True)]
            )
            room = WAITING_MAX - self.requests
        return min(max(room, 0), wanted)

    def full(self) -> ResourceExhaustedError:
        """Return what those are told whom there is no room for."""
        return ResourceExhaustedError(
            f"the queue of model '{self._model}' is full", expected=f"at most {WAITING_MAX}"
        )
