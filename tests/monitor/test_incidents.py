from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InternalError, InvalidArgumentError
from monitor import Budget, IncidentStore, Signal
from monitor.incidents import CLEAN_DAYS, Episode, find_incidents
from tests.monitor.builders import DAY_ONE, make_profile

PROFILE = make_profile()
STRENGTHS = st.one_of(st.none(), st.sampled_from([0.0, 0.49, 0.5, 0.99, 1.0, 3.0]))


def signal(name: str, day: date, statistic: float, effect: float = 9.0) -> Signal:
    change = 0.1 if statistic > 0 else -0.1
    return Signal(name, day, 0.2 + change, 0.2, change, statistic, 4.0, effect, 0.2)


def judged(*days: list[Signal] | dict[str, float]) -> list[tuple[date, list[Signal]]]:
    """Days in a row, each as {signal: statistic}; the threshold is 4."""
    dates = [DAY_ONE + timedelta(days=number) for number in range(len(days))]
    return [
        (day, [signal(name, day, t) for name, t in dict(found).items()])
        for day, found in zip(dates, days, strict=True)
    ]


def incidents_of(*days: dict[str, float]) -> list[tuple[date, date | None, list[str]]]:
    found = find_incidents("delay", PROFILE, [], judged(*days), Budget())
    return [(incident.opened, incident.resolved, incident.led_by) for incident in found]


@given(st.lists(STRENGTHS, max_size=60))
def test_an_episode_opens_once_and_resolves_after_clean_days(days: list[float | None]) -> None:
    episode = Episode()
    opened, clean = False, 0
    for strength in days:
        transition = episode.step(strength)
        if not opened:
            opened = strength is not None and strength >= 1
            assert transition == ("opened" if opened else "quiet")
            clean = 0
            continue
        if strength is not None:
            clean = clean + 1 if strength < 0.5 else 0
        assert transition == ("resolved" if clean == CLEAN_DAYS else "lasts")
        opened = clean < CLEAN_DAYS


def test_quiet_days_open_nothing() -> None:
    assert incidents_of(*[{"prediction_mean": 3.9, "calibration": -3.9}] * 5) == []


def test_one_incident_while_it_lasts_then_resolved_then_another() -> None:
    days = [
        {"prediction_mean": 1.0},
        {"prediction_mean": 4.5},
        {"prediction_mean": 3.0, "calibration": 4.1},
        *[{"prediction_mean": 1.0, "calibration": 0.0}] * 6,
        {"prediction_mean": 2.5},  # not clean: the count starts again
        *[{"prediction_mean": 1.0}] * 7,
        {"prediction_mean": 1.0},
        {"calibration": -5.0},
    ]
    first, second = find_incidents("delay", PROFILE, [], judged(*days), Budget())
    assert first.opened == DAY_ONE + timedelta(days=1)
    assert first.resolved == first.updated == DAY_ONE + timedelta(days=16)
    assert (first.led_by, first.severity) == (["prediction_mean", "calibration"], "high")
    assert (second.led_by, second.severity, second.resolved) == (["calibration"], "medium", None)
    assert first.id != second.id
    assert "fell from +0.200 to +0.100" in second.findings[0]


def test_leaders_are_in_the_order_in_which_they_came_to_be_over() -> None:
    days = [{"prediction_mean": 4.2, "calibration": 6.0}, {"prediction_mean": 9.0}]
    (incident,) = find_incidents("delay", PROFILE, [], judged(*days), Budget())
    assert incident.led_by == ["calibration", "prediction_mean"]
    strongest = {signal.name: signal.statistic for signal in incident.signals}
    assert strongest == {"calibration": 6.0, "prediction_mean": 9.0}


def test_a_day_that_cannot_be_judged_changes_nothing() -> None:
    clean = {"prediction_mean": 0.0}
    days = [{"prediction_mean": 5.0}, *[clean] * 6, {}, clean]
    ((_, resolved, _),) = incidents_of(*days)
    assert resolved == DAY_ONE + timedelta(days=8)


def test_certain_but_small_is_no_incident() -> None:
    small = signal("calibration", DAY_ONE, statistic=50.0, effect=0.19)
    assert not small.over
    assert find_incidents("delay", PROFILE, [], [(DAY_ONE, [small])], Budget()) == []


def test_the_store_keeps_models_apart_and_replaces_whole(tmp_path: Path) -> None:
    store = IncidentStore(tmp_path)
    assert store.list() == []
    found = find_incidents("delay", PROFILE, [], judged({"prediction_mean": 5.0}), Budget(0.25))
    store.save("delay", found)
    store.save("a/b", find_incidents("a/b", PROFILE, [], judged({"calibration": 5.0}), Budget()))
    assert store.list("delay") == found
    assert [incident.model for incident in store.list()] == ["a/b", "delay"]
    store.save("delay", [])
    assert store.list("delay") == []
    assert sorted(path.name for path in tmp_path.rglob("*.json*")) == ["incidents.json"] * 2


def test_damaged_incidents_are_named(tmp_path: Path) -> None:
    store = IncidentStore(tmp_path)
    store.save("delay", [])
    next(tmp_path.rglob("incidents.json")).write_bytes(b"[{}]")
    with pytest.raises(InternalError, match=r"model=delay/incidents\.json"):
        store.list()


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), float("inf")])
def test_a_budget_is_a_positive_number(budget: float) -> None:
    with pytest.raises(InvalidArgumentError, match="false_incidents_per_90_days"):
        Budget(budget)


def test_the_signals_share_the_budget() -> None:
    assert Budget(0.5).threshold("prediction_mean") == pytest.approx(3.75, abs=0.02)
    assert Budget(0.5).threshold("calibration") == pytest.approx(3.26, abs=0.02)
    assert Budget(0.1).threshold("calibration") > Budget(0.5).threshold("calibration")
