from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from monitor.distance import CONFIDENCE, PSI_EFFECT, chi_square_quantile, psi


@pytest.mark.parametrize("probability", [0.01, 0.5, 0.95, 0.999, 0.999999])
@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 10, 11, 40, 200])
def test_the_quantile_is_scipys(probability: float, freedom: int) -> None:
    expected = scipy.stats.chi2.ppf(probability, freedom)
    assert chi_square_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9)


def test_no_freedom_no_noise() -> None:
    assert chi_square_quantile(0.999, 0) == 0.0


HISTOGRAMS = st.lists(
    st.lists(st.integers(0, 500), min_size=4, max_size=4), min_size=2, max_size=2
).filter(lambda pair: all(sum(counts) for counts in pair))


@given(HISTOGRAMS)
def test_psi_is_its_formula(pair: list[list[int]]) -> None:
    reference, current = (np.array([counts], float) for counts in pair)
    found = psi(reference, current, np.array([3]), reference.sum(), current.sum())
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (reference[0], current[0]))
    assert found.psi[0] == pytest.approx(float(((q - p) * np.log(q / p)).sum()))
    other_way = psi(current, reference, np.array([3]), current.sum(), reference.sum())
    assert other_way.psi[0] == pytest.approx(found.psi[0])
    assert found.psi[0] >= 0


def test_padding_bins_do_not_count() -> None:
    narrow = np.array([[30.0, 70.0, 5.0]]), np.array([[60.0, 40.0, 9.0]])
    wide = tuple(np.insert(counts, 2, [[0.0], [0.0]], axis=1) for counts in narrow)
    first = psi(*narrow, np.array([2]), 105, 109)
    second = psi(*wide, np.array([2]), 105, 109)
    assert second.psi[0] == first.psi[0]
    assert second.critical[0] == first.critical[0]


@pytest.mark.parametrize(("reference_rows", "rows"), [(1000, 100), (5000, 5000), (50_000, 900)])
def test_without_drift_the_critical_value_is_rarely_reached(reference_rows: int, rows: int) -> None:
    rng = np.random.default_rng(5)
    features, shares = 4000, np.full(11, 1 / 11)
    reference = rng.multinomial(reference_rows, shares, features).astype(float)
    current = rng.multinomial(rows, shares, features).astype(float)
    found = psi(reference, current, np.full(features, 10), reference_rows, rows)
    beyond = (found.psi >= found.critical).mean()
    assert beyond <= 1 - CONFIDENCE + 4 * np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / features)
    mean = (1 / reference_rows + 1 / rows) * 10
    assert found.psi.mean() == pytest.approx(mean, rel=0.1)


def test_both_noise_and_smallness_keep_a_feature_from_being_flagged() -> None:
    even, shares = np.full(11, 1 / 11), np.linspace(0.5, 1.5, 11) / 11
    certain_but_small = psi(even[None] * 1e6, shares[None] * 1e6, np.array([10]), 1e6, 1e6)
    assert certain_but_small.psi[0] > certain_but_small.critical[0]
    assert certain_but_small.psi[0] < PSI_EFFECT
    assert not certain_but_small.flagged[0]
    rng = np.random.default_rng(1)
    few = rng.multinomial(25, even, 1).astype(float)
    large_but_noise = psi(even[None] * 1e6, few, np.array([10]), 1e6, 25)
    assert large_but_noise.psi[0] > PSI_EFFECT
    assert not large_but_noise.flagged[0]
    both = psi(even[None] * 1e6, np.eye(11)[:1] * 900, np.array([10]), 1e6, 900)
    assert both.flagged[0]


def test_no_rows_no_distance() -> None:
    found = psi(np.ones((2, 3)), np.zeros((2, 3)), np.array([2, 2]), 3, 0)
    assert np.isnan(found.psi).all()
    assert not found.flagged.any()
