"""Events and spine rows for history, ingestion and joins: numpy only, the same for everybody.

Amounts are whole numbers, small enough that a sum of floats is exact in any order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

SEED = 8
START_US = 1_700_006_400_000_000  # the start of a day, UTC
SECOND_US = 1_000_000
MINUTE_US, HOUR_US, DAY_US = 60 * SECOND_US, 3600 * SECOND_US, 86_400 * SECOND_US
SPAN_DAYS = 60
EVENTS_A_SPINE_ROW = 5
# (function, column) of ten aggregates: a count of events, and nine of two columns.
AGGREGATES = (
    ("count", None),
    *((function, "amount") for function in ("count", "sum", "mean", "min", "max")),
    *((function, "minutes") for function in ("sum", "mean", "min", "max")),
)
# (label, length, hop) in microseconds; `1h` as a duration of ours.
WINDOWS = (("1h", HOUR_US, MINUTE_US), ("1d", DAY_US, HOUR_US), ("7d", 7 * DAY_US, HOUR_US))


class Trips(NamedTuple):
    """Events, int64 ids and times, float64 amounts and int64 minutes; by time."""

    user_id: Any
    event_time: Any
    amount: Any
    minutes: Any


class Spine(NamedTuple):
    """Rows that are asked for: int64 ids and times, in no order."""

    user_id: Any
    event_time: Any


def trips(count: int, entities: int, seed: int = SEED) -> Trips:
    """Return so many events of so many entities over `SPAN_DAYS`, to the second."""
    import numpy as np

    random = np.random.default_rng(seed)
    seconds = np.sort(random.integers(0, SPAN_DAYS * 86_400, count))
    return Trips(
        random.integers(0, entities, count),
        START_US + seconds * SECOND_US,
        random.integers(0, 1_000, count).astype(np.float64),
        random.integers(1, 240, count),
    )


def spine(rows: int, entities: int, seed: int = SEED) -> Spine:
    """Return so many spine rows, from a week after the events' start on."""
    import numpy as np

    random = np.random.default_rng(seed + 1)
    seconds = random.integers(7 * 86_400, SPAN_DAYS * 86_400, rows)
    return Spine(random.integers(0, entities, rows), START_US + seconds * SECOND_US)


def feature_names() -> list[str]:
    """Return the names of all outputs of the view, in the order of its definition."""
    return [
        f"{column}_{function}_{label}" if column else f"{function}_{label}"
        for function, column in AGGREGATES
        for label, _, _ in WINDOWS
    ]


def definitions() -> bytes:
    """Return the view of ten aggregates by three windows, and its service."""
    aggregations = []
    for column in (None, "amount", "minutes"):
        functions = [function for function, of in AGGREGATES if of == column]
        aggregations.append(f"Aggregation({column!r}, {functions!r}, windows)")
    hops = {MINUTE_US: "1min", HOUR_US: "1h"}
    windows = [f"Window({label!r}, hop={hops[hop]!r})" for label, _, hop in WINDOWS]
    return f"""
from features import Aggregation, Entity, EventSource, FeatureService, Field, Float64, Int64
from features import StreamFeatureView, Window

user = Entity("user", ["user_id"])
trips = EventSource("trips", [
    Field("user_id", Int64), Field("amount", Float64), Field("minutes", Int64),
])
windows = [{", ".join(windows)}]
travel = StreamFeatureView("travel", user, trips, [{", ".join(aggregations)}])
travelled = FeatureService("travelled", 1, [travel])
""".encode()
