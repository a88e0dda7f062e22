"""Runs of one session: a batch is joined, run, and split into answers.

One request's fault never costs another its answer: a batch that fails is run again request by
request.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError
from server import logs
from server.execution.batches import (
    Batch,
    NoBatchDimensionError,
    last_deadline_ns,
    rows_of,
    singles,
    split,
)
from server.execution.lots import Lot, Timing
from server.execution.watchdog import RunStoppedError, watchdog
from server.wire.handlers import as_headrace_error

Array = npt.NDArray[Any]
Run = Callable[[list[Array]], list[Array]]
Answer = tuple[Lot, tuple[list[Array], Timing] | HeadraceError]

_LOG = logging.getLogger(__name__)


class Ran(NamedTuple):
    """One run of a session, as `Statistics.executed` counts it."""

    rows: int
    input_ns: int
    infer_ns: int
    output_ns: int


class BatchRuns:
    """Runs batches by `run`, in the loop or in threads; no state of the queue is touched here.

    `no_batches` is called when the model turns out to have no batch dimension.
    """

    def __init__(self, run: Run, name: str, version: str, no_batches: Callable[[], None]) -> None:
        self._run = run
        self._name = name
        self._version = version
        self._no_batches = no_batches
        self.bans_loop = False  # one of its runs did not end there

    def turn(self, turn: list[Batch]) -> tuple[list[Answer], list[Ran]]:
        """Run batches one after another in this thread, which the watchdog looks after."""
        answers: list[Answer] = []
        runs: list[Ran] = []
        for batch in turn:
            more = self._in_thread(batch)
            answers += more[0]
            runs += more[1]
        return answers, runs

    def _in_thread(self, batch: Batch) -> tuple[list[Answer], list[Ran]]:
        try:
            with watchdog.until(last_deadline_ns(batch)):
                return self.batch(batch)
        except RunStoppedError as error:  # not again one by one: that would take as long each time
            _LOG.error("model %s: %s", self._name, error.message)
            return [(lot, error) for lot in batch], []

    def batch(self, batch: Batch) -> tuple[list[Answer], list[Ran]]:
        """Run one batch; return an answer or an error per lot. Runs in the loop or in a thread.

        Raises RunStoppedError when the watchdog has ended it.
        """
        try:
            return self._run_joined(batch)
        except NoBatchDimensionError:
            _LOG.warning("model %s: its outputs have no batch dimension", self._name)
            self._no_batches()
        except RunStoppedError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a run raises belongs to its requests
            if len(batch) == 1 and batch[0].count == 1:
                about = {"model": self._name, "version": self._version, **batch[0].who()}
                if error.__cause__ is not None:
                    cause = error.__cause__
                    _LOG.error("model %s: %s", self._name, cause, extra=logs.about(**about))
                failure = as_headrace_error(error, f"model '{self._name}'", **about)
                return [(batch[0], failure)], []
        answers: list[Answer] = []
        runs: list[Ran] = []
        for single in [single for lot in batch for single in singles(lot)]:
            try:
                more = self.batch([single])
            except RunStoppedError as error:
                self.bans_loop = True
                answers.append((single, error))
                continue
            answers += more[0]
            runs += more[1]
        return answers, runs

    def _run_joined(self, batch: Batch) -> tuple[list[Answer], list[Ran]]:
        start_ns = time.monotonic_ns()
        rows = rows_of(batch)
        feeds = batch[0].feeds()
        if len(batch) > 1:
            columns = zip(feeds, *(lot.feeds() for lot in batch[1:]), strict=True)
            feeds = [np.concatenate(arrays) for arrays in columns]
        joined_ns = time.monotonic_ns()
        outputs = self._run(feeds)
        run_ns = time.monotonic_ns()
        parts = [outputs]
        if len(batch) > 1 or batch[0].count > 1:
            parts = split(outputs, batch, rows)
        end_ns = time.monotonic_ns()
        input_ns, infer_ns, output_ns = joined_ns - start_ns, run_ns - joined_ns, end_ns - run_ns
        spent = input_ns, infer_ns, output_ns, start_ns, rows
        answers: list[Answer] = [
            (lot, (part, Timing(start_ns - lot.arrived_ns, *spent)))
            for lot, part in zip(batch, parts, strict=True)
        ]
        return answers, [Ran(rows, input_ns, infer_ns, output_ns)]
