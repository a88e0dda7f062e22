from __future__ import annotations

from datetime import timedelta

import msgspec
import numpy as np
import pytest

from monitor import DayProfile, build_profile, merge_days, profile_from_table, score_days
from monitor.causes import drift_tickets, moved_features, ranked_causes, skew, slices_by_arm
from tests.monitor.builders import DAY_ONE, World, make_profile

PROFILE = make_profile()
LAST = DAY_ONE + timedelta(days=34)


def days_with(shift: float, seed: int = 1) -> list[DayProfile]:
    """28 quiet days and 7 days on which the driving feature is moved."""
    world = World(seed)
    days = world.baseline(PROFILE, range(28))
    for ordinal in range(28, 35):
        times, matrix, predictions, labels = world.day(ordinal, shift)
        days += score_days(PROFILE, times, matrix, predictions, labels, ["a", "b"] * 100)
    return days


def test_what_moved_is_named_and_the_rest_is_not() -> None:
    moves = moved_features(PROFILE, days_with(1.0), LAST)
    assert [move.feature for move in moves] == PROFILE.columns
    driver, idle = moves
    assert driver.recent_mean is not None
    assert driver.baseline_mean is not None
    assert driver.recent_mean - driver.baseline_mean == pytest.approx(1.0, abs=0.3)
    assert driver.statistic > 4
    assert driver.psi > 0.25 > idle.psi
    change = 0.13  # about what one standard deviation does to the mean prediction
    assert driver.explains == pytest.approx(change, abs=0.05)
    assert abs(idle.explains) < 0.01
    assert [move.feature for move in ranked_causes(moves, change)] == ["delays:mean_1h"]
    assert [move.feature for move in ranked_causes(moves, None)] == ["delays:mean_1h"]
    assert [move.feature for move in drift_tickets(moves)] == ["delays:mean_1h"]


def test_nothing_moves_on_quiet_days() -> None:
    moves = moved_features(PROFILE, days_with(0.0), LAST)
    assert drift_tickets(moves) == []
    assert all(move.psi < 0.25 for move in moves)


def test_causes_that_push_the_other_way_come_last() -> None:
    driver, idle = moved_features(PROFILE, days_with(1.0), LAST)
    both = [msgspec.structs.replace(idle, statistic=5.0, explains=-0.1), driver]
    assert [move.feature for move in ranked_causes(both, 0.2)] == ["delays:mean_1h", "weather:wind"]
    assert ranked_causes(both, -0.2)[0].feature == "weather:wind"


def test_a_feature_that_turns_null_has_moved() -> None:
    world = World()
    days = world.baseline(PROFILE, range(28))
    for ordinal in range(28, 35):
        times, matrix, predictions, labels = world.day(ordinal)
        matrix[::2, 1] = np.nan
        days += score_days(PROFILE, times, matrix, predictions, labels)
    _, move = moved_features(PROFILE, days, LAST)
    assert (move.baseline_null_share, move.recent_null_share) == (0.0, 0.5)
    assert drift_tickets([move]) == [move]


def test_too_few_days_tell_nothing() -> None:
    days = days_with(1.0)
    assert moved_features(PROFILE, days[10:], LAST) == []
    assert moved_features(PROFILE, [], LAST) == []
    assert drift_tickets([]) == []
    assert slices_by_arm(days[:28], LAST) == []


def test_arms_are_slices_and_one_unnamed_arm_is_none() -> None:
    a, b = slices_by_arm(days_with(0.0), LAST)
    assert (a.by, a.value, b.value, a.rows, b.rows) == ("arm", "a", "b", 700, 700)
    assert a.baseline_prediction_mean is None  # the baseline knew no arm a
    quiet = World().baseline(PROFILE, range(35))
    assert slices_by_arm(quiet, LAST) == []


def test_skew_is_against_training_and_puts_the_largest_first() -> None:
    days = days_with(1.0)
    found = skew(PROFILE, merge_days(days[-7:]))
    assert {distance.feature for distance in found} == {*PROFILE.columns, "prediction"}
    assert [d.psi for d in found] == sorted((d.psi for d in found), reverse=True)
    assert {d.feature for d in found if d.flagged} == {"delays:mean_1h", "prediction"}
    times, matrix, predictions, labels = World(seed=4, rows=2000).day(0)
    calm = score_days(PROFILE, times, matrix, predictions, labels)[0]
    assert not any(distance.flagged for distance in skew(PROFILE, calm))


def test_a_profile_without_features_still_has_its_prediction() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(500)
    profile = profile_from_table(build_profile(np.zeros((500, 0), np.float32), [], scores))
    (day,) = score_days(profile, np.full(500, 86_400_000_000), np.zeros((500, 0)), scores, None)
    assert [distance.feature for distance in skew(profile, day)] == ["prediction"]
    assert moved_features(profile, [day], day.date) == []
