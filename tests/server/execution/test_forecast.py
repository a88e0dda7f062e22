"""When a queue will be worked off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.execution.forecast import MARGIN, Forecast

MS = 1_000_000


def known(rows_max: int, runs_max: int = 1, **times_ms: int) -> Forecast:
    forecast = Forecast(rows_max, runs_max)
    for rows, time_ms in times_ms.items():
        for _ in range(60):
            forecast.times.learn(int(rows[1:]), time_ms * MS)
    return forecast


def test_more_than_a_batch_takes_its_share_of_batches() -> None:
    forecast = known(16, r16=8, r1=2)
    assert forecast.work_ns(1, 1) == 2 * MS
    assert forecast.work_ns(16, 16) == 8 * MS
    assert forecast.work_ns(40, 40) == 20 * MS
    assert known(0, r1=3).work_ns(4, 40) == 12 * MS  # one by one, however many rows they have


def test_what_runs_comes_first() -> None:
    forecast = known(16, r16=8)
    assert forecast.answered_ns(100, 16, 16) == 100 + 8 * MS * MARGIN
    end_ns = forecast.begin(0, 8 * MS)
    assert forecast.answered_ns(100, 16, 16) == 8 * MS + 8 * MS * MARGIN
    # It takes longer than it was expected to: it may end at any time.
    assert forecast.answered_ns(9 * MS, 16, 16) == 9 * MS + 8 * MS * MARGIN
    forecast.finish(end_ns)
    assert forecast.answered_ns(100, 16, 16) == 100 + 8 * MS * MARGIN


def test_runs_beside_each_other_share_the_work_but_no_batch_is_faster() -> None:
    forecast = known(16, 2, r16=8)
    assert forecast.answered_ns(0, 64, 64) == 16 * MS * MARGIN
    assert forecast.answered_ns(0, 16, 16) == 8 * MS * MARGIN
    forecast.begin(0, 8 * MS)
    assert forecast.answered_ns(0, 16, 16) == 8 * MS * MARGIN  # the other one is free
    forecast.begin(0, 4 * MS)
    assert forecast.answered_ns(0, 16, 16) == 4 * MS + 8 * MS * MARGIN


@pytest.mark.parametrize(
    ("left_ms", "rows"), [(30, 32), (29, 16), (15, 16), (14, 8), (6, 4), (5, 0), (-1, 0)]
)
def test_how_many_rows_are_answered_by_a_deadline(left_ms: int, rows: int) -> None:
    forecast = known(16, r16=10, r8=6, r4=4)
    assert forecast.answered_by(left_ms * MS, 0) == rows


def test_before_anything_has_run_everything_is_in_time() -> None:
    assert Forecast(16).answered_by(1, 0) > 1_000_000
    assert Forecast(0).answered_by(1, 0) > 1_000_000


@given(st.integers(0, 64), st.integers(1, 3), st.integers(1, 400), st.integers(0, 50))
def test_both_ways_of_asking_agree(
    rows_max: int, runs_max: int, left_ms: int, running_ms: int
) -> None:
    forecast = known(rows_max, runs_max, r1=2, r8=5, r64=20)
    for _ in range(runs_max):
        forecast.begin(0, running_ms * MS)
    rows = forecast.answered_by(left_ms * MS, 0)
    if rows:
        assert forecast.answered_ns(0, rows, rows) <= left_ms * MS * 1.001
