from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidArgumentError
from server.demo.replay_clock import ReplayClock
from server.pb import headrace_pb2 as pb

times = st.integers(0, 12)


def events(rows: list[tuple[int, int, float | None]]) -> pa.Table:
    """(event_time, created_time, value) rows, values telling events apart."""
    return pa.table(
        {
            "plane": pa.array([f"N{i}" for i in range(len(rows))], pa.string()),
            "value": pa.array([v for _, _, v in rows], pa.float64()),
            "event_time": pa.array([e for e, _, _ in rows], pa.int64()),
            "created_time": pa.array([c for _, c, _ in rows], pa.int64()),
        }
    )


def spine(at: list[int]) -> pa.Table:
    return pa.table(
        {
            "flight_id": pa.array(range(len(at)), pa.int64()),
            "plane": pa.array([f"N{i}" for i in range(len(at))], pa.string()),
            "event_time": pa.array(at, pa.int64()),
        }
    )


def clock(sources: dict[str, pa.Table], at: list[int]) -> ReplayClock:
    return ReplayClock(sources, spine(at), model="delay", inputs=["plane"], request_id="flight_id")


def seen(push: pb.PushRequest | None) -> list[tuple[str, str, int, int]]:
    """(source, plane, event_time, created_time) of every event in a push."""
    found = []
    for batch in push.batches if push is not None else []:
        planes = next(c for c in batch.columns if c.name == "plane").strings.v
        created = batch.created_times or batch.event_times
        found += list(
            zip([batch.source] * len(planes), planes, batch.event_times, created, strict=True)
        )
    return found


@given(
    st.lists(st.tuples(times, times, st.floats(0, 1) | st.none()), max_size=12),
    st.lists(st.tuples(times, times, st.none()), max_size=6),
    st.lists(times, min_size=1, max_size=8).map(sorted),
    times,
    st.integers(1, 5),
)
def test_each_question_follows_exactly_what_was_known(
    first: list[Any], second: list[Any], at: list[int], warm_until: int, rows_max: int
) -> None:
    sources = {"a": events(first), "b": events(second)}
    ticking = clock(sources, at)
    everything = [
        (name, f"N{i}", e, c)
        for name, rows in (("a", first), ("b", second))
        for i, (e, c, _) in enumerate(rows)
    ]
    pushed = [e for push, _ in ticking.known(warm_until, rows_max=rows_max) for e in seen(push)]
    assert sorted(pushed) == sorted(e for e in everything if e[3] < warm_until)
    asked: list[str] = []
    for step in ticking.steps():
        new = seen(step.push)
        assert len(new) == step.events
        pushed += new
        known = [e for e in everything if e[3] <= step.time_us or e[3] < warm_until]
        assert sorted(pushed) == sorted(known)
        assert step.predict.event_time == step.time_us
        assert step.predict.request_ids == [str(i) for i in range(step.start, step.stop)]
        assert step.predict.inputs[0].strings.v == [f"N{i}" for i in range(step.start, step.stop)]
        assert {at[i] for i in range(step.start, step.stop)} == {step.time_us}
        asked += step.predict.request_ids
    assert asked == [str(i) for i in range(len(at))]
    pushed += [e for push, _ in ticking.known(99, rows_max=rows_max) for e in seen(push)]
    assert sorted(pushed) == sorted(everything)


def test_pushes_of_the_past_are_bounded_and_in_order() -> None:
    ticking = clock({"a": events([(t, t, 0.0) for t in range(10)])}, [20])
    created = [[e[3] for e in seen(push)] for push, _ in ticking.known(20, rows_max=4)]
    assert created == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_null_travels_as_a_null() -> None:
    ticking = clock({"a": events([(1, 1, 2.5), (1, 1, None), (2, 2, None)])}, [1, 2])
    first, second = [step.push for step in ticking.steps()]
    assert first is not None
    assert second is not None
    column = next(c for c in first.batches[0].columns if c.name == "value")
    assert (list(column.doubles.v), list(column.nulls)) == ([2.5, 0.0], [1])
    column = next(c for c in second.batches[0].columns if c.name == "value")
    assert list(column.nulls) == [0]


def test_created_times_travel_only_where_they_differ() -> None:
    late = clock({"a": events([(1, 3, 0.0)])}, [5])
    prompt = clock({"a": events([(1, 1, 0.0)])}, [5])
    batches = [next(iter(c.steps())).push.batches[0] for c in (late, prompt)]  # type: ignore[union-attr]
    assert [list(b.created_times) for b in batches] == [[3], []]


def test_a_spine_out_of_order_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="ordered by event_time"):
        clock({}, [2, 1])


def test_a_column_that_cannot_travel_is_named() -> None:
    table = events([(1, 1, 0.0)]).append_column("when", pa.array([[1]], pa.list_(pa.int64())))
    with pytest.raises(InvalidArgumentError, match="'when'"):
        clock({"a": table}, [1])
