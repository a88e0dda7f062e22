"""Attributions of logged rows that nobody asked for: a sample of what was answered is explained.

The rows wait here until they are explained, then they go to the tap. They are explained after their
answers, in a thread of their own, which rests four times as long as it works: however many rows
there are, answers lose no more than a fifth of a core to it. What waits is bounded; rows beyond it
are logged as they are, and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from monitor.schema import EXPLAINED
from server.models.explanations import Explanation, Explanations
from server.tap import Tap
from server.wire.handlers import as_headrace_error

_LOG = logging.getLogger(__name__)
Array = npt.NDArray[Any]

ROWS_MAX: Final = 1024  # that wait
_REST: Final = 4.0
_END_S: Final = 1.0


@dataclass(slots=True)
class LoggedRows:
    """Rows as the tap takes them, what the model got of each, and a seed for each."""

    constants: Mapping[str, Any]
    columns: Mapping[str, Sequence[Any]]
    feeds: list[Array]
    seeds: list[int]
    explanations: Explanations


class AttributionLog:
    """Explains rows on their way to the tap. All but the explaining happens in the loop."""

    def __init__(self, tap: Tap) -> None:
        self._tap = tap
        self._waiting: deque[LoggedRows] = deque()
        self._rows_waiting = 0
        self._thread: ThreadPoolExecutor | None = None  # whoever samples nothing needs none
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._told: set[str] = set()
        self.rows_explained = 0
        self.rows_skipped = 0

    def take(self, rows: LoggedRows) -> None:
        """Log these rows once they are explained; at once, as they are, when too many wait."""
        count = len(rows.seeds)
        if self._rows_waiting + count > ROWS_MAX or self._closing.is_set():
            self.rows_skipped += count
            self._tap.log(count, rows.constants, rows.columns)
            return
        self._waiting.append(rows)
        self._rows_waiting += count
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Log what waits as it is, after what is being explained."""
        self._closing.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=_END_S)
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        try:
            while self._waiting:
                rows = self._waiting.popleft()
                try:
                    await self._explain(rows)
                finally:
                    self._rows_waiting -= len(rows.seeds)
        finally:  # it is cancelled: nothing waits otherwise
            for rows in self._waiting:
                self._log(rows, 0, len(rows.seeds), None)

    async def _explain(self, rows: LoggedRows) -> None:
        """Explain and log rows, some at a time; at the end log those that are left as they are."""
        at, count = 0, len(rows.seeds)
        try:
            while at < count and not self._closing.is_set():
                started_ns = time.monotonic_ns()
                found = await self._next(rows, at)
                end = count if found is None else at + len(found.values)
                self._log(rows, at, end, found)
                at = end
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_REST * (time.monotonic_ns() - started_ns) / 1e9):
                        await self._closing.wait()
        finally:
            if at < count:
                self._log(rows, at, count, None)

    async def _next(self, rows: LoggedRows, at: int) -> Explanation | None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="attributions")
        feeds = [feed[at:] for feed in rows.feeds]
        explain, loop = rows.explanations.explain_aside, asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, explain, feeds, rows.seeds[at:])
        except Exception as error:  # noqa: BLE001 - a task boundary: nobody waits for this one
            self._say(str(rows.constants["model"]), error)
        return None

    def _say(self, model: str, error: Exception) -> None:
        """Say once of each model why its rows are not explained: likely it is so for all."""
        if model not in self._told:
            self._told.add(model)
            problem = as_headrace_error(error, f"attributions of model '{model}'")
            _LOG.warning("log rows of model %s lack attributions: %s", model, problem.message)

    def _log(self, rows: LoggedRows, at: int, end: int, found: Explanation | None) -> None:
        columns = {name: values[at:end] for name, values in rows.columns.items()}
        constants = rows.constants
        if found is None:
            self.rows_skipped += end - at
        else:
            self.rows_explained += end - at
            columns |= attribution_columns(found, range(end - at))
            constants = {**constants, "flags": constants["flags"] | EXPLAINED}
        self._tap.log(end - at, constants, columns)


def attribution_columns(found: Explanation, rows: Sequence[int]) -> dict[str, list[list[float]]]:
    """Return the log's columns of some rows: a row's attributions feature by feature, of several
    scores those of a feature together, and a base for each score."""
    places = list(rows)
    values = found.values[places].reshape(len(places), -1).astype(np.float32)
    base = found.base[places].astype(np.float32)
    return {"attributions": values.tolist(), "attribution_base": base.tolist()}
