"""One read of the store that calls of a tick share: from what they ask for to their answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from features import CompiledService, FeatureBatch
from features.online.row_keys import KeyParts
from features.online.tick_reader import ROWS_OF_A_READ_MAX, TickReader
from headrace.errors import (
    DeadlineExceededError,
    HeadraceError,
    ResourceExhaustedError,
    UnavailableError,
)

_LOG = logging.getLogger(__name__)

Call = tuple[Any, int, Any, Any]  # connection, stream id or place, head, body
Ints = npt.NDArray[np.int64]
Tails = Sequence[bytes | memoryview]
COLUMNS_MAX = 32  # of join keys
NO_TIMEOUT = -1
_HEAD = itemgetter(2)


class Endings(Protocol):
    """Where calls end that get no reply, and whether they still wait."""

    def fail(self, call: Call, error: HeadraceError) -> None:
        """End a call with an error."""

    def drop(self, call: Call) -> None:
        """End a call whose client went away."""

    def hand_back(self, calls: Sequence[Call], came_ns: int) -> None:
        """Leave calls to their handlers."""

    def is_open(self, call: Call) -> bool:
        """Return whether the client still waits."""


class Readers(Protocol):
    """Where services are read."""

    def reader_of(self, name: str) -> TickReader | None:
        """Return what reads a service, None where nobody knows yet."""


def is_plain(service: CompiledService) -> bool:
    """Return whether join keys are all that a service needs, and all that it computes with.

    A function of a team's own may fail for one row, and that is to be that row's call alone.
    """
    keys = {name for entity in service.entities for name in entity.join_keys}
    return 0 < len(keys) <= COLUMNS_MAX and not service.on_demand


class SharedRead:
    """Calls to one service that are read together. `came_ns`: when they came (monotonic)."""

    __slots__ = ("_calls", "_came_ns", "_counts", "_endings", "_firsts", "_timer", "rows")

    def __init__(self, endings: Endings, came_ns: int) -> None:
        self._endings = endings
        self._came_ns = came_ns
        self._calls: list[Call | None] = []  # None: it is over
        self._firsts: list[int] = []
        self._counts: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self.rows = 0

    def has_room(self, rows: int) -> bool:
        """Return whether a call of so many rows fits in; the first one always does."""
        return not self._calls or self.rows + rows <= ROWS_OF_A_READ_MAX

    def add(self, call: Call, first: int, rows: int) -> None:
        """Let a call take part: its rows are those from `first` on of what `start` gets."""
        self._calls.append(call)
        self._firsts.append(first)
        self._counts.append(rows)
        self.rows += rows

    def start(self, reader: TickReader, parts: KeyParts, event_time_us: Ints) -> None:
        """Read. parts and event_time_us have the rows of these calls, and perhaps of others."""
        self._look_at_deadlines()
        if self.rows != len(event_time_us):
            firsts, counts = np.array(self._firsts), np.array(self._counts)
            starts = np.cumsum(counts) - counts
            rows = np.arange(self.rows) + np.repeat(firsts - starts, counts)
            parts = KeyParts(parts.text, parts.begins[:, rows], parts.ends[:, rows])
            event_time_us = event_time_us[rows]
        try:
            started = reader.ask(parts, event_time_us, self._done)
        except HeadraceError as error:
            self._done(error)
        else:
            if not started:
                self._leave()

    # What a wire does in its own way.

    def encode(self, batch: FeatureBatch, ends: Ints) -> Tails:
        """Return each call's answer: its rows are batch[ends[i]:ends[i + 1]]."""
        raise NotImplementedError

    def reply(self, calls: Sequence[Call], tails: Tails) -> None:
        """Send the answers."""
        raise NotImplementedError

    def timeouts_ns(self, calls: Iterable[Call]) -> list[int]:
        """Return how long each call may take, NO_TIMEOUT where it does not matter."""
        raise NotImplementedError

    # The end.

    def _done(self, found: FeatureBatch | Exception) -> None:
        """Answer whoever still waits."""
        self._look_at_deadlines()
        if self._timer is not None:
            self._timer.cancel()
        if isinstance(found, UnavailableError | ResourceExhaustedError):
            for call in self._waiting():
                self._endings.fail(call, found)
            return
        if isinstance(found, Exception):  # perhaps of one call alone: each hears of its own
            self._leave()
            return
        try:
            ends = np.cumsum([0, *self._counts], dtype=np.int64)
            tails = self.encode(found, ends)
        except Exception:  # noqa: BLE001 - a call that never ends would count as work
            _LOG.exception("answers cannot be written")
            self._leave()
            return
        calls = self._waiting()
        if len(calls) < len(tails):
            open_calls = set(map(id, calls))
            tails = [
                tail
                for call, tail in zip(self._calls, tails, strict=True)
                if id(call) in open_calls
            ]
        if calls:
            self.reply(calls, tails)

    def _leave(self) -> None:
        self._endings.hand_back(self._waiting(), self._came_ns)

    def _waiting(self) -> list[Call]:
        """Return the calls that wait, and end those whose client does not."""
        is_open = self._endings.is_open
        calls = [call for call in self._calls if call is not None]
        if all(map(is_open, calls)):
            return calls
        for call in calls:
            if not is_open(call):
                self._endings.drop(call)
        return [call for call in calls if is_open(call)]

    def _look_at_deadlines(self) -> None:
        """End calls that are late, and look again when the next one is."""
        calls = [call for call in self._calls if call is not None]
        timeouts = self.timeouts_ns(calls)
        soonest = min((each for each in timeouts if each >= 0), default=NO_TIMEOUT)
        if soonest < 0:
            return
        passed_ns = time.monotonic_ns() - self._came_ns
        if passed_ns >= soonest:
            late = {
                id(c) for c, each in zip(calls, timeouts, strict=True) if 0 <= each <= passed_ns
            }
            for place, call in enumerate(self._calls):
                if id(call) in late:
                    assert call is not None
                    self._end_late(call)
                    self._calls[place] = None
            left = [each for each in timeouts if each > passed_ns]
            if not left:
                return
            soonest = min(left)
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later((soonest - passed_ns) / 1e9, self._look_at_deadlines)

    def _end_late(self, call: Call) -> None:
        if self._endings.is_open(call):
            self._endings.fail(call, DeadlineExceededError("Deadline Exceeded"))
        else:
            self._endings.drop(call)


def grouped(
    make: Callable[[bool], SharedRead],
    calls: Iterable[tuple[Call, int, int, bool]],
) -> list[SharedRead]:
    """Return the reads of calls (with their first row, number of rows, and kind of answer): those
    of one kind together, as far as they have room."""
    open_reads: dict[bool, SharedRead] = {}
    reads: list[SharedRead] = []
    for call, first, rows, kind in calls:
        read = open_reads.get(kind)
        if read is None or not read.has_room(rows):
            read = open_reads[kind] = make(kind)
            reads.append(read)
        read.add(call, first, rows)
    return reads
