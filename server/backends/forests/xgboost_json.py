"""XGBoost's JSON model as a forest.

The format is XGBoost's own (its `doc/model.schema`). All of it is float32 already: a row goes left
where its feature is below the split, and where it is missing as the split says.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import FailedPreconditionError, HeadraceError, UnimplementedError
from server.backends.forests.forest import EXP, PLAIN, SIGMOID, SOFTMAX, Forest
from trainer.trees import Tree

_FINISHES = {
    "binary:logistic": SIGMOID, "reg:logistic": SIGMOID, "multi:softprob": SOFTMAX,
    "reg:squarederror": PLAIN, "reg:absoluteerror": PLAIN, "reg:pseudohubererror": PLAIN,
    "rank:pairwise": PLAIN, "rank:ndcg": PLAIN, "rank:map": PLAIN,
    "count:poisson": EXP, "reg:gamma": EXP, "reg:tweedie": EXP,
}  # fmt: skip


def read_xgboost(text: str) -> Forest:
    """Return the forest of a model in JSON.

    Raises FailedPreconditionError for a text that is not XGBoost's, UnimplementedError for a model
    of another kind.
    """
    try:
        return _read(json.loads(text)["learner"])
    except HeadraceError:
        raise
    except (
        KeyError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
    ):
        raise FailedPreconditionError(
            "the file is not a whole XGBoost model in JSON",
            expected="what Booster.save_model('model.json') writes",
            got="what cannot be read so",
            mend="save the model anew",
        ) from None


def _read(learner: dict[str, Any]) -> Forest:
    booster, objective = learner["gradient_booster"], str(learner["objective"]["name"])
    parameters = learner["learner_model_param"]
    targets = int(parameters.get("num_target", 1))
    for problem, found, expected in (
        ("booster", booster["name"], ("gbtree",)),
        ("objective", objective, tuple(_FINISHES)),
        ("number of targets", targets, (0, 1)),
    ):
        if found not in expected:
            raise UnimplementedError(
                f"an XGBoost model of this {problem} cannot be served",
                expected=", ".join(map(str, expected)),
                got=str(found)[:64],
                mend="convert it to ONNX",
            )
    model = booster["model"]
    trees = [_tree(tree) for tree in model["trees"]]
    sums = max(int(parameters["num_class"]), 1)
    told = [int(each) for each in model["tree_info"]]
    if len(told) != len(trees) or not 0 < sums <= max(len(trees), 1):
        raise ValueError("another number of trees")
    finish = _FINISHES[objective]
    return Forest(
        trees=trees,
        targets=told,
        features=int(parameters["num_feature"]),
        base=_base(str(parameters["base_score"]), sums, finish),
        finish=finish,
        branch="BRANCH_LT",
    )


def _base(text: str, sums: int, finish: str) -> list[float]:
    """Return where the sums begin: the file has it as an answer, XGBoost 3 one for each sum."""
    answers = [float(each) for each in text.strip("[]").split(",")]
    if len(answers) == 1:
        answers *= sums
    if len(answers) != sums:
        raise ValueError("another number of base scores")
    if finish == SIGMOID:
        return [math.log(answer / (1 - answer)) for answer in answers]
    if finish == EXP:
        return [math.log(answer) for answer in answers]
    return answers


def _tree(tree: dict[str, Any]) -> Tree:
    left, right = (np.array(tree[name], np.int32) for name in ("left_children", "right_children"))
    if int(tree["tree_param"].get("size_leaf_vector", 1)) > 1 or any(tree["split_type"]):
        raise UnimplementedError(
            "XGBoost's categorical splits and vector leaves cannot be served",
            expected="splits on numbers",
            mend="encode categories as numbers",
        )
    reached = _reached(left, right)
    inner = reached[left[reached] >= 0]
    leaves = reached[left[reached] < 0]
    place = np.zeros(len(left), np.int32)
    place[inner], place[leaves] = np.arange(len(inner)), ~np.arange(len(leaves))
    condition = np.array(tree["split_conditions"], np.float32).astype(np.float64)
    cover = np.array(tree["sum_hessian"], np.float64)
    return Tree(
        feature=np.array(tree["split_indices"], np.int32)[inner],
        threshold=condition[inner],
        nan_left=np.array(tree["default_left"], np.bool_)[inner],
        left=place[left[inner]],
        right=place[right[inner]],
        leaf=condition[leaves],
        cover=cover[inner],
        leaf_cover=cover[leaves],
    )


def _reached(left: NDArray[np.int32], right: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the nodes below the root, it first: pruned ones lie about. Raises ValueError for what
    is no tree."""
    if len(left) != len(right) or not len(left):
        raise ValueError("columns of different lengths")
    level = np.zeros(1, np.int64)
    levels = [level]
    count = 1
    while len(level):
        split = level[left[level] >= 0]
        level = np.concatenate([left[split], right[split]]).astype(np.int64)
        if ((level <= 0) | (level >= len(left))).any():
            raise ValueError("a child that is not there")
        count += len(level)
        if count > len(left):
            raise ValueError("a node below itself")
        levels.append(level)
    return np.concatenate(levels)
