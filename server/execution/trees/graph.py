"""ONNX graphs that are one tree ensemble and what exporters put round it, and what they answer.

How scores become answers follows onnxruntime, not the letter of ONNX: two classes with one score
are told apart at 0, or at ½ where no weight is negative, for example. Whatever is read here is held
against onnxruntime's answers before it is used (`evaluator`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from headrace.errors import UnimplementedError
from server.explain.lookups import Lookups, read_lookups
from server.explain.trees import KINDS, Ensemble, aggregate_of, ensemble_of_node
from server.pb import onnx_trees_pb2 as pb

# What becomes of a row's scores s: as they are, each through the logistic function, all through
# softmax; of the one score of two classes: (1 − s, s), (−s, s), the logistic function of (−s, s).
PLAIN, LOGISTIC, SOFTMAX, SHARES, SIGNS, CHANCES = range(6)
# The label's number: none; whether the last score is above 0, above ½; the largest score's.
NO_LABEL, ABOVE_ZERO, ABOVE_HALF, LARGEST = range(4)
NODES_MAX: Final = 1 << 17  # more are walked down faster than all of them are looked at
_OUTPUTS_MAX: Final = 1 << 10
_PAIRS_MAX: Final = 1 << 20  # of a tree and an output
_SUM_MAX: Final = 1e37  # what float32 adds up without an overflow
_FLOAT, _INT64, _STRING = 1, 7, 8  # ONNX's numbers of data types
_TRANSFORMS = {b"NONE": PLAIN, b"LOGISTIC": LOGISTIC, b"SOFTMAX": SOFTMAX}
_ROWS, _LABEL, _SCORES, _SIGMOID = "rows", "label", "scores", "sigmoid"


@dataclass(frozen=True)
class TreeGraph:
    """What a graph computes of its one input, float32 [rows, features].

    Scores are the sums of `ensemble`'s weights over its trees, divided by their number if
    `averages`, and its base. `finish` and `label` are of the constants above; with `sigmoid` the
    graph puts that behind. `answers`: for each output, whether it is the label; a label is one of
    `labels`. With `lookups`, the trees see rows with their columns behind.
    """

    ensemble: Ensemble
    averages: bool
    finish: int
    sigmoid: bool
    label: int
    labels: NDArray[Any]
    answers: tuple[bool, ...]
    lookups: Lookups | None = None

    @property
    def features(self) -> int:
        """How many features a row has at least."""
        return self.ensemble.features if self.lookups is None else self.lookups.width

    @property
    def width(self) -> int:
        """How many numbers a row's answer has beside its label."""
        return 2 if self.finish in (SHARES, SIGNS, CHANCES) else self.ensemble.outputs


def read_tree_graph(model: bytes, outputs: Sequence[str]) -> TreeGraph:
    """Return what the ONNX file `model` computes for `outputs`.

    Raises UnimplementedError, naming what is in the way, for a graph that is more than trees.
    """
    try:
        graph = pb.Model.FromString(model).graph
    except DecodeError:
        raise _no("the file is no ONNX model") from None
    if len(graph.input) != 1:
        raise _no(f"the graph has {len(graph.input)} inputs, expected 1")
    begin, rows, lookups = _rows(graph)
    known = {rows: _ROWS}
    trees = None
    for node in graph.node[begin:]:  # sorted topologically, by ONNX
        if node.domain == "ai.onnx.ml" and node.op_type in KINDS and trees is None:
            if known.get(node.input[0] if node.input else "") != _ROWS:
                raise _no("its input does not go straight into the trees")
            trees = node
            answers = [_SCORES] if KINDS[node.op_type] == "target" else [_LABEL, _SCORES]
            known.update(zip(node.output, answers, strict=False))
        else:
            known[node.output[0] if node.output else ""] = _behind(node, known)
    if trees is None:
        raise _no("it has no tree ensemble")
    answers = [known.get(name, "") for name in outputs]
    if not {_LABEL, _SCORES, _SIGMOID}.issuperset(answers) or {_SCORES, _SIGMOID} <= set(answers):
        raise _no("its outputs are not what the trees say")
    read = _tree_graph(trees, answers)
    if lookups is None:
        return read
    if read.ensemble.features > lookups.width + len(lookups.owner):
        raise _no("a split is on a feature that rows do not have")
    return replace(read, lookups=lookups)


def _rows(graph: Any) -> tuple[int, str, Lookups | None]:
    """Return the first node that is no lookup, what trees see of rows, and the lookups."""
    for place, node in enumerate(graph.node):
        if node.op_type in KINDS and node.input:
            lookups = read_lookups(graph, node.input[0])
            if lookups is not None:
                return place, node.input[0], lookups
    return 0, graph.input[0].name, None


def _no(why: str) -> UnimplementedError:
    return UnimplementedError(f"its trees are not evaluated as such: {why}")


def _behind(node: Any, known: dict[str, str]) -> str:
    """Return what another node makes of what is `known`."""
    sources = [known.get(name, "") for name in node.input]
    source = sources[0] if sources else ""
    if node.domain in ("", "ai.onnx") and source:
        if node.op_type == "Identity":
            return source
        if node.op_type == "Sigmoid" and source == _SCORES:
            return _SIGMOID
        # LightGBM's exporter has one, by 1. By what else it is, the proof would tell.
        if node.op_type == "Mul" and sources == [_SCORES, ""]:
            return source
        kinds = (_INT64, _STRING) if source == _LABEL else (_FLOAT,)
        if node.op_type == "Cast" and [each.i in kinds for each in node.attribute] == [True]:
            return source
    raise _no(f"it has a node {node.op_type}")


