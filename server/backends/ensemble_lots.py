"""A chain of graphs whose requests come as lots: all that a tick brings goes from step to step.

Where each step follows the one before and all are graphs, nothing tells the requests of a lot
apart but their rows. So they stay one lot in each step's queue, without a task or a future for
each; a queue that cuts a lot cuts its tensors here, too, and one request's fault is its own. What
has short runs goes through all steps at once, in the tick that brought it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from headrace.errors import HeadraceError
from server.backends.ensemble_plan import Find, Step
from server.backends.ensemble_steps import add_timing, fed, made, placed
from server.execution.batcher import Batcher, run_outside
from server.execution.batches import singles
from server.execution.engine import Array, Asked, Outputs
from server.execution.lots import Lot, Timing, why_late
from server.execution.statistics import Statistics
from server.execution.threads import RunThreads
from server.models.loaded import LoadedModel, ServedModel
from server.wire.handlers import as_headrace_error

# On its way through the steps a lot hears neither of its callers' deadlines nor of their leaving:
# what runs longer goes request by request.
_RUNS_NS_MAX = 100_000_000
_RUNS_WEIGHT = 0.2
# Steps that run in the loop one after another, before others have their turn.
_TURN_NS = 2_000_000

# Runs the steps from this place on for one request that has these tensors.
Apart = Callable[[dict[str, Array], int, Asked], Awaitable[Outputs]]


@dataclass(frozen=True, slots=True)
class Chain:
    """What an ensemble's lots go through; the names are of its tensors."""

    name: str
    steps: tuple[Step, ...]
    inputs: Sequence[str]
    outputs: Sequence[str]
    rows_max: int


class LotChain:
    """What an ensemble's queue gives its batches to. Everything happens in the loop."""

    def __init__(
        self, chain: Chain, find: Find, statistics: Statistics, threads: RunThreads, apart: Apart
    ) -> None:
        self.chain = chain
        self.statistics = statistics
        self._find = find
        self._apart = apart
        self._asking: set[asyncio.Task[None]] = set()
        self._waiting: list[list[StepLot]] = [[] for _ in chain.steps]  # to enter a step
        self._is_running = self._is_due = False
        self._runs_ns = 0.0  # of all steps, on average
        self._batcher = Batcher(
            run_outside,
            chain.rows_max,
            statistics,
            threads,
            name=chain.name,
            # As many as can have a step, or a core, of their own.
            runs_max=max(len(chain.steps), threads.cores),
            outside=self,
        )

    @property
    def queue(self) -> Batcher | None:
        """Where lots may go now; None while each request is to go by itself."""
        if self._runs_ns > _RUNS_NS_MAX:
            return None
        try:
            joins = all(
                self._joins(self._find(step.model, step.version)) for step in self.chain.steps
            )
        except HeadraceError:
            return None
        return self._batcher if joins else None

    @property
    def waiting(self) -> int:
        """How many requests wait until they begin."""
        return self._batcher.waiting

    def ran(self, timing: Timing) -> None:
        """Learn how long the steps of a request or of a lot ran."""
        self._runs_ns += (timing.infer_ns - self._runs_ns) * _RUNS_WEIGHT

    # As what the batcher's batches go to.

    @property
    def has_room(self) -> bool:
        """Always: the steps have queues of their own."""
        return True

    def begin(self, batch: list[Lot], over: Callable[[], None]) -> None:
        """Let the lots of a batch go their way."""
        flight = _Flight(len(batch), over)
        for lot in batch:
            try:
                tensors = dict(zip(self.chain.inputs, lot.feeds(), strict=True))
            except Exception as error:  # noqa: BLE001 - its requests must hear of an end
                lot.fail(as_headrace_error(error, f"ensemble '{self.chain.name}'"))
                flight.landed()
            else:
                self._waiting[0].append(StepLot(self, flight, lot, tensors))
        self._run()

    def passed(self, lot: StepLot) -> None:
        """Let a lot that has passed a step enter the next one, with all that has."""
        self._waiting[lot.place].append(lot)
        if not self._is_running:
            self._run_soon()

    def _run_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._run_due)

    def _run_due(self) -> None:
        self._is_due = False
        self._run()

    def _run(self) -> None:
        """Let what waits enter its step, and what comes of it at once the next one."""
        end_ns = time.monotonic_ns() + _TURN_NS
        self._is_running = True
        try:
            place = 0
            while place < len(self._waiting):
                lots = self._waiting[place]
                if not lots:
                    place += 1
                    continue
                if time.monotonic_ns() > end_ns:
                    break
                self._waiting[place] = []
                self._enter(self.chain.steps[place], lots)
        finally:
            self._is_running = False
        if any(self._waiting):
            self._run_soon()

    def _enter(self, step: Step, lots: list[StepLot]) -> None:
        try:
            model = self._find(step.model, step.version)
        except HeadraceError as error:
            for lot in lots:
                lot.end(placed(self.chain.name, error))
            return
        if not self._joins(model):  # it was swapped for one of another kind just now
            for lot in lots:
                self._leave(lot)
            return
        ready = [lot for lot in lots if lot.enter(step, model)]
        if ready:
            model.batcher.take(list(ready))

    def _joins(self, model: ServedModel) -> bool:
        """Return whether a step's model takes lots; a smaller one takes single requests only."""
        return (
            isinstance(model, LoadedModel)
            and model.max_batch_size >= self.chain.rows_max
            and model.cached is None
        )

    def _leave(self, lot: StepLot) -> None:
        for single in singles(lot):
            assert isinstance(single, StepLot)
            task = asyncio.get_running_loop().create_task(self._finish_apart(single))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _finish_apart(self, lot: StepLot) -> None:
        try:
            outputs = await self._apart(lot.tensors, lot.place, lot.asked())
            lot.finish(outputs.arrays, outputs.timing)
        except Exception as error:  # noqa: BLE001 - its request must hear of an end
            lot.end(as_headrace_error(error, f"ensemble '{self.chain.name}'"))


