"""How good a binary classifier is: AUC, log loss, Brier score, calibration, slices."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

from headrace.errors import InvalidArgumentError
from monitor.calibration import log_loss_rows
from trainer.manifest import Metric

Floats = NDArray[np.float64]
Labels = NDArray[np.bool_]

CONFIDENCE = 0.95
SLICE_ROWS_MIN = 200
"""A smaller slice has an AUC interval too wide to say anything."""


class CalibrationBin(msgspec.Struct, frozen=True):
    """Rows with near predictions (equal counts a bin): what was said and what came."""

    rows: int
    predicted: float
    observed: float


class Evaluation(msgspec.Struct, frozen=True):
    """The metrics of one model on one set of rows. Intervals are at 95 %."""

    auc: Metric
    log_loss: Metric
    brier: Metric
    calibration: list[CalibrationBin]

    @property
    def metrics(self) -> dict[str, Metric]:
        """As a bundle's manifest holds them."""
        return {"auc": self.auc, "log_loss": self.log_loss, "brier": self.brier}


def evaluate(
    labels: ArrayLike, probabilities: ArrayLike, slices: Mapping[str, ArrayLike] | None = None
) -> Evaluation:
    """Evaluate probabilities [N] against labels [N]; `slices` gives each row's value per slice
    name.

    Raises InvalidArgumentError when lengths differ, a probability is not in [0, 1], or one class
    lacks.
    """
    y, p = _checked(labels, probabilities)
    return Evaluation(
        auc=auc_metric(y, p, slices),
        log_loss=_mean_metric(log_loss_rows(y, p)),
        brier=_mean_metric((p - y) ** 2),
        calibration=calibration(y, p),
    )


def auc_metric(
    labels: ArrayLike, probabilities: ArrayLike, slices: Mapping[str, ArrayLike] | None = None
) -> Metric:
    """Return the area under the ROC curve with DeLong's interval, whole and per slice.

    A slice with fewer than 200 rows or with one class only is left out.
    """
    y, p = _checked(labels, probabilities)
    found: dict[str, Metric] = {}
    for name, values in (slices or {}).items():
        column = np.asarray(values)
        for value in np.unique(column):
            rows = column == value
            if rows.sum() >= SLICE_ROWS_MIN and 0 < y[rows].sum() < rows.sum():
                found[f"{name}={value}"] = _auc(y[rows], p[rows])
    whole = _auc(y, p)
    return Metric(whole.value, whole.low, whole.high, whole.rows, found)


def calibration(labels: Labels, probabilities: Floats, bins: int = 10) -> list[CalibrationBin]:
    """Return bins of equal count, in the order of the prediction."""
    order = np.argsort(probabilities, kind="stable")
    return [
        CalibrationBin(len(rows), float(probabilities[rows].mean()), float(labels[rows].mean()))
        for rows in np.array_split(order, min(bins, len(order)))
    ]


def _auc(y: Labels, p: Floats) -> Metric:
    """DeLong's variance by midranks: Sun & Xu, IEEE Signal Processing Letters 21 (2014)."""
    positive, negative = p[y], p[~y]
    m, n = len(positive), len(negative)
    ranks = rankdata(np.concatenate([positive, negative]))
    # Share of negatives below each positive, and of positives above each negative; ties count half.
    above = (ranks[:m] - rankdata(positive)) / n
    below = 1 - (ranks[m:] - rankdata(negative)) / m
    value = float(above.mean())
    variance = (above.var(ddof=1) / m if m > 1 else 0) + (below.var(ddof=1) / n if n > 1 else 0)
    reach = float(norm.ppf((1 + CONFIDENCE) / 2) * np.sqrt(variance))
    return Metric(value, max(0.0, value - reach), min(1.0, value + reach), m + n)


def _mean_metric(values: Floats) -> Metric:
    value = float(values.mean())
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    reach = float(norm.ppf((1 + CONFIDENCE) / 2)) * error
    return Metric(value, value - reach, value + reach, len(values))


def _checked(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Labels, Floats]:
    y = np.asarray(labels).astype(bool)
    p = np.asarray(probabilities, dtype=np.float64)
    if y.shape != p.shape or y.ndim != 1:
        raise InvalidArgumentError(
            "labels and probabilities do not belong together",
            where="evaluate",
            expected="two arrays [N]",
            got=f"{y.shape} and {p.shape}",
        )
    if not ((p >= 0) & (p <= 1)).all():
        raise InvalidArgumentError(
            "not a probability", where="evaluate", expected="values in [0, 1]", got="others, or NaN"
        )
    if not 0 < y.sum() < len(y):
        raise InvalidArgumentError(
            "an AUC needs both classes",
            where="evaluate",
            expected="positives and negatives",
            got=f"{int(y.sum())} positives in {len(y)} rows",
        )
    return y, p