def _tree_graph(node: Any, answers: list[str]) -> TreeGraph:
    attributes = {each.name: each for each in node.attribute}
    if any(name.endswith("_as_tensor") for name in attributes):
        raise _no("its numbers are not float32")
    trees = attributes["nodes_treeids"].ints if "nodes_treeids" in attributes else ()
    if len(trees) > NODES_MAX:
        raise _no(f"it has more than {NODES_MAX} nodes")
    ensemble = ensemble_of_node(node)
    _check_order(np.array(trees), ensemble.roots)
    _check_weights(ensemble)
    transform = _TRANSFORMS.get(_transform(attributes))
    if transform is None:
        raise _no("its scores are transformed otherwise")
    finish, label, labels = transform, NO_LABEL, np.empty(0)
    if KINDS[node.op_type] == "class":
        labels = _labels(attributes)
        finish, label = _classes(attributes, ensemble, transform, labels)
    elif ensemble.outputs == 1:
        finish = PLAIN  # onnxruntime transforms nothing there
    return TreeGraph(
        ensemble=ensemble,
        averages=aggregate_of(attributes) == b"AVERAGE",
        finish=finish,
        sigmoid=_SIGMOID in answers,
        label=label,
        labels=labels,
        answers=tuple(answer == _LABEL for answer in answers),
    )


def _classes(
    attributes: dict[str, Any], ensemble: Ensemble, transform: int, labels: NDArray[Any]
) -> tuple[int, int]:
    """Return `finish` and `label` of a classifier."""
    if len(labels) == 2 and ensemble.outputs == 1:
        if set(attributes["class_ids"].ints) != {0}:
            raise _no("the score is not that of the first class")
        finish, label = (
            (SHARES, ABOVE_HALF) if (ensemble.weight >= 0).all() else (SIGNS, ABOVE_ZERO)
        )
        return (CHANCES if transform == LOGISTIC else finish), label
    if len(labels) != ensemble.outputs or len(labels) < 3:
        # onnxruntime has rules of its own for two scores of two classes.
        raise _no(f"it has {len(labels)} classes with {ensemble.outputs} scores")
    return transform, LARGEST


def _labels(attributes: dict[str, Any]) -> NDArray[Any]:
    """Return the labels, int64 or str."""
    if "classlabels_strings" in attributes:
        try:
            texts = [each.decode() for each in attributes["classlabels_strings"].strings]
        except UnicodeDecodeError:
            raise _no("a label is not text") from None
        return np.array(texts, object)
    numbers = attributes.get("classlabels_int64s")
    return np.array(() if numbers is None else numbers.ints, np.int64)


def _check_order(trees: NDArray[np.int64], roots: NDArray[np.int32]) -> None:
    """onnxruntime takes trees in the order of the file, and the first node of each as its root."""
    firsts = np.flatnonzero(np.diff(trees, prepend=trees[0] - 1))
    if not np.array_equal(firsts, roots):
        raise _no("the nodes of a tree do not lie together, its root first")


def _check_weights(ensemble: Ensemble) -> None:
    """An output that some row gets no weight for has rules of its own in onnxruntime."""
    leaves = np.flatnonzero(ensemble.yes < 0)
    counts = np.diff(ensemble.weight_start)[leaves]
    if (counts < 1).any() or (ensemble.outputs == 1 and (counts > 1).any()):
        raise _no("a leaf has not one weight for its output")
    tree = _tree_of(ensemble)
    if ensemble.outputs > _OUTPUTS_MAX or len(ensemble.roots) * ensemble.outputs > _PAIRS_MAX:
        raise _no("it has too many outputs")
    of_weight = np.repeat(tree, np.diff(ensemble.weight_start))
    node = np.repeat(np.arange(len(tree)), np.diff(ensemble.weight_start))
    if len(np.unique(node * ensemble.outputs + ensemble.weight_output)) != len(node):
        raise _no("a leaf has two weights for an output")
    leaves_of = np.bincount(tree[leaves], minlength=len(ensemble.roots))
    pairs = np.zeros((len(ensemble.roots), ensemble.outputs), np.int64)
    np.add.at(pairs, (of_weight, ensemble.weight_output), 1)
    if not (pairs == leaves_of[:, None]).any(axis=0).all():
        raise _no("an output may get no weight")
    largest = np.zeros(len(ensemble.roots))
    np.maximum.at(largest, of_weight, np.abs(ensemble.weight))
    if not largest.sum() + np.abs(ensemble.base).max(initial=0) < _SUM_MAX:
        raise _no("its weights are too large")


def _tree_of(ensemble: Ensemble) -> NDArray[np.int64]:
    """Return each node's tree, by number; trees lie together (`_check_order`)."""
    marks = np.zeros(len(ensemble.yes), np.int64)
    marks[ensemble.roots] = 1
    numbers: NDArray[np.int64] = np.cumsum(marks) - 1
    return numbers


def _transform(attributes: dict[str, Any]) -> bytes:
    return bytes(attributes["post_transform"].s) if "post_transform" in attributes else b"NONE"
