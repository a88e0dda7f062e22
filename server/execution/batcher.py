"""Batches: everything that one event-loop tick brings for one model runs as one batch.

Batching is the natural result of load, not of a timer: the first request of a tick asks for a
flush at the tick's end, and what arrives until then joins. A run that takes long goes to a thread;
what arrives meanwhile is the next batch. One request's fault never costs another its answer: a
batch that fails is run again request by request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import DeadlineExceededError, HeadraceError, ResourceExhaustedError
from server.execution.statistics import Statistics
from server.wire.handlers import as_headrace_error

Array = npt.NDArray[Any]
Run = Callable[[list[Array]], list[Array]]

_LOG = logging.getLogger(__name__)
WAITING_MAX = 4096  # requests of one model that wait for their batch
# A run that is expected to take longer than the first leaves the event loop; it comes back below
# the second. The gap keeps a model near the border from changing places at every run.
_LEAVE_LOOP_NS = 2_000_000
_RETURN_TO_LOOP_NS = 1_000_000
_EMA_WEIGHT = 0.2


@dataclass(slots=True)
class Timing:
    """Where the time of one request went, ns: waiting, joining, running and splitting its batch."""

    queue_ns: int
    input_ns: int
    infer_ns: int
    output_ns: int


@dataclass(slots=True)
class _Item:
    feeds: list[Array]
    rows: int
    deadline_ns: int | None
    future: asyncio.Future[tuple[list[Array], Timing]]
    arrived_ns: int = field(default_factory=time.monotonic_ns)


class _NoBatchDimensionError(Exception):
    """An output of a joined batch cannot be split: the model mixes rows, or drops the dimension."""


class Batcher:
    """The queue in front of one session.

    `rows_max` is the largest batch (0: the model has no batch dimension, every request runs alone).
    """

    def __init__(
        self, run: Run, rows_max: int, statistics: Statistics, executor: Executor, *, name: str
    ) -> None:
        self._run = run
        self._rows_max = rows_max
        self._statistics = statistics
        self._executor = executor
        self._name = name
        self._waiting: list[_Item] = []
        self._flush_due = False
        self._busy = False  # a run is in the executor
        self._off_loop = False
        self._row_ns = 0.0

    @property
    def waiting(self) -> int:
        """How many requests wait for their batch."""
        return len(self._waiting)

    def expect(self, rows: int, run_ns: int) -> None:
        """Learn from a run of `rows` rows that took `run_ns`."""
        row_ns = run_ns / max(rows, 1)
        self._row_ns += (row_ns - self._row_ns) * (_EMA_WEIGHT if self._row_ns else 1.0)

    async def submit(
        self, feeds: list[Array], rows: int, deadline_ns: int | None
    ) -> tuple[list[Array], Timing]:
        """Return the outputs for `feeds` (valid already; `rows` is their batch dimension).

        Raises ResourceExhaustedError when the queue is full, DeadlineExceededError when the
        monotonic `deadline_ns` passed before the run, InternalError when the model fails.
        """
        if len(self._waiting) >= WAITING_MAX:
            raise ResourceExhaustedError(
                f"the queue of model '{self._name}' is full", expected=f"at most {WAITING_MAX}"
            )
        loop = asyncio.get_running_loop()
        item = _Item(feeds, rows, deadline_ns, loop.create_future())
        self._waiting.append(item)
        if not self._flush_due and not self._busy:
            self._flush_due = True
            loop.call_soon(self._flush)
        return await item.future

    def _flush(self) -> None:
        self._flush_due = False
        waiting, self._waiting = self._waiting, []
        batches = self._form(waiting)
        for index, batch in enumerate(batches):
            if self._leaves_loop(sum(item.rows for item in batch)):
                self._busy = True
                self._waiting = [item for rest in batches[index + 1 :] for item in rest]
                loop = asyncio.get_running_loop()
                done = loop.run_in_executor(self._executor, self._execute, batch)
                done.add_done_callback(partial(self._finished, batch))
                return
            self._settle(batch, self._execute(batch))

    def _form(self, waiting: list[_Item]) -> list[list[_Item]]:
        """Group what still wants an answer into batches that can be one array each."""
        now_ns = time.monotonic_ns()
        live = []
        for item in waiting:
            if item.future.done():  # the caller went away
                continue
            if item.deadline_ns is not None and now_ns >= item.deadline_ns:
                item.future.set_exception(
                    DeadlineExceededError("the caller's deadline passed in the model's queue")
                )
                continue
            live.append(item)
        if self._rows_max == 0 or len(live) == 1:
            return [[item] for item in live]
        open_batches: dict[tuple[tuple[int, ...], ...], tuple[list[_Item], int]] = {}
        batches: list[list[_Item]] = []
        for item in live:
            key = tuple(array.shape[1:] for array in item.feeds)
            batch, rows = open_batches.get(key, ([], 0))
            if not batch or rows + item.rows > self._rows_max:
                batch, rows = [], 0
                batches.append(batch)
            batch.append(item)
            open_batches[key] = (batch, rows + item.rows)
        return batches

    def _leaves_loop(self, rows: int) -> bool:
        expected_ns = self._row_ns * max(rows, 1)
        limit_ns = _RETURN_TO_LOOP_NS if self._off_loop else _LEAVE_LOOP_NS
        self._off_loop = expected_ns > limit_ns
        return self._off_loop

    def _execute(self, batch: list[_Item]) -> list[tuple[list[Array], Timing] | HeadraceError]:
        """Run one batch; return an answer or an error per item. Runs in the loop or in a thread."""
        try:
            return list(self._run_joined(batch))
        except _NoBatchDimensionError:
            _LOG.warning("model %s: its outputs have no batch dimension", self._name)
            self._rows_max = 0  # from here on every request of it runs alone
        except Exception as error:  # noqa: BLE001 - whatever a run raises belongs to its requests
            if len(batch) == 1:
                if error.__cause__ is not None:
                    _LOG.error("model %s: %s", self._name, error.__cause__)
                return [as_headrace_error(error, f"model '{self._name}'")]
        return [answer for item in batch for answer in self._execute([item])]

    def _run_joined(self, batch: list[_Item]) -> list[tuple[list[Array], Timing]]:
        start_ns = time.monotonic_ns()
        rows = [item.rows for item in batch]
        feeds = batch[0].feeds
        if len(batch) > 1:
            columns = zip(*(item.feeds for item in batch), strict=True)
            feeds = [np.concatenate(arrays) for arrays in columns]
        joined_ns = time.monotonic_ns()
        outputs = self._run(feeds)
        run_ns = time.monotonic_ns()
        parts = [outputs]
        if len(batch) > 1:
            parts = _split(outputs, rows)
        end_ns = time.monotonic_ns()
        self.expect(sum(rows), run_ns - joined_ns)
        durations = (joined_ns - start_ns, run_ns - joined_ns, end_ns - run_ns)
        self._statistics.executed(max(sum(rows), 1), *durations)
        return [
            (part, Timing(start_ns - item.arrived_ns, *durations))
            for part, item in zip(parts, batch, strict=True)
        ]

    def _settle(
        self, batch: list[_Item], answers: list[tuple[list[Array], Timing] | HeadraceError]
    ) -> None:
        for item, answer in zip(batch, answers, strict=True):
            if item.future.done():
                continue
            if isinstance(answer, HeadraceError):
                item.future.set_exception(answer)
            else:
                item.future.set_result(answer)

    def _finished(
        self,
        batch: list[_Item],
        future: asyncio.Future[list[tuple[list[Array], Timing] | HeadraceError]],
    ) -> None:
        self._busy = False
        self._settle(batch, future.result())
        if self._waiting and not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)


def _split(outputs: list[Array], rows: list[int]) -> list[list[Array]]:
    """Cut every output at the requests' borders."""
    total = sum(rows)
    for output in outputs:
        if output.ndim == 0 or output.shape[0] != total:
            raise _NoBatchDimensionError
    parts: list[list[Array]] = []
    start = 0
    for count in rows:
        parts.append([output[start : start + count] for output in outputs])
        start += count
    return parts
