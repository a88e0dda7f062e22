"""The ensemble platform: models that run one after another, or beside each other, as one model.

A step runs as soon as all of its tensors are there, through its model's own queue: the same step of
many requests is one batch. It is run by the version that serves at that moment.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from headrace.errors import (
    FailedPreconditionError,
    HeadraceError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from server.backends.contract import Host, Made, ModelConfig, VersionFiles
from server.backends.ensemble_plan import Find, Plan, Step, plan_of
from server.execution.batcher import Batcher
from server.execution.engine import Array, Asked, Outputs
from server.execution.lots import Timing, deadline_passed
from server.execution.statistics import Statistics
from server.models.loaded import LoadedModel, ServedModel
from server.models.pbtxt import drafted
from server.models.signatures import signatures
from server.protocol.tensors import Tensor, bytes_from_session

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
        return Made(full, EnsembleEngine(full.name, plan, *names, host.find, statistics))


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

    @property
    def ready(self) -> bool:
        """Whether all of its steps would answer now."""
        try:
            return all(self._find(step.model, step.version).ready for step in self._plan.steps)
        except HeadraceError:
            return False

    @property
    def queue(self) -> Batcher | None:
        """None: each request goes its own way through the steps."""
        return None

    @property
    def waiting(self) -> int:
        """Requests wait in the queues of its steps only."""
        return 0

    async def answer(self, feeds: list[Array], rows: int, asked: Asked) -> Outputs:
        """Return the outputs of one request. Raises what a step raises, and where."""
        run = _Run(self._name, self._plan, self._find, asked)
        run.tensors.update(
            (name, array)
            for name, array in zip(self.input_names, feeds, strict=True)
            if array is not None
        )
        await run.all_steps()
        timing = run.timing
        self._statistics.executed(rows or 1, timing.input_ns, timing.infer_ns, timing.output_ns)
        return Outputs([run.tensors[name] for name in self.output_names], timing)

    def retire(self) -> None:
        """Nothing of it outlives its requests."""

    async def closed(self) -> None:
        """Nothing of it outlives its requests."""


class _Run:
    """One request on its way through the steps."""

    def __init__(self, name: str, plan: Plan, find: Find, asked: Asked) -> None:
        self.tensors: dict[str, Array] = {}
        self.timing = Timing(0, 0, 0, 0)  # of all steps, as if none ran beside another
        self._name = name
        self._plan = plan
        self._find = find
        self._asked = asked
        self._begun: set[int] = set()

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
        wanted = [name for name, _ in step.outputs]
        try:
            model = self._find(step.model, step.version)
            tensors = [
                Tensor(name, spec.datatype, self.tensors[tensor])
                for name, tensor in step.inputs
                if (spec := model.inputs.get(name)) is not None
            ]
            feeds, rows = model.check(tensors, wanted)
            own = replace(asked, wanted=wanted)
            outputs = await model.infer(feeds, rows, own)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(self._where(error)) from None
        except NotFoundError as error:  # it was there when the ensemble was loaded
            raise UnavailableError(self._where(error)) from None
        self._add(outputs.timing)
        self._take(step, model, outputs.arrays)

    def _take(self, step: Step, model: ServedModel, arrays: list[Array]) -> None:
        by_name: dict[str, tuple[str, Any]] = {
            spec.name: (spec.datatype, array)
            for spec, array in zip(model.outputs.values(), arrays, strict=True)
        }
        for name, tensor in step.outputs:
            datatype, array = by_name[name]
            if array is None:
                raise InternalError(
                    f"in ensemble '{self._name}', step '{step.model}' gave no output '{name}'"
                )
            if datatype == "BYTES" and isinstance(model, LoadedModel):
                array = bytes_from_session(array)
            self.tensors[tensor] = array

    def _add(self, timing: Timing) -> None:
        own = self.timing
        own.queue_ns += timing.queue_ns
        own.input_ns += timing.input_ns
        own.infer_ns += timing.infer_ns
        own.output_ns += timing.output_ns

    def _where(self, error: HeadraceError) -> str:
        return f"in ensemble '{self._name}', {error.message}"
