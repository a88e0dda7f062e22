"""Shares are exact, units stick, and one raised weight only pulls units in."""

from __future__ import annotations

import math
from collections import Counter
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from router.assignment import Assignment

UNITS = [f"unit-{i}".encode() for i in range(20_000)]
WEIGHTS = st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=6)


def by_the_formula(salt: str, names: list[str], weights: list[float], unit: bytes) -> int:
    """The definition, written out: the greatest w / −ln u, u a hash of all three parts."""
    best, best_score = -1, -math.inf
    for index, (name, weight) in enumerate(zip(names, weights, strict=True)):
        message = b""
        for part in (salt.encode(), name.encode()):
            message += len(part).to_bytes(4, "little") + part
        hashed = int.from_bytes(blake2b(message + unit, digest_size=8).digest(), "little")
        u = (2 * (hashed >> 12) + 1) / 2**53
        assert 0.0 < u < 1.0
        score = weight / -math.log(u)
        if score > best_score:
            best, best_score = index, score
    return best


@given(WEIGHTS, st.text(max_size=5), st.lists(st.binary(max_size=20), min_size=1, max_size=20))
def test_the_choice_is_the_formula(weights: list[float], salt: str, units: list[bytes]) -> None:
    names = [chr(97 + i) for i in range(len(weights))]
    assignment = Assignment(salt, names, weights)
    for unit in units:
        assert assignment.choose(unit) == by_the_formula(salt, names, weights, unit)


@pytest.mark.parametrize(
    "weights",
    [[0.9, 0.1], [1.0, 1.0], [0.5, 0.3, 0.2], [9.0, 1.0, 0.0], [1.0, 2.0, 3.0, 4.0, 5.0]],
)
def test_shares_are_the_weights(weights: list[float]) -> None:
    """χ² over all arms, and an exact binomial test for each (seeds are fixed: no false alarms)."""
    names = [chr(97 + i) for i in range(len(weights))]
    assignment = Assignment("a salt", names, weights)
    counts = Counter(map(assignment.choose, UNITS))
    drawn = [i for i, weight in enumerate(weights) if weight > 0.0]
    assert set(counts) == set(drawn)
    expected = [assignment.shares[i] * len(UNITS) for i in drawn]
    assert stats.chisquare([counts[i] for i in drawn], expected).pvalue > 1e-3
    for i in drawn:
        test = stats.binomtest(counts[i], len(UNITS), weights[i] / sum(weights))
        assert test.pvalue > 1e-3, names[i]


def test_different_salts_are_independent() -> None:
    """A unit's arm under one salt says nothing about its arm under the next."""
    one, two = (Assignment(salt, ["a", "b"], [0.5, 0.5]) for salt in ("first", "second"))
    table = [[0, 0], [0, 0]]
    for unit in UNITS:
        table[one.choose(unit)][two.choose(unit)] += 1
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_salt_arm_and_unit_cannot_run_into_each_other() -> None:
    units = UNITS[:200]
    shifted = [Assignment("s", ["xa", "b"], [1, 1]), Assignment("sx", ["a", "b"], [1, 1])]
    first, second = ([assignment.choose(unit) for unit in units] for assignment in shifted)
    assert first != second


@given(WEIGHTS.filter(lambda w: len(w) > 1), st.data())
def test_raising_one_weight_only_moves_units_into_that_arm(
    weights: list[float], data: st.DataObject
) -> None:
    names = [chr(97 + i) for i in range(len(weights))]
    raised = data.draw(st.integers(0, len(weights) - 1))
    factor = data.draw(st.floats(1.0, 1e6))
    before = Assignment("s", names, weights)
    after = Assignment(
        "s", names, [w * factor if i == raised else w for i, w in enumerate(weights)]
    )
    for unit in UNITS[:100]:
        old, new = before.choose(unit), after.choose(unit)
        assert new in (old, raised)


def test_a_ramp_takes_no_unit_back() -> None:
    on_the_canary: set[bytes] = set()
    for share in (0.01, 0.05, 0.2, 0.5, 1.0):
        ramp = Assignment("s", ["a", "b"], [1.0 - share, share])
        now = {unit for unit in UNITS if ramp.choose(unit) == 1}
        assert now >= on_the_canary
        on_the_canary = now
    assert on_the_canary == set(UNITS)


@given(st.lists(st.floats(1e-9, 1e9) | st.just(0.0), min_size=1, max_size=16).filter(any))
def test_the_shares_are_a_distribution(weights: list[float]) -> None:
    shares = Assignment("s", [str(i) for i in range(len(weights))], weights).shares
    assert abs(math.fsum(shares) - 1.0) <= 1e-12
    assert [share == 0.0 for share in shares] == [weight == 0.0 for weight in weights]


@given(WEIGHTS, st.data())
def test_the_order_of_the_arms_decides_nothing(weights: list[float], data: st.DataObject) -> None:
    arms = [(chr(97 + i), weight) for i, weight in enumerate(weights)]
    other = data.draw(st.permutations(arms))
    one, two = (Assignment("s", *zip(*order, strict=True)) for order in (arms, other))
    for unit in UNITS[:30]:
        assert arms[one.choose(unit)][0] == other[two.choose(unit)][0]
