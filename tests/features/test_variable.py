"""Values of any length: one form, cells that come back, and what is refused."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

from features import Array, Bytes, DType, Float32, Float64, Int64, String, Uuid
from features.arrow import column_from_arrow
from features.variable import (
    canonical,
    canonical_column,
    decode_cell,
    encode_cell,
    nothing,
)
from headrace.errors import InvalidArgumentError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
VALUES: dict[DType, st.SearchStrategy[Any]] = {
    String: TEXTS,
    Bytes: st.binary(max_size=9),
    Uuid: st.uuids().map(str),
    Array(Int64): stn.arrays(np.int64, st.integers(0, 5)),
    Array(Float64): stn.arrays(np.float64, st.integers(0, 5)),
    Array(Float32): stn.arrays(np.float32, st.integers(0, 5)),
    Array(String): st.lists(TEXTS, max_size=4).map(tuple),
}


def bits(value: Any) -> Any:
    return (value.dtype.str, value.tobytes()) if isinstance(value, np.ndarray) else value


@given(st.data(), st.sampled_from(list(VALUES)))
def test_a_value_in_its_one_form_stays_and_its_cell_comes_back(
    data: st.DataObject, dtype: DType
) -> None:
    value = data.draw(VALUES[dtype])
    assert bits(canonical(value, dtype)) == bits(value)
    assert bits(decode_cell(encode_cell(value, dtype), dtype)) == bits(value)


@given(st.sampled_from(list(VALUES)), st.binary(max_size=40))
def test_a_cell_of_any_bytes_is_a_value_or_refused(dtype: DType, cell: bytes) -> None:
    try:
        value = decode_cell(cell, dtype)
    except ValueError:
        return
    assert encode_cell(value, dtype) == cell


@pytest.mark.parametrize("dtype", list(VALUES))
def test_nothing_is_the_empty_value(dtype: DType) -> None:
    assert bits(canonical(nothing(dtype), dtype)) == bits(nothing(dtype))


ID = uuid.UUID("0190163d-8694-739b-aea5-966c26f8ad91")


@pytest.mark.parametrize(
    ("value", "dtype", "wanted"),
    [
        (ID, Uuid, str(ID)),
        (ID.bytes, Uuid, str(ID)),
        (str(ID).upper(), Uuid, str(ID)),
        (f"{{{ID}}}", Uuid, str(ID)),
        (ID.hex, Uuid, str(ID)),
        (bytearray(b"ab"), Bytes, b"ab"),
        ([1, 2**53 + 1], Array(Int64), np.array([1, 2**53 + 1])),
        ([], Array(Int64), np.array([], np.int64)),
        ([1, 2.5], Array(Float64), np.array([1.0, 2.5])),
        ([0.1], Array(Float32), np.array([0.1], np.float32)),
        (["a", ""], Array(String), ("a", "")),
    ],
)
def test_what_comes_otherwise_is_brought_to_one_form(
    value: object, dtype: DType, wanted: Any
) -> None:
    assert bits(canonical(value, dtype)) == bits(wanted)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (b"a", String),
        ("\ud800", String),
        ("a", Bytes),
        ("0190163d", Uuid),
        (b"short", Uuid),
        (7, Uuid),
        ("12", Array(Int64)),
        ([1.5], Array(Int64)),
        ([True], Array(Int64)),
        ([2**63], Array(Int64)),
        ([2**70], Array(Int64)),
        ([[1], [2]], Array(Int64)),
        ([1, None], Array(Float64)),
        (["a"], Array(Float64)),
        (["a", None], Array(String)),
        ("ab", Array(String)),
        (None, Bytes),
    ],
)
def test_what_is_none_is_named_with_its_row(value: object, dtype: DType) -> None:
    with pytest.raises(InvalidArgumentError, match=r"here: it does not hold .* in row 1"):
        canonical_column([nothing(dtype), value], None, dtype, "it", "here")
    valid = np.array([True, False])
    column = canonical_column([nothing(dtype), value], valid, dtype, "it", "here")
    assert bits(column.values[1]) == bits(nothing(dtype))


def from_arrow(array: pa.Array, dtype: DType) -> list[Any]:
    column = column_from_arrow(pa.table({"c": array}), "c", dtype, "here")
    return [bits(v) if ok else None for v, ok in zip(column.values, column.mask, strict=True)]


@pytest.mark.parametrize(
    ("array", "dtype", "wanted"),
    [
        (pa.array([b"a", None]), Bytes, [b"a", None]),
        (pa.array([b"abc"], pa.binary(3)), Bytes, [b"abc"]),
        (pa.array(["ü", None]), String, ["ü", None]),
        (pa.array([str(ID).upper(), None]), Uuid, [str(ID), None]),
        (pa.array([ID.bytes], pa.binary(16)), Uuid, [str(ID)]),
        (pa.array([ID.bytes, None], pa.uuid()), Uuid, [str(ID), None]),
        (pa.array([["a", ""], None, []]), Array(String), [("a", ""), None, ()]),
        (pa.nulls(2), Array(Float32), [None, None]),
    ],
)
def test_columns_of_arrow_are_read(array: pa.Array, dtype: DType, wanted: list[Any]) -> None:
    assert from_arrow(array, dtype) == wanted


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float64())])
def test_embeddings_are_read_from_arrow_without_what_lies_under_nulls(kind: pa.DataType) -> None:
    array = pa.chunked_array([pa.array([[1.5, 2.0], None, []], kind), pa.array([[0.1]], kind)])
    wanted = [np.array(v, np.float32) for v in ([1.5, 2.0], [], [0.1])]
    found = from_arrow(array, Array(Float32))
    assert found == [bits(wanted[0]), None, bits(wanted[1]), bits(wanted[2])]
    sliced = pa.array([[1, 2], [3], [4]], pa.list_(pa.int32()))[1:]
    assert from_arrow(sliced, Array(Int64)) == [bits(np.array([3])), bits(np.array([4]))]
    fixed = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2))
    assert from_arrow(fixed, Array(Float64)) == [
        bits(np.array([1.0, 2.0])),
        None,
        bits(np.array([3.0, 4.0])),
    ]


@pytest.mark.parametrize(
    ("array", "dtype", "says"),
    [
        (pa.array([[1.5]]), Array(Int64), "wrong type"),
        (pa.array([["a"]]), Array(Float64), "wrong type"),
        (pa.array([[2**63]], pa.list_(pa.uint64())), Array(Int64), "wrong type"),
        (pa.array([[1.0, None]]), Array(Float64), "null in an array"),
        (pa.array([["a", None]]), Array(String), "null in an array"),
        (pa.array([1]), Bytes, "wrong type"),
        (pa.array(["no id"]), Uuid, "does not hold uuid in row 0"),
        (pa.array([b"a"]), String, "wrong type"),
    ],
)
def test_columns_of_arrow_of_another_type_are_named(
    array: pa.Array, dtype: DType, says: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=f"here: column 'c' .*{says}|{says}"):
        from_arrow(array, dtype)
