"""Decay: the weights are right, and nothing but the events decides."""

from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from features.windows.decay import SCALE_BASE, decayed_sum, weight_of, weighted
from features.windows.sums import SUM_WORDS, add_float
from tests.features.oracle import weight

DAY_US = 86_400_000_000
half_lives = st.sampled_from([1000, 1_000_000, 7 * 60_000_000, DAY_US, 400 * DAY_US])
times_us = st.integers(-(2**60), 2**60)


@njit
def weigh(time: int, half_life: int) -> tuple[float, int]:
    return weight_of(time, half_life)


@njit
def total(words: np.ndarray, times: np.ndarray, t: int, half_life: int) -> float:
    cell = np.zeros(SUM_WORDS, np.int64)
    for i in range(words.size):
        w, q = weight_of(times[i], half_life)
        add_float(cell, 0, weighted(words[i], w), q)
    return decayed_sum(cell, 0, t, half_life)


@given(times_us, half_lives)
def test_a_weight_is_a_power_of_two(time_us: int, half_life_us: int) -> None:
    w, q = weigh(time_us, half_life_us)
    assert (w, q - SCALE_BASE) == weight(time_us, half_life_us)
    with localcontext() as context:
        context.prec = 60
        share = Decimal(time_us) / half_life_us - (q - SCALE_BASE)
        exact = Decimal(2) ** (share - 1)
        assert 0 <= share < 1
        assert abs(Decimal(w) / exact - 1) < Decimal(2) ** -51


@pytest.mark.parametrize("half_life_us", [1_000_000, 3600_000_000, 30 * DAY_US])
def test_a_decayed_sum_is_the_exact_one_to_a_few_units(half_life_us: int) -> None:
    rng = np.random.default_rng(half_life_us)
    t = 1_741_602_180_000_000
    times = t - rng.integers(0, 40 * half_life_us, 300)
    values = rng.random(300) * 1000
    with localcontext() as context:
        context.prec = 60
        exact = sum(
            Decimal(v) * Decimal(2) ** (-Decimal(int(t - e)) / half_life_us)
            for v, e in zip(values.tolist(), times, strict=True)
        )
    found = total(values.view(np.int64), times, t, half_life_us)
    assert abs(Decimal(found) / exact - 1) < Decimal(2) ** -50
    order = rng.permutation(300)
    assert total(values[order].view(np.int64), times[order], t, half_life_us) == found


def test_what_is_long_ago_is_nothing_and_what_is_now_is_whole() -> None:
    now = np.array([1.5]).view(np.int64)
    assert total(now, np.array([0]), 0, 1000) == 1.5
    assert total(now, np.array([0]), 1000, 1000) == 0.75
    assert total(now, np.array([0]), 2**60, 1000) == 0.0
    assert total(now, np.array([-1000 * 1074]), 0, 1000) == 1e-323  # 1.5 · 2^-1074, ties to even
