"""Lookups of categories in graphs: known as they are written, and no other way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from headrace.errors import UnimplementedError
from server.backends.forests.forest import Forest
from server.execution.session import Session
from server.explain.lookups import read_lookups
from server.explain.tree_shap import TreeShap
from server.explain.trees import read_ensemble
from server.pb import onnx_trees_pb2 as pb
from trainer.trees import Tree


def stump(feature: int, members: Any, nan_left: bool) -> Tree:
    return Tree(
        feature=np.array([feature], np.int32),
        threshold=np.zeros(1),
        nan_left=np.array([nan_left]),
        left=np.array([-1], np.int32),
        right=np.array([-2], np.int32),
        leaf=np.array([1.0, 2.0]),
        cover=np.full(1, 2.0),
        leaf_cover=np.ones(2),
        sets={0: np.array(members, np.int64)},
    )


FOREST = Forest(
    trees=[stump(2, [1, 3], False), stump(0, [0], True), stump(2, [], True)],
    targets=[0, 0, 0],
    features=3,
    base=[0.0],
    finish="",
    branch="BRANCH_LEQ",
    category_least=0.0,
)


def graph() -> Any:
    return pb.Model.FromString(FOREST.graph("in", "out"))


def trees_input(model: Any) -> str:
    (node,) = [each for each in model.graph.node if each.op_type == "TreeEnsembleRegressor"]
    return str(node.input[0])


def test_columns_are_those_that_onnxruntime_makes(tmp_path: Any) -> None:
    model = graph()
    lookups = read_lookups(model.graph, trees_input(model))
    assert lookups is not None
    assert (lookups.width, lookups.owner.tolist()) == (3, [0, 2, 2])
    rows = np.random.default_rng(0).choice(
        np.array([np.nan, -1, -0.5, 0, 0.9, 1, 2, 3.5, 4, 5, 1e30, np.inf, -np.inf], np.float32),
        (300, 3),
    )
    shown = graph()
    del shown.graph.output[:], shown.graph.node[-1]
    output = shown.graph.output.add(name=trees_input(model))
    output.type.tensor_type.elem_type = 1
    (expected,) = Session(shown.SerializeToString(), tmp_path).run([rows])
    assert lookups.extended(rows).tobytes() == np.asarray(expected).tobytes()


def node_of(model: Any, operator: str) -> Any:
    return next(each for each in model.graph.node if each.op_type == operator)


def constant(model: Any, name: str) -> Any:
    return next(each for each in model.graph.initializer if each.name == name)


def no_width(model: Any) -> None:
    del model.graph.input[0].type.tensor_type.shape.dim[1]


def other_operator(model: Any) -> None:
    node_of(model, "And").op_type = "Or"


def other_axis(model: Any) -> None:
    node_of(model, "Concat").attribute[0].i = 0


def no_table(model: Any) -> None:
    node_of(model, "Less").input[1] = "elsewhere"


def lower(model: Any) -> None:
    least = constant(model, node_of(model, "GreaterOrEqual").input[1])
    least.raw_data = np.array(-1, "<f4").tobytes()


def behind(model: Any) -> None:
    features = constant(model, node_of(model, "Gather").input[1])
    features.raw_data = np.array([0, 3], "<i8").tobytes()


def more_counts(model: Any) -> None:
    counts = constant(model, node_of(model, "Less").input[1])
    counts.raw_data = np.array([9, 9], "<f4").tobytes()


def cut(model: Any) -> None:
    counts = constant(model, node_of(model, "Less").input[1])
    counts.raw_data = counts.raw_data[:-1]


def other_shape(model: Any) -> None:
    counts = constant(model, node_of(model, "Less").input[1])
    counts.dims[0] = 1
    counts.raw_data = counts.raw_data[:4]


def other_rank(model: Any) -> None:
    constant(model, node_of(model, "Less").input[1]).dims.append(1)


def another_user(model: Any) -> None:
    model.graph.node.add(op_type="Abs", input=["in"], output=["abs"])


@pytest.mark.parametrize(
    "change",
    [
        no_width, other_operator, other_axis, no_table, lower, behind, more_counts, cut,
        other_shape, other_rank, another_user,
    ],
)  # fmt: skip
def test_other_graphs_are_not_taken_for_it(change: Callable[[Any], None]) -> None:
    model = graph()
    change(model)
    assert read_lookups(model.graph, trees_input(model)) is None
    with pytest.raises(UnimplementedError):
        read_ensemble(model.SerializeToString())


def test_a_split_behind_all_columns_is_refused() -> None:
    model = graph()
    node = node_of(model, "TreeEnsembleRegressor")
    features = next(each for each in node.attribute if each.name == "nodes_featureids")
    features.ints[0] = 6
    with pytest.raises(UnimplementedError, match="rows do not have"):
        read_ensemble(model.SerializeToString())


def test_what_a_column_adds_is_its_features(tmp_path: Any) -> None:
    file = FOREST.graph("in", "out")
    trees = TreeShap(read_ensemble(file))
    assert trees.features == 3
    rows = np.array([[0, 9, 1], [5, 9, 3], [np.nan, 9, np.nan]], np.float32)
    values = trees.explain(rows)
    assert (values[:, 1] == 0).all()
    (expected,) = Session(file, tmp_path).run([rows])
    np.testing.assert_allclose(values.sum(axis=1) + trees.base, expected, atol=1e-12)
    # Leaves are as likely: half a point to or from each stump's mean.
    shown = [[-0.5, 0, 0], [0.5, 0, 0], [-0.5, 0, 0]]
    np.testing.assert_allclose(values[:, :, 0], shown, atol=1e-12)
