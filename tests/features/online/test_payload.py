"""What may be pushed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from features.online.payload import EventBatch, check_batch
from features.sources import EventSource, Source
from features.types import Bool, Column, Field, Float32, Float64, Int64, String, Timestamp
from headrace.errors import InvalidArgumentError

SOURCE = EventSource(
    "rides",
    [
        Field("driver", Int64),
        Field("fare", Float64),
        Field("tip", Float32),
        Field("night", Bool),
        Field("ended", Timestamp),
        Field("zone", String),
    ],
)
SOURCES: dict[str, Source] = {"rides": SOURCE}


def objects(*values: object) -> np.ndarray[Any, Any]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def batch(**changes: Any) -> EventBatch:
    columns = {
        "driver": Column(np.array([1, 2])),
        "fare": Column(np.array([1.5, np.nan])),
        "tip": Column(np.array([0.1, 0.2])),
        "night": Column(np.array([True, False])),
        "ended": Column(np.array([5, 6]), np.array([True, False])),
        "zone": Column(objects("süd", None), np.array([True, False])),
    }
    times = {k: changes.pop(k) for k in ("event_times_us", "created_times_us") if k in changes}
    columns.update(changes)
    for name in [name for name, column in columns.items() if column is None]:
        del columns[name]
    return EventBatch("rides", columns, times.pop("event_times_us", np.array([10, 20])), **times)


def test_a_checked_batch_has_the_order_and_the_types_of_its_source() -> None:
    checked = check_batch(batch(created_times_us=np.array([11, 21])), SOURCES)
    assert list(checked.columns) == [field.name for field in SOURCE.fields]
    assert checked.columns["tip"].values[0] == np.float32(0.1)
    assert checked.columns["zone"].values.tolist() == ["süd", ""]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fares": Column(np.array([1.0, 2.0]))}, "unknown field 'fares'.*did you mean 'fare'"),
        ({"fare": None}, "source 'rides': field 'fare' is missing"),
        ({"fare": Column(np.array([1, 2]))}, "field 'fare' has another type.*float64.*int64"),
        ({"driver": Column(np.array([1.0, np.nan]))}, "field 'driver' has another type"),
        ({"driver": Column(objects("1", "2"))}, "field 'driver'.*expected int64, got string"),
        ({"night": Column(np.array([1, 0]))}, "field 'night'.*expected bool"),
        ({"zone": Column(objects("a", 7))}, "field 'zone' does not hold string in row 1.*got int"),
        ({"zone": Column(objects("😀\ud800", "b"))}, "field 'zone' does not hold string in row 0"),
        ({"zone": Column(np.array([1, 2]))}, "field 'zone' has another type.*string.*int64"),
        ({"driver": Column(np.array([1, 2, 3]))}, "'driver' has another number.*expected 2, got 3"),
        ({"fare": Column(np.array([1.0, 2.0]), np.array([True]))}, "another number of rows"),
        ({"event_times_us": np.array([1.0, 2.0])}, "event_times do not fit.*float64"),
        ({"created_times_us": np.array([1])}, "created_times do not fit.*expected 2"),
        ({"event_times_us": np.array([1, -(1 << 62)])}, "event_times.*row 1"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        check_batch(batch(**changes), SOURCES)


def test_an_unknown_source_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match=r"unknown source 'ride'.*did you mean 'rides'"):
        check_batch(EventBatch("ride", {}, np.array([1])), SOURCES)
