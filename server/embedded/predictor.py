"""A bundle that answers in the process of its caller."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from features import CompiledService, FeatureBatch, Table
from features.snapshots.file import Snapshot, open_snapshot
from features.types import row_count
from features.values import When, table_of_values, time_us
from headrace.errors import FailedPreconditionError
from headrace.ids import PredictionIds
from server.embedded.inputs import tensor_of_array
from server.embedded.only_model import OneBundle, OneModel, PlainConfig
from server.embedded.snapshot_features import SnapshotFeatures
from server.execution.engine import Asked
from server.execution.threads import RunThreads
from server.explained import RowExplanation
from server.models.graphs import DEFAULT_MAX_BATCH_SIZE
from server.models.versions import VersionLoader
from server.predict import DEADLINE_NS, Clocks, PredictCall
from server.predict import Predictor as ServedPredictor
from server.tap import Tap
from server.wire.handlers import Context
from trainer.bundle import read_bundle

Array = npt.NDArray[Any]
# Values of one column, one element a row: a list (None is null) or an array.
Values = Any
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Answer:
    """What was said of the rows of a call, one element (or row) for each.

    outputs: the model's first output, float32 [rows, width]; decisions: what the bundle's decision
    layer says ("": nothing, as the score is NaN), empty without one; features: what the model got,
    None for a model without a feature service; explanations: empty unless they were asked for.
    """

    outputs: npt.NDArray[np.float32]
    decisions: list[str]
    features: FeatureBatch | None
    explanations: list[RowExplanation]


class Predictor:
    """Answers for one bundle. Safe to call from threads: one call at a time has its turn.

    Make it after a fork, not before: it holds an event loop and threads. It works inside of a
    running event loop, too (a notebook), and keeps that waiting meanwhile.
    """

    def __init__(
        self,
        bundle: Path | str,
        snapshot: Path | str | Snapshot | None = None,
        *,
        digest: str | None = None,
    ) -> None:
        """Load and check the bundle in a folder: every byte, its signature, its golden rows.

        A bundle runs its own feature definitions, which are Python: load only what you trust.
        `digest` is what the bundle's must be, `sha256:…`. `snapshot` has the features; a model that
        takes none from a store needs none.

        Raises NotFoundError, FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError.
        """
        read = read_bundle(Path(bundle), digest)
        self._pid = os.getpid()
        self._turn = threading.Lock()
        self._threads = RunThreads(2, 1)  # a loop that may not run in the caller's, and a long run
        self._loop = asyncio.SelectorEventLoop()
        self._close = weakref.finalize(self, _close, self._loop, self._threads)
        loader = VersionLoader(OneBundle(read), self._threads, configure=PlainConfig.of_graph)
        self._version = loader.load(read.manifest.name, read.digest)
        self._features = SnapshotFeatures(self._version.service)
        if snapshot is not None:
            self.use_snapshot(snapshot)
        self._served = ServedPredictor(
            OneModel(self._version),
            self._features,
            Tap(None, 0),
            Clocks(PredictionIds(0, secrets.randbits(32))),
            replay_scope=True,
        )

    @property
    def model(self) -> str:
        """The model's name."""
        return self._version.manifest.name

    @property
    def digest(self) -> str:
        """`sha256:…` of the bundle, which is the version."""
        return self._version.digest

    @property
    def service(self) -> CompiledService | None:
        """The feature service: its columns, entities and request fields; None without one."""
        return self._version.service

    @property
    def snapshot(self) -> Snapshot | None:
        """Where features come from."""
        return self._features.snapshot

    def use_snapshot(self, snapshot: Path | str | Snapshot) -> None:
        """Take features from this snapshot from now on. The model stays loaded.

        Raises what `open_snapshot` raises, and FailedPreconditionError for a snapshot that lacks a
        view of the model: the one before then stays.
        """
        opened = snapshot if isinstance(snapshot, Snapshot) else open_snapshot(Path(snapshot))
        with self._turn:
            self._features.use(opened)

    def predict(
        self,
        inputs: Mapping[str, Values],
        *,
        event_time: When | None = None,
        explain: bool = False,
    ) -> Answer:
        """Answer rows: columns of entity ids and request fields, one element a row.

        A column is a list (None is null) or a NumPy array. `event_time` is the moment that windows
        and TTLs are judged by: UTC microseconds, ISO 8601 text or an aware datetime; now, where it
        is None. `explain` adds what each feature added.

        Raises InvalidArgumentError that names the column, FailedPreconditionError without the
        snapshot that is needed, ResourceExhaustedError, InternalError; with `explain` also
        UnimplementedError.
        """
        table = self._table(inputs)
        now_us = self._served.event_time_us(_optional_us(event_time))
        calls = [PredictCall(self.model, part, now_us, explain=explain) for part in _parts(table)]
        answers = self._run(lambda: self._predict(calls))
        return answers[0] if len(answers) == 1 else _joined(answers)

    async def _predict(self, calls: Sequence[PredictCall]) -> list[Answer]:
        return [await self._answer(call) for call in calls]

    async def _answer(self, call: PredictCall) -> Answer:
        self._features.last = None
        found = await self._served.predict(call, Context())
        decisions = found.decisions
        if not decisions and self._version.manifest.decision is not None:
            decisions = [""] * len(found.outputs)  # which a reply leaves out
        return Answer(found.outputs, decisions, self._features.last, found.explanations)

    def get_features(
        self, inputs: Mapping[str, Values], *, event_time: When | None = None
    ) -> FeatureBatch:
        """Return what the model would get for these rows, with the status of each feature.

        Raises FailedPreconditionError for a model without a feature service, else as `predict`.
        """
        service = self._version.service
        if service is None:
            raise FailedPreconditionError("the model has no feature service", where=self._where)
        table = self._table(inputs)
        now_us = self._served.event_time_us(_optional_us(event_time))
        times = np.full(row_count(table, self._where), now_us, np.int64)
        deadline_ns = time.monotonic_ns() + DEADLINE_NS
        return self._run(lambda: self._features.read(service, table, times, None, deadline_ns))

    def infer(self, inputs: Mapping[str, npt.ArrayLike]) -> dict[str, Array]:
        """Return all outputs for tensors by name, as they are: no features, no decision.

        An array has the datatype and the shape that the model's signature says; what is no array
        becomes one. Raises InvalidArgumentError that names the tensor, ResourceExhaustedError,
        InternalError.
        """
        model = self._version.model
        tensors = [
            tensor_of_array(
                name, value, model.inputs[name].datatype if name in model.inputs else ""
            )
            for name, value in inputs.items()
        ]
        feeds, rows = model.check(tensors, ())
        asked = Asked(deadline_ns=time.monotonic_ns() + DEADLINE_NS)
        answer = self._run(lambda: model.infer(feeds, rows, asked))
        return dict(zip(model.outputs, answer.arrays, strict=True))

    def close(self) -> None:
        """Give back what it holds; later calls are refused."""
        with self._turn:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _where(self) -> str:
        return f"inputs of model '{self.model}'"

    def _table(self, inputs: Mapping[str, Values]) -> Table:
        service = self._version.service
        dtypes = {} if service is None else service.input_types
        return table_of_values(inputs, dtypes, self._where)

    def _run(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Do `work` in the loop, in this thread: nobody is woken for a short answer."""
        if os.getpid() != self._pid:
            raise FailedPreconditionError(
                "this Predictor is of the process before the fork", mend="make one after it"
            )
        with self._turn:
            if not self._close.alive:
                raise FailedPreconditionError("this Predictor is closed")
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                return self._loop.run_until_complete(work())
            # One thread runs one loop: where the caller has one, it is another's turn.
            return self._threads.submit(self._loop.run_until_complete, work()).result()


def _optional_us(when: When | None) -> int | None:
    return None if when is None else time_us(when, "event_time")


def _parts(table: Table) -> list[Table]:
    """Return the table as tables of no more rows than a model takes at once; at least one."""
    rows = row_count(table, "inputs")
    if rows <= DEFAULT_MAX_BATCH_SIZE:
        return [table]
    return [
        {name: column.take(part) for name, column in table.items()}
        for part in np.split(
            np.arange(rows), range(DEFAULT_MAX_BATCH_SIZE, rows, DEFAULT_MAX_BATCH_SIZE)
        )
    ]


def _joined(answers: Sequence[Answer]) -> Answer:
    batches = [each.features for each in answers if each.features is not None]
    return Answer(
        np.concatenate([each.outputs for each in answers]),
        [decision for each in answers for decision in each.decisions],
        FeatureBatch(
            batches[0].service,
            np.concatenate([batch.words for batch in batches]),
            np.concatenate([batch.status for batch in batches]),
        )
        if batches
        else None,
        [explanation for each in answers for explanation in each.explanations],
    )


def _close(loop: asyncio.AbstractEventLoop, threads: RunThreads) -> None:
    """End the loop and the threads of a Predictor that nobody has any more."""
    threads.shutdown(wait=False, cancel_futures=True)
    if not loop.is_running():
        loop.close()
