"""Ragged batches: requests of different sizes in one run, one behind the other, without padding.

A ragged input reaches the graph as one dimension, all requests' elements in a row; *batch inputs*
tell it where each request lies. Kinds and meaning are Triton's (common, model_config.proto).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from server.execution.batcher import Batcher
from server.execution.engine import Array, Asked, JoinedEngine, Outputs


class Kind(Enum):
    """What a batch input tells of its source."""

    COUNT = "BATCH_ELEMENT_COUNT"
    ACCUMULATED = "BATCH_ACCUMULATED_ELEMENT_COUNT"
    ACCUMULATED_WITH_ZERO = "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO"
    MAX_AS_SHAPE = "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE"
    ITEM_SHAPE = "BATCH_ITEM_SHAPE"
    ITEM_SHAPE_FLATTEN = "BATCH_ITEM_SHAPE_FLATTEN"


@dataclass(frozen=True, slots=True)
class BatchInput:
    """One input that is made of a batch: its source is an input of the requests."""

    name: str
    kind: Kind
    source: str
    dtype: np.dtype[Any]

    def tensor(self, counts: Array, shapes: Array) -> Array:
        """Return it. counts: elements of each request, INT64 [requests]; shapes: of each row of
        them without its batch dimension, INT64 [rows, rank]."""
        match self.kind:
            case Kind.COUNT:
                found = counts
            case Kind.ACCUMULATED:
                found = np.cumsum(counts)
            case Kind.ACCUMULATED_WITH_ZERO:
                found = np.concatenate([[0], np.cumsum(counts)])
            case Kind.MAX_AS_SHAPE:
                return np.zeros(counts.max(initial=0), self.dtype)
            case Kind.ITEM_SHAPE:
                found = shapes
            case _:
                found = shapes.reshape(-1)
        return found.astype(self.dtype)


class RaggedEngine:
    """Joins what requests have into the feeds of a graph's run.

    A queue joins arrays by their first dimension: so a request goes into it as flat tensors, and
    beside them, for each source, its count [1] and its rows' shapes [rows, rank].
    """

    def __init__(
        self,
        graph: JoinedEngine,
        ragged: frozenset[str],
        batch_inputs: Sequence[BatchInput],
        queue_for: Callable[[Callable[[list[Array]], list[Array]]], Batcher],
    ) -> None:
        """`queue_for` returns the queue in front of what runs joined arrays."""
        made = {entry.name for entry in batch_inputs}
        self.input_names = [name for name in graph.input_names if name not in made]
        self.output_names = graph.output_names
        self._graph = graph
        self._ragged = ragged
        self._batch_inputs = batch_inputs
        self._sources = sorted({entry.source for entry in batch_inputs})
        self._batcher = queue_for(self._run)

    ready = True
    queue = None

    @property
    def waiting(self) -> int:
        """How many requests wait for their batch."""
        return self._batcher.waiting

    async def answer(self, feeds: list[Array], rows: int, asked: Asked) -> Outputs:
        """Return the outputs of one request. Raises what `Batcher.submit` raises."""
        by_name = dict(zip(self.input_names, feeds, strict=True))
        parts = [
            array.reshape(-1) if name in self._ragged else array for name, array in by_name.items()
        ]
        for source in self._sources:
            array = by_name[source]
            parts.append(np.array([array.size]))
            parts.append(np.tile(np.array(array.shape[1:], np.int64), (rows, 1)))
        arrays, timing = await self._batcher.submit(
            parts, rows, asked.deadline_ns, asked.priority, asked.timeout_ns, asked.who
        )
        return Outputs(arrays, timing)

    def _run(self, parts: list[Array]) -> list[Array]:
        count = len(self.input_names)
        tensors = dict(zip(self.input_names, parts[:count], strict=True))
        beside = {
            source: (parts[count + 2 * at], parts[count + 2 * at + 1])
            for at, source in enumerate(self._sources)
        }
        for entry in self._batch_inputs:
            tensors[entry.name] = entry.tensor(*beside[entry.source])
        return self._graph.run([tensors[name] for name in self._graph.input_names])

    def retire(self) -> None:
        """Nothing of it outlives its requests."""

    async def closed(self) -> None:
        """Nothing of it outlives its requests."""
