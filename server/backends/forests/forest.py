"""Boosted trees, whoever grew them, and the ONNX graph that answers as they do.

Nothing is executed to read them, and nothing of what they say is believed: every index is looked
at before a runtime follows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headrace.errors import FailedPreconditionError, UnimplementedError
from server.explain.trees import FEATURES_MAX, ensemble_of
from server.pb import onnx_trees_pb2 as pb
from trainer.tree_columns import tree_columns
from trainer.trees import Tree

IR_VERSION, OPSET, ML_OPSET = 8, 17, 3
_FLOAT = 1  # ONNX's number of the data type
_FLOATS, _INT, _INTS, _STRING, _STRINGS = 6, 2, 7, 3, 8  # of attributes' types
_FLOAT32_MAX = float(np.finfo(np.float32).max)
# What becomes of the sums: the ONNX operator, and what its outcome is called.
PLAIN, SIGMOID, SOFTMAX, EXP = "", "Sigmoid", "Softmax", "Exp"
INPUT = "features"
OUTPUTS = {PLAIN: "value", SIGMOID: "probability", SOFTMAX: "probabilities", EXP: "value"}


@dataclass(frozen=True, slots=True)
class Forest:
    """Tree i adds one leaf to sum `targets[i]`; sums begin at `base`, and `finish` ends them.

    A row goes left where `branch` (BRANCH_LEQ, BRANCH_LT) holds for its feature. All numbers are
    such that float32 holds them.
    """

    trees: Sequence[Tree]
    targets: Sequence[int]
    features: int
    base: Sequence[float]
    finish: str
    branch: str


def forest_graph(forest: Forest, input_name: str, output_name: str) -> bytes:
    """Return the ONNX file: input float32 [N, features] → output float32 [N, sums].

    Raises FailedPreconditionError for trees that are none.
    """
    _check(forest)
    model = pb.Model(ir_version=IR_VERSION, producer_name="headrace")
    for domain, version in (("", OPSET), ("ai.onnx.ml", ML_OPSET)):
        model.opset_import.add(domain=domain, version=version)
    graph = model.graph
    graph.name = "forest"
    sums = len(forest.base)
    _describe(graph.input.add(name=input_name), forest.features)
    _describe(graph.output.add(name=output_name), sums)
    scores = f"{output_name}.sums" if forest.finish else output_name
    node = graph.node.add(op_type="TreeEnsembleRegressor", domain="ai.onnx.ml")
    node.input.append(input_name)
    node.output.append(scores)
    columns = tree_columns(forest.trees, forest.targets, forest.branch)
    for name, values in columns.items():
        node.attribute.append(_attribute(name, values))
    node.attribute.append(pb.Attribute(name="n_targets", i=sums, type=_INT))
    node.attribute.append(pb.Attribute(name="aggregate_function", s=b"SUM", type=_STRING))
    node.attribute.append(pb.Attribute(name="post_transform", s=b"NONE", type=_STRING))
    if any(forest.base):
        node.attribute.append(pb.Attribute(name="base_values", floats=forest.base, type=_FLOATS))
    if forest.finish:
        last = graph.node.add(op_type=forest.finish)
        last.input.append(scores)
        last.output.append(output_name)
    try:
        read = ensemble_of({each.name: each for each in node.attribute}, "target")
    except UnimplementedError as error:
        raise _wrong(error.what.rpartition(": ")[2]) from None
    if read.features > forest.features:
        raise _wrong(
            "a split is on a feature that rows do not have",
            f"a number below {forest.features}",
            read.features - 1,
        )
    return bytes(model.SerializeToString())


def _check(forest: Forest) -> None:
    if not forest.trees or not 0 < forest.features <= FEATURES_MAX:
        raise _wrong(
            "there is no forest",
            f"at least one tree, and 1 to {FEATURES_MAX} features",
            f"{len(forest.trees)} trees and {forest.features} features",
        )
    for number, tree in enumerate(forest.trees):
        inner = {len(each) for each in (tree.feature, tree.threshold, tree.nan_left, tree.left)}
        inner |= {len(tree.right), len(tree.cover)}
        leaves = {len(tree.leaf), len(tree.leaf_cover)}
        if len(inner) != 1 or leaves != {next(iter(inner)) + 1}:
            raise _wrong(
                f"the columns of tree {number} do not fit",
                "one leaf more than inner nodes",
                f"{sorted(inner)} and {sorted(leaves)}",
            )
        finite = (np.abs(each) <= _FLOAT32_MAX for each in (tree.leaf, tree.cover, tree.leaf_cover))
        if np.isnan(tree.threshold).any() or not all(each.all() for each in finite):
            raise _wrong(f"a number of tree {number} is none", "finite ones", "NaN or infinity")
        if (tree.feature < 0).any():
            raise _wrong(
                f"a split of tree {number} is on no feature", "0 or more", int(tree.feature.min())
            )
    if not all(abs(each) <= _FLOAT32_MAX for each in forest.base):
        raise _wrong("a base score is no number", "finite ones", "NaN or infinity")


def _wrong(what: str, expected: object = None, got: object = None) -> FailedPreconditionError:
    return FailedPreconditionError(
        what, expected=expected, got=got, mend="save the model anew by what trained it"
    )


def _describe(value: pb.Value, columns: int) -> None:
    tensor = value.type.tensor_type
    tensor.elem_type = _FLOAT
    tensor.shape.dim.add(dim_param="N")
    tensor.shape.dim.add(dim_value=columns)


def _attribute(name: str, values: list[int] | list[float] | list[str]) -> pb.Attribute:
    if name == "nodes_modes":
        modes = [str(value).encode() for value in values]
        return pb.Attribute(name=name, strings=modes, type=_STRINGS)
    if name in {"nodes_values", "nodes_hitrates", "target_weights"}:
        return pb.Attribute(name=name, floats=[float(value) for value in values], type=_FLOATS)
    return pb.Attribute(name=name, ints=[int(value) for value in values], type=_INTS)
