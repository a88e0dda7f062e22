"""Explanations of a loaded model: a queue of their own beside that of its answers.

What a tick brings is explained together, in the loop where it is short and in a thread where it is
long, as the model's own batches are. A model that nobody asks to be explained pays for the trees
that were read when it was loaded, and for nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headrace.errors import DeadlineExceededError, UnimplementedError
from server.execution.batcher import Batcher
from server.execution.statistics import Statistics
from server.execution.threads import RunThreads
from server.explain.explainer import NO_DEADLINE, PERMUTATION, Explainer
from server.explain.trees import Ensemble, file_with_trees, read_ensemble

if TYPE_CHECKING:
    from server.models.calibrated import Graph
    from server.models.loaded import LoadedModel

Array = npt.NDArray[Any]
_LOG = logging.getLogger(__name__)
# What sampling takes until that is known: just too long for the loop.
_SAMPLING_NS = 2_500_000
_FLOATS = {"FP16", "FP32", "FP64"}
_WORD = 1 << 64
# Rows at once, and the longest that one may take, of those that nobody waits for.
_ASIDE_ROWS, _ASIDE_SAMPLED, _ASIDE_NS = 64, 1, 1_000_000_000


@dataclass(frozen=True, slots=True)
class Explanation:
    """Attributions of a request's rows.

    `values` float64 [rows, features, outputs] add up, with `base` float64 [rows, outputs], to the
    scores. `errors` are standard errors of `values`; None: they are exact.
    """

    method: str
    values: npt.NDArray[np.float64]
    base: npt.NDArray[np.float64]
    errors: npt.NDArray[np.float64] | None


class Explanations:
    """Explains the requests of one model."""

    def __init__(self, explainer: Explainer, rows_max: int, threads: RunThreads, name: str) -> None:
        self._explainer = explainer
        self._rows_max = rows_max
        self._threads = threads
        self._name = name
        self._preparing = asyncio.Lock()
        self._batcher: Batcher | None = None

    async def explain(
        self,
        feeds: list[Array],
        rows: int,
        deadline_ns: int | None,
        request_id: str = "",
        priority: int = 0,
    ) -> Explanation:
        """Explain checked `feeds`; what is random in it follows from `request_id`.

        Raises what `Batcher.submit` raises, and what `Explainer.check` raises.
        """
        batcher = self._batcher or await self._prepare()
        self._explainer.check(feeds, rows)
        until_ns = NO_DEADLINE if deadline_ns is None else deadline_ns
        more = [_seeds(request_id, rows), np.full(rows, until_ns, np.int64)]
        outputs, _ = await batcher.submit([*feeds, *more], rows, deadline_ns, priority)
        if time.monotonic_ns() >= until_ns:
            raise DeadlineExceededError("the caller's deadline passed while it was explained")
        values, base, *errors = outputs
        return Explanation(self._explainer.method, values, base, errors[0] if errors else None)

    def explain_aside(
        self,
        feeds: list[Array],
        seeds: Sequence[int],
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> Explanation | None:
        """Explain the first rows of checked `feeds`, at most as many as take no long time, beside
        the queue of requests: call it in a thread. What is random follows from the rows' `seeds`.

        None when it took longer than anybody waits. Raises what `Explainer.check` raises, and what
        the model raises.
        """
        explainer = self._explainer
        explainer.prepare()
        rows = min(len(seeds), _ASIDE_SAMPLED if explainer.method == PERMUTATION else _ASIDE_ROWS)
        until_ns = now_ns() + _ASIDE_NS
        first = [feed[:rows] for feed in feeds]
        explainer.check(first, rows)
        more = [np.array(seeds[:rows], np.uint64), np.full(rows, until_ns, np.int64)]
        values, base, *errors = explainer.run([*first, *more])
        if errors and now_ns() >= until_ns:
            return None
        return Explanation(explainer.method, values, base, errors[0] if errors else None)

    async def _prepare(self) -> Batcher:
        async with self._preparing:
            if self._batcher is None:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._threads, self._explainer.prepare)
                batcher = Batcher(
                    self._explainer.run,
                    min(self._rows_max, self._explainer.rows_at_once),
                    Statistics(),
                    self._threads,
                    name=self._name,
                )
                if self._explainer.method == PERMUTATION:
                    batcher.expect(1, _SAMPLING_NS)
                self._batcher = batcher
            return self._batcher


def explanations_of(
    model: LoadedModel,
    graph: Graph,
    file: bytes | Path,
    threads: RunThreads,
    background: Sequence[Array] | None = None,
) -> Explanations | None:
    """Return what explains a model of an ONNX file; None without a batch dimension: what is
    explained are rows. `background` are rows for the graph's inputs, where there are any."""
    if model.max_batch_size == 0:
        return None
    datatypes = [model.outputs[node.name].datatype for node in graph.outputs]
    score = next((at for at, datatype in enumerate(datatypes) if datatype in _FLOATS), None)
    if any(spec.datatype == "BYTES" for spec in model.feed_order):
        score = None
    explainer = Explainer(graph.run, score, _ensemble(file, model.name), background)
    return Explanations(explainer, model.max_batch_size, threads, model.name)


def not_explained(name: str) -> UnimplementedError:
    """Return the error of a model that nothing explains."""
    return UnimplementedError(
        f"model '{name}' cannot be explained", expected="an ONNX model with a batch dimension"
    )


def _ensemble(file: bytes | Path, name: str) -> Ensemble | None:
    data = file_with_trees(file)
    if data is None:
        return None
    try:
        return read_ensemble(data)
    except UnimplementedError as error:
        _LOG.info("model %s: attributions are sampled: %s", name, error.message)
        return None


def _seeds(request_id: str, rows: int) -> npt.NDArray[np.uint64]:
    """Return one seed a row; a request has the same ones each time it comes."""
    digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
    first = int.from_bytes(digest, "little")
    return np.array([(first + row) % _WORD for row in range(rows)], np.uint64)
