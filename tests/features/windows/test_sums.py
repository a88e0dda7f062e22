"""Sums of floats: the same to the bit in any order, and right."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from features.windows.sums import LIMBS, SUM_WORDS, add_float, merge_sums, rounded_sum
from tests.features.oracle import float_sum

any_floats = st.floats(allow_nan=True, allow_infinity=True)
near = st.floats(-1e6, 1e6)
edges = st.sampled_from(
    [0.0, -0.0, 5e-324, -5e-324, 2.0**-1022, -(2.0**-1022), 1e-310, 1.0, 0.1, 2.0**53, 2.0**31,
     -(2.0**53) - 2, 1e16, -1e16, 1.7976931348623157e308, -1.7976931348623157e308]
)  # fmt: skip


@njit
def total(words: np.ndarray, cuts: np.ndarray) -> float:
    """The sum of doubles by their bits, merged from a cell for every piece between cuts."""
    whole, part = np.zeros(SUM_WORDS, np.int64), np.zeros(SUM_WORDS, np.int64)
    for i in range(words.size):
        add_float(part, 0, words[i], 0)
        if cuts[i]:
            merge_sums(whole, 0, part, 0, LIMBS)
            part[:] = 0
    merge_sums(whole, 0, part, 0, LIMBS)
    return rounded_sum(whole, 0, 0)


def summed(values: list[float], cuts: list[bool]) -> float:
    return total(np.array(values, dtype=np.float64).view(np.int64), np.array(cuts, dtype=np.bool_))


def same(one: float, other: float) -> bool:
    return one == other or (one != one and other != other)


@given(st.data(), st.one_of(*(st.lists(kind, max_size=30) for kind in (any_floats, near, edges))))
def test_a_sum_is_the_definitions_in_any_order(data: st.DataObject, values: list[float]) -> None:
    wanted = float_sum(values)
    shuffled = data.draw(st.permutations(values))
    cuts = st.lists(st.booleans(), min_size=len(values), max_size=len(values))
    for order in (values, shuffled):
        assert same(summed(order, data.draw(cuts)), wanted)


@given(st.lists(near, max_size=60))
def test_what_spans_less_than_96_bits_is_summed_exactly(values: list[float]) -> None:
    values = [v for v in values if v == 0 or abs(v) > 1e-3]
    assert summed(values, [False] * len(values)) == math.fsum(values)


def test_many_numbers_carry() -> None:
    for value in (0.1, -0.1, 2.0**-1074, 1e300, -3.3e8):
        values = [value] * 20_000 + [-value] * 3
        cuts = [i % 977 == 0 for i in range(len(values))]
        assert summed(values, cuts) == float_sum([value * 1.0] * 19_997)
