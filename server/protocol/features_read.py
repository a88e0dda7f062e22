"""One read of the store that calls of a tick share: from what they ask for to their answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

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
from server.access.principal import Scope

_LOG = logging.getLogger(__name__)

Call = tuple[Any, int, Any, Any]  # connection, stream id or place, head, body
Ints = npt.NDArray[np.int64]
Fail = Callable[[Call, HeadraceError], None]
Tails = Sequence[bytes | memoryview]
COLUMNS_MAX = 32  # of join keys
# A call of more gains little by a door, and what a tick's calls ask for is held all at once. It is
# far from `predict.ROWS_MAX` rows, too: each takes a byte at least.
BODY_BYTES_MAX = 4096
CALLS_MAX = 512


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


class Admission(Protocol):
    """Access control before the door."""

    def permitted(
        self, scope: Scope, name: str, calls: list[Call], fail: Fail
    ) -> tuple[list[Call], list[Call]]:
        """Return those that may do this, and those whose handlers are to say why they may not;
        `fail` those without a credential."""


def is_plain(service: CompiledService) -> bool:
    """Return whether plain join keys are all that a service needs, and all that it computes with.

    A function of a team's own may fail for one row, and that is to be that row's call alone.
    """
    keys = {name for entity in service.entities for name in entity.join_keys}
    is_plainly_typed = not service.variable_columns and not service.input_types
    return 0 < len(keys) <= COLUMNS_MAX and not service.on_demand and is_plainly_typed


class SharedRead:
    """Calls to one service that are read together. `came_ns`: when they came (monotonic)."""

    __slots__ = ("_calls", "_came_ns", "_endings", "_ends", "_timer")

    def __init__(self, endings: Endings, came_ns: int) -> None:
        self._endings = endings
        self._came_ns = came_ns
        self._calls: list[Call | None] = []  # None: it is over
        self._ends: Ints
        self._timer: asyncio.TimerHandle | None = None

    def start(
        self,
        reader: TickReader,
        calls: list[Call],
        counts: list[int],
        parts: KeyParts,
        event_time_us: Ints,
    ) -> None:
        """Read counts[i] rows for call i; parts and event_time_us have the rows of all of them."""
        self._calls.extend(calls)
        self._ends = np.array([0, *accumulate(counts)], np.int64)
        self._look_at_deadlines()
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
        """Return how long each call may take; nothing where that does not matter, and below
        0 where the client set no bound."""
        raise NotImplementedError

    # The end.

    def _done(self, found: FeatureBatch | Exception) -> None:
        """Answer whoever still waits."""
        if self._timer is not None:
            self._look_at_deadlines()
            self._timer.cancel()
        if isinstance(found, UnavailableError | ResourceExhaustedError):
            for call in self._waiting():
                self._endings.fail(call, found)
            return
        if isinstance(found, Exception):  # perhaps of one call alone: each hears of its own
            self._leave()
            return
        try:
            tails = self.encode(found, self._ends)
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
        if not timeouts:
            return
        soonest = min(each for each in timeouts if each >= 0)
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


class Selection(NamedTuple):
    """Calls that may share a read: call i has counts[i] rows, from firsts[i] on of a tick's."""

    calls: list[Call]
    firsts: list[int]
    counts: list[int]

    def rows(self) -> Ints:
        """Return the tick's rows that are theirs."""
        counts = np.array(self.counts)
        starts = np.cumsum(counts) - counts
        rows: Ints = np.repeat(np.array(self.firsts) - starts, counts)
        return rows + np.arange(len(rows))


def start_reads(
    make: Callable[[], SharedRead],
    reader: TickReader,
    selected: Selection,
    parts: KeyParts,
    event_time_us: Ints,
) -> None:
    """Start reading for these calls, together as far as that is worth it.

    parts and event_time_us have the tick's rows.
    """
    calls, firsts, counts = selected
    if sum(counts) == len(event_time_us) <= ROWS_OF_A_READ_MAX:  # most ticks are of one piece
        make().start(reader, calls, counts, parts, event_time_us)
        return
    at = 0
    while at < len(calls):
        stop, rows = at + 1, counts[at]
        while stop < len(calls) and rows + counts[stop] <= ROWS_OF_A_READ_MAX:
            rows += counts[stop]
            stop += 1
        piece = Selection(calls[at:stop], firsts[at:stop], counts[at:stop])
        places = piece.rows()
        theirs = KeyParts(parts.text, parts.begins[:, places], parts.ends[:, places])
        make().start(reader, piece.calls, piece.counts, theirs, event_time_us[places])
        at = stop
