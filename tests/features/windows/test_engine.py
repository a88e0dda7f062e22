"""Windows: what is inserted, queried and replayed, against the plain oracle, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.aggregations import Aggregation, SessionWindow, Window
from features.definitions import StreamFeatureView
from features.sources import Entity, EventSource
from features.types import FeatureStatus, Field, Int64, String
from features.windows.engine import Refused, WindowEngine
from features.windows.layout import EXACT_LAG_US, TAIL_KEPT
from headrace.errors import InternalError
from tests.features.oracle import Event
from tests.features.windows.world import (
    ENGINE,
    SECOND_US,
    columns,
    expected,
    inserted,
    query_times,
    worlds,
)

HOUR_US = 3600 * SECOND_US
COUNT_VIEW = StreamFeatureView(
    "rides",
    Entity("taxi", ["taxi"]),
    EventSource("trips", [Field("taxi", String), Field("delay", Int64)]),
    [Aggregation("delay", ["count", "sum"], [Window("1min", hop="10s"), Window("1h", hop="1min")])],
)


def insert(state: bytes, events: list[Event]) -> tuple[bytes, Refused]:
    return inserted(ENGINE, state, *columns(events))


def compacted(state: bytes) -> bytes:
    return ENGINE.compact_many([state])[0].tobytes()


def answers(states, times):  # type: ignore[no-untyped-def]
    words, status = ENGINE.query(states, np.array(times, dtype=np.int64))
    return words.tolist(), status.tolist()


def history(events, times):  # type: ignore[no-untyped-def]
    event, created, words, valid = columns(events)
    return ENGINE.history(
        np.zeros(len(events), dtype=np.int64), event, created, words, valid,
        np.zeros(len(times), dtype=np.int64), np.array(times, dtype=np.int64),
    )  # fmt: skip


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_history_answers_as_the_oracle(data: st.DataObject) -> None:
    events = data.draw(worlds())
    times = data.draw(st.lists(query_times(events), min_size=1, max_size=8))
    words, status = history(events, times)
    for row, t in enumerate(times):
        assert (words[row].tolist(), status[row].tolist()) == expected(events, t)


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_a_stream_queried_as_it_grows_answers_as_the_oracle(data: st.DataObject) -> None:
    events = data.draw(worlds())
    state = b""
    done = 0
    while done < len(events):
        step = data.draw(st.integers(1, len(events) - done))
        state, _ = insert(state, events[done : done + step])
        if data.draw(st.booleans()):
            state = compacted(state)
        done += step
        newest = max(e.created_time_us for e in events[:done])
        # Now, and as far back as the state promises to remember.
        times = [newest, newest + data.draw(st.integers(0, 2 * HOUR_US))]
        words, status = answers([state, state], times)
        for row, t in enumerate(times):
            assert (words[row], status[row]) == expected(events[:done], t)


@given(st.data())
@settings(deadline=None, max_examples=100)
def test_a_query_about_the_past_is_right_or_says_that_it_cannot(data: st.DataObject) -> None:
    events = data.draw(worlds())
    state, _ = insert(b"", events)
    if data.draw(st.booleans()):
        state = compacted(state)
    times = data.draw(st.lists(query_times(events), min_size=1, max_size=8))
    words, status = answers([state] * len(times), times)
    newest = max((max(e.event_time_us, e.created_time_us) for e in events), default=0)
    for row, t in enumerate(times):
        wanted_words, wanted_status = expected(events, t)
        for k in range(len(wanted_words)):
            if status[row][k] == FeatureStatus.UNAVAILABLE:
                assert t <= newest - EXACT_LAG_US
                assert words[row][k] == 0
            else:
                assert (words[row][k], status[row][k]) == (wanted_words[k], wanted_status[k])


@given(worlds(), worlds())
@settings(deadline=None, max_examples=30)
def test_many_entities_in_one_call_are_each_alone(one: list[Event], two: list[Event]) -> None:
    mixed = sorted([(e.arrival, 1, e) for e in one] + [(e.arrival, 0, e) for e in two],
                   key=lambda item: item[:2])  # fmt: skip
    index = np.array([entity for _, entity, _ in mixed], dtype=np.int64)
    records, _ = ENGINE.records(index, 3, *columns([event for _, _, event in mixed]))
    assert records == [insert(b"", two)[0], insert(b"", one)[0], b""]
    assert [state.tobytes() for state in ENGINE.compact_many(records)] == [
        compacted(state) for state in records
    ]


@given(worlds(), st.data())
@settings(deadline=None, max_examples=60)
def test_the_order_of_arrival_changes_nothing(events: list[Event], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(events))
    times = [max((e.created_time_us for e in events), default=0) + 1]
    state = insert(b"", events)[0]
    assert answers([state], times) == answers([compacted(insert(b"", shuffled)[0])], times)
    assert answers([state], times) == answers([compacted(state)], times)


def delays(engine: WindowEngine, times_us: list[int], created_us: list[int] | None = None):  # type: ignore[no-untyped-def]
    n = len(times_us)
    event = np.array(times_us, dtype=np.int64)
    created = event if created_us is None else np.array(created_us, dtype=np.int64)
    return inserted(
        engine, b"", event, created, np.ones((n, 1), dtype=np.int64), np.ones((n, 1), np.bool_)
    )


@pytest.fixture(scope="module")
def engine() -> WindowEngine:
    return WindowEngine(COUNT_VIEW, schema_id=7)


def counts(engine: WindowEngine, state: object, t_us: int) -> dict[str, int | str]:
    words, status = engine.query([state], np.array([t_us]))  # type: ignore[list-item]
    return {
        name: int(word) if s == 0 else {1: "null", 4: "unavailable"}[int(s)]
        for (name, _), word, s in zip(engine.output, words[0], status[0], strict=True)
    }


@pytest.mark.parametrize(
    ("event_us", "count"),
    [
        (-1, 0),  # just before the tail
        (0, 1),  # at the tail: ⌊65 s − 60 s⌋10 s = 0 s
        (65 * SECOND_US - 1, 1),
        (65 * SECOND_US, 0),  # at t itself
    ],
)
def test_the_edges_of_a_window(engine: WindowEngine, event_us: int, count: int) -> None:
    state, _ = delays(engine, [event_us])
    assert counts(engine, state, 65 * SECOND_US)["delay_count_1min"] == count


def test_an_empty_window_counts_nothing_and_sums_null(engine: WindowEngine) -> None:
    assert counts(engine, None, 0) == {
        "delay_count_1min": 0,
        "delay_count_1h": 0,
        "delay_sum_1min": "null",
        "delay_sum_1h": "null",
    }


def test_an_event_is_not_seen_before_it_was_created(engine: WindowEngine) -> None:
    state, _ = delays(engine, [0], created_us=[30 * SECOND_US])
    assert counts(engine, state, 30 * SECOND_US - 1)["delay_count_1h"] == 0
    assert counts(engine, state, 30 * SECOND_US)["delay_count_1h"] == 1


def test_what_is_known_later_than_the_view_allows_is_left_out() -> None:
    view = replace(COUNT_VIEW, allowed_lateness="2min")
    minutes = 60 * SECOND_US
    engine = WindowEngine(view)
    state, refused = delays(engine, [0, 0, 0], created_us=[0, 2 * minutes, 2 * minutes + 1])
    assert refused == (0, 1)
    assert counts(engine, state, 3 * minutes)["delay_count_1h"] == 2
    event, created = np.zeros(2, np.int64), np.array([2 * minutes, 2 * minutes + 1])
    nobody = np.zeros(2, np.int64)
    words, _ = engine.history(
        nobody, event, created, np.ones((2, 1), np.int64), np.ones((2, 1), np.bool_), nobody,
        np.array([3 * minutes, 2 * minutes - 1]),
    )  # fmt: skip
    assert words[:, 1].tolist() == [1, 0]


@pytest.mark.parametrize(("includes_now", "count"), [(False, 0), (True, 1)])
def test_whether_an_event_at_the_time_of_the_query_counts(includes_now: bool, count: int) -> None:
    engine = WindowEngine(replace(COUNT_VIEW, includes_now=includes_now))
    state, _ = delays(engine, [SECOND_US])
    assert counts(engine, state, SECOND_US)["delay_count_1min"] == count
    assert counts(engine, state, SECOND_US - 1)["delay_count_1min"] == 0
    one = np.array([SECOND_US])
    nobody = np.zeros(1, np.int64)
    yes = np.ones((1, 1), np.bool_)
    words, _ = engine.history(nobody, one, one, yes.astype(np.int64), yes, nobody, one)
    assert words[0, 0] == count


SESSIONS = replace(
    COUNT_VIEW,
    aggregations=[Aggregation("delay", ["count"], [SessionWindow("1min", max_length="3min")])],
)


@pytest.mark.parametrize(
    ("seconds", "t_s", "count"),
    [
        ([0, 60, 119], 119, 2),  # neighbours as far apart as the gap
        ([0, 61, 119], 119.5, 2),  # a pause longer than the gap
        ([100], 160, 1),  # the last event as old as the gap
        ([100], 160.000001, 0),  # older: the session is over
        ([119, 120, 179, 230, 280], 299, 5),  # from ⌊299 − 180⌋60 on: as long as it may be
        ([119, 120, 179, 230, 280], 299.9, 5),
        ([119, 120, 179, 230, 280], 300, 4),  # longer: from 120 on
    ],
)
def test_the_edges_of_a_session(seconds: list[float], t_s: float, count: int) -> None:
    engine = WindowEngine(SESSIONS)
    times = [int(s * SECOND_US) for s in seconds]
    t_us = int(t_s * SECOND_US)
    state, _ = delays(engine, times)
    name = "delay_count_session_1min"
    assert counts(engine, state, t_us)[name] == count
    nobody = np.zeros(len(times), np.int64)
    event, ones = np.array(times), np.ones((len(times), 1), np.int64)
    words, _ = engine.history(
        nobody, event, event, ones, ones != 0, np.zeros(1, np.int64), np.array([t_us])
    )
    assert words[0, 0] == count


def test_a_stamp_from_the_future_is_quarantined(engine: WindowEngine) -> None:
    minutes = 60 * SECOND_US
    state, refused = delays(engine, [5 * minutes, 5 * minutes + 1, 2**62], created_us=[0, 0, 2**62])
    assert refused == (2, 0)
    assert counts(engine, state, 6 * minutes)["delay_count_1h"] == 1


def test_a_hot_entity_keeps_a_bounded_tail_and_is_exact_now(engine: WindowEngine) -> None:
    times = [i * 1000 for i in range(4 * TAIL_KEPT)]
    state, _ = delays(engine, times)
    assert len(state) < 40 * TAIL_KEPT
    assert counts(engine, state, times[-1] + 1)["delay_count_1h"] == len(times)
    back = times[-TAIL_KEPT] + 1
    assert counts(engine, state, back)["delay_count_1h"] == 3 * TAIL_KEPT + 1
    assert counts(engine, state, times[TAIL_KEPT])["delay_count_1h"] == "unavailable"


def test_a_state_stays_small_and_forgets_what_no_window_reaches(engine: WindowEngine) -> None:
    times = list(range(0, 40 * HOUR_US, 7 * SECOND_US))
    state, _ = delays(engine, times)
    assert len(state) < 16_000
    now = times[-1]
    assert counts(engine, state, now)["delay_count_1h"] == len(
        [e for e in times if (now - HOUR_US) // (60 * SECOND_US) * 60 * SECOND_US <= e < now]
    )
    assert counts(engine, state, 20 * HOUR_US)["delay_count_1h"] == "unavailable"


@pytest.mark.parametrize("cut", [1, 7, 8, 24, -8, -1])
def test_a_cut_state_is_refused(engine: WindowEngine, cut: int) -> None:
    state, _ = delays(engine, [0, SECOND_US])
    with pytest.raises(InternalError, match=r"view 'rides'.*row 1 cannot be read"):
        engine.query([None, state[:cut]], np.zeros(2, dtype=np.int64))


@given(st.binary(min_size=1, max_size=400))
@settings(deadline=None, max_examples=200)
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(InternalError):
        ENGINE.query([garbage], np.zeros(1, dtype=np.int64))
    with pytest.raises(InternalError):
        ENGINE.compact_many([garbage])


@given(st.integers(2, 30), st.integers(-(2**63), 2**63 - 1))
@settings(deadline=None)
def test_a_header_with_a_wrong_word_is_refused_or_read_within_bounds(at: int, word: int) -> None:
    engine = WindowEngine(COUNT_VIEW, schema_id=7)
    state, _ = delays(engine, [i * 20 * 60 * SECOND_US for i in range(6)])
    (words,) = engine.compact_many([state])
    words[at % len(words)] = word
    refused = False
    try:
        _, status = engine.query([words], np.array([6 * HOUR_US]))
        engine.compact_many([words])
    except InternalError:
        refused = True
    assert refused or set(status[0].tolist()) <= {0, 1, 4}


def test_a_state_of_another_schema_id_or_layout_is_refused(engine: WindowEngine) -> None:
    state, _ = delays(engine, [0])
    for other in (WindowEngine(COUNT_VIEW, schema_id=8), ENGINE):
        with pytest.raises(InternalError, match="schema id"):
            other.query([state], np.zeros(1, dtype=np.int64))


def test_only_the_outputs_with_a_target_are_written(engine: WindowEngine) -> None:
    state, _ = delays(engine, [0])
    words = np.full((1, 3), -7, dtype=np.int64)
    status = np.full((1, 3), 9, dtype=np.uint8)
    targets = np.array([-1, 2, -1, 0], dtype=np.int64)
    engine.query_into([state], np.array([SECOND_US]), words, status, targets)
    assert words.tolist() == [[1, -7, 1]]
    assert status.tolist() == [[0, 9, 0]]


def test_rows_without_a_key_are_left_untouched(engine: WindowEngine) -> None:
    words = np.full((2, 4), -7, dtype=np.int64)
    status = np.full((2, 4), FeatureStatus.NOT_FOUND, dtype=np.uint8)
    one = np.array([0], dtype=np.int64)
    engine.history_into(
        np.array([-1]), one, one, np.ones((1, 1), dtype=np.int64), np.ones((1, 1), dtype=np.bool_),
        np.array([-1, 0]), np.array([5, 5]), words, status,
        np.arange(4, dtype=np.int64),
    )  # fmt: skip
    assert status.tolist() == [[2] * 4, [0, 0, 1, 1]]
    assert words[0].tolist() == [-7] * 4


def test_arrays_of_any_layout_are_taken(engine: WindowEngine) -> None:
    times = [0, SECOND_US, 2 * SECOND_US]
    plain, _ = delays(engine, times)
    wide = np.ones((3, 2), dtype=np.int64)
    mask = np.ones((3, 2), dtype=np.bool_)
    frozen = np.array(times, dtype=np.int64)
    frozen.flags.writeable = False
    state, _ = inserted(engine, b"", frozen, frozen.astype(">i8"), wide[:, :1], mask[:, :1])
    assert state == plain
