"""Estimators of scikit-learn, as they were saved, as steps of a graph.

Numbers go as scikit-learn lets them go for float64: what scales and what is linear computes in
float64, trees see float32. Thresholds are rounded down to float32, so that a float32 goes the same
way; leaves become float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import UnimplementedError
from server.backends.forests.forest import (
    EXP,
    PLAIN,
    PROBABILITIES,
    PROBABILITY,
    SIGMOID,
    SOFTMAX,
    VALUE,
    Forest,
)
from server.backends.sklearn.model import Affine, Fill, Linear, SklearnModel, Step
from server.backends.sklearn.skops_file import Saved, SkopsFile
from server.backends.sklearn.trees import grown, histogram_tree
from server.explain.trees import FEATURES_MAX
from trainer.trees import Tree

Floats = npt.NDArray[np.float64]
_FLOAT32_EPS = float(np.finfo(np.float32).eps)
_REGRESSIONS = {"squared_error", "absolute_error", "huber", "quantile"}


def read_skops(data: bytes) -> SklearnModel:
    """Return the model of a file of skops.

    Raises ValueError, KeyError, TypeError, AttributeError or RecursionError for what is none, and
    UnimplementedError for other estimators than are known.
    """
    root = _object(SkopsFile(data).root)
    steps: list[Step] = []
    if root.name == "Pipeline":
        *before, last = [_object(step[1]) for step in root.get("steps") if step[1] != "passthrough"]
        steps = [_known(_STEPS, each)(each) for each in before]
        root = last
    predicts = _known(_LAST, root)(root)
    features = _whole(root.get("n_features_in_"), 1)
    if features > FEATURES_MAX or any(len(step.values) != features for step in steps):
        raise ValueError("steps of different widths")
    if steps and root.name.startswith("Hist"):
        raise UnimplementedError(
            "histogram gradient boosting behind other steps cannot be served",
            mend="train it on the features themselves, that it needs neither scaled nor filled in",
        )
    output = VALUE
    if root.name.endswith("Classifier") or root.name == "LogisticRegression":
        output = PROBABILITY if predicts.sums == 1 else PROBABILITIES
    return SklearnModel(steps, predicts, features, output)


def _object(found: Any) -> Saved:
    if not isinstance(found, Saved):
        raise TypeError("no estimator")
    return found


def _known(kinds: dict[str, Callable[[Saved], Any]], saved: Saved) -> Callable[[Saved], Any]:
    if saved.name not in kinds or saved.module.partition(".")[0] != "sklearn":
        raise UnimplementedError(
            "an estimator of this type cannot be served"
            if kinds is _LAST
            else "a step of this type cannot be served",
            expected=", ".join(sorted(kinds)),
            got=f"{saved.module}.{saved.name}"[:128],
            mend="convert it by skl2onnx (zipmap=False) where it was trained",
        )
    return kinds[saved.name]


def _whole(found: Any, least: int) -> int:
    number = int(found)
    if number != found or number < least:
        raise ValueError("a number that is too small")
    return number


def _refused(what: str, got: object, mend: str) -> UnimplementedError:
    return UnimplementedError(what, got=str(got)[:64], mend=mend)


# Steps.


def _scaler(saved: Saved) -> Affine:
    width = _whole(saved.get("n_features_in_"), 1)
    mean, scale = np.zeros(width), np.ones(width)
    if saved.get("with_mean") is True:
        mean = saved.array("mean_", 1)
    if saved.get("with_std") is True:
        scale = saved.array("scale_", 1)
    if len(mean) != width or len(scale) != width or not scale.all():
        raise ValueError("a scaler of no scale")
    return Affine(mean, scale)


def _imputer(saved: Saved) -> Fill:
    missing = saved.get("missing_values")
    if not (isinstance(missing, float) and np.isnan(missing)) or saved.get("add_indicator"):
        raise _refused(
            "only NaN is filled in, and no column is added", missing, "convert it by skl2onnx"
        )
    return Fill(saved.array("statistics_", 1))


# Linear models.


def _linear(saved: Saved) -> Linear:
    weights = saved.array("coef_")
    weights = weights.reshape(-1, weights.shape[-1])
    intercept = np.broadcast_to(saved.array("intercept_").reshape(-1), (len(weights),))
    if weights.shape[1] != _whole(saved.get("n_features_in_"), 1):
        raise ValueError("coefficients of another width")
    return Linear(weights, np.array(intercept, np.float64), PLAIN)


def _logistic(saved: Saved) -> Linear:
    line = _linear(saved)
    classes = len(saved.get("classes_"))
    how = saved.get("multi_class") if "multi_class" in saved else "auto"
    binary = classes == 2 and len(line.weights) == 1
    if binary and how == "multinomial":  # softmax of (−s, s)
        return replace(line, weights=2 * line.weights, intercept=2 * line.intercept, finish=SIGMOID)
    if binary:
        return replace(line, finish=SIGMOID)
    if how == "ovr" or saved.get("solver") == "liblinear" or len(line.weights) != classes:
        raise _refused(
            "one-versus-rest cannot be served", f"{classes} classes", "train it as multinomial"
        )
    return replace(line, finish=SOFTMAX)


# Trees. Two classes have one score: of the second one.


def _averaged(saved: Saved) -> Forest:
    """Return a forest of trees whose answers are averaged, or a tree alone."""
    members = saved.get("estimators_") if "estimators_" in saved else [saved]
    is_classifier = saved.name.endswith("Classifier")
    if is_classifier and _whole(saved.get("n_outputs_"), 1) != 1:
        raise _refused("a classifier of several targets cannot be served", "several", "train each")
    classes = len(saved.get("classes_")) if is_classifier else 0
    trees, leaves = [], []
    for member in members:
        tree, values = grown(_object(_object(member).get("tree_")))
        if is_classifier:
            shares = values[:, 0, :] / values[:, 0, :].sum(axis=1, keepdims=True)
            if shares.shape[1] != classes:
                raise ValueError("leaves of another number of classes")
            leaves.append(shares[:, 1:] if classes == 2 else shares)
        else:
            leaves.append(values[:, :, 0])
        trees.append(tree)
    sums = leaves[0].shape[1]
    if any(each.shape[1] != sums for each in leaves):
        raise ValueError("leaves of different widths")
    targets = [0] * len(trees)
    forest = _sums(saved, trees, targets, np.zeros(sums), PLAIN)
    return replace(forest, leaves=leaves, averages=True)


def _boosted(saved: Saved) -> Forest:
    """Return gradient boosting, whose trees are in a table [iterations, scores]."""
    rate = float(saved.get("learning_rate"))
    table = saved.get("estimators_")
    loss = str(saved.get("loss"))
    is_classifier = saved.name.endswith("Classifier")
    if loss not in ({"log_loss", "deviance", "exponential"} if is_classifier else _REGRESSIONS):
        raise _refused("a loss of this kind cannot be served", loss, "convert it by skl2onnx")
    # Its probability is the logistic function of twice the score.
    factor = 2.0 if loss == "exponential" else 1.0
    scores = len(table[0])
    base = _first_scores(saved, scores, is_classifier=is_classifier)
    if len(base) != scores:
        raise ValueError("another number of first scores")
    trees, targets = [], []
    for target, member in _members(table, scores):
        tree, values = grown(_object(member.get("tree_")))
        trees.append(replace(tree, leaf=factor * rate * values[:, 0, 0]))
        targets.append(target)
    finish = PLAIN
    if is_classifier:
        finish = SIGMOID if scores == 1 else SOFTMAX
    return _sums(saved, trees, targets, base, finish)


def _first_scores(saved: Saved, scores: int, *, is_classifier: bool) -> Floats:
    """Return the scores that boosting began with."""
    if saved.get("init") == "zero":
        return np.zeros(scores)
    first = _object(saved.get("init_"))
    if first.name == "DummyRegressor" and not is_classifier:
        return first.array("constant_").reshape(-1)
    if first.name == "DummyClassifier" and is_classifier and first.get("strategy") == "prior":
        shares = np.clip(first.array("class_prior_", 1), _FLOAT32_EPS, 1 - _FLOAT32_EPS)
        if scores == 1 and len(shares) == 2:
            # Of the exponential loss half of it, and scores count twice.
            return np.array([np.log(shares[1] / (1 - shares[1]))])
        if scores == len(shares):
            return np.asarray(np.log(shares) - np.log(shares).mean())
    raise _refused("boosting that began with a model cannot be served", first.name, "train without")


def _histogram(saved: Saved) -> Forest:
    """Return histogram gradient boosting, whose trees are in a table [iterations, scores]."""
    loss = str(saved.get("loss"))
    is_classifier = saved.name.endswith("Classifier")
    if is_classifier:
        finish = SIGMOID if _whole(saved.get("n_trees_per_iteration_"), 1) == 1 else SOFTMAX
    else:
        finish = {"poisson": EXP, "gamma": EXP}.get(loss, PLAIN)
    if "_preprocessor" in saved and saved.get("_preprocessor") is not None:
        raise _refused("categorical features cannot be served", "some", "encode them as numbers")
    if loss not in ({"log_loss"} if is_classifier else _REGRESSIONS | {"poisson", "gamma"}):
        raise _refused("a loss of this kind cannot be served", loss, "convert it by skl2onnx")
    first = saved.array("_baseline_prediction").reshape(-1)
    trees, targets = [], []
    for target, member in _members(saved.get("_predictors"), len(first)):
        trees.append(histogram_tree(member))
        targets.append(target)
    return _sums(saved, trees, targets, first, finish)


def _members(table: Any, scores: int) -> Iterator[tuple[int, Saved]]:
    """Yield what is in a table [iterations, scores], each with the score that it adds to."""
    for row in table:
        if len(row) != scores:
            raise ValueError("rows of different lengths")
        for target, member in enumerate(row):
            yield target, _object(member)


def _sums(saved: Saved, trees: list[Tree], targets: list[int], base: Floats, finish: str) -> Forest:
    return Forest(
        trees=trees,
        targets=targets,
        features=_whole(saved.get("n_features_in_"), 1),
        base=base.tolist(),
        finish=finish,
        branch="BRANCH_LEQ",
    )


_STEPS: dict[str, Callable[[Saved], Step]] = {
    "StandardScaler": _scaler,
    "SimpleImputer": _imputer,
}
_LAST: dict[str, Callable[[Saved], Forest | Linear]] = {
    "LinearRegression": _linear,
    "Ridge": _linear,
    "LogisticRegression": _logistic,
    **{
        f"{kind}{task}": read
        for task in ("Classifier", "Regressor")
        for kind, read in (
            ("DecisionTree", _averaged),
            ("ExtraTree", _averaged),
            ("RandomForest", _averaged),
            ("ExtraTrees", _averaged),
            ("GradientBoosting", _boosted),
            ("HistGradientBoosting", _histogram),
        )
    },
}
