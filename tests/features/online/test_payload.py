"""What may be pushed, and that it comes out of the log as it went in."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from features.online.payload import EventBatch, check_batch, decode_payload, encode_payload
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


def same(left: EventBatch, right: EventBatch) -> None:
    assert left.source == right.source
    assert list(left.columns) == list(right.columns)
    np.testing.assert_array_equal(left.event_times_us, right.event_times_us)
    assert (left.created_times_us is None) == (right.created_times_us is None)
    for name, column in left.columns.items():
        other = right.columns[name]
        assert column.values.dtype == other.values.dtype
        np.testing.assert_array_equal(column.mask, other.mask)
        if column.values.dtype == np.float64:  # bit for bit: a NaN keeps its payload
            np.testing.assert_array_equal(column.values.view(np.int64), other.values.view(np.int64))
        else:
            np.testing.assert_array_equal(column.values, other.values)


def test_a_batch_comes_back_as_it_was_checked() -> None:
    checked = check_batch(batch(created_times_us=np.array([11, 21])), SOURCES)
    assert list(checked.columns) == [field.name for field in SOURCE.fields]
    assert checked.columns["tip"].values[0] == np.float32(0.1)
    assert checked.columns["zone"].values.tolist() == ["süd", ""]
    (back,) = decode_payload(encode_payload([checked]), SOURCES)
    same(checked, back)


@given(
    st.integers(0, 20).flatmap(
        lambda rows: st.tuples(
            stn.arrays(np.int64, rows),
            stn.arrays(np.float64, rows),
            stn.arrays(np.bool_, rows),
            stn.arrays(np.bool_, rows),
            st.lists(
                st.text(st.characters(exclude_categories=["Cs"])), min_size=rows, max_size=rows
            ),
        )
    )
)
def test_any_values_come_back(
    drawn: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]],
) -> None:
    ints, floats, bools, valid, texts = drawn
    checked = check_batch(
        EventBatch(
            "rides",
            {
                "driver": Column(ints, valid),
                "fare": Column(floats),
                "tip": Column(floats, valid),
                "night": Column(bools),
                "ended": Column(ints),
                "zone": Column(objects(*texts), valid),
            },
            np.arange(len(ints)),
        ),
        SOURCES,
    )
    (back,) = decode_payload(encode_payload([checked]), SOURCES)
    same(checked, back)


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


GOOD = encode_payload([check_batch(batch(), SOURCES)])


@pytest.mark.parametrize("cut", range(0, len(GOOD), 7))
def test_a_payload_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(InvalidArgumentError, match="event log entry"):
        decode_payload(GOOD[:cut], SOURCES)


@given(st.binary(max_size=200))
def test_no_bytes_can_do_more_than_be_refused(payload: bytes) -> None:
    with pytest.raises(InvalidArgumentError):
        decode_payload(payload, SOURCES)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_a_flipped_byte_is_refused_or_is_a_batch(at: int, value: int) -> None:
    damaged = GOOD[:at] + bytes([value]) + GOOD[at + 1 :]
    try:
        batches = decode_payload(damaged, SOURCES)
    except InvalidArgumentError:
        return
    for decoded in batches:
        same(decoded, check_batch(decoded, SOURCES))


@pytest.mark.parametrize(("part", "damage"), [(1, bytes(15)), (2, b"\x80\x80\x80")])
def test_a_column_cut_short_is_named(part: int, damage: bytes) -> None:
    decoded = msgspec.msgpack.decode(GOOD)
    ended = next(column for column in decoded[1][0][3] if column[0] == "ended")
    ended[part] = damage
    with pytest.raises(InvalidArgumentError, match=r"source 'rides'.*cut short"):
        decode_payload(msgspec.msgpack.encode(decoded), SOURCES)


def test_another_format_is_refused() -> None:
    payload = msgspec.msgpack.encode([2, []])
    with pytest.raises(InvalidArgumentError, match=r"another format.*expected 1, got 2"):
        decode_payload(payload, SOURCES)
