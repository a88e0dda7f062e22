"""Group commit of truth: one fsync for everything that arrived while the last one ran, and no
answer before it is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from headrace.errors import HeadraceError, InvalidArgumentError, ResourceExhaustedError

PENDING_MAX = 200_000

T = TypeVar("T")


@dataclass(frozen=True)
class _Call(Generic[T]):
    records: list[T]
    done: Callable[[HeadraceError | None], None]


class TruthCommits(Generic[T]):
    """`append` makes records durable or raises a HeadraceError, and then none of them is; it runs
    in a thread, one call at a time.
    """

    def __init__(self, append: Callable[[list[T]], object]) -> None:
        self.accepted = 0
        self.refused = 0
        self._append = append
        self._calls: list[_Call[T]] = []
        self._pending = 0
        self._arrived = asyncio.Event()
        self._closing = False

    def submit(self, records: list[T], done: Callable[[HeadraceError | None], None]) -> None:
        """Queue one call's records; `done` is called with None once they are on disk, else why not.

        Bounded: above the limit the call is refused at once.
        """
        if self._pending + len(records) > PENDING_MAX:
            self.refused += len(records)
            done(
                ResourceExhaustedError(
                    "too much truth waits for the disk",
                    expected=f"at most {PENDING_MAX} records",
                    mend="send it again later",
                )
            )
            return
        self._calls.append(_Call(records, done))
        self._pending += len(records)
        self._arrived.set()

    async def run(self) -> None:
        """Commit until `close`; what was submitted before that is still committed."""
        while True:
            await self._arrived.wait()
            calls, self._calls = self._calls, []
            if not self._closing:
                self._arrived.clear()
            if calls:
                await self._commit(calls)
            elif self._closing:
                return

    def close(self) -> None:
        """Make `run` commit what is left and return."""
        self._closing = True
        self._arrived.set()

    async def _commit(self, calls: list[_Call[T]]) -> None:
        records = [record for call in calls for record in call.records]
        error = await asyncio.to_thread(self._try, records)
        if isinstance(error, InvalidArgumentError) and len(calls) > 1:
            # One call's bad record must not cost the others theirs.
            for call in calls:
                self._answer(call, await asyncio.to_thread(self._try, call.records))
            return
        for call in calls:
            self._answer(call, error)

    def _try(self, records: list[T]) -> HeadraceError | None:
        try:
            self._append(records)
        except HeadraceError as error:
            return error
        return None

    def _answer(self, call: _Call[T], error: HeadraceError | None) -> None:
        self._pending -= len(call.records)
        if error is None:
            self.accepted += len(call.records)
        else:
            self.refused += len(call.records)
        call.done(error)
