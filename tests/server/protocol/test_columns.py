"""Columns of messages and of JSON as tables, and back."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from features import (
    Array,
    Bool,
    Bytes,
    Column,
    DType,
    Float32,
    Float64,
    Int64,
    String,
    Timestamp,
    Uuid,
)
from features.values import json_of_table, table_of_json, time_us
from headrace.errors import InvalidArgumentError
from server.pb import headrace_pb2 as pb
from server.protocol.columns import messages_of_table, table_of_messages

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
KINDS: dict[DType, st.SearchStrategy[Any]] = {
    Int64: st.integers(-(1 << 63), (1 << 63) - 1),
    Float64: st.floats(),
    Bool: st.booleans(),
    String: TEXTS,
    Bytes: st.binary(max_size=5),
    Uuid: st.uuids().map(str),
    Array(Int64): stn.arrays(np.int64, st.integers(0, 3)),
    Array(Float64): stn.arrays(np.float64, st.integers(0, 3)),
    Array(Float32): stn.arrays(np.float32, st.integers(0, 3)),
    Array(String): st.lists(TEXTS, max_size=3).map(tuple),
}


@st.composite
def tables(draw: st.DrawFn) -> tuple[dict[str, Column], dict[str, DType]]:
    rows = draw(st.integers(0, 5))
    dtypes = draw(st.dictionaries(st.text(min_size=1, max_size=4), st.sampled_from(list(KINDS))))
    table = {}
    for name, dtype in dtypes.items():
        values = draw(st.lists(KINDS[dtype], min_size=rows, max_size=rows))
        array = np.empty(rows, dtype.numpy)
        for row, value in enumerate(values):
            array[row] = value
        valid = np.array(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), np.bool_)
        table[name] = Column(array, None if valid.all() else valid)
    return table, dtypes


def comparable(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [comparable(each) for each in value.tolist()]
    return "nan" if isinstance(value, float) and math.isnan(value) else value


def shown(table: dict[str, Column]) -> dict[str, list[Any]]:
    """Values as they can be compared: None where null, NaN as text."""
    return {
        name: [
            None if not ok else comparable(value)
            for value, ok in zip(column.values.tolist(), column.mask.tolist(), strict=True)
        ]
        for name, column in table.items()
    }


@given(tables())
def test_messages_carry_a_table_unchanged(drawn: tuple[dict[str, Column], Any]) -> None:
    table, _ = drawn
    sent = pb.PredictRequest(inputs=messages_of_table(table)).SerializeToString()
    again = table_of_messages(pb.PredictRequest.FromString(sent).inputs, "here")
    assert shown(again) == shown(table)
    assert {n: c.values.dtype for n, c in again.items()} == {
        n: c.values.dtype for n, c in table.items()
    }


@given(tables())
def test_json_carries_a_table_unchanged(
    drawn: tuple[dict[str, Column], dict[str, DType]],
) -> None:
    table, dtypes = drawn
    text = json.dumps(json_of_table(table))
    if "NaN" in text or "Infinity" in text:
        return  # JSON has neither
    again = table_of_json(json.loads(text), dtypes, "here")
    assert shown(again) == shown(table)


def message(name: str = "a", nulls: tuple[int, ...] = (), **values: Any) -> Any:
    return pb.Column(name=name, nulls=nulls, **{kind: {"v": v} for kind, v in values.items()})


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ([message()], "'a' has no values"),
        ([message(int64s=[1]), message(int64s=[2])], "'a' comes twice"),
        ([message(int64s=[1]), message("b", int64s=[2, 3])], "'b' has another length"),
        ([message(int64s=[1], nulls=(1,))], "row 1 is null"),
        ([message(f"c{n}", int64s=[1]) for n in range(1100)], "too many columns"),
    ],
)
def test_wrong_messages_are_named(columns: list[Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text) as caught:
        table_of_messages(columns, "inputs of model 'm'")
    assert "inputs of model 'm'" in caught.value.message


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([1, 2.5], None, [1.0, 2.5]),
        ([1, None], None, [1, None]),
        ([1, None], Float64, [1.0, None]),
        ([None], Int64, [None]),
        ([None], None, [None]),
        ([True], None, [True]),
        ([float("inf"), -2], Float64, [float("inf"), -2.0]),
        (["2013-10-01T12:00:00Z", 5], Timestamp, [1380628800000000, 5]),
        (["2013-10-01T14:00:00+02:00"], Timestamp, [1380628800000000]),
        (["YQA=", None], Bytes, [b"a\0", None]),
        (["0190163D8694739BAEA5966C26F8AD91"], Uuid, ["0190163d-8694-739b-aea5-966c26f8ad91"]),
        ([[1, 2.5], [], None], Array(Float32), [[1.0, 2.5], [], None]),
        ([["a", ""]], Array(String), [("a", "")]),
    ],
)
def test_json_values_follow_the_wanted_type(
    values: list[Any], dtype: DType | None, expected: list[Any]
) -> None:
    table = table_of_json({"a": values}, {} if dtype is None else {"a": dtype}, "here")
    assert shown(table) == {"a": expected}


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, "a"], None), ([{}], None), ([1.5], Int64), ([True], Int64), ([1], Bool), ([1], String),
        (["x"], Float64), ([True], Float64), ([10**400], Float64), ([1 << 63], Int64),
        (["a"], Bytes), (["YQ"], Bytes), (["no id"], Uuid), ([[1.5]], Array(Int64)),
        ([[1, None]], Array(Int64)), ([1], Array(String)), (["noon"], Timestamp),
        (["2013-10-01T12:00:00"], Timestamp),
        ([1 << 70], Timestamp),
    ],
)  # fmt: skip
def test_json_values_of_another_type_are_named(values: list[Any], dtype: DType | None) -> None:
    with pytest.raises(InvalidArgumentError, match=r"column 'a'.* row"):
        table_of_json({"a": values}, {} if dtype is None else {"a": dtype}, "here")


def test_json_tables_are_checked() -> None:
    with pytest.raises(InvalidArgumentError, match="'a' is not a list"):
        table_of_json({"a": 1}, {}, "here")
    with pytest.raises(InvalidArgumentError, match="'b' has another length"):
        table_of_json({"a": [1], "b": [1, 2]}, {}, "here")


@pytest.mark.parametrize("value", [None, True, 1.5, "soon", 1 << 70, []])
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(InvalidArgumentError, match="not a time"):
        time_us(value, "here")
