"""History and stream against SQL: each aggregate over each window, bit for bit, by DuckDB."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from features.aggregations import LifetimeWindow, SessionWindow, TumblingWindow, Window
from features.types import from_words
from tests.features.oracle import TOLERANCE_US, Event
from tests.features.windows.world import DEAR, ENGINE, ODD, SECOND_US, VIEW, columns

KEYS, EVENTS, QUERIES = 12, 2500, 400
SPAN_US = 3 * 3600 * SECOND_US
SQL = {
    "count": "count({column})",
    "sum": "sum({column})",
    "mean": "sum({column})::double / count({column})",
    "min": "min({column})",
    "max": "max({column})",
    "variance": "var_samp({column})",
    "stddev": "stddev_samp({column})",
    "first": "min({{'e': moment, 'c': made, 'v': {column}}}).v",
    "last": "max({{'e': moment, 'c': made, 'v': {column}}}).v",
    "seconds_since_last": "(any_value(q.t) - max(moment)) / 1e6",
    "rate": "CASE WHEN {span} > 0 THEN count({column}) * 1e6 / {span} END",
    "decayed_count": "coalesce(sum({weight}), 0)",
    "decayed_sum": "sum({column} * {weight})",
    "decayed_mean": "sum({column} * {weight}) / sum({weight})",
}
# What floats in an order of its own; the others must have the same bits.
ROUNDED = {"variance", "stddev", "decayed_count", "decayed_sum", "decayed_mean"}
FILTERS = {
    None: "true",
    DEAR: "(fare > 0.1 AND NOT shared = true)",
    ODD: "(note IN ('', 'x') OR delay IS NULL OR fare <= -1)",
}


def random_events(rng: np.random.Generator) -> list[Event]:
    """Late, ahead, on edges; fractions that add up exactly in any order, as SQL promises none."""
    events = []
    for sequence in range(EVENTS):
        event_us = int(rng.integers(-SPAN_US, SPAN_US))
        event_us -= event_us % (10 * SECOND_US) if rng.random() < 0.5 else 0
        late_us = int(rng.choice([0, 7, 60, 900, -120, -301])) * SECOND_US
        values = {
            "delay": None if rng.random() < 0.1 else int(rng.integers(-(2**40), 2**40)),
            "rating": None if rng.random() < 0.1 else 1e9 + int(rng.integers(-900, 900)) / 8,
            "fare": None if rng.random() < 0.1 else int(rng.integers(-400, 400)) / 4,
            "shared": None if rng.random() < 0.1 else bool(rng.random() < 0.5),
            "note": None if rng.random() < 0.5 else "x",
        }
        events.append(Event(event_us, event_us + late_us, sequence, values))
    return events


def floor(moment: str, hop_us: int) -> str:
    """DuckDB's // truncates; the floor is asked for by name."""
    return f"(({moment}) - (((({moment}) % {hop_us}) + {hop_us}) % {hop_us}))"


def span(window: Window) -> str:
    """How long a window is at t, in microseconds."""
    hop, length = window.hop_us, window.length_us
    if isinstance(window, TumblingWindow):
        return str(hop) if window.previous else f"any_value(q.t - {floor('q.t', hop)})"
    return f"any_value(q.t - {floor(f'q.t - {length}', hop)})"


def chosen(window: Window) -> str:
    """The events (id of the query, then their columns) that are in a window."""
    hop, length = window.hop_us, window.length_us
    match window:
        case LifetimeWindow():
            inside = "true"
        case TumblingWindow(previous=True):
            inside = f"{floor('e.moment', hop)} = {floor('q.t', hop)} - {hop}"
        case TumblingWindow():
            inside = f"{floor('e.moment', hop)} = {floor('q.t', hop)}"
        case _:
            inside = f"e.moment >= {floor(f'q.t - {length}', hop)}"
    seen = (
        "SELECT q.id, q.t, e.* FROM q JOIN e ON e.key = q.key AND e.moment < q.t AND e.made <= q.t "
        f"AND e.moment <= e.made + {TOLERANCE_US} AND {inside}"
    )
    if not isinstance(window, SessionWindow):
        return seen
    # Without a pause between an event and the query. Peers share a frame.
    paused = (
        f"SELECT *, lead(moment, 1, t) OVER (PARTITION BY id ORDER BY moment) - moment > {hop} "
        f"AS pauses FROM ({seen})"
    )
    return (
        f"SELECT * FROM ({paused}) QUALIFY count(*) FILTER (pauses) "
        "OVER (PARTITION BY id ORDER BY moment DESC) = 0"
    )


