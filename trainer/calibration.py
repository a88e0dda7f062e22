"""Fit a calibrator of binary probabilities, on rows that the model did not learn from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression, minimize, minimize_scalar

from headrace.errors import InvalidArgumentError
from trainer.calibrators import Beta, Calibrator, Isotonic, Sigmoid, Temperature

Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]
CalibratorKind = Literal["sigmoid", "isotonic", "beta", "temperature"]

# The logarithm of a temperature, and a probability's distance from 0 and 1: float32's at 1.
_LOG_T_MAX = 5.0
_EPSILON = 2.0**-24


def fit_calibrator(kind: CalibratorKind, labels: ArrayLike, probabilities: ArrayLike) -> Calibrator:
    """Return the calibrator with the least log loss (isotonic: least squares) on these rows.

    `labels` [N] and `probabilities` [N]. A sigmoid is Platt's, on the log odds and towards his
    softened labels, as in scikit-learn. Raises InvalidArgumentError when one class lacks.
    """
    y = np.asarray(labels).astype(bool)
    p = np.asarray(probabilities, np.float64)
    if y.shape != p.shape or y.ndim != 1 or not 0 < y.sum() < len(y):
        raise InvalidArgumentError(
            "a calibrator is fitted on rows of both classes",
            expected="labels and probabilities [N], positives and negatives",
            got=f"{y.shape} and {p.shape}, {int(y.sum())} positives",
        )
    return _FITS[kind](y, p)


def _fit_sigmoid(y: Labels, p: Floats) -> Calibrator:
    positives, negatives = int(y.sum()), int((~y).sum())
    targets = np.where(y, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    features = np.stack([_log_odds(p), np.ones_like(p)], axis=1)
    start = np.array([1.0, 0.0])
    found = minimize(_log_loss, start, (features, targets), "BFGS", jac=True)
    a, b = found.x.tolist()
    return Sigmoid(-a, -b, logit=True)


def _fit_beta(y: Labels, p: Floats) -> Calibrator:
    inside = np.clip(p, _EPSILON, 1 - _EPSILON)
    features = np.stack([np.log(inside), -np.log1p(-inside), np.ones_like(p)], axis=1)
    start, bounds = np.array([1.0, 1.0, 0.0]), [(0.0, None), (0.0, None), (None, None)]
    given = (features, y.astype(np.float64))
    found = minimize(_log_loss, start, given, "L-BFGS-B", jac=True, bounds=bounds)
    a, b, c = found.x.tolist()
    return Beta(a, b, c)


def _fit_isotonic(y: Labels, p: Floats) -> Calibrator:
    x, place, counts = np.unique(p, return_inverse=True, return_counts=True)
    means = np.bincount(place, y) / counts
    fitted = np.clip(isotonic_regression(means, weights=counts).x, 0.0, 1.0)
    # A knot between two of its own height says nothing.
    bends = np.ones(len(x), bool)
    bends[1:-1] = (fitted[1:-1] != fitted[:-2]) | (fitted[1:-1] != fitted[2:])
    return Isotonic(x[bends].tolist(), fitted[bends].tolist())


def _fit_temperature(y: Labels, p: Floats) -> Calibrator:
    features, targets = _log_odds(p)[:, None], y.astype(np.float64)

    def loss(log_t: float) -> float:
        return _log_loss(np.array([np.exp(-log_t)]), features, targets)[0]

    found = minimize_scalar(loss, bounds=(-_LOG_T_MAX, _LOG_T_MAX), method="bounded")
    return Temperature(float(np.exp(found.x)), logit=True)


def _log_loss(weights: Floats, features: Floats, targets: Floats) -> tuple[float, Floats]:
    """Return the mean log loss of sigmoid(features · weights), and its gradient."""
    score = features @ weights
    value = np.logaddexp(0.0, score) - targets * score
    slope = 1 / (1 + np.exp(-score)) - targets
    return float(value.mean()), features.T @ slope / len(targets)


def _log_odds(p: Floats) -> Floats:
    inside = np.clip(p, _EPSILON, 1 - _EPSILON)
    odds: Floats = np.log(inside) - np.log1p(-inside)
    return odds


_FITS: dict[CalibratorKind, Callable[[Labels, Floats], Calibrator]] = {
    "sigmoid": _fit_sigmoid,
    "isotonic": _fit_isotonic,
    "beta": _fit_beta,
    "temperature": _fit_temperature,
}
