"""Sums over a group of a day's predictions: rows, predictions, truth, and scores in fine bins."""

from __future__ import annotations

import msgspec
import numpy as np

from monitor.calibration import (
    CalibrationBin,
    auc,
    auc_from_bins,
    calibration_bins,
    log_loss_rows,
)

# Bins of equal width on [0, 1]: coarse enough to keep, fine enough to merge AUC and calibration.
SCORE_BINS = 100


class Totals(msgspec.Struct):
    """Sums over a group of predictions. Weighted where they say so."""

    rows: int
    joined: int  # rows with truth
    weight: float
    weight_squares: float
    prediction_sum: float
    joined_weight: float
    joined_prediction_sum: float
    label_sum: float
    log_loss_sum: float
    # float64 [SCORE_BINS, 4]: weight, then of the joined rows: weight, predictions, labels.
    scores: np.ndarray
    exact_auc: float | None  # of one day; a merge knows it only by score bins

    @property
    def prediction_mean(self) -> float | None:
        """The mean prediction; None without rows."""
        return self.prediction_sum / self.weight if self.weight else None

    @property
    def observed_share(self) -> float | None:
        """The share of joined rows whose truth is 1; None without truth."""
        return self.label_sum / self.joined_weight if self.joined_weight else None

    @property
    def joined_prediction_mean(self) -> float | None:
        """The mean prediction of the rows with truth; None without truth."""
        return self.joined_prediction_sum / self.joined_weight if self.joined_weight else None

    @property
    def calibration_error(self) -> float | None:
        """Observed share minus mean prediction, of the rows with truth; None without truth."""
        if not self.joined_weight:
            return None
        return (self.label_sum - self.joined_prediction_sum) / self.joined_weight

    @property
    def log_loss(self) -> float | None:
        """The mean log loss in nats; None without truth."""
        return self.log_loss_sum / self.joined_weight if self.joined_weight else None

    @property
    def auc(self) -> float | None:
        """AUC: exact for one day, by score bins for merged days; None with one class only."""
        if self.exact_auc is not None:
            return self.exact_auc
        return auc_from_bins(self.scores[:, 3], self.scores[:, 1] - self.scores[:, 3])

    @property
    def calibration(self) -> list[CalibrationBin]:
        """Ten bins of equal width of the rows with truth; empty ones are left out."""
        return calibration_bins(self.scores[:, 1], self.scores[:, 2], self.scores[:, 3])

    def __add__(self, other: Totals) -> Totals:
        """Return the totals of both groups; one without rows changes nothing."""
        if not other.rows or not self.rows:
            return other if not self.rows else self
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name in self.__struct_fields__
            if name != "exact_auc"
        }
        return Totals(**sums, exact_auc=None)


def totals(predictions: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> Totals:
    """Return the totals of rows: float64 predictions in [0, 1], truth 0/1 or NaN, and weights.

    The exact AUC takes rows as equal: within one day sampling hardly changes.
    """
    joined = ~np.isnan(truth)
    labels, scores, w = truth[joined], predictions[joined], weights[joined]
    bins = np.minimum((predictions * SCORE_BINS).astype(np.int64), SCORE_BINS - 1)
    columns = [
        np.bincount(bins, weights, SCORE_BINS),
        *(np.bincount(bins[joined], v, SCORE_BINS) for v in (w, w * scores, w * labels)),
    ]
    return Totals(
        rows=len(predictions),
        joined=int(joined.sum()),
        weight=float(weights.sum()),
        weight_squares=float((weights**2).sum()),
        prediction_sum=float((weights * predictions).sum()),
        joined_weight=float(w.sum()),
        joined_prediction_sum=float((w * scores).sum()),
        label_sum=float((w * labels).sum()),
        log_loss_sum=float((w * log_loss_rows(labels, scores)).sum()),
        scores=np.stack(columns, axis=1),
        exact_auc=auc(labels, scores),
    )
