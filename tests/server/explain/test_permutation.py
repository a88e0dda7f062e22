"""Sampled attributions against enumeration over all coalitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidArgumentError
from server.explain.permutation import (
    FEATURES_MAX,
    MODEL_ROWS,
    OUTPUTS_MAX,
    RUN_ROWS,
    estimate,
    model_rows_of,
    pairs_of,
)


def never() -> bool:
    return False


def score(inputs):
    """Two outputs that are far from additive."""
    x = np.concatenate([each.reshape(len(each), -1) for each in inputs], axis=1).astype(np.float64)
    first = x[:, 0] * x[:, 1] + np.sin(x).sum(axis=1) + x.prod(axis=1)
    return np.stack([first, np.maximum(x.sum(axis=1), 0)], axis=1)


def exact(row, background):
    """Shapley values by their definition, the background averaged over."""
    flat = np.concatenate([each.ravel() for each in row])
    rows = np.concatenate([each.reshape(len(each), -1) for each in background], axis=1)
    features = len(flat)

    def worth(known):
        mixed = rows.copy()
        mixed[:, list(known)] = flat[list(known)]
        return score([mixed]).mean(axis=0)

    values = np.zeros((features, 2))
    for feature in range(features):
        others = [other for other in range(features) if other != feature]
        for size in range(features):
            for known in itertools.combinations(others, size):
                share = 1 / (features * math.comb(features - 1, size))
                values[feature] += share * (worth((*known, feature)) - worth(known))
    return values, score([rows]).mean(axis=0)


def example(seed, rows=4):
    rng = np.random.default_rng(seed)
    row = [rng.normal(size=3).astype(np.float32), rng.integers(-2, 3, (2, 1))]
    background = [
        rng.normal(size=(rows, 3)).astype(np.float32), rng.integers(-2, 3, (rows, 2, 1)),
    ]  # fmt: skip
    return row, background


@pytest.mark.parametrize("seed", range(5))
def test_estimates_are_within_their_errors_of_the_truth(seed):
    row, background = example(seed)
    found = estimate(score, row, background, seed, never)
    values, base = exact(row, background)
    assert np.abs(found.base - base).max() < 1e-12
    assert (np.abs(found.values - values) < 5 * found.errors + 1e-9).all()
    assert found.errors.max() < 0.5


@given(st.integers(0, 2**64 - 1), st.integers(1, 9))
def test_they_add_up_exactly_whatever_is_drawn(seed, rows):
    row, background = example(7, rows)
    found = estimate(score, row, background, seed, never)
    total = found.base + found.values.sum(axis=0)
    assert np.abs(total - score([each[None] for each in row])[0]).max() < 1e-9


def test_two_features_are_exact():
    row, background = [np.array([2.0, 3.0])], [np.array([[0.5, -1.0]])]
    found = estimate(score, row, background, 1, never)
    assert np.abs(found.values - exact(row, background)[0]).max() < 1e-12
    assert found.errors.max() < 1e-12


def test_a_seed_gives_the_same_again_and_another_does_not():
    row, background = example(3)
    first, again, other = (estimate(score, row, background, seed, never) for seed in (5, 5, 6))
    assert np.array_equal(first.values, again.values)
    assert not np.array_equal(first.values, other.values)


@pytest.mark.parametrize("features", [1, 5, 300, FEATURES_MAX])
def test_the_model_runs_as_many_rows_as_is_said(features):
    counted = []

    def counting(inputs):
        counted.append(len(inputs[0]))
        return inputs[0].sum(axis=1, keepdims=True)

    row, background = [np.ones(features)], [np.zeros((3, features))]
    found = estimate(counting, row, background, 0, never)
    assert sum(counted) == model_rows_of(features, 3)
    assert sum(counted) <= max(MODEL_ROWS, 4 * features)
    assert max(counted) <= max(RUN_ROWS, 2 * features)
    assert np.allclose(found.values, 1.0)


@pytest.mark.parametrize("features", [1, 2, 7, 100, FEATURES_MAX])
@pytest.mark.parametrize("background", [1, 3, 8])
def test_background_rows_are_used_equally_often(features, background):
    pairs, used = pairs_of(features, background)
    assert pairs % used == 0
    assert pairs >= 2 * used
    assert used == background or features >= 100


@pytest.mark.parametrize("features", [0, FEATURES_MAX + 1])
def test_too_many_features_are_refused(features):
    with pytest.raises(InvalidArgumentError, match="number of features"):
        estimate(score, [np.ones(features)], [np.ones((1, features))], 0, never)


def test_too_many_outputs_are_refused():
    def wide(inputs):
        return np.zeros((len(inputs[0]), OUTPUTS_MAX + 1))

    with pytest.raises(InvalidArgumentError, match="too many outputs"):
        estimate(wide, [np.ones(2)], [np.ones((1, 2))], 0, never)


def test_nothing_is_run_when_it_is_late():
    row, background = example(1)
    late = iter([False, True])
    runs = []

    def counting(inputs):
        runs.append(1)
        return score(inputs)

    assert estimate(counting, row, background, 0, lambda: next(late)) is None
    assert len(runs) == 1
