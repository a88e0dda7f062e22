"""Batches: everything that one event-loop tick brings for one model runs as one batch.

Batching is the natural result of load, not of a timer (unless a model's configuration asks for
one): the first request of a tick asks for a flush at the tick's end, and what arrives until then
joins. A run that takes long goes to a thread; what arrives meanwhile is the next batch. What cannot
be answered before its deadline is refused as soon as that is known.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from headrace.errors import HeadraceError, UnavailableError
from server.execution.batch_runs import Answer, Array, BatchRuns, Ran, Run
from server.execution.batches import Batch, form, form_by, rows_of
from server.execution.forecast import MARGIN, Forecast
from server.execution.lots import NEVER_NS, Lot, Request, Timing, not_in_time
from server.execution.queue_policy import QueuePolicy
from server.execution.rate_limiter import Claim
from server.execution.run_times import RunTimes
from server.execution.statistics import Statistics
from server.execution.threads import RunThreads
from server.execution.waiting import WAITING_MAX, WaitingLots
from server.execution.watchdog import RunStoppedError

_LOG = logging.getLogger(__name__)
# A run that is expected to take longer than the first leaves the event loop; it comes back below
# the second. The gap keeps a model near the border from changing places at every run.
_LEAVE_LOOP_NS = 2_000_000
_RETURN_TO_LOOP_NS = 1_000_000
# Batches of one model that run one after another, in the loop or in a thread, before others have
# their turn.
_TURN_NS = 2_000_000
# Lots that are looked at to form the next batches, in batches: enough to find such as can join.
_WINDOW_BATCHES = 4
# Below this a request costs less than to ask whether its caller is still there.
_WORTH_ASKING_NS = 1_000


class Outside(Protocol):
    """Runs batches elsewhere, beside each other. Says by `Batcher.go_on` that it has room again."""

    @property
    def has_room(self) -> bool:
        """Whether a batch could run at once."""

    def begin(self, batch: Batch, over: Callable[[], None]) -> None:
        """Run a batch; every lot of it is answered there. Call `over` when it is over."""


def run_outside(_: list[Array]) -> list[Array]:
    """Stand for the run of a batcher that has an `outside`, which never calls it."""
    raise AssertionError("its batches run outside")


class Batcher:
    """The queue in front of one session, or of what runs batches `outside`.

    `rows_max` is the largest batch (0: the model has no batch dimension, every request runs alone),
    `runs_max` how many batches may run at the same time, in threads. Without a `policy` all that a
    tick brings runs at its end, in the order in which it came. A `claim` is taken before each run.
    """

    def __init__(
        self,
        run: Run,
        rows_max: int,
        statistics: Statistics,
        threads: RunThreads,
        *,
        name: str,
        version: str = "",
        policy: QueuePolicy | None = None,
        runs_max: int = 1,
        outside: Outside | None = None,
        claim: Claim | None = None,
    ) -> None:
        self._statistics = statistics
        self._threads = threads
        self._name = name
        self._policy = policy
        self._runs_max = runs_max
        self._outside = outside
        self._claim = claim
        if claim is not None:
            claim.owner = self
        self._is_plain = policy is None and outside is None and claim is None
        self._delay: asyncio.TimerHandle | None = None  # until what waits for company runs anyway
        self._lots = WaitingLots(name)
        self._flush_due = False
        self._running = 0  # turns in the executor
        self._ended: list[tuple[list[Answer], list[Ran]]] = []  # turns, to be settled
        self._off_loop = False
        self._run_times = RunTimes()
        self._forecast = Forecast(rows_max, runs_max)
        self._runs = BatchRuns(run, name, version, self._run_alone)

    @property
    def waiting(self) -> int:
        """How many requests wait for their batch."""
        return self._lots.requests

    @property
    def running(self) -> int:
        """How many threads are in a run of it."""
        return self._running

    @property
    def could_run(self) -> bool:
        """Whether something waits that could run at once."""
        has_room = self._outside is None or self._outside.has_room
        return bool(self._lots) and self._running < self._runs_max and has_room

    def expect(self, rows: int, run_ns: int) -> None:
        """Learn from a run of `rows` rows that took `run_ns`."""
        self._run_times.learn(rows, run_ns)
        self._forecast.times.learn(rows, run_ns)

    def _run_alone(self) -> None:
        """From here on every request runs alone."""
        self._forecast.rows_max = 0

    # What comes in.

    async def submit(
        self,
        feeds: list[Array],
        rows: int,
        deadline_ns: int | None,
        priority: int = 0,
        timeout_ns: int = 0,
        who: Callable[[], dict[str, str]] = dict,
    ) -> tuple[list[Array], Timing]:
        """Return the outputs for `feeds` (valid already; `rows` is their batch dimension).

        Raises ResourceExhaustedError when the queue is full or too long for the monotonic
        `deadline_ns`, DeadlineExceededError when that passed before the run, InternalError when the
        model fails.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[list[Array], Timing]] = loop.create_future()
        request = Request(
            feeds, rows, deadline_ns, future, priority=priority, timeout_ns=timeout_ns, who=who
        )
        self.join(request)
        return await request.future

    def join(self, request: Request) -> None:
        """Let a request run with what else this tick brings. Raises as `submit` for one that is not
        taken in, UnavailableError when its level's queue is full."""
        if not self._lots.room(1, time.monotonic_ns):
            raise self._lots.full()
        if self._policy is not None and not self._room_of_level(request):
            raise _level_full()
        if request.deadline_ns is not None and not self._in_time(request):
            raise not_in_time()
        self._lots.append(request)
        if self._running < self._runs_max:
            self._flush_soon()

    def go_on(self) -> None:
        """Run what waits: outside there is room again, or resources may be free."""
        if self._lots:
            self._flush_soon()

    def take(self, lots: list[Lot]) -> None:
        """Run these now, with all that waits; behind runs in the executor they wait, too.

        What does not fit into the queue fails with ResourceExhaustedError. Call it in the loop.
        """
        if len(lots) == 1 and self._runs_alone(lots[0]):
            return
        for lot in lots:
            kept: Lot | None = lot
            if self._policy is not None:
                kept = _fit(lot, self._room_of_level(lot), _level_full)
            if kept is None:
                continue
            count = kept.count
            room = self._lots.room(count, time.monotonic_ns)
            if room != count:
                kept = _fit(kept, room, self._lots.full)
            if kept is None:
                continue
            self._append_in_time(kept)
        if self._running < self._runs_max:
            self._flush()

    def _runs_alone(self, lot: Lot) -> bool:
        """Run what is all there is to do, and short, as most ticks of most models are.

        Return whether it was so.
        """
        rows = lot.count * lot.rows
        if self._lots.requests or self._running or not self._is_plain:
            return False
        if rows > self._forecast.rows_max:
            return False
        expected_ns = self._run_times.expected_ns(rows)
        if self._off_loop or expected_ns > _LEAVE_LOOP_NS:
            return False
        now_ns = time.monotonic_ns()
        if lot.keep_live(now_ns, now_ns, ask=expected_ns >= _WORTH_ASKING_NS * lot.count):
            self._threads.loop_works()
            try:
                ran = self._runs.batch([lot])
            except RunStoppedError:
                self._leave_loop([[lot]])
                return True
            self._settle(*ran, learn=True)
        return True

    def _append_in_time(self, lot: Lot) -> None:
        """Take in what can be answered in time behind all that waits; refuse the rest."""
        if lot.first_deadline_ns == NEVER_NS:
            self._lots.append(lot)
            return
        fitting = self._in_time(lot)
        if fitting < lot.count:
            if fitting:
                self._lots.append(lot.cut(fitting))
            now_ns = time.monotonic_ns()
            requests, rows = self._lots.requests + lot.count, self._lots.rows + lot.count * lot.rows
            # Some may wait longer than the first.
            if not lot.keep_live(
                now_ns, self._forecast.answered_ns(now_ns, requests, rows), ask=False
            ):
                return
        self._lots.append(lot)

    def _in_time(self, lot: Lot) -> int:
        """Return how many requests of a lot can be answered before its first deadline."""
        if not self._lots and not self._running:
            return lot.count  # nobody else loses by it, and the forecast learns
        now_ns = time.monotonic_ns()
        rows = self._forecast.answered_by(lot.first_deadline_ns, now_ns)
        if self._forecast.rows_max == 0:
            fitting = rows - self._lots.requests
        else:
            fitting = (rows - self._lots.rows) // max(lot.rows, 1)
        return min(max(fitting, 0), lot.count)

    def _room_of_level(self, lot: Lot) -> int:
        """Return how many requests of a lot its level's queue takes: all while nothing runs."""
        assert self._policy is not None
        requests_max = self._policy.of(lot.priority).requests_max
        if not requests_max or not (self._running or self._delay is not None):
            return lot.count
        level = self._policy.level(lot.priority)
        waiting = sum(
            other.count for other in self._lots if self._policy.level(other.priority) == level
        )
        return min(max(requests_max - waiting, 0), lot.count)

    # What runs.

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Run what waits: in threads, as many as there may be, or a turn of it here."""
        self._flush_due = False
        while self.could_run:
            if self._claim is not None and not self._claim.take():
                return
            turn, more = self._next_turn()
            if not turn:
                self._give_claim()
                if more:  # all of the window's callers have left; others wait behind them
                    continue
                return
            if self._outside is not None:
                self._begin(self._outside, turn[0])
                continue
            if self._off_loop:
                self._start(turn)
                continue
            self._threads.loop_works()
            self._settle_ended()  # first come, first answered
            for place, batch in enumerate(turn):
                try:
                    ran = self._runs.batch(batch)
                except RunStoppedError:
                    self._leave_loop(turn[place:])
                    break
                self._settle(*ran, learn=True)
            else:
                self._give_claim()
            if more:  # others have their turn, and what came meanwhile joins
                self._flush_soon()
            return

    def _give_claim(self) -> None:
        if self._claim is not None:
            self._claim.give()

    def _next_turn(self) -> tuple[list[Batch], bool]:
        """Take the batches of one turn out of the queue; say whether others can run behind it."""
        now_ns = time.monotonic_ns()
        lots = self._window()
        waiting = sum([lot.count for lot in lots])
        rows = rows_of(lots)
        ask = self._run_times.expected_ns(waiting) >= _WORTH_ASKING_NS * waiting
        answered_ns: float = now_ns
        if len(lots) > 1 and rows > self._forecast.rows_max:  # else it costs nobody anything to try
            answered_ns += self._forecast.times.expected_ns(self._forecast.rows_max or 1) * MARGIN
        live = [lot for lot in lots if lot.keep_live(now_ns, answered_ns, ask=ask)]
        if self._policy is None:
            batches = form(live, self._forecast.rows_max)
        else:
            batches = self._form_by(self._policy, live, now_ns)
        size = self._turn_size(batches)
        rest = [lot for batch in batches[size:] for lot in batch]
        if rest:
            self._lots.put_back(rest)
        return batches[:size], bool(rest) or (self._policy is None and bool(self._lots))

    def _window(self) -> list[Lot]:
        """Take the lots out of the queue that the next batches are formed of."""
        if self._policy is None and self._lots.rows > self._forecast.rows_max * _WINDOW_BATCHES:
            batch_ns = self._run_times.expected_ns(self._forecast.rows_max or 1)
            batches = _WINDOW_BATCHES + (_TURN_NS / batch_ns if batch_ns else WAITING_MAX)
            return self._lots.take(int(batches * max(self._forecast.rows_max, 1)))
        return self._lots.take_all()

    def _turn_size(self, batches: list[Batch]) -> int:
        """Return how many of the batches are one turn, and decide where it runs."""
        if not batches:
            return 0
        if self._outside is not None:
            return 1
        expected_ns = self._run_times.expected_ns(rows_of(batches[0]))
        limit_ns = _RETURN_TO_LOOP_NS if self._off_loop else _LEAVE_LOOP_NS
        self._off_loop = self._runs.bans_loop or expected_ns > limit_ns
        size, left_ns = 1, _TURN_NS - expected_ns
        while size < len(batches) and left_ns > 0:
            left_ns -= self._run_times.expected_ns(rows_of(batches[size]))
            size += 1
        return size

    def _form_by(self, policy: QueuePolicy, lots: list[Lot], now_ns: int) -> list[Batch]:
        """Form the batches that are to run now; what waits for company goes back to the queue."""
        if self._delay is not None:
            self._delay.cancel()
            self._delay = None
        batches, waiting = form_by(policy, lots, self._forecast.rows_max, now_ns)
        if waiting:
            self._lots.put_back(waiting)
            oldest_ns = min(lot.arrived_ns for lot in waiting)
            left_s = max(policy.delay_ns - (now_ns - oldest_ns), 0) / 1e9
            self._delay = asyncio.get_running_loop().call_later(left_s, self._delayed)
        return batches

    def _delayed(self) -> None:
        """Run what has waited long enough."""
        self._delay = None
        if self._running < self._runs_max and not self._flush_due:
            self._flush()

    def _begin(self, outside: Outside, batch: Batch) -> None:
        """Run a batch outside."""
        now_ns = time.monotonic_ns()
        rows = rows_of(batch)
        end_ns = self._forecast.begin(now_ns, self._forecast.times.expected_ns(rows))
        self._running += 1
        outside.begin(batch, partial(self._over, now_ns, end_ns, rows))

    def _end_run(self, end_ns: float) -> None:
        self._running -= 1
        self._give_claim()
        self._forecast.finish(end_ns)

    def _over(self, began_ns: int, end_ns: float, rows: int) -> None:
        self._end_run(end_ns)
        self.expect(rows, time.monotonic_ns() - began_ns)
        self.go_on()

    def _start(self, turn: list[Batch]) -> None:
        """Run a turn in a thread."""
        now_ns = time.monotonic_ns()
        rows = rows_of(turn[0])
        work_ns = self._forecast.times.expected_ns(rows) * len(turn)
        end_ns = self._forecast.begin(now_ns, work_ns)
        self._running += 1
        work = partial(self._runs.turn, turn)
        done = self._threads.start(asyncio.get_running_loop(), work, work_ns)
        done.add_done_callback(partial(self._finished, now_ns, end_ns, rows, len(turn)))

    def _leave_loop(self, turn: list[Batch]) -> None:
        """What held up everything gets its time in a thread, as all of its model from now on."""
        _LOG.warning("model %s: a run was too long for the event loop", self._name)
        self._runs.bans_loop = self._off_loop = True
        self._start(turn)

    def _finished(
        self,
        began_ns: int,
        end_ns: float,
        rows: int,
        batches: int,
        future: asyncio.Future[tuple[list[Answer], list[Ran]]],
    ) -> None:
        self._end_run(end_ns)
        # The whole way, the wait for a thread and for the loop included: so long others wait.
        self._forecast.times.learn(rows, (time.monotonic_ns() - began_ns) // batches)
        self._ended.append(future.result())
        # The next run goes on while these are answered.
        if self._lots and not self._flush_due:
            self._flush()
        self._settle_ended()

    def _settle_ended(self) -> None:
        while self._ended:
            self._settle(*self._ended.pop(0), learn=False)

    def _settle(self, answers: list[Answer], runs: list[Ran], *, learn: bool) -> None:
        """Count what ran and answer it."""
        for ran in runs:
            self._run_times.learn(ran.rows, ran.infer_ns)
            if learn:
                self._forecast.times.learn(ran.rows, ran.input_ns + ran.infer_ns + ran.output_ns)
            self._statistics.executed(ran.rows or 1, ran.input_ns, ran.infer_ns, ran.output_ns)
        for lot, answer in answers:
            if isinstance(answer, HeadraceError):
                lot.fail(answer)
            else:
                lot.answer(*answer)


def _fit(lot: Lot, room: int, full: Callable[[], HeadraceError]) -> Lot | None:
    """Return the part of a lot that there is room for, if any; the rest fails."""
    if room == lot.count:
        return lot
    kept = lot.cut(room) if room else None
    lot.fail(full())
    return kept


def _level_full() -> UnavailableError:
    return UnavailableError("Exceeds maximum queue size")