@dataclass(slots=True)
class _Flight:
    """A batch under way: so many of its lots, or of what they were cut to, are not answered."""

    left: int
    over: Callable[[], None]
    began_ns: int = field(default_factory=time.monotonic_ns)

    def landed(self) -> None:
        self.left -= 1
        if not self.left:
            self.over()


class StepLot:
    """A lot of the ensemble in the queue of one of its steps: the same requests."""

    __slots__ = (
        "_at", "_chain", "_feeds", "_flight", "_lot", "_timing", "arrived_ns", "place", "tensors",
    )  # fmt: skip

    def __init__(
        self, chain: LotChain, flight: _Flight, lot: Lot, tensors: dict[str, Array]
    ) -> None:
        self._chain = chain
        self._flight = flight
        self._lot = lot
        self.tensors = tensors
        self.place = 0  # of the step that it is in, or before
        self._at: tuple[Step, ServedModel] | None = None
        self.arrived_ns = 0
        self._feeds: list[Array] = []
        waited_ns = flight.began_ns - lot.arrived_ns
        self._timing = Timing(waited_ns, 0, 0, 0, flight.began_ns, lot.count * lot.rows)

    # On its way.

    def enter(self, step: Step, model: ServedModel) -> bool:
        """Make ready for a step; return whether it can run. Otherwise its requests have failed."""
        try:
            self._feeds, _ = fed(step, model, self.tensors)
        except HeadraceError as error:
            self.end(placed(self._chain.chain.name, error))
            return False
        self._at, self.arrived_ns = (step, model), time.monotonic_ns()
        return True

    def end(self, error: HeadraceError) -> None:
        """Fail all requests with one error."""
        self._lot.fail(error)
        self._flight.landed()

    def finish(self, outputs: list[Array], last: Timing) -> None:
        """Answer all requests with the ensemble's outputs, of which `last` were the last runs."""
        timing = self._timing
        add_timing(timing, last)
        for _ in range(self.count):  # as Triton counts: an ensemble joins nothing itself
            self._chain.statistics.executed(
                self.rows, timing.input_ns, timing.infer_ns, timing.output_ns
            )
        self._chain.ran(timing)
        self._lot.answer(outputs, timing)
        self._flight.landed()

    def asked(self) -> Asked:
        """Return what its one request asks for beside its tensors."""
        lot = self._lot
        return Asked(
            deadline_ns=lot.last_deadline_ns, priority=lot.priority, timeout_ns=lot.timeout_ns,
            who=lot.who,
        )  # fmt: skip

    # As a lot of the step's queue.

    @property
    def count(self) -> int:
        """How many requests are in it."""
        return self._lot.count

    @property
    def rows(self) -> int:
        """Rows of each request."""
        return self._lot.rows

    @property
    def shape(self) -> tuple[tuple[int, ...], ...]:
        """One shape per feed, without the first dimension."""
        return tuple([array.shape[1:] for array in self._feeds])

    @property
    def priority(self) -> int:
        """What its requests asked for."""
        return self._lot.priority

    @property
    def timeout_ns(self) -> int:
        """How long its requests ask to wait at most."""
        return self._lot.timeout_ns

    @property
    def first_deadline_ns(self) -> int:
        """Its requests' first."""
        return self._lot.first_deadline_ns

    @property
    def last_deadline_ns(self) -> int | None:
        """When the last of its callers has gone."""
        return self._lot.last_deadline_ns

    def who(self) -> dict[str, str]:
        """Say which request the first one is, for the log."""
        return self._lot.who()

    def keep_live(self, now_ns: int, answered_ns: float, *, ask: bool) -> int:
        """End all where even the last would be late. Else all are left: which one's caller has
        gone shows at the end of the way."""
        last_ns = self.last_deadline_ns
        if last_ns is None or answered_ns < last_ns:
            return self.count
        self.fail(why_late(last_ns, now_ns))
        return 0

    def cut(self, count: int) -> StepLot:
        """Take the first `count` requests out, with their rows of every tensor."""
        rows = count * self.rows
        tensors = {name: array[:rows] for name, array in self.tensors.items()}
        part = StepLot(self._chain, self._flight, self._lot.cut(count), tensors)
        part._feeds = [array[:rows] for array in self._feeds]
        part._at, part.place, part.arrived_ns = self._at, self.place, self.arrived_ns
        part._timing = replace(self._timing)
        self.tensors = {name: array[rows:] for name, array in self.tensors.items()}
        self._feeds = [array[rows:] for array in self._feeds]
        self._flight.left += 1
        return part

    def feeds(self) -> list[Array]:
        """Return the step's feeds."""
        return self._feeds

    def answer(self, outputs: list[Array], timing: Timing) -> None:
        """Take the step's outputs and go on."""
        assert self._at is not None
        step, model = self._at
        total_ns = time.monotonic_ns() - self.arrived_ns
        model.statistics.succeeded(self.rows, total_ns, timing, requests=self.count)
        arrays = [outputs[index] for index in model.output_indexes.values()]
        name = self._chain.chain.name
        try:
            self.tensors |= made(name, step, model, arrays)
        except Exception as error:  # noqa: BLE001 - a call that never ends would count as work
            self.end(as_headrace_error(error, f"ensemble '{name}'"))
            return
        self.place += 1
        if self.place < len(self._chain.chain.steps):
            add_timing(self._timing, timing)
            self._chain.passed(self)
        else:
            self.finish([self.tensors[output] for output in self._chain.chain.outputs], timing)

    def fail(self, error: HeadraceError) -> None:
        """End all requests with a step's error, and count them there."""
        assert self._at is not None
        total_ns = time.monotonic_ns() - self.arrived_ns
        self._at[1].statistics.failed(total_ns, error, requests=self.count)
        self.end(placed(self._chain.chain.name, error))
