"""The engine of a model with sequences: their order and their state, in front of what runs them.

What the sequences need is decided in `sequences`; here its requests wait, its clock ticks, and what
it takes out runs. A run that began goes on when its caller leaves: the state it makes is the
sequence's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

from headrace.errors import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    UnavailableError,
)
from server.execution.callers import Callers
from server.execution.engine import Array, Asked, Outputs, Parameter
from server.execution.lots import deadline_passed
from server.execution.sequence_tensors import Flags, SequencePlan
from server.execution.sequences import SequenceId, Sequencer, Turn
from server.wire.handlers import as_headrace_error

_LOG = logging.getLogger(__name__)
_NO_FLAGS, _EMPTY_SLOT = Flags(), Flags(ready=False)
_UINT64 = 1 << 64
_NAME_BYTES_MAX = 128


class Lane(Protocol):
    """What runs requests: those that are given to it in one tick together, as far as it can.

    `generation` changes when it loses what it remembers of its sequences.
    """

    @property
    def input_names(self) -> Sequence[str]:
        """In this order it takes feeds."""

    @property
    def output_names(self) -> Sequence[str]:
        """In this order it gives outputs."""

    @property
    def generation(self) -> int:
        """How many memories it has had."""

    @property
    def ready(self) -> bool:
        """Whether it would run now."""

    async def answer(self, feeds: list[Array], rows: int, asked: Asked) -> Outputs:
        """Return what came of one request."""

    async def closed(self) -> None:
        """End what it holds."""


class _Held(NamedTuple):
    """What there is of an open sequence: its implicit states, and which memory of its lane."""

    states: list[Array]
    generation: int


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request that waits: a turn's payload."""

    feeds: list[Array]
    asked: Asked
    name: Array | None
    future: asyncio.Future[Outputs]

    def fail(self, error: HeadraceError) -> None:
        """Wake the caller, if there still is one."""
        if not self.future.done():
            self.future.set_exception(error)


