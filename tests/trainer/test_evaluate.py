import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from headrace.errors import InvalidArgumentError
from trainer.evaluate import auc_metric, evaluate


def sample(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities with ties, that fit one another."""
    rng = np.random.default_rng(seed)
    probabilities = np.round(rng.beta(1, 3, rows), 2).clip(0.01, 0.99)
    return rng.random(rows) < probabilities, probabilities


@given(st.integers(0, 10_000), st.integers(2, 300))
def test_metrics_are_those_of_scikit_learn(seed, rows):
    labels, probabilities = sample(rows, seed)
    labels[:2] = [True, False]
    found = evaluate(labels, probabilities)
    assert found.auc.value == pytest.approx(roc_auc_score(labels, probabilities), abs=1e-12)
    assert found.log_loss.value == pytest.approx(log_loss(labels, probabilities), abs=1e-12)
    assert found.brier.value == pytest.approx(brier_score_loss(labels, probabilities), abs=1e-12)
    assert found.auc.low <= found.auc.value <= found.auc.high
    assert {metric.rows for metric in found.metrics.values()} == {rows}


def test_delongs_interval_is_as_wide_as_the_bootstraps():
    labels, probabilities = sample(4000, seed=3)
    rng = np.random.default_rng(0)
    draws = [
        roc_auc_score(labels[at], probabilities[at])
        for at in (rng.integers(0, len(labels), len(labels)) for _ in range(300))
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    metric = auc_metric(labels, probabilities)
    assert metric.high - metric.low == pytest.approx(high - low, rel=0.15)


def test_delongs_variance_by_its_definition():
    """The placement values, counted pair by pair (DeLong, DeLong & Clarke-Pearson 1988)."""
    labels, probabilities = sample(60, seed=9)
    positive, negative = probabilities[labels], probabilities[~labels]
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    variance = wins.mean(1).var(ddof=1) / len(positive) + wins.mean(0).var(ddof=1) / len(negative)
    metric = auc_metric(labels, probabilities)
    assert (metric.high - metric.low) / 2 == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-6)


def test_slices_leave_out_what_says_nothing():
    labels, probabilities = sample(2000, seed=4)
    names = np.array(["UA"] * 1000 + ["B6"] * 700 + ["OO"] * 50 + ["HA"] * 250)
    labels[names == "HA"] = False
    found = auc_metric(labels, probabilities, {"carrier": names})
    assert sorted(found.slices) == ["carrier=B6", "carrier=UA"]
    rows = names == "B6"
    assert found.slices["carrier=B6"].value == pytest.approx(
        roc_auc_score(labels[rows], probabilities[rows])
    )
    assert found.slices["carrier=B6"].rows == 700


def test_calibration_bins_hold_every_row_once_in_order():
    labels, probabilities = sample(1003, seed=5)
    bins = evaluate(labels, probabilities).calibration
    assert [each.rows for each in bins] == [101] * 3 + [100] * 7
    assert [each.predicted for each in bins] == sorted(each.predicted for each in bins)
    observed = sum(each.observed * each.rows for each in bins)
    assert observed == pytest.approx(labels.sum())


@pytest.mark.parametrize(
    ("labels", "probabilities", "named"),
    [
        ([True, False], [0.5], "belong together"),
        ([True, False], [0.5, 1.1], "not a probability"),
        ([True, False], [0.5, float("nan")], "not a probability"),
        ([True, True], [0.5, 0.6], "both classes"),
        ([], [], "both classes"),
    ],
)
def test_what_cannot_be_evaluated_is_named(labels, probabilities, named):
    with pytest.raises(InvalidArgumentError, match=named):
        evaluate(labels, probabilities)
