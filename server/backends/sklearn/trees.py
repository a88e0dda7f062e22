"""scikit-learn's trees, out of their tables of nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import UnimplementedError
from server.backends.forests.nodes import Nodes, ordered
from server.backends.sklearn.skops_file import Saved
from trainer.trees import Tree, float32_below

Floats = npt.NDArray[np.float64]


def grown(saved: Saved) -> tuple[Tree, Floats]:
    """Return a `sklearn.tree._tree.Tree`, and what its leaves hold: [leaves, targets, classes]."""
    nodes, values = saved.get("nodes"), saved.array("values", 3)
    left, right = _whole(nodes["left_child"]), _whole(nodes["right_child"])
    if len(values) != len(left):
        raise ValueError("another number of values than of nodes")
    order = ordered(left, right)
    # Trees of before 1.3 had no way for NaN.
    has_missing = "missing_go_to_left" in (nodes.dtype.names or ())
    missing = nodes["missing_go_to_left"] if has_missing else np.zeros(len(nodes))
    tree = _tree(
        order, left, right, nodes["feature"], nodes["threshold"], missing,
        nodes["weighted_n_node_samples"], np.zeros(len(nodes)),
    )  # fmt: skip
    return tree, values[order.leaves]


def histogram_tree(saved: Saved) -> Tree:
    """Return a `TreePredictor` of histogram gradient boosting."""
    nodes = saved.get("nodes")
    if nodes["is_categorical"].any():
        raise UnimplementedError(
            "histogram gradient boosting with categorical features cannot be served",
            mend="encode categories as numbers",
        )
    is_leaf = nodes["is_leaf"] != 0
    left, right = (np.where(is_leaf, -1, _whole(nodes[side])) for side in ("left", "right"))
    return _tree(
        ordered(left, right), left, right, nodes["feature_idx"], nodes["num_threshold"],
        nodes["missing_go_to_left"], nodes["count"], nodes["value"],
    )  # fmt: skip


def _tree(
    order: Nodes,
    left: npt.NDArray[np.int64],
    right: npt.NDArray[np.int64],
    feature: Any,
    threshold: Any,
    missing_left: Any,
    cover: Any,
    value: Any,
) -> Tree:
    inner, leaves, place = order
    features = _whole(feature)[inner]
    if ((features < 0) | (features >= 1 << 31)).any():
        raise ValueError("a split on no feature")
    covers = np.asarray(cover, np.float64)
    return Tree(
        feature=features.astype(np.int32),
        threshold=float32_below(np.asarray(threshold, np.float64)[inner]).astype(np.float64),
        nan_left=np.asarray(missing_left)[inner] != 0,
        left=place[left[inner]],
        right=place[right[inner]],
        leaf=np.asarray(value, np.float64)[leaves],
        cover=covers[inner],
        leaf_cover=covers[leaves],
    )


def _whole(values: Any) -> npt.NDArray[np.int64]:
    if values.dtype.kind not in "iu":
        raise ValueError("a column of other than whole numbers")
    found: npt.NDArray[np.int64] = values.astype(np.int64)
    return found
