"""Small ensembles as ONNX, and their Shapley values by enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper

from server.execution.session import Session

FEATURES = 4
MODES = ("LEQ", "LT", "GTE", "GT", "EQ", "NEQ")
COMPARE: dict[str, Callable[[float, float], bool]] = {
    "LEQ": lambda x, y: x <= y,
    "LT": lambda x, y: x < y,
    "GTE": lambda x, y: x >= y,
    "GT": lambda x, y: x > y,
    "EQ": lambda x, y: x == y,
    "NEQ": lambda x, y: x != y,
}


@dataclass
class Leaf:
    weights: dict[int, float]
    cover: int


@dataclass
class Split:
    feature: int
    value: float
    mode: str
    nan_yes: bool
    yes: Any
    no: Any

    @property
    def cover(self) -> int:
        return int(self.yes.cover + self.no.cover)

    def goes(self, value: float) -> bool:
        if math.isnan(value) and self.nan_yes:
            return True
        return COMPARE[self.mode](value, self.value)


Tree = Leaf | Split
# Few of them, so that rows lie on thresholds; all are float32.
VALUES = (-1.5, -1.0, 0.0, 0.5, 1.0, 2.0)


def leaves(outputs: Sequence[int], *, sparse: bool) -> st.SearchStrategy[Leaf]:
    """Sparse ones have no weight for some outputs: onnxruntime then forgets the base value."""
    least = 1 if sparse else len(outputs)
    weight = st.integers(-64, 64).map(lambda n: n / 16)
    return st.builds(
        Leaf,
        st.dictionaries(st.sampled_from(outputs), weight, min_size=least),
        st.integers(1, 50),
    )


def trees(outputs: Sequence[int], *, sparse: bool = True) -> st.SearchStrategy[Tree]:
    return st.recursive(
        leaves(outputs, sparse=sparse),
        lambda below: st.builds(
            Split,
            st.integers(0, FEATURES - 1),
            st.sampled_from(VALUES),
            st.sampled_from(MODES),
            st.booleans(),
            below,
            below,
        ),
        max_leaves=9,
    )


ROWS = st.lists(
    st.tuples(*[st.sampled_from([*VALUES, math.nan, math.inf])] * FEATURES),
    min_size=1,
    max_size=4,
).map(lambda rows: np.array(rows, np.float32))


def attributes_of(forest: Sequence[Tree], kind: str = "target") -> dict[str, list[Any]]:
    """The table of nodes and weights, as the operators of ai.onnx.ml 3 hold it."""
    table: dict[str, list[Any]] = {
        f"nodes_{name}": []
        for name in (
            "treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids",
            "missing_value_tracks_true", "hitrates",
        )
    } | {f"{kind}_{name}": [] for name in ("treeids", "nodeids", "ids", "weights")}  # fmt: skip

    def add(number: int, tree: Tree, ids: Any) -> int:
        node = next(ids)
        at = len(table["nodes_modes"])
        inner = isinstance(tree, Split)
        for name, value in {
            "treeids": number,
            "nodeids": node,
            "featureids": tree.feature if isinstance(tree, Split) else 0,
            "values": tree.value if isinstance(tree, Split) else 0.0,
            "modes": f"BRANCH_{tree.mode}" if isinstance(tree, Split) else "LEAF",
            "truenodeids": 0,
            "falsenodeids": 0,
            "missing_value_tracks_true": int(inner and tree.nan_yes),  # type: ignore[union-attr]
            "hitrates": float(tree.cover),
        }.items():
            table[f"nodes_{name}"].append(value)
        if isinstance(tree, Split):
            table["nodes_truenodeids"][at] = add(number, tree.yes, ids)
            table["nodes_falsenodeids"][at] = add(number, tree.no, ids)
        else:
            for output, weight in tree.weights.items():
                table[f"{kind}_treeids"].append(number)
                table[f"{kind}_nodeids"].append(node)
                table[f"{kind}_ids"].append(output)
                table[f"{kind}_weights"].append(weight)
        return int(node)

    for number, tree in enumerate(forest):
        add(number, tree, itertools.count())
    return table


def model_of(
    attributes: dict[str, Any],
    operator: str = "TreeEnsembleRegressor",
    *,
    outputs: Sequence[str] = ("score",),
    around: Callable[[onnx.NodeProto], Sequence[onnx.NodeProto]] = lambda node: [node],
    inputs: Sequence[str] = ("x",),
) -> bytes:
    """The ONNX file of one ensemble; `around` puts other nodes beside it."""
    node = helper.make_node(operator, ["x"], outputs, domain="ai.onnx.ml", **attributes)
    integer = (TensorProto.INT64, ["N"])
    number = (TensorProto.FLOAT, ["N", None])
    graph = helper.make_graph(
        around(node),
        "g",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", FEATURES])
            for name in inputs
        ],
        [
            helper.make_tensor_value_info(name, *(integer if name == "label" else number))
            for name in outputs
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def regressor(forest: Sequence[Tree], outputs: int = 1, **more: Any) -> bytes:
    return model_of(attributes_of(forest) | {"n_targets": outputs} | more)


def run(model: bytes, rows: Any, tmp_path: Any) -> list[Any]:
    """What onnxruntime answers."""
    return Session(model, tmp_path).run([rows])


def expected(tree: Tree, row: Sequence[float], known: frozenset[int], outputs: int) -> Any:
    """What a tree says of a row of which these features are known, [outputs]."""
    if isinstance(tree, Leaf):
        return np.array([tree.weights.get(output, 0.0) for output in range(outputs)])
    if tree.feature in known:
        below = tree.yes if tree.goes(row[tree.feature]) else tree.no
        return expected(below, row, known, outputs)
    return sum(
        below.cover / tree.cover * expected(below, row, known, outputs)
        for below in (tree.yes, tree.no)
    )


def shapley(forest: Sequence[Tree], row: Sequence[float], outputs: int) -> Any:
    """Shapley values by their definition, over all coalitions, [FEATURES, outputs]."""
    everything = range(FEATURES)
    worth = {
        frozenset(known): sum(expected(tree, row, frozenset(known), outputs) for tree in forest)
        for size in range(FEATURES + 1)
        for known in itertools.combinations(everything, size)
    }
    values = np.zeros((FEATURES, outputs))
    for feature in everything:
        for known, value in worth.items():
            if feature not in known:
                share = 1 / (FEATURES * math.comb(FEATURES - 1, len(known)))
                values[feature] += share * (worth[known | {feature}] - value)
    return values
