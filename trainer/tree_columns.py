"""Trees as the attributes of ONNX's `TreeEnsembleRegressor`: one table of all nodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.trees import Tree


def tree_columns(
    trees: Sequence[Tree], targets: Sequence[int] | None = None, branch: str = "BRANCH_LEQ"
) -> dict[str, list[int] | list[float] | list[str]]:
    """Return the attributes of at least one tree.

    `targets` are the outputs that the trees add to (None: all to the first); a row goes left where
    `branch` holds.
    """
    columns = [_nodes(number, tree) for number, tree in enumerate(trees)]
    joined = {key: np.concatenate([each[key] for each in columns]) for key in columns[0]}
    leaf = joined.pop("leaf")
    weights = joined.pop("weight")[leaf]
    tree_of_leaf = joined["nodes_treeids"][leaf]
    outputs = np.zeros(len(trees), np.int64) if targets is None else np.array(targets, np.int64)
    return {key: values.tolist() for key, values in joined.items()} | {
        "nodes_modes": ["LEAF" if is_leaf else branch for is_leaf in leaf.tolist()],
        "target_treeids": tree_of_leaf.tolist(),
        "target_nodeids": joined["nodes_nodeids"][leaf].tolist(),
        "target_ids": outputs[tree_of_leaf].tolist(),
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
