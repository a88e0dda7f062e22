"""Boosted trees, whoever grew them, and the ONNX graph that answers as they do.

Nothing is executed to read them, and nothing of what they say is believed: every index is looked
at before a runtime follows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import FailedPreconditionError, UnimplementedError
from server.backends.forests.categories import split_by_tables, write_tables
from server.backends.graph_writer import ML, GraphWriter
from server.explain.trees import FEATURES_MAX, ensemble_of
from trainer.tree_columns import tree_columns
from trainer.trees import Tree

# onnxruntime builds a tree by a recursion, whose stack has an end: ten thousand are too many.
_DEPTH_MAX = 2048
_FLOAT32_MAX = float(np.finfo(np.float32).max)
# What becomes of the sums: the ONNX operator, and what its outcome is called.
PLAIN, SIGMOID, SOFTMAX, EXP = "", "Sigmoid", "Softmax", "Exp"
INPUT = "features"
# What nested values that are not as they should be raise, where they are read.
UNREADABLE = (
    KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError, RecursionError,
    ZeroDivisionError,
)  # fmt: skip
VALUE, PROBABILITY, PROBABILITIES = "value", "probability", "probabilities"
_OUTPUTS = {PLAIN: VALUE, SIGMOID: PROBABILITY, SOFTMAX: PROBABILITIES, EXP: VALUE}


@dataclass(frozen=True, slots=True)
class Forest:
    """Tree i adds one leaf to sum `targets[i]`; sums begin at `base`, and `finish` ends them.

    A row goes left where `branch` (BRANCH_LEQ, BRANCH_LT) holds for its feature. All numbers are
    such that float32 holds them. Of a feature that is split by sets, a number from `category_least`
    on is a category, and its fraction is cut off.

    With `leaves` [leaves, sums] of each tree, one adds to all sums; with `averages`, sums are
    divided by the number of trees before the base is added.
    """

    trees: Sequence[Tree]
    targets: Sequence[int]
    features: int
    base: Sequence[float]
    finish: str
    branch: str
    category_least: float = 0.0
    leaves: Sequence[NDArray[np.float64]] | None = None
    averages: bool = False

    @property
    def sums(self) -> int:
        """How many there are."""
        return len(self.base)

    @property
    def output(self) -> str:
        """What its answer is called."""
        return _OUTPUTS[self.finish]

    def graph(self, input_name: str, output_name: str) -> bytes:
        """Return the ONNX file: input float32 [N, features] → output float32 [N, sums].

        Raises FailedPreconditionError for trees that are none, UnimplementedError for too many
        categories.
        """
        writer = GraphWriter("forest")
        # The trees first: what they say of the rows is looked at there.
        write_forest(writer, self, input_name, output_name)
        writer.input(input_name, self.features)
        writer.output(output_name, self.sums)
        return writer.finished()


def write_forest(writer: GraphWriter, forest: Forest, rows: str, output: str) -> None:
    """Add the trees, and what ends their sums, to a graph. Raises as `Forest.graph`."""
    _check(forest)
    trees, tables = split_by_tables(forest.trees, forest.features)
    if len(tables.owner):
        rows = write_tables(writer, rows, tables, forest.category_least)
    attributes: dict[str, Any] = tree_columns(trees, forest.targets, forest.branch)
    attributes["nodes_modes"] = [mode.encode() for mode in attributes["nodes_modes"]]
    if forest.leaves is not None:
        attributes |= {
            "target_treeids": np.repeat(attributes["target_treeids"], forest.sums).tolist(),
            "target_nodeids": np.repeat(attributes["target_nodeids"], forest.sums).tolist(),
            "target_ids": np.tile(np.arange(forest.sums), len(attributes["target_ids"])).tolist(),
            "target_weights": np.concatenate(forest.leaves).ravel().tolist(),
        }
    scores = writer.node(
        "TreeEnsembleRegressor",
        [rows],
        "" if forest.finish else output,
        domain=ML,
        **attributes,
        n_targets=forest.sums,
        aggregate_function=b"AVERAGE" if forest.averages else b"SUM",
        post_transform=b"NONE",
        **({"base_values": [float(each) for each in forest.base]} if any(forest.base) else {}),
    )
    _check_trees(writer.nodes[-1])
    if forest.finish:
        writer.node(forest.finish, [scores], output)


def _check_trees(node: Any) -> None:
    """Raise FailedPreconditionError for an operator whose nodes are no trees."""
    try:
        ensemble = ensemble_of({each.name: each for each in node.attribute}, "target")
    except UnimplementedError as error:
        raise _wrong(error.what.rpartition(": ")[2]) from None
    level = ensemble.roots
    for _ in range(_DEPTH_MAX + 1):
        inner = level[ensemble.yes[level] >= 0]
        if not len(inner):
            return
        level = np.concatenate([ensemble.yes[inner], ensemble.no[inner]])
    raise UnimplementedError(
        "the trees are too deep",
        expected=f"at most {_DEPTH_MAX} levels",
        got="more",
        mend="bound max_depth where they are trained",
    )


def _check(forest: Forest) -> None:
    if not forest.trees or not 0 < forest.features <= FEATURES_MAX:
        raise _wrong(
            "there is no forest",
            f"at least one tree, and 1 to {FEATURES_MAX} features",
            f"{len(forest.trees)} trees and {forest.features} features",
        )
    if not all(0 <= target < forest.sums for target in forest.targets):
        raise _wrong("a tree adds to a sum that there is not", f"0 to {forest.sums - 1}")
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
        for feature in (tree.feature.min(initial=0), tree.feature.max(initial=0)):
            if not 0 <= feature < forest.features:
                raise _wrong(
                    "a split is on a feature that rows do not have",
                    f"0 to {forest.features - 1}",
                    int(feature),
                )
    for values in forest.leaves or ():
        if not (np.abs(values) <= _FLOAT32_MAX).all():
            raise _wrong("a leaf is no number", "finite ones", "NaN or infinity")
    if not all(abs(each) <= _FLOAT32_MAX for each in forest.base):
        raise _wrong("a base score is no number", "finite ones", "NaN or infinity")


def _wrong(what: str, expected: object = None, got: object = None) -> FailedPreconditionError:
    return FailedPreconditionError(
        what, expected=expected, got=got, mend="save the model anew by what trained it"
    )
