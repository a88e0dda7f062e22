"""Limits by a clock that the test moves; a plain simulation is the oracle of the bucket."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.access.budgets import Bucket, Budgets, Limit, LimitReached, give_back, owe_rows, take

SECOND_NS = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 5 * SECOND_NS

    def __call__(self) -> int:
        return self.now


def budgets(*limits: Limit) -> tuple[Budgets, Clock]:
    clock = Clock()
    return Budgets(limits, clock), clock


def asked(found: Budgets, clock: Clock, wanted: int, tenant: str = "a", name: str = "m") -> int:
    return take(found.of(tenant, name), wanted, clock.now)[0]


@given(
    rate=st.integers(1, 50),
    burst=st.integers(1, 50),
    steps=st.lists(st.tuples(st.integers(0, 3 * SECOND_NS), st.integers(1, 60)), max_size=30),
)
def test_a_bucket_gives_what_exact_arithmetic_says(
    rate: int, burst: int, steps: list[tuple[int, int]]
) -> None:
    bucket = Bucket(rate, burst, 0)
    tokens, now_ns = Fraction(burst), 0
    for pause_ns, wanted in steps:
        now_ns += pause_ns
        tokens = min(tokens + Fraction(pause_ns * rate, SECOND_NS), Fraction(burst))
        taken = bucket.take(wanted, now_ns)
        expected = min(wanted, int(tokens))
        # Floats round: what is within a rounding of a whole token may fall on either side.
        assert taken == expected or abs(tokens - round(tokens)) < Fraction(1, 10**6)
        tokens -= taken
        assert bucket.wait_s(now_ns) == pytest.approx(float(max((1 - tokens) / rate, 0)), abs=1e-6)


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = Bucket(1.0, 1.0, 10 * SECOND_NS)
    assert bucket.take(1, 10 * SECOND_NS) == 1
    assert bucket.take(1, 0) == 0
    assert bucket.take(1, 10 * SECOND_NS) == 0
    assert bucket.take(1, 11 * SECOND_NS) == 1


def test_requests_come_again_with_time_and_the_refusal_says_when() -> None:
    found, clock = budgets(Limit(requests_per_s=2.0, burst=3.0))
    taken, error = take(found.of("a", "m"), 5, clock.now)
    assert taken == 3
    assert isinstance(error, LimitReached)
    assert error.kind == "requests"
    assert error.retry_after_s == pytest.approx(0.5)
    assert asked(found, clock, 1) == 0
    clock.now += SECOND_NS // 2
    assert asked(found, clock, 2) == 1


def test_tenants_have_budgets_of_their_own_unless_a_limit_names_one() -> None:
    found, clock = budgets(Limit(requests_per_s=1.0), Limit("b", ("x-*",), concurrent=1))
    assert asked(found, clock, 2, "a") == 1
    assert asked(found, clock, 2, "b", "y") == 1
    clock.now += SECOND_NS
    assert asked(found, clock, 1, "b", "x-1") == 1
    clock.now += SECOND_NS
    assert asked(found, clock, 1, "b", "x-2") == 0  # one at work, of all such names
    assert asked(found, clock, 1, "a", "x-2") == 1
    assert budgets()[0].of("a", "m") == ()


def test_what_is_at_work_is_given_back() -> None:
    found, clock = budgets(Limit(concurrent=2))
    its = found.of("a", "m")
    assert asked(found, clock, 3) == 2
    taken, error = take(its, 1, clock.now)
    assert taken == 0
    assert error is not None
    assert error.kind == "concurrent"
    give_back(its, 1)
    assert asked(found, clock, 3) == 1


def test_a_debt_of_rows_is_paid_before_more_comes() -> None:
    found, clock = budgets(Limit(rows_per_s=100.0), Limit(concurrent=9))
    its = found.of("a", "m")
    assert take(its, 1, clock.now) == (1, None)
    owe_rows(its, 300, clock.now)
    taken, error = take(its, 1, clock.now)
    assert taken == 0
    assert error is not None
    assert error.kind == "rows"
    assert error.retry_after_s == pytest.approx(2.01)
    clock.now += 3 * SECOND_NS
    assert take(its, 1, clock.now) == (1, None)


def test_workers_share_a_limit() -> None:
    limit = Limit(requests_per_s=10.0, burst=20.0, rows_per_s=100.0, concurrent=3).share(4)
    assert limit == Limit("*", ("*",), 2.5, 5.0, 25.0, 1)
    assert Limit(rows_per_s=1.0).share(2) == Limit(rows_per_s=0.5)


def test_other_limits_take_the_place_of_those_before() -> None:
    found, clock = budgets(Limit(concurrent=1))
    before = found.of("a", "m")
    assert asked(found, clock, 1) == 1
    found.set([Limit(concurrent=2)])
    assert asked(found, clock, 3) == 2
    give_back(before, 1)
    assert asked(found, clock, 1) == 0


def test_tenants_and_names_do_not_pile_up() -> None:
    found, clock = budgets(Limit(requests_per_s=1e6))
    for number in range(5_000):
        assert asked(found, clock, 1, f"t{number}", f"m{number}") == 1
        assert asked(found, clock, 1, "a", f"m{number}") == 1
    assert len(found._budgets) <= 4096
    assert len(found._by_name) <= 4096
