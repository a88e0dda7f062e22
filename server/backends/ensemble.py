"""The ensemble platform: models that run one after another, or beside each other, as one model.

A step runs as soon as all of its tensors are there, through its model's own queue: the same step of
many requests is one batch. It is run by the version that serves at that moment. A chain of graphs
takes its requests as lots (`ensemble_lots`); here is the way of all others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

from headrace.errors import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
)
from server.backends.contract import Host, Made, ModelConfig, VersionFiles
from server.backends.ensemble_lots import Chain, LotChain
from server.backends.ensemble_plan import Find, Plan, Step, chain_of, plan_of
from server.backends.ensemble_steps import add_timing, fed, made, placed, wanted
from server.execution.batcher import Batcher
from server.execution.engine import Array, Asked, Outputs
from server.execution.lots import Timing, deadline_passed
from server.execution.statistics import Statistics
from server.execution.threads import RunThreads
from server.models.pbtxt import drafted
from server.models.signatures import signatures

PLATFORM = "ensemble"


class EnsembleBackend:
    """Loads configurations: an ensemble has no file."""

    default_filename = ""
    graphs = False

    def load(
        self,
        files: VersionFiles,
        number: int,
        config: ModelConfig | None,
        host: Host,
        statistics: Statistics,
    ) -> Made:
        """Return the ensemble. Raises FailedPreconditionError for steps that do not fit."""
        full = drafted(config, files.name)
        full.platform = PLATFORM
        if full.model_transaction_policy.decoupled:
            raise FailedPreconditionError("an ensemble cannot be decoupled", where="config.pbtxt")
        for kind, tensors in (("input", full.input), ("output", full.output)):
            if not tensors:
                raise FailedPreconditionError(
                    f"no {kind} is configured", where="config.pbtxt", expected=f"an '{kind}'"
                )
        inputs = signatures(full.input, full.max_batch_size)
        outputs = signatures(full.output, full.max_batch_size)

        async def planned() -> Plan:
            return plan_of(full, inputs, outputs, host.find)

        plan = asyncio.run_coroutine_threadsafe(planned(), host.loop).result()
        names = [spec.name for spec in inputs], [spec.name for spec in outputs]
        engine = EnsembleEngine(full.name, plan, *names, host.find, statistics)
        if full.max_batch_size > 0 and not any(tensor.optional for tensor in full.input):
            engine.join(full.max_batch_size, host.executor)
        return Made(full, engine)


class EnsembleEngine:
    """Runs the steps of each request."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        input_names: list[str],
        output_names: list[str],
        find: Find,
        statistics: Statistics,
    ) -> None:
        self.input_names = input_names
        self.output_names = output_names
        self._name = name
        self._plan = plan
        self._find = find
        self._statistics = statistics
        self._lots: LotChain | None = None
        self._order: tuple[int, ...] = ()  # of the steps of lots

    def join(self, rows_max: int, threads: RunThreads) -> None:
        """Take requests as lots of at most so many rows, where the steps are a chain."""
        order = chain_of(self._plan, self.input_names)
        if order is None:
            return
        self._order = order
        steps = tuple(self._plan.steps[index] for index in order)
        chain = Chain(self._name, steps, self.input_names, self.output_names, rows_max)
        self._lots = LotChain(chain, self._find, self._statistics, threads, self._run_rest)

    @property
    def ready(self) -> bool:
        """Whether all of its steps would answer now."""
        try:
            return all(self._find(step.model, step.version).ready for step in self._plan.steps)
        except HeadraceError:
            return False

    @property
    def queue(self) -> Batcher | None:
        """Where lots go; None where each request goes its own way through the steps."""
        return None if self._lots is None else self._lots.queue

    @property
    def waiting(self) -> int:
        """How many lots' requests wait; all others do in the queues of its steps only."""
        return 0 if self._lots is None else self._lots.waiting

    async def answer(self, feeds: list[Array], rows: int, asked: Asked) -> Outputs:
        """Return the outputs of one request. Raises what a step raises, and where."""
        tensors = {
            name: array
            for name, array in zip(self.input_names, feeds, strict=True)
            if array is not None
        }
        outputs = await self._run(tensors, (), asked)
        timing = outputs.timing
        self._statistics.executed(rows or 1, timing.input_ns, timing.infer_ns, timing.output_ns)
        if self._lots is not None:
            self._lots.ran(timing)
        return outputs

    async def _run_rest(self, tensors: dict[str, Array], place: int, asked: Asked) -> Outputs:
        return await self._run(tensors, self._order[:place], asked)

    async def _run(self, tensors: dict[str, Array], done: Sequence[int], asked: Asked) -> Outputs:
        run = _Run(self._name, self._plan, self._find, asked, tensors, done)
        await run.all_steps()
        return Outputs([run.tensors[name] for name in self.output_names], run.timing)

    def retire(self) -> None:
        """Nothing of it outlives its requests."""

    async def closed(self) -> None:
        """Nothing of it outlives its requests."""


class _Run:
    """One request on its way through the steps."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        find: Find,
        asked: Asked,
        tensors: dict[str, Array],
        done: Sequence[int],
    ) -> None:
        self.tensors = tensors
        self.timing = Timing(0, 0, 0, 0)  # of all steps, as if none ran beside another
        self._name = name
        self._plan = plan
        self._find = find
        self._asked = asked
        self._begun = set(done)

    async def all_steps(self) -> None:
        """Run every step as soon as it can."""
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                ready = self._ready()
                if len(ready) == 1 and not running:  # a chain, nearly always: without a task
                    await self._step(self._plan.steps[ready[0]])
                    continue
                running |= {
                    asyncio.create_task(self._step(self._plan.steps[index])) for index in ready
                }
                if not running:
                    return
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.gather(*running, return_exceptions=True)

    def _ready(self) -> list[int]:
        """Return the steps that can begin now, and let none of them begin twice."""
        there = self.tensors.keys()
        ready = [
            index
            for index, needs in enumerate(self._plan.needs)
            if index not in self._begun and needs <= there
        ]
        self._begun.update(ready)
        return ready

    async def _step(self, step: Step) -> None:
        asked = self._asked
        if asked.deadline_ns is not None and time.monotonic_ns() >= asked.deadline_ns:
            raise deadline_passed()
        try:
            model = self._find(step.model, step.version)
            feeds, rows = fed(step, model, self.tensors)
            own = replace(asked, wanted=wanted(step))
            outputs = await model.infer(feeds, rows, own)
        except (InvalidArgumentError, NotFoundError) as error:
            raise placed(self._name, error) from None
        add_timing(self.timing, outputs.timing)
        self.tensors |= made(self._name, step, model, outputs.arrays)
