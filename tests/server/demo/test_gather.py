from __future__ import annotations

from datetime import date
from typing import Any

from monitor.distance import PSI_EFFECT
from server.demo import gather


def report(day: str, skewed: int, *distances: tuple[str, float, float]) -> dict[str, Any]:
    skew = [{"feature": f, "psi": p, "critical": c, "flagged": True} for f, p, c in distances]
    return {"date": day, "skew": skew, "skewed": skewed}


def test_skew_is_that_of_the_last_day_that_was_compared() -> None:
    reports = [
        report("2013-12-02", 2, ("b", 0.5, 0.3), ("a", 0.2, 0.01)),
        report("2013-12-01", 1, ("a", 0.9, 0.01)),
        report("2013-12-03", 0),
    ]
    view = gather.skew_view(reports, 126)
    assert view is not None
    assert (view.day, view.flagged, view.features) == (date(2013, 12, 2), 2, 126)
    # Beyond chance and large enough to matter: the greater of both is where flagging begins.
    assert view.first == [("b", 0.5, 0.3), ("a", 0.2, PSI_EFFECT)]


def test_without_a_compared_day_there_is_no_skew() -> None:
    assert gather.skew_view([report("2013-12-03", 0)], 126) is None


def test_what_moved_stands_in_the_order_of_how_far() -> None:
    def feature(name: str, psi: float, mean: float | None) -> dict[str, object]:
        return {"feature": name, "psi": psi, "baseline_mean": mean, "recent_mean": 1234.5}

    moved = [feature("near", 0.3, 0.25), feature("far", 4.0, None)]
    incident = {"opened": "2013-12-08", "led_by": ["calibration"], "signals": [], "moved": moved}
    (view,) = gather.incident_views([incident])
    assert [m.name for m in view.moved] == ["far", "near"]
    assert [m.change for m in view.moved] == ["none → 1,234", "0.25 → 1,234"]
