"""A LightGBM classifier as ONNX: one input `features`, one output `probability`.

Written straight from the trees: the graph is two nodes, holds nothing but float32, and every branch
says where NaN goes. (`onnxmltools` gives two outputs with a wrong shape in a dialect of 2017.)
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from trainer.trees import Forest, Tree

INPUT, OUTPUT = "features", "probability"
OPSETS = {"": 17, "ai.onnx.ml": 3}
IR_VERSION = 8


def forest_to_onnx(forest: Forest, name: str) -> onnx.ModelProto:
    """Return the ONNX model: `features` float32 [N, F] → `probability` float32 [N, 1].

    The trees' thresholds and leaves must be in single precision (`trees.to_single_precision`): here
    they are only stored as what they are.
    """
    ensemble = helper.make_node(
        "TreeEnsembleRegressor",
        [INPUT],
        ["raw_score"],
        domain="ai.onnx.ml",
        n_targets=1,
        aggregate_function="SUM",
        post_transform="NONE",
    )
    ensemble.attribute.extend(
        helper.make_attribute(key, values) for key, values in _attributes(forest).items()
    )
    sigmoid = helper.make_node("Sigmoid", ["raw_score"], [OUTPUT])
    graph = helper.make_graph(
        [ensemble, sigmoid],
        name,
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", forest.features])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", 1])],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    model = helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="headrace"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _attributes(forest: Forest) -> dict[str, list[int] | list[float] | list[str]]:
    columns = [_nodes(number, tree) for number, tree in enumerate(forest.trees)]
    joined = {key: np.concatenate([each[key] for each in columns]) for key in columns[0]}
    leaf = joined.pop("leaf")
    weights = joined.pop("weight")[leaf]
    return {key: values.tolist() for key, values in joined.items()} | {
        "nodes_modes": ["LEAF" if is_leaf else "BRANCH_LEQ" for is_leaf in leaf.tolist()],
        "target_treeids": joined["nodes_treeids"][leaf].tolist(),
        "target_nodeids": joined["nodes_nodeids"][leaf].tolist(),
        "target_ids": [0] * len(weights),
        "target_weights": weights.tolist(),
    }


def _nodes(number: int, tree: Tree) -> dict[str, NDArray[np.generic]]:
    """Return the tree's table: inner nodes first (the root is node 0), then the leaves."""
    inner, leaves = len(tree.feature), len(tree.leaf)
    rest = np.zeros(leaves, np.int64)

    def child(children: NDArray[np.int32]) -> NDArray[np.int64]:
        numbers = np.where(children >= 0, children, inner + ~children).astype(np.int64)
        return np.concatenate([numbers, rest])

    return {
        "nodes_treeids": np.full(inner + leaves, number),
        "nodes_nodeids": np.arange(inner + leaves),
        "nodes_featureids": np.concatenate([tree.feature, rest]),
        "nodes_values": np.concatenate([tree.threshold, rest]),
        "nodes_truenodeids": child(tree.left),
        "nodes_falsenodeids": child(tree.right),
        # What attributions along the paths need, and what onnxruntime does not look at.
        "nodes_hitrates": np.concatenate([tree.cover, tree.leaf_cover]),
        "nodes_missing_value_tracks_true": np.concatenate([tree.nan_left, rest]).astype(np.int64),
        "leaf": np.arange(inner + leaves) >= inner,
        "weight": np.concatenate([np.zeros(inner), tree.leaf]),
    }
