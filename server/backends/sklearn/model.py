"""A model of scikit-learn as steps, and the ONNX graph that answers as it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server.backends.forests.forest import Forest, forest_graph, write_trees
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


@dataclass(frozen=True)
class SklearnModel:
    """Steps and what predicts. `output`: what its answer is called."""

    steps: Sequence[Step]
    predicts: Forest | Linear
    features: int
    output: str

    def graph(self, input_name: str, output_name: str) -> bytes:
        """Return the ONNX file: input float32 [N, features] → output float32 [N, sums].

        Raises as `forest_graph`.
        """
        last = self.predicts
        if isinstance(last, Forest) and not self.steps:
            return forest_graph(last, input_name, output_name)
        writer = GraphWriter("sklearn")
        rows = writer.input(input_name, self.features)
        rows = writer.node("Cast", [rows], to=DOUBLE)
        for step in self.steps:
            rows = step.write(writer, rows)
        if isinstance(last, Forest):
            rows = writer.node("Cast", [rows], to=FLOAT)
            sums = len(last.base)
            scores = write_trees(writer, last, rows, "" if last.finish else output_name)
        else:
            sums = len(last.intercept)
            product = writer.node("MatMul", [rows, writer.constant(last.weights.T, "f8")])
            scores = writer.node("Add", [product, writer.constant(last.intercept, "f8")])
        if last.finish:
            output = output_name if isinstance(last, Forest) else ""
            scores = writer.node(last.finish, [scores], output)
        if isinstance(last, Linear):
            writer.node("Cast", [scores], output_name, to=FLOAT)
        writer.output(output_name, sums)
        return writer.finished()
