"""Backoff and budget: what is tried again, when, and how often at most."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_client.retries import RetryBudget, backoff_s, retry_after_s

CODES = ["unavailable", "resource_exhausted", "internal", "deadline_exceeded", "aborted"]


@given(
    st.sampled_from(CODES),
    st.integers(1, 8),
    st.floats(0, 60),
    st.none() | st.integers(0, 60).map(float),
    st.floats(0, 1, exclude_max=True),
)
def test_a_wait_fits_the_deadline_and_the_servers_word(
    code: str, attempts: int, left_s: float, hint_s: float | None, random: float
) -> None:
    wait_s = backoff_s(code, attempts, left_s, hint_s, random)
    least_s = (hint_s or 0) + min(2.0, 0.1 * 2 ** (attempts - 1)) / 2
    if code not in {"unavailable", "resource_exhausted"} or attempts >= 5:
        assert wait_s is None
    elif wait_s is None:
        assert left_s <= 2 * least_s
    else:
        assert least_s <= wait_s < left_s
        assert wait_s <= (hint_s or 0) + 2.0


def test_clients_that_failed_together_come_back_apart() -> None:
    waits = {backoff_s("unavailable", 2, 9.0, None, tenth / 10) for tenth in range(10)}
    assert len(waits) == 10
    assert min(w for w in waits if w) == 0.1
    assert max(w for w in waits if w) < 0.2


@given(st.lists(st.booleans(), max_size=400))
def test_retries_are_a_tenth_of_the_calls_after_the_first_ten(wants: list[bool]) -> None:
    budget = RetryBudget()
    calls = retries = 0
    for want in wants:
        budget.earn()
        calls += 1
        while want and budget.spend():
            retries += 1
    assert retries <= 10 + calls / 10


def test_a_budget_that_was_spent_comes_back_with_calls() -> None:
    budget = RetryBudget()
    assert sum(budget.spend() for _ in range(50)) == 10
    for _ in range(9):
        budget.earn()
    assert not budget.spend()
    budget.earn()
    budget.earn()
    assert budget.spend()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0.0), ("17", 17.0), ("soon", None), ("-1", None), ("1.5", None), ("²", None)],
)
def test_retry_after_is_a_whole_number_of_seconds(text: str, seconds: float | None) -> None:
    assert retry_after_s({"retry-after": text}) == seconds


def test_no_retry_after() -> None:
    assert retry_after_s({}) is None
    assert retry_after_s({"retry-after": b"1"}) is None
