"""Batches: everything that one event-loop tick brings for one model runs as one batch.

Batching is the natural result of load, not of a timer (unless a model's configuration asks for
one): the first request of a tick asks for a flush at the tick's end, and what arrives until then
joins. A run that takes long goes to a thread;
what arrives meanwhile is the next batch. One request's fault never costs another its answer: a
batch that fails is run again request by request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError, ResourceExhaustedError, UnavailableError
from server.execution.lots import Lot, Request, Timing
from server.execution.queue_policy import QueuePolicy
from server.execution.run_times import RunTimes
from server.execution.statistics import Statistics
from server.execution.watchdog import RunStoppedError, watchdog
from server.wire.handlers import as_headrace_error

Array = npt.NDArray[Any]
Run = Callable[[list[Array]], list[Array]]
_Answer = tuple[Lot, tuple[list[Array], Timing] | HeadraceError]

_LOG = logging.getLogger(__name__)
WAITING_MAX = 4096  # requests of one model that wait for their batch
# A run that is expected to take longer than the first leaves the event loop; it comes back below
# the second. The gap keeps a model near the border from changing places at every run.
_LEAVE_LOOP_NS = 2_000_000
_RETURN_TO_LOOP_NS = 1_000_000
# Below this a request costs less than to ask whether its caller is still there.
_WORTH_ASKING_NS = 1_000
# A full queue is searched for callers that left, but not again and again: a flood of requests
# would turn that into work of its own.
_SEARCH_AGAIN_NS = 10_000_000


class _NoBatchDimensionError(Exception):
    """An output of a joined batch cannot be split: the model mixes rows, or drops the dimension."""


class Batcher:
    """The queue in front of one session.

    `rows_max` is the largest batch (0: the model has no batch dimension, every request runs alone).
    Without a `policy` all that a tick brings runs at its end, in the order in which it came.
    """

    def __init__(
        self,
        run: Run,
        rows_max: int,
        statistics: Statistics,
        executor: Executor,
        *,
        name: str,
        policy: QueuePolicy | None = None,
    ) -> None:
        self._run = run
        self._rows_max = rows_max
        self._statistics = statistics
        self._executor = executor
        self._name = name
        self._policy = policy
        self._delay: asyncio.TimerHandle | None = None  # until what waits for company runs anyway
        self._lots: list[Lot] = []
        self._waiting = 0  # requests in `_lots`
        self._searched_ns = 0
        self._flush_due = False
        self._busy = False  # a run is in the executor
        self._off_loop = False
        self._bans_loop = False  # one of its runs did not end there
        self._run_times = RunTimes()

    @property
    def waiting(self) -> int:
        """How many requests wait for their batch."""
        return self._waiting

    def expect(self, rows: int, run_ns: int) -> None:
        """Learn from a run of `rows` rows that took `run_ns`."""
        self._run_times.learn(rows, run_ns)

    async def submit(
        self, feeds: list[Array], rows: int, deadline_ns: int | None, priority: int = 0
    ) -> tuple[list[Array], Timing]:
        """Return the outputs for `feeds` (valid already; `rows` is their batch dimension).

        Raises ResourceExhaustedError when the queue is full, DeadlineExceededError when the
        monotonic `deadline_ns` passed before the run, InternalError when the model fails.
        """
        if not self._room(1):
            raise self._full()
        loop = asyncio.get_running_loop()
        request = Request(feeds, rows, deadline_ns, loop.create_future(), priority=priority)
        if self._policy is not None and not self._room_of_level(request):
            raise _level_full()
        self._lots.append(request)
        self._waiting += 1
        if not self._flush_due and not self._busy:
            self._flush_due = True
            loop.call_soon(self._flush)
        return await request.future

    def take(self, lots: list[Lot]) -> None:
        """Run these now, with all that waits; behind a run in the executor they wait, too.

        What does not fit into the queue fails with ResourceExhaustedError. Call it in the loop.
        """
        for lot in lots:
            kept: Lot | None = lot
            if self._policy is not None:
                kept = _fit(lot, self._room_of_level(lot), _level_full)
            if kept is None:
                continue
            count = kept.count
            room = self._room(count)
            if room != count:
                kept = _fit(kept, room, self._full)
            if kept is not None:
                self._lots.append(kept)
                self._waiting += room
        if not self._busy:
            self._flush()

    def _full(self) -> ResourceExhaustedError:
        return ResourceExhaustedError(
            f"the queue of model '{self._name}' is full", expected=f"at most {WAITING_MAX}"
        )

    def _room(self, wanted: int) -> int:
        """Return how many requests of `wanted` the queue can take."""
        room = WAITING_MAX - self._waiting
        if room >= wanted:
            return wanted
        now_ns = time.monotonic_ns()
        if now_ns - self._searched_ns >= _SEARCH_AGAIN_NS:
            self._searched_ns = now_ns
            self._lots = [lot for lot in self._lots if lot.keep_live(now_ns, ask=True)]
            self._waiting = sum(lot.count for lot in self._lots)
            room = WAITING_MAX - self._waiting
        return min(max(room, 0), wanted)

    def _room_of_level(self, lot: Lot) -> int:
        """Return how many requests of a lot its level's queue takes: all while nothing runs."""
        assert self._policy is not None
        requests_max = self._policy.of(lot.priority).requests_max
        if not requests_max or not (self._busy or self._delay is not None):
            return lot.count
        level = self._policy.level(lot.priority)
        waiting = sum(
            other.count for other in self._lots if self._policy.level(other.priority) == level
        )
        return min(max(requests_max - waiting, 0), lot.count)

    def _flush(self) -> None:
        self._flush_due = False
        if self._busy:  # a lot's flush went before this one; `_finished` asks for the next
            return
        lots, waiting = self._lots, self._waiting
        self._lots, self._waiting = [], 0
        now_ns = time.monotonic_ns()
        ask = self._run_times.expected_ns(waiting) >= _WORTH_ASKING_NS * waiting
        live = [lot for lot in lots if lot.keep_live(now_ns, ask=ask)]
        if self._policy is None:
            batches = self._form(live)
        else:
            batches = self._form_by(self._policy, live, now_ns)
        for index, batch in enumerate(batches):
            if self._leaves_loop(_rows(batch)):
                self._leave_loop(batch, batches[index + 1 :])
                return
            try:
                answers = self._execute(batch)
            except RunStoppedError:  # it held up everything: it gets its time in a thread
                _LOG.warning("model %s: a run was too long for the event loop", self._name)
                self._bans_loop = True
                self._leave_loop(batch, batches[index + 1 :])
                return
            _settle(answers)

    def _leave_loop(self, batch: list[Lot], later: list[list[Lot]]) -> None:
        """Run a batch in a thread; what comes behind it goes back to the front of the queue."""
        self._busy = True
        self._lots[:0] = [lot for rest in later for lot in rest]
        self._waiting = sum(lot.count for lot in self._lots)
        loop = asyncio.get_running_loop()
        done = loop.run_in_executor(self._executor, self._execute_in_thread, batch)
        done.add_done_callback(self._finished)

    def _execute_in_thread(self, batch: list[Lot]) -> list[_Answer]:
        try:
            with watchdog.until(_last_deadline_ns(batch)):
                return self._execute(batch)
        except RunStoppedError as error:  # not again one by one: that would take as long each time
            _LOG.error("model %s: %s", self._name, error.message)
            return [(lot, error) for lot in batch]

    def _form(self, lots: list[Lot]) -> list[list[Lot]]:
        """Group the lots, cut where need be, into batches that can be one array each."""
        rows_max = self._rows_max
        if len(lots) == 1 and (lots[0].count == 1 or lots[0].count * lots[0].rows <= rows_max):
            return [lots]
        if rows_max == 0:
            return [[single] for lot in lots for single in _singles(lot)]
        open_batches: dict[tuple[tuple[int, ...], ...], tuple[list[Lot], int]] = {}
        batches: list[list[Lot]] = []
        for lot in lots:
            batch, rows = open_batches.get(lot.shape, ([], rows_max))
            whole = False
            while not whole:
                fitting = (rows_max - rows) // max(lot.rows, 1)
                if fitting < 1:
                    batch, rows = [], 0
                    batches.append(batch)
                    fitting = max(rows_max // max(lot.rows, 1), 1)
                whole = fitting >= lot.count
                part = lot if whole else lot.cut(fitting)
                batch.append(part)
                rows += part.count * part.rows
            open_batches[lot.shape] = (batch, rows)
        return batches

    def _form_by(self, policy: QueuePolicy, lots: list[Lot], now_ns: int) -> list[list[Lot]]:
        """Form the batches that are to run now; what waits for company goes back to the queue."""
        if self._delay is not None:
            self._delay.cancel()
            self._delay = None
        lots = policy.arrange(lots, now_ns)
        if self._rows_max == 0:
            return self._form(lots)
        alike: dict[tuple[tuple[int, ...], ...], deque[tuple[int, Lot]]] = {}
        for place, lot in enumerate(lots):
            alike.setdefault(lot.shape, deque()).append((place, lot))
        placed: list[tuple[int, list[Lot]]] = []
        for group in alike.values():
            rows = sum(lot.count * lot.rows for _, lot in group)
            while group:
                size = policy.size(rows, self._rows_max)
                if size is None:
                    oldest_ns = min(lot.arrived_ns for _, lot in group)
                    if now_ns - oldest_ns < policy.delay_ns:
                        self._lots += [lot for _, lot in group]
                        break
                    size = rows
                place = group[0][0]
                batch = _take_rows(group, size)
                rows -= _rows(batch)
                placed.append((place, batch))
        self._waiting = sum(lot.count for lot in self._lots)
        if self._lots:
            oldest_ns = min(lot.arrived_ns for lot in self._lots)
            left_s = max(policy.delay_ns - (now_ns - oldest_ns), 0) / 1e9
            self._delay = asyncio.get_running_loop().call_later(left_s, self._delayed)
        # In the order of their first requests: no shape goes before another for ever.
        placed.sort(key=itemgetter(0))
        return [batch for _, batch in placed]

    def _delayed(self) -> None:
        """Run what has waited long enough."""
        self._delay = None
        if not self._busy and not self._flush_due:
            self._flush()

    def _leaves_loop(self, rows: int) -> bool:
        expected_ns = self._run_times.expected_ns(rows)
        limit_ns = _RETURN_TO_LOOP_NS if self._off_loop else _LEAVE_LOOP_NS
        self._off_loop = self._bans_loop or expected_ns > limit_ns
        return self._off_loop

    def _execute(self, batch: list[Lot]) -> list[_Answer]:
        """Run one batch; return an answer or an error per lot. Runs in the loop or in a thread.

        Raises RunStoppedError when the watchdog has ended it.
        """
        try:
            return self._run_joined(batch)
        except _NoBatchDimensionError:
            _LOG.warning("model %s: its outputs have no batch dimension", self._name)
            self._rows_max = 0  # from here on every request of it runs alone
        except RunStoppedError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a run raises belongs to its requests
            if len(batch) == 1 and batch[0].count == 1:
                if error.__cause__ is not None:
                    _LOG.error("model %s: %s", self._name, error.__cause__)
                return [(batch[0], as_headrace_error(error, f"model '{self._name}'"))]
        singles = (single for lot in batch for single in _singles(lot))
        answers: list[_Answer] = []
        for single in singles:
            try:
                answers += self._execute([single])
            except RunStoppedError as error:
                self._bans_loop = True
                answers.append((single, error))
        return answers

    def _run_joined(self, batch: list[Lot]) -> list[_Answer]:
        start_ns = time.monotonic_ns()
        rows = _rows(batch)
        feeds = batch[0].feeds()
        if len(batch) > 1:
            columns = zip(feeds, *(lot.feeds() for lot in batch[1:]), strict=True)
            feeds = [np.concatenate(arrays) for arrays in columns]
        joined_ns = time.monotonic_ns()
        outputs = self._run(feeds)
        run_ns = time.monotonic_ns()
        parts = [outputs]
        if len(batch) > 1 or batch[0].count > 1:
            parts = _split(outputs, batch, rows)
        end_ns = time.monotonic_ns()
        input_ns, infer_ns, output_ns = joined_ns - start_ns, run_ns - joined_ns, end_ns - run_ns
        self._run_times.learn(rows, infer_ns)
        self._statistics.executed(rows or 1, input_ns, infer_ns, output_ns)
        return [
            (lot, (part, Timing(start_ns - lot.arrived_ns, input_ns, infer_ns, output_ns)))
            for lot, part in zip(batch, parts, strict=True)
        ]

    def _finished(self, future: asyncio.Future[list[_Answer]]) -> None:
        self._busy = False
        _settle(future.result())
        if self._lots and not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)


