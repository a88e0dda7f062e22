from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import assume, given
from hypothesis import strategies as st

from monitor import auc, calibration_bins, log_loss, spiegelhalter_z
from monitor.calibration import auc_from_bins

ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=1, max_size=60)


def split(rows: list[tuple[bool, int]]) -> tuple[np.ndarray, np.ndarray]:
    labels = np.array([label for label, _ in rows], np.float64)
    return labels, np.array([score / 20 for _, score in rows])


@given(ROWS)
def test_auc_and_log_loss_are_scikit_learns(rows: list[tuple[bool, int]]) -> None:
    labels, scores = split(rows)
    if len(set(labels)) == 1:
        assert auc(labels, scores) is None
    else:
        assert auc(labels, scores) == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores))
    expected = sklearn.metrics.log_loss(labels, scores, labels=[0, 1])
    assert log_loss(labels, scores) == pytest.approx(expected)


@given(ROWS)
def test_auc_by_bins_is_the_auc_of_binned_scores(rows: list[tuple[bool, int]]) -> None:
    labels, scores = split(rows)
    bins = np.minimum((scores * 7).astype(int), 6)
    positives, negatives = (
        np.bincount(bins[labels == label], minlength=7).astype(float) for label in (1, 0)
    )
    expected = auc(labels, bins)
    found = auc_from_bins(positives, negatives)
    assert found == (None if expected is None else pytest.approx(expected))


def test_nothing_is_told_from_nothing() -> None:
    empty = np.zeros(0)
    assert log_loss(empty, empty) is None
    assert spiegelhalter_z(empty, empty) is None
    assert spiegelhalter_z(np.ones(3), np.full(3, 0.5)) is None
    assert calibration_bins(np.zeros(100), np.zeros(100), np.zeros(100)) == []


def test_spiegelhalter_z_is_standard_normal_for_a_calibrated_model() -> None:
    rng = np.random.default_rng(3)
    p = rng.beta(2, 6, 2000)
    z = [spiegelhalter_z((rng.random(2000) < p).astype(float), p) for _ in range(400)]
    found = np.array(z, np.float64)
    assert abs(found.mean()) < 4 / math.sqrt(400)
    assert 0.85 < found.std() < 1.15
    worse = spiegelhalter_z((rng.random(2000) < np.minimum(p * 1.3, 1)).astype(float), p)
    assert worse is not None
    assert worse > 4


@given(ROWS)
def test_calibration_bins_hold_every_row_once(rows: list[tuple[bool, int]]) -> None:
    labels, scores = split(rows)
    assume(len(rows) > 0)
    fine = np.minimum((scores * 100).astype(int), 99)
    sums = [np.bincount(fine, w, 100) for w in (np.ones(len(rows)), scores, labels)]
    bins = calibration_bins(*sums)
    assert sum(b.rows for b in bins) == len(rows)
    assert sum(b.rows * b.observed_share for b in bins) == pytest.approx(labels.sum())
    assert sum(b.rows * b.prediction_mean for b in bins) == pytest.approx(scores.sum())
    assert all(b.lower - 1e-9 <= b.prediction_mean <= b.upper + 1e-9 for b in bins)
