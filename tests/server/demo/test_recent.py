from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import definitions_from_source
from features.offline import OfflineStore, get_historical_features
from headrace.times import DAY_US, HOUR_US, MINUTE_US
from server.demo.recent import recent_events

SOURCE = b"""
from features import *
plane = Entity("plane", ["tailnum"])
origin = Entity("origin", ["origin"])
landings = EventSource(
    "landings", [Field("tailnum", String), Field("origin", String), Field("delay", Int64)]
)
delays = [
    Aggregation("delay", ["count", "mean"], [Window("1h", hop="1min"), Window("7d", hop="1h")])
]
by_plane = StreamFeatureView("by_plane", plane, landings, delays)
by_origin = StreamFeatureView("by_origin", origin, landings, delays)
last = FeatureView("last", plane, landings, ["delay"])
service = FeatureService("delays", 1, [by_plane, by_origin, last])
"""
START_US = 30 * DAY_US
SERVICE = definitions_from_source(SOURCE).service("delays")


def history(rows: int, seed: int) -> pa.Table:
    """Forty days of landings; the planes of the first ten days are seldom seen again."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(0, 40 * DAY_US // MINUTE_US, rows)) * MINUTE_US
    old = times < 10 * DAY_US
    planes = np.where(old, rng.integers(0, 9, rows), rng.integers(5, 12, rows))
    return pa.table(
        {
            "tailnum": pa.array([f"N{n}" if n else None for n in planes], pa.string()),
            "origin": pa.array(rng.choice(["EWR", "JFK"], rows), pa.string()),
            "delay": pa.array(rng.integers(-20, 90, rows)),
            "event_time": times,
            "created_time": times + rng.choice([0, HOUR_US], rows),
        }
    )


def spine(seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    rows = 60
    return pa.table(
        {
            "tailnum": [f"N{n}" for n in rng.integers(0, 13, rows)],
            "origin": rng.choice(["EWR", "JFK", "LGA"], rows),
            "event_time": rng.integers(START_US, 41 * DAY_US, rows) // MINUTE_US * MINUTE_US,
        }
    )


@settings(
    deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 10_000), st.integers(1, 400))
def test_what_is_left_out_cannot_be_seen(tmp_path_factory: object, seed: int, rows: int) -> None:
    whole = history(rows, seed)
    views = [service_view.view for service_view in SERVICE.views]
    part = recent_events({"landings": whole}, views, START_US)["landings"]
    answers = []
    for table in (whole, part):
        folder: Path = tmp_path_factory.mktemp("offline")  # type: ignore[attr-defined]
        store = OfflineStore(folder)
        store.append("landings", table)
        answers.append(get_historical_features(spine(seed), SERVICE, store))
    np.testing.assert_array_equal(answers[0].status, answers[1].status)
    np.testing.assert_array_equal(answers[0].words, answers[1].words)


def test_most_of_a_long_history_is_left_out_in_order() -> None:
    whole = history(5_000, 1)
    views = [service_view.view for service_view in SERVICE.views]
    part = recent_events({"landings": whole, "other": whole}, views, START_US)
    times = part["landings"].column("event_time").to_numpy()
    assert (np.diff(times) >= 0).all()
    assert part["landings"].num_rows < 0.6 * whole.num_rows
    late = whole.column("created_time").to_numpy() >= START_US
    assert (
        part["other"].num_rows
        == (late | (whole.column("event_time").to_numpy() >= START_US - 2 * HOUR_US)).sum()
    )