class SequenceEngine:
    """Answers requests that are of sequences. Made in any thread, used in its loop.

    All `lanes` take and give the same tensors: those of clients, in the order of `input_names` and
    `output_names`, and those that the plan adds.
    """

    def __init__(
        self,
        model: str,
        plan: SequencePlan,
        lanes: Sequence[Lane],
        outputs: Sequence[str],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """`outputs` are those that clients see."""
        added = plan.added_inputs
        names = lanes[0].output_names
        self.input_names = [name for name in lanes[0].input_names if name not in added]
        self.output_names = list(outputs)
        self._model = model
        self._plan = plan
        self._lanes = lanes
        self._loop = loop
        self._seen = [names.index(name) for name in outputs]
        self._states = [names.index(state.output_name) for state in plan.states]
        self._core = Sequencer(model, len(lanes), plan.slots, plan.idle_ns, plan.direct)
        self._pump_due = False
        self._alarm: asyncio.TimerHandle | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._retired: asyncio.Task[None] | None = None
        self._callers = Callers()

    @property
    def ready(self) -> bool:
        """Whether a lane would run now."""
        return any(lane.ready for lane in self._lanes)

    @property
    def queue(self) -> None:
        """Each request comes by itself."""
        return

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn."""
        return self._core.waiting

    @property
    def open(self) -> int:
        """How many sequences there are."""
        return len(self._core)

    async def answer(self, feeds: list[Array], rows: int, asked: Asked) -> Outputs:
        """Return the outputs of one request of a sequence.

        Raises what `Sequencer.arrive` raises; InvalidArgumentError for more than one row;
        DeadlineExceededError whether it ran or not; UnavailableError when it waited for longer than
        its timeout; FailedPreconditionError when its sequence broke
        before it; what its run raises.
        """
        turn = self._arrive(feeds, rows, asked)
        timers = self._timers(turn, asked)
        self._callers.come()
        try:
            outputs: Outputs = await turn.payload.future
        except BaseException:
            self._fall(turn, self._core.give_up(turn))
            raise
        finally:
            for timer in timers:
                timer.cancel()
            self._callers.leave()
        return outputs

    def _timers(self, turn: Turn, asked: Asked) -> list[asyncio.TimerHandle]:
        """Return what ends a request's wait: its deadline at any time, its timeout in the queue."""
        waiting: _Waiting = turn.payload
        timers = []
        if asked.deadline_ns is not None:
            left_s = max(asked.deadline_ns - time.monotonic_ns(), 0) / 1e9
            late = partial(waiting.fail, deadline_passed())
            timers.append(self._loop.call_later(left_s, late))
        if asked.timeout_ns:
            timers.append(self._loop.call_later(asked.timeout_ns / 1e9, self._out_of_time, turn))
        return timers

    def _out_of_time(self, turn: Turn) -> None:
        if self._core.is_waiting(turn):
            turn.payload.fail(
                UnavailableError("timeout of the corresponding sequence has been expired")
            )

    def _arrive(self, feeds: list[Array], rows: int, asked: Asked) -> Turn:
        name, start, end = _position(asked.parameters)
        if rows > 1:
            raise InvalidArgumentError(
                f"inference request to model '{self._model}' must specify batch-size 1 due to "
                "requirements of sequence batcher"
            )
        correlation = None
        if self._plan.correlation is not None and name:
            correlation = self._plan.correlation.tensor(name, self._model)
        shape: Hashable = None
        if self._plan.direct is not None:
            shape = tuple(array.shape for array in feeds)
        now_ns = time.monotonic_ns()
        turn = self._core.arrive(name, start=start, end=end, now_ns=now_ns, shape=shape)
        turn.payload = _Waiting(feeds, asked, correlation, self._loop.create_future())
        self._pump_soon()
        return turn

    def _fall(self, turn: Turn, fallen: list[Turn]) -> None:
        """Tell those that fall with a turn."""
        for other in fallen:
            other.payload.fail(FailedPreconditionError(
                f"sequence {turn.sequence.name} of model '{self._model}' ended: a request of it "
                "before this one was given up before it ran",
                mend="start the sequence again",
            ))  # fmt: skip
        self._pump_soon()

    # What runs.

    def _pump_soon(self) -> None:
        """What else this tick brings runs together."""
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        now_ns = time.monotonic_ns()
        for name in self._core.expire(now_ns):
            _LOG.info("model %s: sequence %r was idle for too long", self._model, name)
        for lot in self._core.due(now_ns):
            lane = self._lanes[lot.lane]
            like = next(turn for turn in lot.turns if turn is not None)
            for turn in lot.turns:  # in this order they come to the lane
                if turn is None:
                    self._begin(self._fill(lane, like))
                else:
                    self._begin(self._run(lane, turn))
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        wake_ns = self._core.wake_ns()
        if wake_ns is not None:
            left_s = max(wake_ns - time.monotonic_ns(), 0) / 1e9
            self._alarm = self._loop.call_later(left_s, self._pump_soon)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, lane: Lane, turn: Turn) -> None:
        sequence, waiting = turn.sequence, turn.payload
        held: _Held = sequence.state or _Held(self._plan.initial, lane.generation)
        start_ns = time.monotonic_ns()
        try:
            if held.generation != lane.generation:
                raise self._forgotten(sequence.name)
            sequence.state = held
            outputs = await lane.answer(
                self._feeds(lane, turn, held),
                1,
                replace(waiting.asked, deadline_ns=None, priority=0, timeout_ns=0),
            )
            states = [outputs.arrays[index].copy() for index in self._states]
            outputs.arrays = [outputs.arrays[index] for index in self._seen]
            outputs.timing.queue_ns += start_ns - turn.arrived_ns
            sequence.state = _Held(states, held.generation)
            sequence.shape = tuple(array.shape for array in states)
            if not waiting.future.done():
                waiting.future.set_result(outputs)
        except Exception as error:  # noqa: BLE001 - a request's fault stays its own
            waiting.fail(as_headrace_error(error, f"model '{self._model}'"))
        finally:
            if held.generation != lane.generation:
                for other in self._core.forget(sequence):
                    other.payload.fail(self._forgotten(sequence.name))
            self._core.done(turn, time.monotonic_ns())
            self._pump_soon()

    async def _fill(self, lane: Lane, like: Turn) -> None:
        """Let an empty slot run beside others."""
        held: _Held = like.sequence.state or _Held(self._plan.initial, 0)
        tensors = {
            name: array
            for name, array in zip(self.input_names, like.payload.feeds, strict=True)
            if array is not None
        }
        tensors.update(self._plan.added(_EMPTY_SLOT, None, held.states))
        kept = self._plan.added_inputs - {state.input_name for state in self._plan.states}
        feeds: list[Any] = [
            array if (array := tensors.get(name)) is None or name in kept else _blank(array)
            for name in lane.input_names
        ]
        try:
            await lane.answer(feeds, 1, Asked())
        except HeadraceError:
            _LOG.debug("model %s: an empty slot failed", self._model)

    def _feeds(self, lane: Lane, turn: Turn, held: _Held) -> list[Array]:
        waiting: _Waiting = turn.payload
        tensors = dict(zip(self.input_names, waiting.feeds, strict=True))
        flags = Flags(turn.start, turn.end)
        tensors.update(self._plan.added(flags, waiting.name, held.states))
        return [tensors[name] for name in lane.input_names]

    def _forgotten(self, name: SequenceId) -> FailedPreconditionError:
        return FailedPreconditionError(
            f"sequence {name} of model '{self._model}' ended: the process that held it is gone",
            mend="start the sequence again",
        )

    # What ends.

    def retire(self) -> None:
        """Let no sequence start. Who waits is answered; what is open then is over."""
        if self._retired is None:
            self._core.retire()
            self._retired = self._loop.create_task(self._end())

    async def closed(self) -> None:
        """Retire it, and return when those who wait are answered."""
        self.retire()
        assert self._retired is not None
        await self._retired

    async def _end(self) -> None:
        await self._callers.gone()
        if self._running:
            await asyncio.wait(set(self._running))
        if self._alarm is not None:
            self._alarm.cancel()
        await asyncio.gather(*(lane.closed() for lane in self._lanes))


