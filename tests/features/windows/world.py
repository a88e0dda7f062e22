"""One stream view with everything in it, and random worlds for it."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from features.aggregations import (
    Aggregation,
    LifetimeWindow,
    SessionWindow,
    TumblingWindow,
    Window,
)
from features.definitions import StreamFeatureView
from features.filters import Where
from features.sources import Entity, EventSource
from features.types import Bool, Column, Field, Float64, Int64, String, Table
from features.windows.engine import Refused, WindowEngine
from features.windows.events import event_words
from tests.features import oracle
from tests.features.oracle import Event

SECOND_US = 1_000_000
DECAYED = ["decayed_count", "decayed_sum", "decayed_mean"]
FUNCTIONS = ["count", "sum", "mean", "min", "max"]
WINDOWS = [
    Window("20s", hop="10s"),
    Window("10min", hop="1min"),
    Window("3min", hop="1min"),
    Window("1h", hop="30min"),
]
OTHER_WINDOWS = [
    TumblingWindow("1h"),
    TumblingWindow("10min", previous=True),
    LifetimeWindow(),
    SessionWindow("10min", max_length="1h"),
    SessionWindow("20s", max_length="10min"),
    TumblingWindow("7min"),
    TumblingWindow("1h", previous=True),
]
SOURCE = EventSource(
    "trips",
    [
        Field("taxi", String),
        Field("delay", Int64),
        Field("fare", Float64),
        Field("rating", Float64),
        Field("shared", Bool),
        Field("note", String),
    ],
)
DEAR = Where("fare", ">", 0.1) & ~Where("shared", "==", True)
ODD = Where("note", "in", ["", "x"]) | Where("delay", "is null") | Where("fare", "<=", -1)
VIEW = StreamFeatureView(
    "taxi_trips",
    Entity("taxi", ["taxi"]),
    SOURCE,
    [
        Aggregation("delay", FUNCTIONS, WINDOWS),
        Aggregation("fare", FUNCTIONS, WINDOWS),
        Aggregation("shared", ["sum", "max"], WINDOWS[:1]),
        Aggregation("note", ["count"], WINDOWS[1:2]),
        Aggregation(None, ["count"], WINDOWS),
        Aggregation("fare", FUNCTIONS, WINDOWS[1:3], where=DEAR, label="dear"),
        Aggregation("delay", ["sum", "max"], WINDOWS[1:2], where=DEAR, label="dear"),
        Aggregation("fare", ["sum", "min", "max"], OTHER_WINDOWS),
        Aggregation(None, ["count"], OTHER_WINDOWS),
        Aggregation("delay", ["mean", "rate"], OTHER_WINDOWS[:2], where=DEAR, label="dear"),
        Aggregation("fare", ["first", "last", "seconds_since_last", "rate"], WINDOWS[1:3]),
        Aggregation("delay", ["first", "last"], OTHER_WINDOWS[:4], where=ODD, label="odd"),
        Aggregation(None, ["seconds_since_last"], OTHER_WINDOWS),
        Aggregation("delay", ["variance", "stddev"], [WINDOWS[1], *OTHER_WINDOWS[1:4]]),
        Aggregation("rating", ["variance", "stddev", "sum"], WINDOWS[1:]),
        Aggregation("rating", DECAYED, [WINDOWS[3], *OTHER_WINDOWS[1:4]], half_life="7min"),
        Aggregation("fare", DECAYED, WINDOWS[1:3], DEAR, "dear", half_life="20s"),
        Aggregation("delay", DECAYED[1:], OTHER_WINDOWS[2:3], half_life="1d"),
        Aggregation("delay", FUNCTIONS, WINDOWS[:1], where=ODD, label="odd"),
        Aggregation(None, ["count"], WINDOWS[:2], where=ODD, label="odd"),
    ],
)
ENGINE = WindowEngine(VIEW)
CONTEXT_US = 4 * 3600 * SECOND_US

# Whole hops, their edges and anything between, before and after 1970.
times_us = st.one_of(
    st.integers(-CONTEXT_US // (10 * SECOND_US), CONTEXT_US // (10 * SECOND_US)).map(
        lambda hops: hops * 10 * SECOND_US
    ),
    st.integers(-CONTEXT_US, CONTEXT_US),
    st.integers(-40, 40).map(lambda seconds: seconds * SECOND_US),
)
# On time, late by seconds, minutes or hours, or stamped ahead (up to and beyond the tolerance).
lateness_us = st.one_of(
    st.just(0),
    st.integers(0, 20 * SECOND_US),
    st.integers(0, 40 * 60 * SECOND_US),
    st.integers(-6 * 60 * SECOND_US, 0),
    st.just(-5 * 60 * SECOND_US),
)
integers = st.one_of(st.none(), st.integers(-3, 3), st.integers(-(2**55), 2**55))
# Fractions that add up exactly in any order, and others that do not.
floats = st.one_of(
    st.none(),
    st.integers(-40, 40).map(lambda n: n / 4),
    st.sampled_from([0.1, -0.0, float("inf"), float("-inf"), float("nan"), 1e300, 1e-300]),
)
# Exact in a cell of a sum: the magnitudes of one window span less than 2^43.
ratings = st.one_of(
    st.none(),
    st.integers(-2000, 2000).map(lambda n: 1e9 + n / 1000),
    st.sampled_from([0.1, -3.0, 1e9 + 1, 1e9 - 1]),
)


@st.composite
def worlds(draw: st.DrawFn) -> list[Event]:
    """Events of one entity, in the order of their arrival; duplicates happen."""
    count = draw(st.integers(0, 40))
    events = []
    for sequence in range(count):
        event_us = draw(times_us)
        values = {
            "delay": draw(integers),
            "fare": draw(floats),
            "rating": draw(ratings),
            "shared": draw(st.sampled_from([True, False, None])),
            "note": draw(st.sampled_from(["", "ü", None])),
        }
        events.append(Event(event_us, event_us + draw(lateness_us), sequence, values))
    if events and draw(st.booleans()):
        twin = events[0]
        events.append(Event(twin.event_time_us, twin.created_time_us, count, dict(twin.values)))
    return sorted(events, key=lambda e: e.arrival)


# What it takes for an event to leave a window, or to end a session.
REACHES_US = [w.length_us for w in WINDOWS] + [w.hop_us for w in (*WINDOWS, *OTHER_WINDOWS[3:5])]


def query_times(events: list[Event]) -> st.SearchStrategy[int]:
    """Times at, just before and just after what happens, and anywhere."""
    moments = sorted({0} | {e.event_time_us for e in events} | {e.created_time_us for e in events})
    near = st.sampled_from(moments).flatmap(lambda t: st.sampled_from([t - 1, t, t + 1]))
    ahead = st.sampled_from(moments).flatmap(
        lambda t: st.sampled_from([t + reach + d for reach in REACHES_US for d in (-1, 0, 1)])
    )
    return st.one_of(near, ahead, times_us)


def columns(events: list[Event]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """event_time_us, created_time_us, words, valid of the events."""
    table: Table = {}
    for name in VIEW.fields:
        values = [e.values[name] for e in events]
        dtype = SOURCE.dtypes[name].numpy
        blank: object = "" if dtype.kind == "O" else 0
        table[name] = Column(
            np.array([blank if v is None else v for v in values], dtype=dtype),
            np.array([v is not None for v in values], dtype=np.bool_),
        )
    words, valid = event_words(VIEW, table, len(events))
    return (
        np.array([e.event_time_us for e in events], dtype=np.int64),
        np.array([e.created_time_us for e in events], dtype=np.int64),
        words,
        valid,
    )


def expected(events: list[Event], t_us: int) -> tuple[list[int], list[int]]:
    """Words and statuses of the oracle."""
    values = oracle.windows(VIEW, events, t_us)
    return (
        [0 if v is None else oracle.word(v) for v in values],
        [1 if v is None else 0 for v in values],
    )


def inserted(engine: WindowEngine, state: bytes, *events: np.ndarray) -> tuple[bytes, Refused]:
    """A state with more events appended (their columns), compacted as an ingester would."""
    entity = np.zeros(len(events[0]), dtype=np.int64)
    (records,), refused = engine.records(entity, 1, *events)
    for at in range(0, len(records), engine.record_bytes):
        length = len(state)
        state += records[at : at + engine.record_bytes]
        if len(state) // engine.compact_step_bytes > length // engine.compact_step_bytes:
            state = engine.compact_many([state])[0].tobytes()
    return state, refused
