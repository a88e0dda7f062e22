"""A model version that answers: its signature, its engine, its queue and its statistics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import (
    HeadraceError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnimplementedError,
)
from server.execution.batcher import Batcher
from server.execution.engine import (
    Asked,
    CallingEngine,
    Engine,
    JoinedEngine,
    Outputs,
    Part,
    StreamingEngine,
)
from server.execution.instances import instances_of
from server.execution.lots import Timing
from server.execution.queue_policy import policy_of
from server.execution.rate_limiter import claim_of
from server.execution.response_cache import CachedRun, CachedRuns
from server.execution.statistics import Statistics
from server.execution.threads import RunThreads
from server.execution.watchdog import RunStoppedError
from server.models.explanations import Explanation, Explanations, not_explained
from server.protocol.tensors import DATATYPES, Tensor, shape_text, strings_for_session

Array = npt.NDArray[Any]
_LOG = logging.getLogger(__name__)
_BATCH_NOTE = (
    ". NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to "
    "be prepended to each input shape. If you want to specify the full shape including the batch "
    "dim in your input dims config, try setting max_batch_size to zero"
)


@dataclass(frozen=True, slots=True)
class TensorSignature:
    """One input or output: OIP datatype and full shape (with the batch dimension), -1 = any."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ServedModel:
    """One version of one model. `max_batch_size` 0: its first dimension is not a batch."""

    batcher: Batcher  # where a door's lots go, of a model that takes lots
    takes_text = False  # BYTES as `str`, not `bytes`
    optional: frozenset[str] = frozenset()  # inputs that a request may leave out

    def __init__(
        self,
        name: str,
        version: str,
        engine: Engine,
        config: Any,
        inputs: Sequence[TensorSignature],
        outputs: Sequence[TensorSignature],
        statistics: Statistics | None = None,
        labels: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """`labels` are the names of classes, by output."""
        self.name = name
        self.version = version
        self.config = config
        self.max_batch_size: int = config.max_batch_size
        self.decoupled: bool = config.model_transaction_policy.decoupled
        self.inputs = {spec.name: spec for spec in inputs}
        self.outputs = {spec.name: spec for spec in outputs}
        order = {name: index for index, name in enumerate(engine.output_names)}
        # The engine's order is its own: feeds go in by the first, answers are found by the second.
        self.feed_order = [self.inputs[name] for name in engine.input_names]
        self.output_indexes = {spec.name: order[spec.name] for spec in outputs}
        self.labels = labels or {}
        self.statistics = Statistics() if statistics is None else statistics
        self.cached: CachedRuns | None = None  # where it answers by way of the response cache
        self.memory_bytes = 0  # that the process held more when it was loaded
        self.explanations: Explanations | None = None
        self.load_ns = 0  # what it took until it was ready; its loader says so

    @property
    def ready(self) -> bool:
        """Whether it would answer now."""
        return True

    @property
    def waiting(self) -> int:
        """How many requests wait until they run."""
        raise NotImplementedError

    def warm_up_with(self, feeds: list[Array], rows: int) -> list[Array]:
        """Run checked `feeds` as warm-up; return the outputs in the signature's order.

        Raises what the model raises.
        """
        raise NotImplementedError

    def discard(self) -> None:
        """End it before it served: what it holds goes with it."""

    def takes_lots(self) -> bool:
        """Return whether a door may bring its requests as lots now."""
        raise NotImplementedError

    def is_plain(self, request_id: str, wanted: Sequence[str]) -> bool:
        """Return whether a request is like any other to the model but for its tensors."""
        raise NotImplementedError

    async def infer(self, feeds: list[Array], rows: int, asked: Asked) -> Outputs:
        """Return the outputs for checked `feeds`; count both ends. Raises what the model raises."""
        raise NotImplementedError

    async def explain(
        self,
        feeds: list[Array],
        rows: int,
        deadline_ns: int | None,
        request_id: str = "",
        priority: int = 0,
    ) -> Explanation:
        """Explain checked `feeds`. Raises UnimplementedError where nothing explains the model, and
        what `Explanations.explain` raises."""
        if self.explanations is None:
            raise not_explained(self.name)
        return await self.explanations.explain(feeds, rows, deadline_ns, request_id, priority)

    def check(self, tensors: Sequence[Tensor], wanted: Sequence[str]) -> tuple[list[Array], int]:
        """Return the session's feeds, in order, and their rows.

        An optional input that is left out is None. Raises InvalidArgumentError, in Triton's words,
        naming the tensor.
        """
        given: dict[str, Tensor] = {}
        for tensor in tensors:
            if tensor.name in given:
                raise InvalidArgumentError(f"input '{tensor.name}' already exists in request")
            given[tensor.name] = tensor
        self._check_names(given, wanted)
        rows = -1
        feeds: list[Any] = []
        for spec in self.feed_order:
            if spec.name not in given:  # it is optional
                feeds.append(None)
                continue
            tensor = given[spec.name]
            if tensor.datatype != spec.datatype:
                raise InvalidArgumentError(
                    f"inference input '{spec.name}' data-type is '{tensor.datatype}', but model "
                    f"'{self.name}' expects '{spec.datatype}'"
                )
            self._check_shape(spec, tensor.array.shape)
            if self.max_batch_size > 0:
                size = tensor.array.shape[0]
                if size > self.max_batch_size:
                    raise InvalidArgumentError(
                        f"inference request batch-size must be <= {self.max_batch_size} "
                        f"for '{self.name}'"
                    )
                if rows not in {-1, size}:
                    raise InvalidArgumentError(
                        f"input '{spec.name}' batch size does not match other inputs "
                        f"for '{self.name}'"
                    )
                rows = size
            array = tensor.array
            if spec.datatype == "BYTES" and self.takes_text:
                array = strings_for_session(array, f"input '{spec.name}'")
            feeds.append(array)
        return feeds, (rows if rows >= 0 else 1)

    def _check_names(self, given: dict[str, Tensor], wanted: Sequence[str]) -> None:
        for name in given:
            if name not in self.inputs:
                raise InvalidArgumentError(
                    f"unexpected inference input '{name}' for model '{self.name}'"
                )
        missing: list[str] = []
        if len(given) != len(self.inputs):
            missing = [
                name for name in self.inputs if name not in given and name not in self.optional
            ]
        if missing:
            raise InvalidArgumentError(
                f"expected {len(self.inputs)} inputs but got {len(given)} inputs for model "
                f"'{self.name}'. Got input(s) {list(given)}, but missing required input(s) "
                f"{missing}. Please provide all required input(s)."
            )
        seen = set()
        for name in wanted:
            if name not in self.outputs:
                raise InvalidArgumentError(
                    f"unexpected inference output '{name}' for model '{self.name}'"
                )
            if name in seen:
                raise InvalidArgumentError(f"output '{name}' already exists in request")
            seen.add(name)

    def _check_shape(self, spec: TensorSignature, shape: tuple[int, ...]) -> None:
        expected = spec.shape
        if len(shape) == len(expected) and all(
            want in (-1, size) for want, size in zip(expected, shape, strict=True)
        ):
            return
        text = (
            f"unexpected shape for input '{spec.name}' for model '{self.name}'. "
            f"Expected {shape_text(expected)}, got {shape_text(shape)}"
        )
        raise InvalidArgumentError(text + (_BATCH_NOTE if self.max_batch_size > 0 else ""))


class LoadedModel(ServedModel):
    """A version whose requests are joined: the batcher is its queue, and the doors know it."""

    takes_text = True

    def __init__(
        self,
        name: str,
        version: str,
        engine: JoinedEngine,
        config: Any,
        inputs: Sequence[TensorSignature],
        outputs: Sequence[TensorSignature],
        executor: RunThreads,
        labels: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__(name, version, engine, config, inputs, outputs, labels=labels)
        self._engine = engine
        self.batcher = Batcher(
            engine.run,
            self.max_batch_size,
            self.statistics,
            executor,
            name=name,
            version=version,
            policy=policy_of(config),
            runs_max=instances_of(config, executor.cores).runs_max,
            claim=claim_of(config, executor.rate_limiter),
        )

    @property
    def waiting(self) -> int:
        """How many requests wait for their batch."""
        return self.batcher.waiting

    def takes_lots(self) -> bool:
        """Return True."""
        return True

    def is_plain(self, request_id: str, wanted: Sequence[str]) -> bool:
        """Return True: a graph sees nothing but tensors."""
        return True

    def warm_up(self) -> None:
        """Run a row of zeros twice: the first real request is then as fast as the others.

        A graph may refuse zeros (a lookup, a division): that is no fault of the model. Raises
        RunStoppedError for one that does not end, ResourceExhaustedError for one that fills the
        memory.
        """
        feeds = [
            np.full([1 if size < 0 else size for size in spec.shape], "0", object)
            if spec.datatype == "BYTES"
            else np.zeros(
                [1 if size < 0 else size for size in spec.shape], DATATYPES[spec.datatype].dtype
            )
            for spec in self.feed_order
        ]
        for _ in range(2):
            start_ns = time.monotonic_ns()
            try:
                self._engine.run(feeds)
            except (RunStoppedError, ResourceExhaustedError):  # no fault of the zeros
                raise
            except HeadraceError:
                _LOG.info("model %s: no warm-up, it does not take zeros", self.name)
                return
        self.batcher.expect(1, time.monotonic_ns() - start_ns)

    def warm_up_with(self, feeds: list[Array], rows: int) -> list[Array]:
        """Run checked `feeds` as warm-up: nobody waits, and no statistics count it.

        Returns the outputs in the signature's order. Raises InternalError when the graph fails on
        them.
        """
        start_ns = time.monotonic_ns()
        arrays = self._engine.run(feeds)
        self.batcher.expect(rows, time.monotonic_ns() - start_ns)
        return [arrays[index] for index in self.output_indexes.values()]

    async def infer(self, feeds: list[Array], rows: int, asked: Asked) -> Outputs:
        """Run checked `feeds`. Raises what `Batcher.submit` raises; counts both ends."""
        start_ns = time.monotonic_ns()
        if self.cached is not None:
            run = self.cached.run(feeds, rows, asked.deadline_ns, asked.priority, asked.timeout_ns)
            return await self._infer_cached(run, rows)
        try:
            arrays, timing = await self.batcher.submit(
                feeds, rows, asked.deadline_ns, asked.priority, asked.timeout_ns, asked.who
            )
        except HeadraceError as error:
            self.statistics.failed(time.monotonic_ns() - start_ns, error)
            raise
        return self._succeeded(arrays, timing, rows, start_ns)

    async def _infer_cached(self, run: Awaitable[CachedRun], rows: int) -> Outputs:
        start_ns = time.monotonic_ns()
        try:
            arrays, timing, lookup_ns = await run
        except HeadraceError as error:
            self.statistics.failed(time.monotonic_ns() - start_ns, error)
            raise
        if timing is None:
            self.statistics.answered_before(time.monotonic_ns() - start_ns, lookup_ns)
            arrays = [arrays[index] for index in self.output_indexes.values()]
            return Outputs(arrays, Timing(0, 0, 0, 0))
        self.statistics.missed(lookup_ns)
        return self._succeeded(arrays, timing, rows, start_ns)

    def _succeeded(self, arrays: list[Array], timing: Timing, rows: int, start_ns: int) -> Outputs:
        self.statistics.succeeded(rows, time.monotonic_ns() - start_ns, timing)
        return Outputs([arrays[index] for index in self.output_indexes.values()], timing)


class CalledModel(ServedModel):
    """A version whose engine gets every request as it is."""

    def __init__(
        self,
        name: str,
        version: str,
        engine: CallingEngine,
        config: Any,
        inputs: Sequence[TensorSignature],
        outputs: Sequence[TensorSignature],
        statistics: Statistics,
        loop: asyncio.AbstractEventLoop,
        labels: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """`statistics` are those in which the engine counts its executions, `loop` is the one in
        which it is asked."""
        super().__init__(name, version, engine, config, inputs, outputs, statistics, labels)
        self.optional = frozenset(tensor.name for tensor in config.input if tensor.optional)
        self._engine = engine
        self._streaming = engine if isinstance(engine, StreamingEngine) else None
        self._loop = loop

    def takes_lots(self) -> bool:
        """Return whether requests may come as lots now."""
        queue = self._engine.queue
        if queue is None:
            return False
        self.batcher = queue
        return True

    def is_plain(self, request_id: str, wanted: Sequence[str]) -> bool:
        """Return whether a request tells the model nothing beside its tensors."""
        return not request_id and set(wanted) in (set(), set(self.outputs))

    @property
    def ready(self) -> bool:
        """Whether it would answer now."""
        return self._engine.ready

    @property
    def waiting(self) -> int:
        """How many requests wait until they run."""
        return self._engine.waiting

    async def infer(self, feeds: list[Array], rows: int, asked: Asked) -> Outputs:
        """Return the one response to checked `feeds`. Raises UnimplementedError where there may be
        several, else what the engine raises; counts both ends."""
        if self.decoupled:
            raise UnimplementedError(
                f"model '{self.name}' is decoupled, a request to it may have many responses",
                mend="ask by ModelStreamInfer or generate_stream",
            )
        start_ns = time.monotonic_ns()
        try:
            outputs = await self._engine.answer(feeds, rows, asked)
        except HeadraceError as error:
            self.statistics.failed(time.monotonic_ns() - start_ns, error)
            raise
        self.statistics.succeeded(rows, time.monotonic_ns() - start_ns, outputs.timing)
        outputs.arrays = [outputs.arrays[index] for index in self.output_indexes.values()]
        return outputs

    async def stream(self, feeds: list[Array], rows: int, asked: Asked) -> AsyncGenerator[Part]:
        """Yield the responses of a decoupled model, the last one final; count both ends.

        Raises what the engine raises; an error that is one of the responses comes as such.
        """
        start_ns = time.monotonic_ns()
        failure: HeadraceError | None = None
        assert self._streaming is not None  # as it is decoupled
        try:
            async with aclosing(self._streaming.stream(feeds, rows, asked)) as parts:
                async for part in parts:
                    failure = failure or part.error
                    if part.arrays is not None:
                        part.arrays = [part.arrays[at] for at in self.output_indexes.values()]
                    yield part
        except HeadraceError as error:
            failure = error
            raise
        finally:
            total_ns = time.monotonic_ns() - start_ns
            if failure is not None:
                self.statistics.failed(total_ns, failure)
            else:
                self.statistics.succeeded(rows, total_ns, Timing(0, 0, total_ns, 0))

    def warm_up_with(self, feeds: list[Array], rows: int) -> list[Array]:
        """Run checked `feeds`; return the outputs in the signature's order. Not in the loop.

        Raises what the model raises; UnimplementedError when it is decoupled.
        """
        if self.decoupled:
            raise UnimplementedError("a decoupled model cannot be warmed up")
        # What an ONNX graph alone needs brings no gRPC.
        from server.models.sequence_config import whole_sequence

        running = asyncio.run_coroutine_threadsafe(
            self._engine.answer(feeds, rows, Asked(parameters=whole_sequence(self.config))),
            self._loop,
        )
        arrays = running.result().arrays
        return [arrays[index] for index in self.output_indexes.values()]

    def discard(self) -> None:
        """End it before it served. Not in the loop."""
        self._loop.call_soon_threadsafe(self._engine.retire)

    async def closed(self) -> None:
        """Retire it, and wait until it has ended."""
        await self._engine.closed()
