"""The sampler: how many it takes, and that no rhythm of ticks changes it."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.tracing.rules import UNLIMITED, Sampler


def taken(sampler: Sampler, ticks: list[int]) -> list[int]:
    """The requests that are taken, counted through all ticks."""
    found, before = [], 0
    for requests in ticks:
        picks = sampler.picks(requests)
        assert picks == sorted(set(picks))
        assert all(0 <= pick < requests for pick in picks)
        found += [before + pick for pick in picks]
        before += requests
    return found


@given(
    st.integers(0, 50),
    st.sampled_from([UNLIMITED, 0, 1, 5]),
    st.lists(st.integers(0, 40), max_size=40),
    st.integers(0, 2**32),
)
def test_ticks_of_any_size_take_the_same_requests(
    rate: int, count: int, ticks: list[int], seed: int
) -> None:
    by_tick = Sampler(rate, count, random.Random(seed).random)
    one_by_one = Sampler(rate, count, random.Random(seed).random)
    found = taken(by_tick, ticks)
    assert found == taken(one_by_one, [1] * sum(ticks))
    assert by_tick.left == (count if count == UNLIMITED else count - len(found))
    if count != UNLIMITED:
        assert len(found) <= count


@pytest.mark.parametrize("rate", [2, 10, 100])
def test_one_in_so_many_is_taken_and_each_with_the_same_chance(rate: int) -> None:
    requests = 200_000
    found = taken(Sampler(rate, UNLIMITED, random.Random(7).random), [requests // 100] * 100)
    expected = requests / rate
    deviation = (expected * (1 - 1 / rate)) ** 0.5
    assert abs(len(found) - expected) < 5 * deviation
    # Of neighbours too: the gap of nothing has the chance 1/rate, as every other request.
    neighbours = sum(b - a == 1 for a, b in pairwise(found))
    assert abs(neighbours - len(found) / rate) < 5 * (len(found) / rate) ** 0.5


def test_all_and_none() -> None:
    assert taken(Sampler(1, UNLIMITED, random.random), [3, 0, 2]) == [0, 1, 2, 3, 4]
    assert taken(Sampler(1, 2, random.random), [3, 0, 2]) == [0, 1]
    assert taken(Sampler(0, UNLIMITED, random.random), [2**40, 2**40]) == []
