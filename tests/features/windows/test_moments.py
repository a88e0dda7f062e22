"""The variance: exact and rounded once, whatever the order, as `statistics` and fractions say."""

from __future__ import annotations

import math
import statistics

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from features.windows.moments import SQUARE_LIMBS, SQUARE_WORDS, add_square, variance
from features.windows.sums import LIMBS, SUM_WORDS, add_float, merge_sums
from tests.features import oracle

# A cell of a sum is exact within 2^43: see `sums`.
magnitudes = st.sampled_from([1.0, 1e-300, 5e-324 * 2**70, 1e9, 1e140, 1e153, 3.7])
shares = st.one_of(st.floats(0.001, 1000), st.integers(-1000, 1000).map(float))


@njit
def spread(words: np.ndarray, cuts: np.ndarray) -> float:
    """The variance of doubles by their bits, merged from cells for every piece between cuts."""
    sums, part_sums = np.zeros(SUM_WORDS, np.int64), np.zeros(SUM_WORDS, np.int64)
    squares, part = np.zeros(SQUARE_WORDS, np.int64), np.zeros(SQUARE_WORDS, np.int64)
    for i in range(words.size):
        add_float(part_sums, 0, words[i], 0)
        add_square(part, 0, words[i])
        if cuts[i] or i == words.size - 1:
            merge_sums(sums, 0, part_sums, 0, LIMBS)
            merge_sums(squares, 0, part, 0, SQUARE_LIMBS)
            part_sums[:] = 0
            part[:] = 0
    return variance(sums, 0, squares, 0, words.size)


def of(values: list[float], cuts: list[bool]) -> float:
    return spread(np.array(values, np.float64).view(np.int64), np.array(cuts, np.bool_))


@given(st.data(), magnitudes, st.lists(shares, min_size=2, max_size=30))
@settings(deadline=None)
def test_a_variance_is_the_fractions_in_any_order(
    data: st.DataObject, magnitude: float, parts: list[float]
) -> None:
    values = [magnitude * part for part in parts]
    wanted = oracle.variance(values)
    shuffled = data.draw(st.permutations(values))
    cuts = st.lists(st.booleans(), min_size=len(values), max_size=len(values))
    for order in (values, shuffled):
        assert of(order, data.draw(cuts)) == wanted


def test_a_large_offset_cancels_nothing() -> None:
    for values in ([1e9 - 1, 1e9, 1e9 + 1], [1e15 + 0.25, 1e15 - 0.5], [0.1] * 10, [-1e9, 1e-3]):
        assert of(values, [False] * len(values)) == statistics.variance(values)


def test_many_numbers_carry() -> None:
    values = [1e9 + (i % 7) for i in range(20_000)]
    assert of(values, [i % 977 == 0 for i in range(len(values))]) == statistics.variance(values)


def test_what_is_no_number_makes_none() -> None:
    for odd in (math.nan, math.inf, -math.inf):
        assert math.isnan(of([1.0, odd, 2.0], [False] * 3))


def test_a_variance_beyond_doubles_is_infinite() -> None:
    assert of([1.7e308, -1.7e308], [False] * 2) == math.inf
