"""Small fitted estimators of scikit-learn, of every kind that is served."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier, ExtraTreeRegressor

FEATURES = 4


class Case(NamedTuple):
    make: Callable[[], Any]
    target: str
    missing: bool = False


SMALL = {"max_depth": 3, "random_state": 0}
FEW = SMALL | {"n_estimators": 3}
LEAVES = {"max_iter": 4, "max_leaf_nodes": 6, "random_state": 0}
CASES = {
    "linear": Case(LinearRegression, "number"),
    "linear_two": Case(lambda: LinearRegression(fit_intercept=False), "numbers"),
    "ridge": Case(Ridge, "number"),
    "ridge_two": Case(Ridge, "numbers"),
    "logistic": Case(LogisticRegression, "class"),
    "logistic_names": Case(LogisticRegression, "names"),
    "logistic_three": Case(LogisticRegression, "three"),
    "pipeline": Case(
        lambda: make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()),
        "class",
        missing=True,
    ),
    "scaled": Case(lambda: make_pipeline(StandardScaler(with_mean=False), Ridge()), "number"),
    "filled": Case(
        lambda: make_pipeline(
            SimpleImputer(strategy="constant", fill_value=-1.5),
            "passthrough",
            StandardScaler(with_std=False),
            RandomForestClassifier(**FEW),
        ),
        "three",
        missing=True,
    ),
    "filled_boosting": Case(
        lambda: make_pipeline(SimpleImputer(strategy="median"), GradientBoostingRegressor(**FEW)),
        "number",
        missing=True,
    ),
    "tree": Case(lambda: DecisionTreeClassifier(**SMALL), "class", missing=True),
    "extra_tree": Case(lambda: ExtraTreeRegressor(**SMALL), "numbers"),
    "forest": Case(lambda: RandomForestClassifier(**FEW), "class", missing=True),
    "forest_weights": Case(
        lambda: RandomForestClassifier(**FEW, class_weight="balanced"), "three", missing=True
    ),
    "forest_three": Case(lambda: RandomForestClassifier(**FEW), "three", missing=True),
    "regression_forest": Case(lambda: RandomForestRegressor(**FEW), "numbers", missing=True),
    "extra_trees": Case(lambda: ExtraTreesClassifier(**FEW), "class"),
    "extra_trees_regression": Case(lambda: ExtraTreesRegressor(**FEW), "number"),
    "boosting": Case(lambda: GradientBoostingClassifier(**FEW), "class"),
    "boosting_exponential": Case(
        lambda: GradientBoostingClassifier(**FEW, loss="exponential"), "class"
    ),
    "boosting_zero": Case(lambda: GradientBoostingClassifier(**FEW, init="zero"), "class"),
    "boosting_three": Case(lambda: GradientBoostingClassifier(**FEW), "three"),
    "boosting_number": Case(lambda: GradientBoostingRegressor(**FEW), "number"),
    "boosting_huber": Case(lambda: GradientBoostingRegressor(**FEW, loss="huber"), "number"),
    "boosting_quantile": Case(
        lambda: GradientBoostingRegressor(**FEW, loss="quantile", alpha=0.8), "number"
    ),
    "histogram": Case(lambda: HistGradientBoostingClassifier(**LEAVES), "class", missing=True),
    "histogram_three": Case(
        lambda: HistGradientBoostingClassifier(**LEAVES), "three", missing=True
    ),
    "histogram_number": Case(
        lambda: HistGradientBoostingRegressor(**LEAVES), "number", missing=True
    ),
    "histogram_counts": Case(
        lambda: HistGradientBoostingRegressor(**LEAVES, loss="poisson"), "counts", missing=True
    ),
}


def rows(count: int, seed: int, *, missing: bool) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(count, FEATURES)).astype(np.float32)
    matrix[:, 3] = rng.integers(-2, 3, count)
    if missing:
        matrix[rng.random(matrix.shape) < 0.1] = np.nan
    return matrix


def fitted(name: str) -> Any:
    case = CASES[name]
    matrix = rows(300, 1, missing=case.missing)
    known = np.nan_to_num(matrix)
    score = known[:, 0] + np.sin(3 * known[:, 1]) + known[:, 3] + np.isnan(matrix[:, 2])
    target = {
        "number": score,
        "numbers": np.stack([score, known[:, 2] - score], axis=1),
        "counts": np.floor(np.exp(np.clip(score, -2, 2))),
        "class": (score > 0.3).astype(np.int64),
        "names": np.where(score > 0.3, "late", "early"),
        "three": np.digitize(score, [-1.0, 1.0]),
    }[case.target]
    return case.make().fit(matrix.astype(np.float64), target)
