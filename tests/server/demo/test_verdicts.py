from __future__ import annotations

from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from server.demo import verdicts
from server.demo.analysis import Logged, Share
from server.demo.findings import Consistency, IncidentView, MovedFeature, Verdict
from tests.server.demo.synthetic import findings

PASS, FAIL, SKIP = Verdict.PASS, Verdict.FAIL, Verdict.SKIP
YEAR_END = date(2013, 12, 31)
MOVED = [MovedFeature("weather:visib", 0.7, 0.2, "9 → 5")]
BOTH = ["prediction_mean", "calibration"]


def incident(day: date, moved: list[MovedFeature] | None = None) -> IncidentView:
    return IncidentView(day, "drift", [], MOVED if moved is None else moved)


@pytest.mark.parametrize(("gain", "verdict"), [(0.0600001, PASS), (0.0599, FAIL)])
def test_history_must_be_worth_six_points(gain: float, verdict: Verdict) -> None:
    assert verdicts.history_is_worth_it(0.68 + gain, 0.68).verdict is verdict


@pytest.mark.parametrize(
    ("flips", "delta", "verdict"), [(0, 1e-5, PASS), (1, 0.0, FAIL), (0, 1.1e-5, FAIL)]
)
def test_the_program_must_be_the_model(flips: int, delta: float, verdict: Verdict) -> None:
    assert verdicts.program_is_the_model(100, flips, delta).verdict is verdict


def test_one_unequal_row_fails_and_is_named() -> None:
    assert verdicts.bit_for_bit(Consistency(5, 2, 5)).verdict is PASS
    check = verdicts.bit_for_bit(Consistency(5, 2, 4, [("plane:x", 1)]))
    assert check.verdict is FAIL
    assert "plane:x (1)" in check.measured
    assert verdicts.bit_for_bit(Consistency(0, 2, 0)).verdict is FAIL


@pytest.mark.parametrize(("delta", "verdict"), [(9e-7, PASS), (2e-6, FAIL), (float("nan"), FAIL)])
def test_every_arm_must_be_as_good_online(delta: float, verdict: Verdict) -> None:
    first, second = findings().arms
    second = replace(second, auc_online=second.auc_offline + delta)
    assert verdicts.same_quality([first, second]).verdict is verdict


def test_no_arm_at_all_is_not_as_good() -> None:
    assert verdicts.same_quality([]).verdict is FAIL


def logged(**changes: object) -> Logged:
    rows = Logged(
        outputs=np.array([0.25, 0.5], np.float32),
        arms=np.array(["a", "b"], object),
        versions=np.array(["A", "B"], object),
        plans=np.array([1, 2], np.uint64),
        propensities=np.array([1.0, 0.1]),
        rows=[b"", b""],
        missing=0,
        repeated=0,
        foreign=0,
    )
    return replace(rows, **changes)


def test_nothing_lost_means_nothing() -> None:
    told = np.array([0.25, 0.5], np.float32)
    arms = np.array(["a", "b"], object)
    gone = {"outputs": np.array([0.25, np.nan], np.float32), "missing": 1}
    assert verdicts.nothing_lost(logged(), told, arms, 2, 0).verdict is PASS
    cases = {
        "1 rows missing": verdicts.nothing_lost(logged(**gone), told, arms, 2, 0),
        "1 rows twice": verdicts.nothing_lost(logged(repeated=1), told, arms, 2, 0),
        "1 rows of nobody": verdicts.nothing_lost(logged(foreign=1), told, arms, 2, 0),
        "1 answers that differ": verdicts.nothing_lost(logged(), told * [1, 2], arms, 2, 0),
        "2 answers that differ": verdicts.nothing_lost(logged(), told, arms[::-1], 2, 0),
        "1 outcomes not accepted": verdicts.nothing_lost(logged(), told, arms, 1, 0),
        "1 outcomes not joined": verdicts.nothing_lost(logged(), told, arms, 2, 1),
    }
    assert {check.measured for check in cases.values()} == set(cases)
    assert {check.verdict for check in cases.values()} == {FAIL}


