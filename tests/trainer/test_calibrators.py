"""Calibrators as a bundle holds them, against scikit-learn's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit, logit, softmax
from sklearn.isotonic import IsotonicRegression

from headrace.errors import FailedPreconditionError, InvalidArgumentError
from trainer.calibrators import (
    BYTES_MAX,
    Beta,
    Isotonic,
    Sigmoid,
    Temperature,
    calibrate,
    calibrator_bytes,
    read_calibrator,
)

RNG = np.random.default_rng(5)
KINDS = [
    Sigmoid(-1.3, 0.2, logit=True),
    Beta(1.2, 0.7, -0.1),
    Isotonic([0.1, 0.4, 0.9], [0.0, 0.35, 1.0]),
    Temperature(1.7, logit=True),
]


@pytest.mark.parametrize("calibrator", KINDS)
def test_what_is_written_is_read(calibrator):
    assert read_calibrator(calibrator_bytes(calibrator)) == calibrator


def test_isotonic_is_scikit_learns_with_clipping():
    x = RNG.random(500)
    y = RNG.random(500) < x**2
    theirs = IsotonicRegression(out_of_bounds="clip").fit(x, y)
    ours = Isotonic(theirs.X_thresholds_.tolist(), theirs.y_thresholds_.tolist())
    asked = np.concatenate([RNG.uniform(-0.5, 1.5, 300), x, [-1.0, 2.0]])
    assert np.abs(calibrate(ours, asked) - theirs.predict(asked)).max() < 1e-12


def test_the_others_are_their_formulas():
    p, score = RNG.random(200), RNG.normal(size=200) * 5
    assert calibrate(Sigmoid(-2.0, 0.5), score) == pytest.approx(expit(2 * score - 0.5))
    assert calibrate(Sigmoid(-2.0, 0.5, logit=True), p) == pytest.approx(expit(2 * logit(p) - 0.5))
    beta = expit(1.5 * np.log(p) - 0.5 * np.log1p(-p) + 0.1)
    assert calibrate(Beta(1.5, 0.5, 0.1), p) == pytest.approx(beta)
    assert calibrate(Temperature(2.5), score) == pytest.approx(expit(score / 2.5))
    assert calibrate(Temperature(2.5, logit=True), p) == pytest.approx(expit(logit(p) / 2.5))
    many = RNG.normal(size=(50, 4)) * 3
    cooler = softmax(many / 0.8, axis=1)
    assert np.abs(calibrate(Temperature(0.8), many) - cooler).max() < 1e-12
    parts = softmax(many, axis=1)
    assert np.abs(calibrate(Temperature(0.8, logit=True), parts) - cooler).max() < 1e-12


@pytest.mark.parametrize("calibrator", KINDS)
def test_two_columns_are_the_two_classes(calibrator):
    p = RNG.random(64).astype(np.float32)
    one = calibrate(calibrator, p[:, None])
    assert one.dtype == np.float32
    assert one.shape == (64, 1)
    both = calibrate(calibrator, np.stack([1 - p, p], axis=1))
    assert both.dtype == np.float32
    assert np.abs(both[:, 1] - one[:, 0]).max() < 1e-6
    assert np.abs(both.sum(axis=1) - 1).max() < 1e-6


@pytest.mark.parametrize("calibrator", KINDS)
@given(arrays(np.float32, st.integers(0, 40), elements=st.floats(0, 1, width=32)))
def test_it_gives_probabilities_in_the_same_order_whatever_the_batch(calibrator, p):
    found = calibrate(calibrator, p)
    assert ((found >= 0) & (found <= 1)).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    alone = [calibrate(calibrator, p[at : at + 1, None])[0, 0] for at in range(len(p))]
    assert np.array_equal(found.view(np.int32), np.array(alone, np.float32).view(np.int32))


@pytest.mark.parametrize(
    ("calibrator", "at_zero", "at_one"),
    [(KINDS[0], 0.0, 1.0), (KINDS[1], 0.0, 1.0), (KINDS[2], 0.0, 1.0), (KINDS[3], 0.0, 1.0),
     (Beta(0.0, 1.0, 0.0), 0.5, 1.0), (Beta(1.0, 0.0, 0.0), 0.0, 0.5)],
)  # fmt: skip
def test_certainty_stays_and_nan_stays(calibrator, at_zero, at_one):
    found = calibrate(calibrator, np.array([0.0, 1.0, np.nan]))
    assert found[:2] == pytest.approx([at_zero, at_one])
    assert np.isnan(found[2])
    rows = np.array([[np.nan, 0.5, 0.5], [1.0, 0.0, 0.0]])
    found = calibrate(Temperature(2.0, logit=True), rows)
    assert np.isnan(found[0]).all()
    assert found[1].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "bad",
    [
        Sigmoid(0.0, 1.0), Sigmoid(1.0, math.inf), Sigmoid(math.nan, 0.0),
        Beta(-1.0, 1.0, 0.0), Beta(1.0, -1.0, 0.0), Beta(0.0, 0.0, 1.0), Beta(1.0, 1.0, math.nan),
        Temperature(0.0), Temperature(-1.0), Temperature(math.inf), Temperature(math.nan),
        Isotonic([], []), Isotonic([0.1], [0.1, 0.2]), Isotonic([0.2, 0.1], [0.1, 0.2]),
        Isotonic([0.1, 0.1], [0.1, 0.2]), Isotonic([0.1, math.inf], [0.1, 0.2]),
        Isotonic([0.1, 0.2], [0.2, 0.1]), Isotonic([0.1, 0.2], [0.1, 1.5]),
        Isotonic([0.1, 0.2], [0.1, math.nan]),
    ],
)  # fmt: skip
def test_what_gives_no_probabilities_is_refused(bad):
    with pytest.raises(InvalidArgumentError, match="calibrator"):
        calibrator_bytes(bad)


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b'{"kind": "forest"}', b'{"kind": "sigmoid", "a": "1", "b": 0}', b"\xff",
     b'{"kind": "sigmoid", "a": 0, "b": 1}', b'{"kind": "temperature"}', b"[" * 100_000,
     b'{"kind": "temperature", "t": 1e999}', b" " * (BYTES_MAX + 1)],
)  # fmt: skip
def test_what_is_no_calibrator_is_refused(data):
    with pytest.raises(InvalidArgumentError):
        read_calibrator(data)


@pytest.mark.parametrize(
    ("calibrator", "output"),
    [(KINDS[0], np.zeros((2, 3), np.float32)), (KINDS[2], np.zeros((2, 0), np.float32)),
     (KINDS[3], np.zeros((2, 2, 2), np.float32)), (KINDS[3], np.float32(1)),
     (KINDS[1], np.zeros(3, np.int64))],
)  # fmt: skip
def test_an_output_that_it_cannot_be_of_is_refused(calibrator, output):
    with pytest.raises(FailedPreconditionError, match="does not fit"):
        calibrate(calibrator, np.asarray(output))
