"""A model of scikit-learn as steps, and the ONNX graph that answers as it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server.backends.forests.forest import Forest, write_forest
from server.backends.graph_writer import DOUBLE, FLOAT, GraphWriter

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """(x − `values`) / `scale`, float64 [features] each."""

    values: Floats
    scale: Floats

    def write(self, writer: GraphWriter, rows: str) -> str:
        """Add it to a graph; return its output."""
        moved = writer.node("Sub", [rows, writer.constant(self.values, "f8")])
        return writer.node("Div", [moved, writer.constant(self.scale, "f8")])


@dataclass(frozen=True)
class Fill:
    """`values`, float64 [features], where there is NaN."""

    values: Floats

    def write(self, writer: GraphWriter, rows: str) -> str:
        """Add it to a graph; return its output."""
        missing = writer.node("IsNaN", [rows])
        return writer.node("Where", [missing, writer.constant(self.values, "f8"), rows])


Step = Affine | Fill


@dataclass(frozen=True)
class Linear:
    """`weights` · x + `intercept`, float64 [sums, features] and [sums]; `finish` as a forest's."""

    weights: Floats
    intercept: Floats
    finish: str

    @property
    def sums(self) -> int:
        """How many there are."""
        return len(self.intercept)

    def write(self, writer: GraphWriter, rows: str, output: str) -> None:
        """Add it to a graph."""
        product = writer.node("MatMul", [rows, writer.constant(self.weights.T, "f8")])
        scores = writer.node("Add", [product, writer.constant(self.intercept, "f8")])
        if self.finish:
            scores = writer.node(self.finish, [scores])
        writer.node("Cast", [scores], output, to=FLOAT)


@dataclass(frozen=True)
class SklearnModel:
    """Steps and what predicts. `output`: what its answer is called."""

    steps: Sequence[Step]
    predicts: Forest | Linear
    features: int
    output: str

    def graph(self, input_name: str, output_name: str) -> bytes:
        """Return the ONNX file: input float32 [N, features] → output float32 [N, sums].

        Raises as `Forest.graph`.
        """
        last = self.predicts
        if isinstance(last, Forest) and not self.steps:
            return last.graph(input_name, output_name)
        writer = GraphWriter("sklearn")
        rows = writer.input(input_name, self.features)
        rows = writer.node("Cast", [rows], to=DOUBLE)
        for step in self.steps:
            rows = step.write(writer, rows)
        if isinstance(last, Forest):
            write_forest(writer, last, writer.node("Cast", [rows], to=FLOAT), output_name)
        else:
            last.write(writer, rows, output_name)
        writer.output(output_name, last.sums)
        return writer.finished()
