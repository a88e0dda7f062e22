"""Fitted calibrators, against scikit-learn's and against what is true."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from headrace.errors import InvalidArgumentError
from trainer.calibration import fit_calibrator
from trainer.calibrators import calibrate

RNG = np.random.default_rng(3)
TRUE = RNG.beta(1.2, 3.0, 20_000)
LABELS = RNG.random(len(TRUE)) < TRUE
# Overconfident, and low on the whole.
SAID = expit(1.8 * logit(TRUE) - 0.4).astype(np.float32)


@pytest.mark.parametrize("kind", ["sigmoid", "isotonic", "beta", "temperature"])
def test_it_comes_near_the_truth(kind):
    found = calibrate(fit_calibrator(kind, LABELS, SAID), SAID)
    before, after = np.abs(SAID - TRUE).mean(), np.abs(found - TRUE).mean()
    # One temperature cannot mend what is low on the whole.
    assert after < before * (0.8 if kind == "temperature" else 0.2)


def test_a_sigmoid_is_scikit_learns():
    model = LogisticRegression(C=np.inf).fit(logit(SAID.astype(np.float64))[:, None], LABELS)
    score = model.decision_function(logit(SAID.astype(np.float64))[:, None])
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="sigmoid")
    theirs.fit(logit(SAID.astype(np.float64))[:, None], LABELS)
    wanted = theirs.predict_proba(logit(SAID.astype(np.float64))[:, None])[:, 1]
    ours = fit_calibrator("sigmoid", LABELS, expit(score))
    assert np.abs(calibrate(ours, expit(score)) - wanted).max() < 1e-4


def test_isotonic_is_scikit_learns():
    said = np.round(SAID.astype(np.float64), 3)  # many are equal
    theirs = IsotonicRegression(out_of_bounds="clip").fit(said, LABELS)
    ours = fit_calibrator("isotonic", LABELS, said)
    asked = RNG.random(1000)
    assert np.abs(calibrate(ours, asked) - theirs.predict(asked)).max() < 1e-9
    assert len(ours.x) <= len(theirs.X_thresholds_)


def test_beta_is_a_logistic_regression_on_two_logarithms():
    said = SAID.astype(np.float64)
    features = np.stack([np.log(said), -np.log1p(-said)], axis=1)
    theirs = LogisticRegression(C=np.inf, tol=1e-9, max_iter=1000).fit(features, LABELS)
    ours = fit_calibrator("beta", LABELS, said)
    wanted = theirs.predict_proba(features)[:, 1]
    assert np.abs(calibrate(ours, said) - wanted).max() < 1e-3


def test_beta_never_turns_the_order():
    ours = fit_calibrator("beta", ~LABELS, SAID)
    assert (np.diff(calibrate(ours, np.linspace(0.01, 0.99, 50))) >= 0).all()


def test_certain_rows_do_no_harm():
    said, labels = np.array([0.0, 1.0, 0.2, 0.7, 1.0]), np.array([1, 1, 0, 1, 0])
    for kind in ("sigmoid", "isotonic", "beta", "temperature"):
        assert np.isfinite(calibrate(fit_calibrator(kind, labels, said), said)).all()


@pytest.mark.parametrize(("labels", "said"), [([1, 1], [0.5, 0.6]), ([0, 1, 0], [0.5, 0.6])])
def test_rows_that_teach_nothing_are_refused(labels, said):
    with pytest.raises(InvalidArgumentError, match="both classes"):
        fit_calibrator("sigmoid", labels, said)
