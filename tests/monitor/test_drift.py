from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor import Budget
from monitor.drift import (
    BASE_DAYS,
    BASE_DAYS_MIN,
    CALIBRATION_CORRELATION,
    PREDICTION_CORRELATION,
    RECENT_DAYS,
    alarm_threshold,
    window_shift,
)
from tests.monitor.alarm_rate import LEAD_IN_DAYS, incidents, quiet_days, statistics

BUDGETS = [0.1, 0.25, 0.5]


def allowed(budget: float, quarters: int) -> float:
    """The budget and two standard deviations of a count of that mean."""
    return budget + 2 * np.sqrt(budget / quarters)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(
    ("design", "correlation"),
    [
        (PREDICTION_CORRELATION, 0.0),
        (PREDICTION_CORRELATION, 0.3),
        (PREDICTION_CORRELATION, 0.5),
        (CALIBRATION_CORRELATION, 0.0),
        (CALIBRATION_CORRELATION, 0.3),
    ],
)
def test_quiet_days_stay_within_the_alarm_budget(
    budget: float, design: float, correlation: float
) -> None:
    quarters = 1500
    found = statistics(quiet_days(77, quarters, correlation)) / alarm_threshold(budget, design)
    assert incidents(found).mean() <= allowed(budget, quarters)


@pytest.mark.parametrize("design", [PREDICTION_CORRELATION, CALIBRATION_CORRELATION])
def test_the_threshold_is_no_higher_than_the_budget_asks(design: float) -> None:
    quarters = 3000
    found = statistics(quiet_days(78, quarters, design)) / alarm_threshold(0.5, design)
    assert incidents(found).mean() >= 0.5 - 4 * np.sqrt(0.5 / quarters)


def test_a_base_with_missing_days_keeps_the_budget() -> None:
    quarters = 1500
    days = quiet_days(79, quarters, PREDICTION_CORRELATION)
    ordinals = np.arange(len(days))
    found = []
    for last in range(LEAD_IN_DAYS, len(days)):
        here = ordinals > last - RECENT_DAYS - BASE_DAYS_MIN
        shift = window_shift(days[here], ordinals[here], last)
        assert shift is not None
        found.append(np.abs(shift.statistic))
    threshold = alarm_threshold(0.25, PREDICTION_CORRELATION)
    assert incidents(np.array(found) / threshold).mean() <= allowed(0.25, quarters)


def test_both_signals_together_stay_within_the_default_budget() -> None:
    quarters = 1500
    strengths = np.maximum(
        statistics(quiet_days(80, quarters, PREDICTION_CORRELATION))
        / Budget().threshold("prediction_mean"),
        statistics(quiet_days(81, quarters, CALIBRATION_CORRELATION))
        / Budget().threshold("calibration"),
    )
    assert incidents(strengths).mean() <= allowed(0.5, quarters)


@pytest.mark.parametrize(
    ("design", "size", "power"),
    [(0.5, 2.0, 0.4), (0.5, 3.0, 0.8), (0.3, 2.0, 0.6), (0.3, 3.0, 0.9)],
)
def test_an_injected_shift_is_found_within_a_week(design: float, size: float, power: float) -> None:
    days = quiet_days(5, 400, design)
    start = LEAD_IN_DAYS + 30
    days[start:] += size  # in standard deviations of a day
    found = statistics(days)[30 : 30 + RECENT_DAYS] >= alarm_threshold(0.25, design)
    assert found.any(axis=0).mean() > power


def test_a_larger_budget_lowers_the_threshold_within_its_table() -> None:
    budgets = [1e-9, 0.01, 0.1, 0.25, 0.5, 1.0, 100.0]
    found = [alarm_threshold(budget, PREDICTION_CORRELATION) for budget in budgets]
    assert found == sorted(found, reverse=True)
    assert (found[0], found[-1]) == (7.0, 2.0)


def naive(values: list[float], days: list[int], last: int) -> tuple[float, float, float] | None:
    """The same statistic, by the sums of its definition."""
    base = [(d, v) for d, v in zip(days, values, strict=True) if 7 <= last - d < 35]
    recent = [(d, v) for d, v in zip(days, values, strict=True) if 0 <= last - d < 7]
    if len(base) < 21 or len(recent) < 6:
        return None
    n, m = len(base), len(recent)
    mean = sum(v for _, v in base) / n
    now = sum(v for _, v in recent) / m
    squares = sum((v - mean) ** 2 for _, v in base)
    lagged = sum(
        (v - mean) * (w - mean) for (d, v), (e, w) in itertools.pairwise(base) if e - d == 1
    )
    r = lagged / squares
    r += (1 + 3 * r) / n
    r = min(max((n * r + 28 * 0.3) / (n + 28), 0), 0.7)
    weighted = [(d, -1 / n) for d, _ in base] + [(d, 1 / m) for d, _ in recent]
    spread = sum(a * b * r ** abs(d - e) for d, a in weighted for e, b in weighted)
    scale = squares / (n - 1) * (28 / n) ** 0.5 * spread
    return now, mean, (now - mean) / scale**0.5


@given(st.sets(st.integers(0, 40), min_size=20), st.integers(0, 2**32 - 1))
def test_the_statistic_is_its_definition(kept: set[int], seed: int) -> None:
    days = sorted(kept)
    values = np.random.default_rng(seed).standard_normal(len(days))
    found = window_shift(values[:, None], np.array(days), 40)
    expected = naive(values.tolist(), days, 40)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.recent[0] == pytest.approx(expected[0])
    assert found.baseline[0] == pytest.approx(expected[1])
    assert found.change[0] == pytest.approx(expected[0] - expected[1], abs=1e-9)
    assert found.statistic[0] == pytest.approx(expected[2], rel=1e-3, abs=1e-9)


def test_series_without_spread_and_with_gaps() -> None:
    ordinals = np.arange(BASE_DAYS + RECENT_DAYS)
    values = np.zeros((len(ordinals), 4))
    values[BASE_DAYS:, 1] = 0.25
    values[BASE_DAYS:, 2] = -0.25
    values[3, 3] = np.nan
    shift = window_shift(values, ordinals, int(ordinals[-1]))
    assert shift is not None
    assert shift.statistic[:3].tolist() == [0.0, np.inf, -np.inf]
    assert np.isnan(shift.statistic[3])
    assert window_shift(values, ordinals, int(ordinals[-1]) + 20) is None
