"""XGBoost's model, in JSON or UBJSON, as a forest.

The format is XGBoost's own (its `doc/model.schema`). All of it is float32 already: a row goes left
where its feature is below the split, and where it is missing as the split says. A split on
categories has a set, and what is in it goes right; what is no category is in none.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import FailedPreconditionError, HeadraceError, UnimplementedError
from server.backends.forests.forest import EXP, PLAIN, SIGMOID, SOFTMAX, UNREADABLE, Forest
from server.backends.forests.nodes import ordered
from server.backends.forests.ubjson import is_ubjson, read_ubjson
from trainer.trees import Tree

_FINISHES = {
    "binary:logistic": SIGMOID, "reg:logistic": SIGMOID, "binary:logitraw": PLAIN,
    "multi:softprob": SOFTMAX,
    "reg:squarederror": PLAIN, "reg:squaredlogerror": PLAIN, "reg:absoluteerror": PLAIN,
    "reg:pseudohubererror": PLAIN, "reg:quantileerror": PLAIN,
    "rank:pairwise": PLAIN, "rank:ndcg": PLAIN, "rank:map": PLAIN,
    "count:poisson": EXP, "reg:gamma": EXP, "reg:tweedie": EXP,
}  # fmt: skip
_CATEGORY_MAX = 1 << 24  # XGBoost's own limit


def read_xgboost(data: bytes) -> Forest:
    """Return the forest of a model's file.

    Raises FailedPreconditionError for a file that is not XGBoost's, UnimplementedError for a model
    of another kind.
    """
    try:
        return _read((read_ubjson(data) if is_ubjson(data) else json.loads(data))["learner"])
    except HeadraceError:
        raise
    except UNREADABLE:
        raise FailedPreconditionError(
            "the file is not a whole XGBoost model in JSON or UBJSON",
            expected="what Booster.save_model('model.json') or ('model.ubj') writes",
            got="what cannot be read so",
            mend="save the model anew",
        ) from None


def _read(learner: dict[str, Any]) -> Forest:
    booster, objective = learner["gradient_booster"], str(learner["objective"]["name"])
    parameters = learner["learner_model_param"]
    for problem, found, expected in (
        ("booster", booster["name"], ("gbtree", "dart")),
        ("objective", objective, tuple(_FINISHES)),
    ):
        if found not in expected:
            raise UnimplementedError(
                f"an XGBoost model of this {problem} cannot be served",
                expected=", ".join(map(str, expected)),
                got=str(found)[:64],
                mend="convert it to ONNX",
            )
    drops = booster["name"] == "dart"
    model = (booster["gbtree"] if drops else booster)["model"]
    trees = [_tree(tree) for tree in model["trees"]]
    if drops:
        weights = [float(each) for each in booster["weight_drop"]]
        trees = [
            replace(
                tree, leaf=(np.float32(weight) * tree.leaf.astype(np.float32)).astype(np.float64)
            )
            for tree, weight in zip(trees, weights, strict=True)
        ]
    # Of several targets each has trees of its own, as each class has.
    sums = max(int(parameters["num_class"]), int(parameters.get("num_target", 1)), 1)
    told = [int(each) for each in model["tree_info"]]
    if len(told) != len(trees) or not 0 < sums <= max(len(trees), 1):
        raise ValueError("another number of trees")
    return Forest(
        trees=trees,
        targets=told,
        features=int(parameters["num_feature"]),
        base=_base(str(parameters["base_score"]), sums, objective),
        finish=_FINISHES[objective],
        branch="BRANCH_LT",
    )


def _base(text: str, sums: int, objective: str) -> list[float]:
    """Return where the sums begin: the file has it as an answer, XGBoost 3 one for each sum."""
    answers = [float(each) for each in text.strip("[]").split(",")]
    if len(answers) == 1:
        answers *= sums
    if len(answers) != sums:
        raise ValueError("another number of base scores")
    if _FINISHES[objective] == SIGMOID:
        return [math.log(answer / (1 - answer)) for answer in answers]
    if _FINISHES[objective] == EXP:
        return [math.log(answer) for answer in answers]
    return answers


def _tree(tree: dict[str, Any]) -> Tree:
    left, right = (np.array(tree[name], np.int32) for name in ("left_children", "right_children"))
    if int(tree["tree_param"].get("size_leaf_vector", 1)) > 1:
        raise UnimplementedError(
            "XGBoost's vector leaves cannot be served",
            expected="leaves of one number",
            mend="train with multi_strategy='one_output_per_tree'",
        )
    inner, leaves, place = ordered(left, right)
    condition = np.array(tree["split_conditions"], np.float32).astype(np.float64)
    cover = np.array(tree["sum_hessian"], np.float64)
    default_left = np.array(tree["default_left"], np.bool_)
    sets = _sets(tree, len(left))
    # Ours go left where they are in the set.
    turned = np.isin(np.arange(len(left)), list(sets))
    return Tree(
        feature=np.array(tree["split_indices"], np.int32)[inner],
        threshold=condition[inner],
        nan_left=(default_left ^ turned)[inner],
        left=place[np.where(turned, right, left)[inner]],
        right=place[np.where(turned, left, right)[inner]],
        leaf=condition[leaves],
        cover=cover[inner],
        leaf_cover=cover[leaves],
        sets={int(place[node]): members for node, members in sets.items() if place[node] >= 0},
    )


def _sets(tree: dict[str, Any], nodes: int) -> dict[int, NDArray[np.int64]]:
    """Return the set of each node that splits categories. Raises ValueError where it has none."""
    split_type = np.array(tree.get("split_type", ()), np.int64)
    asking = np.flatnonzero(split_type)
    if not len(asking):
        return {}
    starts, sizes, owners, members = (
        np.array(tree[f"categories{name}"], np.int64)
        for name in ("_segments", "_sizes", "_nodes", "")
    )
    if not len(starts) == len(sizes) == len(owners) or len(split_type) != nodes:
        raise ValueError("columns of different lengths")
    if ((members < 0) | (members >= _CATEGORY_MAX)).any():
        raise ValueError("a category that is none")
    if ((starts < 0) | (sizes < 0) | (sizes > len(members) - starts)).any():
        raise ValueError("a set that is not there")
    # Of sets that lie over each other a small file has more than memory.
    if sum(sizes.tolist()) > len(members):
        raise ValueError("sets that share what is in them")
    found = {
        owner: np.unique(members[start : start + size])
        for owner, start, size in zip(owners.tolist(), starts.tolist(), sizes.tolist(), strict=True)
    }
    if not set(asking.tolist()) <= found.keys():
        raise ValueError("a split on categories without a set")
    return {node: found[node] for node in asking.tolist()}
