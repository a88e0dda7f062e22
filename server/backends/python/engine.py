"""The engine of a Python model: its queue in front of its instances.

An instance that ends is started again, later each time that it ended without having answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from headrace.errors import HeadraceError, UnavailableError
from server.backends.python.calls import Call
from server.backends.python.instance import Instance, Setup
from server.execution.batcher import Batcher, run_outside
from server.execution.callers import Callers
from server.execution.engine import Array, Asked, Outputs, Part
from server.execution.lots import Lot, Timing, deadline_passed
from server.execution.queue_policy import policy_of
from server.execution.rate_limiter import claim_of
from server.execution.statistics import Statistics
from server.execution.threads import RunThreads
from server.wire.handlers import as_headrace_error

_LOG = logging.getLogger(__name__)
_RESTART_MIN_S = 0.1
_RESTART_MAX_S = 30.0
# At the memory of its processes: of all of them, and of one that has just run.
_LOOK_S = 1.0
_LOOK_OFTEN_S = 0.05
# Above this share of what it may have an instance is started anew before it fails.
_FULL = 0.9
# For those who are still waiting when a model is unloaded.
_LEAVE_S = 60.0

# A request that came joined with others hears neither of its caller's deadline nor of his leaving
# while it runs: what takes longer comes by itself.
_JOINED_RUN_NS_MAX = 100_000_000
_RUN_WEIGHT = 0.2
# Where processes need every core the loop can do nothing during a run but take the core from it.
# It stays with a run that is expected to be short: for so long, and no longer in a row.
_STAY_RUN_NS_MAX = 1_000_000
_STAY_MAX_MS = 2
_STAY_IN_A_ROW_NS = 2_000_000

# Where a model gets its requests one by one: how many short ones its process may have at a time,
# with the one that runs.
_AHEAD_MAX = 8
_AHEAD_RUN_NS_MAX = 1_000_000

Start = Callable[[int], Awaitable[Instance]]


class PythonEngine:
    """Answers by processes. Made and used in the loop; `start` brings up the instance of a number.

    `owner` of its instances, and where its batcher's batches go.
    """

    def __init__(
        self,
        config: Any,
        setup: Setup,
        statistics: Statistics,
        threads: RunThreads,
        start: Start,
        *,
        count: int,
    ) -> None:
        self.input_names = [name for name, _ in setup.inputs]
        self.output_names = list(setup.outputs)
        self._setup = setup
        self._statistics = statistics
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._start = start
        self._instances: dict[Instance, int] = {}
        self._idle: deque[Instance] = deque()
        # Of each batch in an instance; of one after another where it has several.
        self._over: dict[Instance, deque[Callable[[], None]]] = {}
        self._failures: dict[int, int] = {}
        self._apart: bool = config.model_transaction_policy.decoupled
        self._run_ns = 0.0  # of a batch, on average
        self._filling: Instance | None = None  # to be idle soon, so that another takes its place
        self._stayed_ns = 0  # with runs since the loop went on
        self._callers = Callers()
        self._retired: asyncio.Task[None] | None = None
        self._restarts: set[asyncio.Task[None]] = set()
        # Without a batcher configured a model gets its requests one by one, as in Triton.
        is_plain = config.WhichOneof("scheduling_choice") is None
        joins = 0 if is_plain else config.max_batch_size
        claim = claim_of(config, threads.rate_limiter)
        self._sends_ahead = is_plain and not self._apart and count == 1 and claim is None
        self._batcher = Batcher(
            run_outside,
            joins,
            statistics,
            threads,
            name=setup.name,
            policy=policy_of(config),
            runs_max=_AHEAD_MAX if self._sends_ahead else count,
            outside=self,
            claim=claim,
        )
        self.generation = 0  # how many processes have ended: none remembers what another did
        self._looked_s = 0.0
        self._look = self._loop.call_later(_LOOK_S, self._look_at_memory)

    def serve(self, instances: dict[int, Instance]) -> None:
        """Begin with these, by number."""
        for number, instance in instances.items():
            self._instances[instance] = number
            self._idle.append(instance)

    # As an engine.

    @property
    def ready(self) -> bool:
        """Whether an instance lives."""
        return any(instance.alive for instance in self._instances)

    @property
    def queue(self) -> Batcher | None:
        """Where requests may come as lots: while they are short, and all alike to the model."""
        joins = not self._apart and self._run_ns < _JOINED_RUN_NS_MAX
        return self._batcher if joins else None

    @property
    def waiting(self) -> int:
        """How many requests wait until they run."""
        return self._batcher.waiting

    async def answer(self, feeds: list[Array], rows: int, asked: Asked) -> Outputs:
        """Return the one response. Raises the model's error; DeadlineExceededError whatever the
        model is doing; UnavailableError when its process ends."""
        call = self._call(feeds, rows, asked)
        timer = self._timer(call)
        try:
            self._batcher.join(call)
            arrays, timing = await call.future
        finally:
            self._leave(call, timer)
        return Outputs(arrays, timing, call.parameters)

    async def stream(self, feeds: list[Array], rows: int, asked: Asked) -> AsyncGenerator[Part]:
        """Yield the responses as they come. Raises as `answer`."""
        call = self._call(feeds, rows, asked)
        call.parts = asyncio.Queue()  # bounded by the credit of its sender
        timer = self._timer(call)
        try:
            self._batcher.join(call)
            final = False
            while not final:
                part = await call.parts.get()
                if isinstance(part, HeadraceError):
                    raise part
                final = part.final
                yield part
                if call.holder is not None:
                    call.holder.taken(call)
        finally:
            self._leave(call, timer)

    def _call(self, feeds: list[Array], rows: int, asked: Asked) -> Call:
        # Until a new process is there its calls wait; not when it was tried in vain.
        in_vain = any(count > 1 for count in self._failures.values())
        if not self.ready and (in_vain or self._retired is not None):
            raise UnavailableError(
                f"no process of model '{self._setup.name}' is running",
                mend="the server's log says why; it is started again",
            )
        self._callers.come()
        return Call(
            feeds, rows, asked.deadline_ns, self._loop.create_future(), priority=asked.priority,
            timeout_ns=asked.timeout_ns, who=asked.who, asked=asked,
        )  # fmt: skip

    def _timer(self, call: Call) -> asyncio.TimerHandle | None:
        if call.deadline_ns is None:
            return None
        left_s = (call.deadline_ns - time.monotonic_ns()) / 1e9
        return self._loop.call_later(max(left_s, 0), lambda: call.fail(deadline_passed()))

    def _leave(self, call: Call, timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
        if not call.future.done():
            call.future.cancel()
        if call.holder is not None:
            call.holder.leave(call)
        self._callers.leave()

    def retire(self) -> None:
        """End the processes when those who ask are answered."""
        if self._retired is None:
            self._retired = self._loop.create_task(self._end())

    async def closed(self) -> None:
        """Retire it, and wait until its processes are gone."""
        self.retire()
        assert self._retired is not None
        await self._retired

    async def _end(self) -> None:
        self._look.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_S):
                await self._callers.gone()
        for task in self._restarts:
            task.cancel()
        await asyncio.gather(*self._restarts, return_exceptions=True)
        await asyncio.gather(
            *(instance.finalize(self._setup.finalize_max_s) for instance in self._instances)
        )
        self._instances.clear()
        self._idle.clear()

    # As what the batcher's batches go to.

    @property
    def has_room(self) -> bool:
        """Whether a batch could run at once, or as soon as a short one before it is done."""
        return bool(self._idle) or self._ahead() is not None

    def _ahead(self) -> Instance | None:
        """Return what runs something short, and can have the next one behind it.

        It then need not wait for us to hear of the end of each.
        """
        is_short = 0 < self._run_ns < _AHEAD_RUN_NS_MAX
        if not self._sends_ahead or self._filling is not None or not is_short:
            return None
        instance = next(iter(self._instances), None)
        if instance is None or not instance.alive or not 0 < instance.batches < _AHEAD_MAX:
            return None
        return instance

    def begin(self, batch: list[Lot], over: Callable[[], None]) -> None:
        """Run a batch; its calls are answered one by one."""
        instance = self._idle.popleft() if self._idle else self._ahead()
        assert instance is not None
        overs = self._over.setdefault(instance, deque())
        overs.append(over)
        if len(overs) == 1:
            self._threads.processes += 1
        try:
            instance.execute(batch)
        except Exception as error:  # noqa: BLE001 - its requests must hear of an end
            failure = as_headrace_error(error, f"model '{self._setup.name}'")
            for lot in batch:
                lot.fail(failure)
            self._end_run(instance, -1)
            self.freed(instance)
            return
        if self._run_ns < _STAY_RUN_NS_MAX and self._threads.crowded():
            self._stay(instance)

    def _stay(self, instance: Instance) -> None:
        """Wait for the end of a run as if the loop ran it itself."""
        if self._stayed_ns > _STAY_IN_A_ROW_NS:
            self._stayed_ns = 0
            return
        start_ns = time.monotonic_ns()
        instance.stay(_STAY_MAX_MS)
        self._stayed_ns += time.monotonic_ns() - start_ns

    def _end_run(self, instance: Instance, place: int = 0) -> None:
        overs = self._over[instance]
        over = overs[place]
        del overs[place]
        if not overs:
            self._threads.processes -= 1
        over()

    # As the owner of its instances.

    def over(self, instance: Instance) -> None:
        """The first of its batches runs no more."""
        self._end_run(instance)

    def freed(self, instance: Instance) -> None:
        """It may take the next batch."""
        if not instance.alive or instance in self._idle:
            return
        now_s = self._loop.time()
        if now_s - self._looked_s > _LOOK_OFTEN_S and (instance.idle or self._sends_ahead):
            self._looked_s = now_s
            self._filling = instance if self._is_full(instance) else None
        if self._filling is instance and instance.idle:
            instance.end("it had used its memory")
            return
        if not instance.batches:
            self._idle.append(instance)
        if self.has_room:
            self._batcher.go_on()

    def again(self, lots: list[Lot]) -> None:
        """Let these wait for the next process."""
        if self._retired is None:
            self._batcher.take(lots)
            return
        for lot in lots:
            lot.fail(UnavailableError(f"model '{self._setup.name}' is being unloaded"))

    def executed(self, rows: int, timing: Timing) -> None:
        """A batch was run."""
        self._statistics.executed(rows or 1, timing.input_ns, timing.infer_ns, timing.output_ns)
        self._run_ns += (timing.infer_ns - self._run_ns) * _RUN_WEIGHT

    def keep_apart(self) -> None:
        """Let requests come one by one."""
        self._apart = True

    def ended(self, instance: Instance, reason: str) -> None:
        """Start another in its place."""
        self.generation += 1
        if self._filling is instance:
            self._filling = None
        if instance in self._idle:
            self._idle.remove(instance)
        while self._over.get(instance):
            self._end_run(instance)
        self._over.pop(instance, None)
        number = self._instances.get(instance)
        if number is None or self._retired is not None:
            return
        name = self._setup.name
        _LOG.error("model %s: the process of instance %d ended: %s", name, number, reason)
        if instance.answered:
            self._failures[number] = 0
        task = self._loop.create_task(self._restart(number, instance))
        self._restarts.add(task)
        task.add_done_callback(self._restarts.discard)

    async def _restart(self, number: int, instance: Instance) -> None:
        while True:
            failures = self._failures.get(number, 0)
            self._failures[number] = failures + 1
            await asyncio.sleep(min(_RESTART_MIN_S * 2**failures, _RESTART_MAX_S))
            try:
                new = await self._start(number)
                break
            except HeadraceError as error:
                _LOG.error("model %s: it cannot be started again: %s", self._setup.name, error)
        self._instances.pop(instance, None)
        self._instances[new] = number
        self._idle.append(new)
        self._batcher.go_on()

    def _is_full(self, instance: Instance) -> bool:
        return instance.resident_bytes > _FULL * self._setup.memory_bytes_max

    def _look_at_memory(self) -> None:
        self._look = self._loop.call_later(_LOOK_S, self._look_at_memory)
        for instance in list(self._instances):
            if not instance.alive:
                continue
            instance.give_back_memory()
            if instance.idle and self._is_full(instance):
                instance.end("it had used its memory")