def _blank(array: Array) -> Array:
    blank = array.copy()
    blank.fill(b"" if array.dtype == object else 0)
    return blank


def _position(parameters: Mapping[str, Parameter]) -> tuple[SequenceId, bool, bool]:
    """Return whose request it is, whether it starts and whether it ends a sequence."""
    flags = []
    for flag in ("sequence_start", "sequence_end"):
        value = parameters.get(flag, False)
        if not isinstance(value, bool):
            raise InvalidArgumentError(
                f"invalid value type for '{flag}' parameter, expected bool_param."
            )
        flags.append(value)
    return _name(parameters.get("sequence_id", 0)), flags[0], flags[1]


def _name(given: Parameter) -> SequenceId:
    if isinstance(given, bool) or not isinstance(given, int | str):
        raise InvalidArgumentError(
            "invalid value type for 'sequence_id' parameter, expected int64_param or string_param."
        )
    if isinstance(given, str):
        if len(given.encode()) > _NAME_BYTES_MAX:
            raise InvalidArgumentError(
                "parameter 'sequence_id' is too long", expected=f"at most {_NAME_BYTES_MAX} bytes"
            )
        return given
    if not -(_UINT64 >> 1) <= given < _UINT64:
        raise InvalidArgumentError("parameter 'sequence_id' does not fit 64 bits", got=given)
    return given % _UINT64  # gRPC carries an unsigned number in a signed field