def test_the_split_may_stray_as_far_as_chance() -> None:
    near = [Share("Champion", 1_000, 1_000, 1.0), Share("Challenger", 130, 1_000, 0.1)]
    assert verdicts.split_is_the_plan(near).verdict is PASS
    far = [Share("Challenger", 140, 1_000, 0.1)]
    assert verdicts.split_is_the_plan(far).verdict is FAIL
    stray = [Share("Champion", 999, 1_000, 1.0), Share("Challenger", 100, 1_000, 0.1)]
    assert verdicts.split_is_the_plan(stray).verdict is FAIL
    assert verdicts.split_is_the_plan([Share("Champion", 9, 9, 1.0)]).verdict is SKIP


def test_propensities_are_those_of_the_plan() -> None:
    plans = {1: {"A": 1.0}, 2: {"A": 0.9, "B": 0.1}}
    assert verdicts.propensities_are_exact(logged(), plans).verdict is PASS
    other = {1: {"A": 1.0}, 2: {"A": 0.8, "B": 0.2}}
    assert verdicts.propensities_are_exact(logged(), other).verdict is FAIL
    # A row under a plan that nobody released.
    assert verdicts.propensities_are_exact(logged(), {1: {"A": 1.0}}).verdict is FAIL


@pytest.mark.parametrize(
    ("days", "end", "verdict"),
    [
        ([], YEAR_END, PASS),
        ([date(2013, 12, 1)], YEAR_END, PASS),
        ([date(2013, 11, 30)], YEAR_END, FAIL),
        ([date(2013, 10, 1)], YEAR_END, FAIL),
        ([], date(2013, 10, 20), SKIP),
    ],
)
def test_quiet_weeks_open_no_more_than_the_budget(
    days: list[date], end: date, verdict: Verdict
) -> None:
    assert verdicts.quiet_weeks([incident(d) for d in days], 0.5, end).verdict is verdict


def test_a_wider_budget_grants_more() -> None:
    one = [incident(date(2013, 10, 9))]
    assert verdicts.quiet_weeks(one, 1.5, YEAR_END).verdict is PASS


@pytest.mark.parametrize(
    ("view", "led_by", "end", "verdict"),
    [
        (incident(date(2013, 12, 9)), BOTH, YEAR_END, PASS),
        (incident(date(2013, 12, 15)), BOTH[::-1], YEAR_END, PASS),
        (incident(date(2013, 12, 16)), BOTH, YEAR_END, FAIL),
        (incident(date(2013, 11, 30)), BOTH, YEAR_END, FAIL),
        (incident(date(2013, 12, 9)), BOTH[:1], YEAR_END, FAIL),
        (incident(date(2013, 12, 9), []), BOTH, YEAR_END, FAIL),
        (incident(date(2013, 12, 9)), BOTH, date(2013, 12, 10), SKIP),
    ],
)
def test_december_must_be_noticed_in_time_with_its_causes(
    view: IncidentView, led_by: list[str], end: date, verdict: Verdict
) -> None:
    assert verdicts.drift_is_noticed([view], [led_by], end).verdict is verdict


def test_no_incident_at_all_is_not_noticing() -> None:
    check = verdicts.drift_is_noticed([], [], YEAR_END)
    assert (check.verdict, check.measured) == (FAIL, "no incident")


def test_governance_checks() -> None:
    assert verdicts.four_eyes("the author cannot approve").verdict is PASS
    assert verdicts.four_eyes(None).verdict is FAIL
    assert verdicts.rolled_back({"Champion": 1.0}, {"Champion": 1.0}).verdict is PASS
    assert verdicts.rolled_back({"Champion": 1.0}, {"Champion": 0.9}).verdict is FAIL


def test_a_replay_is_judged_by_its_exit_code() -> None:
    assert verdicts.one_answer_again("id", 0, "equal").verdict is PASS
    assert verdicts.one_answer_again("id", 1, "DIFFERENT").verdict is FAIL


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [
        ({"grpc": 0.25, "http": 0.5}, PASS),
        ({"grpc": 0.25, "http": 0.7}, FAIL),
        ({"grpc": 0.25, "http": None}, SKIP),
        ({"grpc": 0.7, "http": None}, FAIL),
    ],
)
def test_standard_clients_must_get_one_of_the_promised_bits(
    answers: dict[str, float | None], verdict: Verdict
) -> None:
    assert verdicts.standard_clients(answers, [0.25, 0.5]).verdict is verdict
