"""A bundle's graph with the calibrator behind it: together they are what the version answers.

A version without one runs its session itself, so that it pays nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy.typing as npt

from headrace.errors import FailedPreconditionError
from server.execution.session import Session
from trainer.bundle import Bundle
from trainer.calibrators import BYTES_MAX, Calibrator, calibrate, read_calibrator

Array = npt.NDArray[Any]


class Graph(Protocol):
    """What is asked of a session: its nodes, in order, and its answers."""

    inputs: Sequence[Any]
    outputs: Sequence[Any]
    input_names: list[str]
    output_names: list[str]

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """Run the graph on `feeds`, in the order of `inputs`; return all outputs in order."""


class CalibratedGraph:
    """A session of which one output is calibrated."""

    def __init__(self, session: Session, calibrator: Calibrator, output: str) -> None:
        self.inputs = session.inputs
        self.outputs = session.outputs
        self.input_names = session.input_names
        self.output_names = session.output_names
        self._run = session.run
        self._calibrator = calibrator
        self._place = session.output_names.index(output)

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """Run the graph on `feeds`. Raises what `Session.run` and `calibrate` raise."""
        outputs = [*self._run(feeds)]
        outputs[self._place] = calibrate(self._calibrator, outputs[self._place])
        return outputs


def graph_of(bundle: Bundle, session: Session) -> Graph:
    """Return the graph as the bundle's decision layer has it; `session` itself without calibrator.

    Raises InvalidArgumentError for a bad calibrator, FailedPreconditionError for one too large.
    """
    decision = bundle.manifest.decision
    if decision is None or decision.calibrator is None:
        return session
    size = next(file.size for file in bundle.manifest.files if file.path == decision.calibrator)
    if size > BYTES_MAX:  # it is not even read
        raise FailedPreconditionError(
            "the calibrator is too large", where=bundle.digest, expected=BYTES_MAX, got=size
        )
    calibrator = read_calibrator(bundle.read(decision.calibrator))
    name = bundle.manifest.signature.outputs[decision.output_index].name
    return CalibratedGraph(session, calibrator, name)
