"""How well probabilities fit what happened: AUC, log loss, calibration. Pure numpy, no clock.

Labels are float64 of 0 and 1, scores float64 or float32 of the same length; rows whose label is NaN
(no truth yet) must be left out by the caller: a missing truth is never a negative.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

# log(0) is kept out of the log loss the way scikit-learn does it for float64.
_EPSILON = float(np.finfo(np.float64).eps)


class CalibrationBin(NamedTuple):
    """Predictions in [lower, upper): their mean, the share that came true, and how many."""

    lower: float
    upper: float
    rows: float
    prediction_mean: float
    observed_share: float


def auc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """Return the exact area under the ROC curve (ties count half); None with one class only.

    Source: Mann & Whitney (1947) by mid-ranks.
    """
    positive = labels > 0.5
    positives = int(positive.sum())
    negatives = len(labels) - positives
    if positives == 0 or negatives == 0:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mid_ranks = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = float(mid_ranks[inverse][positive].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def auc_from_bins(positives: np.ndarray, negatives: np.ndarray) -> float | None:
    """Return the AUC of scores known only by ascending bin (ties within a bin count half).

    It differs from the exact AUC by at most half the share of pairs that share a bin.
    """
    pairs = float(positives.sum() * negatives.sum())
    if pairs == 0:
        return None
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / pairs)


def log_loss_rows(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return float64 [rows]: −log of the probability given to what happened."""
    p = np.clip(probabilities.astype(np.float64), _EPSILON, 1 - _EPSILON)
    losses: np.ndarray = -(labels * np.log(p) + (1 - labels) * np.log1p(-p))
    return losses


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Return the mean log loss in nats; None without rows."""
    return float(log_loss_rows(labels, probabilities).mean()) if len(labels) else None


def spiegelhalter_z(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Return Spiegelhalter's (1986) z of calibration: N(0, 1) for a calibrated model.

    It takes rows for independent, which the rows of one day are not: read it within a day, and use
    `monitor.drift` across days. None without rows or when every probability is ½ or certain.
    """
    p = probabilities.astype(np.float64)
    variance = float(((1 - 2 * p) ** 2 * p * (1 - p)).sum())
    if variance == 0:
        return None
    return float(((labels - p) * (1 - 2 * p)).sum()) / math.sqrt(variance)


def calibration_bins(
    weights: np.ndarray, prediction_sums: np.ndarray, label_sums: np.ndarray, bins: int = 10
) -> list[CalibrationBin]:
    """Merge fine bins of equal width on [0, 1] into `bins`; empty bins are left out.

    The three arrays are float64 [fine bins], a multiple of `bins`: rows with truth, the sum of
    their predictions, and of their labels.
    """
    rows, predicted, observed = (
        values.reshape(bins, -1).sum(axis=1) for values in (weights, prediction_sums, label_sums)
    )
    return [
        CalibrationBin(
            lower=number / bins,
            upper=(number + 1) / bins,
            rows=float(rows[number]),
            prediction_mean=float(predicted[number] / rows[number]),
            observed_share=float(observed[number] / rows[number]),
        )
        for number in range(bins)
        if rows[number] > 0
    ]
