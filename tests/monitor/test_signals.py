from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from monitor import Budget, DayProfile, Signal, score_days
from monitor.signals import signals
from tests.monitor.builders import DAY_ONE, DAY_ONE_US, World, make_profile

PROFILE = make_profile()
LAST = DAY_ONE + timedelta(days=34)
BUDGET = Budget()


def days_of(shift: float = 0.0, surprise: float = 0.0) -> list[DayProfile]:
    world = World()
    days = world.baseline(PROFILE, range(28))
    for ordinal in range(28, 35):
        days += score_days(PROFILE, *world.day(ordinal, shift, surprise))
    return days


def by_name(found: list[Signal]) -> dict[str, Signal]:
    return {signal.name: signal for signal in found}


def test_a_moved_input_moves_the_prediction_and_not_its_calibration() -> None:
    found = by_name(signals(days_of(shift=1.0), LAST, LAST, BUDGET))
    assert found["prediction_mean"].over
    assert found["prediction_mean"].value > found["prediction_mean"].baseline + 0.1
    assert not found["calibration"].over


def test_a_changed_world_moves_the_calibration_and_not_the_prediction() -> None:
    found = by_name(signals(days_of(surprise=0.8), LAST, LAST, BUDGET))
    assert found["calibration"].over
    assert found["calibration"].change > 0.1
    assert not found["prediction_mean"].over


def test_quiet_days_are_quiet() -> None:
    assert not any(signal.over for signal in signals(days_of(), LAST, LAST, BUDGET))


def test_truth_that_is_not_mature_is_not_looked_at() -> None:
    found = by_name(signals(days_of(), LAST, LAST - timedelta(days=1), BUDGET))
    assert set(found) == {"prediction_mean"}


def test_days_whose_truth_is_mostly_missing_do_not_count() -> None:
    days = days_of()
    world = World(2)
    for number in (-1, -2):
        times, matrix, predictions, labels = world.day(34 + 1 + number)
        labels[: len(labels) // 2] = np.nan
        days[number] = score_days(PROFILE, times, matrix, predictions, labels)[0]
    found = by_name(signals(days, LAST, LAST, BUDGET))
    assert set(found) == {"prediction_mean"}


def test_a_thin_day_does_not_count() -> None:
    days = days_of()
    before = by_name(signals(days[:-1], LAST, LAST, BUDGET))
    times = np.full(15, DAY_ONE_US + 34 * 86_400_000_000)
    wild = np.full(15, 0.99)
    days[-1] = score_days(PROFILE, times, None, wild, np.ones(15))[0]
    after = by_name(signals(days, LAST, LAST, BUDGET))
    assert after == before
    assert set(after) == {"prediction_mean", "calibration"}


def test_too_few_days_give_no_signal() -> None:
    days = days_of()
    assert signals(days[8:], LAST, LAST, BUDGET) == []
    assert signals([], LAST, LAST, BUDGET) == []
    assert signals(days, LAST + timedelta(days=90), LAST, BUDGET) == []


def test_predictions_that_are_all_zero_or_one_stay_finite() -> None:
    times = DAY_ONE_US + np.arange(35) * 86_400_000_000
    days = []
    for number, time in enumerate(times):
        score = 1.0 if number >= 28 else number % 2 / 1000
        days += score_days(PROFILE, np.full(50, time), None, np.full(50, score), np.ones(50))
    found = by_name(signals(days, LAST, LAST, BUDGET))
    assert np.isfinite(found["prediction_mean"].statistic)
    assert found["prediction_mean"].over
    assert found["prediction_mean"].value == pytest.approx(1.0)