def by_sql(
    events: list[Event], keys: np.ndarray, query_keys: np.ndarray, times: np.ndarray
) -> pa.Table:
    """A row a query, a column a feature."""
    connection = duckdb.connect()
    facts = {name: [e.values[name] for e in events] for name in VIEW.fields}
    facts |= {"key": keys, "moment": [e.event_time_us for e in events]}
    connection.register("e", pa.table(facts | {"made": [e.created_time_us for e in events]}))
    connection.register("q", pa.table({"id": range(len(times)), "key": query_keys, "t": times}))
    answers = None
    for feature in VIEW.features:
        column = feature.column or "moment"
        if column == "shared":
            column = "shared::bigint"
        given = f"e.{column} IS NOT NULL AND {FILTERS[feature.where]}"
        asked = SQL[feature.function].format(
            column=column,
            span=span(feature.window),
            weight=f"pow(2.0, (moment - q.t) / {feature.half_life_us or 1})",
        )
        found = connection.sql(
            f"SELECT q.id, {asked} AS v FROM q LEFT JOIN "
            f"(SELECT * FROM ({chosen(feature.window)}) e WHERE {given}) e "
            "ON e.id = q.id GROUP BY q.id ORDER BY q.id"
        ).to_arrow_table()
        values = found.column("v")
        answers = (
            pa.table({feature.name: values})
            if answers is None
            else answers.append_column(feature.name, values)
        )
    assert answers is not None
    return answers


def test_history_and_stream_answer_as_sql() -> None:
    rng = np.random.default_rng(3)
    events = random_events(rng)
    keys = rng.integers(0, KEYS, EVENTS)
    query_keys = rng.integers(0, KEYS + 1, QUERIES)
    times = rng.integers(-SPAN_US, SPAN_US + 3600 * SECOND_US, QUERIES)
    times[::3] -= times[::3] % (10 * SECOND_US)
    wanted = by_sql(events, keys, query_keys, times)
    event, created, words, valid = columns(events)
    out, status = ENGINE.history(keys, event, created, words, valid, query_keys, times)
    # The stream as it stands at the end, asked from then on.
    records, _ = ENGINE.records(keys, KEYS + 1, event, created, words, valid)
    states = [state.tobytes() for state in ENGINE.compact_many(records)]
    late = times >= max(int(event.max()), int(created.max()))
    live, live_status = ENGINE.query([states[k] for k in query_keys], times)
    assert 0 < late.sum() < QUERIES
    for place, (name, dtype) in enumerate(ENGINE.output):
        function = VIEW.features[place].function
        expected = wanted.column(name).to_pylist()
        for found, found_status, rows in (
            (out, status, range(QUERIES)),
            (live, live_status, np.flatnonzero(late).tolist()),
        ):
            values = from_words(found[:, place], None, dtype).values.tolist()
            got = [
                v if s == 0 else None for v, s in zip(values, found_status[:, place], strict=True)
            ]
            # SQL loses digits in the variance of numbers near 1e9; the `oracle` has its fractions.
            close = 1e-6 if function in ROUNDED else 0
            for row in rows:
                assert (got[row] is None) == (expected[row] is None), (name, row)
                if got[row] is not None:
                    assert got[row] == pytest.approx(expected[row], rel=close, abs=close), name