def _rows(batch: list[Lot]) -> int:
    if len(batch) == 1:
        return batch[0].count * batch[0].rows
    return sum(lot.count * lot.rows for lot in batch)


def _last_deadline_ns(batch: list[Lot]) -> int | None:
    """Return when nobody waits for a batch any more; None where somebody may for ever."""
    last_ns = 0
    for lot in batch:
        deadline_ns = lot.last_deadline_ns
        if deadline_ns is None:
            return None
        last_ns = max(last_ns, deadline_ns)
    return last_ns


def _take_rows(lots: deque[tuple[int, Lot]], rows: int) -> list[Lot]:
    """Take so many rows from the front of `lots`; at least one request, however many it has."""
    taken: list[Lot] = []
    left = rows
    while lots and (left >= lots[0][1].rows or not taken):
        lot = lots[0][1]
        fitting = max(left // max(lot.rows, 1), 1)
        if fitting < lot.count:
            taken.append(lot.cut(fitting))
            break
        taken.append(lots.popleft()[1])
        left -= lot.count * lot.rows
    return taken


def _fit(lot: Lot, room: int, full: Callable[[], HeadraceError]) -> Lot | None:
    """Return the part of a lot that there is room for, if any; the rest fails."""
    if room == lot.count:
        return lot
    kept = lot.cut(room) if room else None
    lot.fail(full())
    return kept


def _level_full() -> UnavailableError:
    return UnavailableError("Exceeds maximum queue size")


def _singles(lot: Lot) -> Iterator[Lot]:
    while lot.count > 1:
        yield lot.cut(1)
    yield lot


def _settle(answers: list[_Answer]) -> None:
    for lot, answer in answers:
        if isinstance(answer, HeadraceError):
            lot.fail(answer)
        else:
            lot.answer(*answer)


def _split(outputs: list[Array], batch: list[Lot], rows: int) -> list[list[Array]]:
    """Cut every output at the lots' borders."""
    for output in outputs:
        if output.ndim == 0 or len(output) != rows:
            raise _NoBatchDimensionError
    if len(batch) == 1:
        return [outputs]
    parts: list[list[Array]] = []
    start = 0
    for lot in batch:
        end = start + lot.count * lot.rows
        parts.append([output[start:end] for output in outputs])
        start = end
    return parts
