"""Raw tensors: tritonclient's own serialisation is the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.utils import (
    deserialize_bytes_tensor,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

from headrace.errors import InvalidArgumentError
from server.protocol.tensors import DATATYPES, from_raw, from_values, strings_for_session, to_raw

NUMERIC = sorted(set(DATATYPES) - {"BYTES"})


@pytest.mark.parametrize("datatype", NUMERIC)
@given(data=st.data())
def test_numbers_survive_the_round_trip_to_the_bit(datatype: str, data: st.DataObject) -> None:
    dtype = DATATYPES[datatype].dtype
    # NumPy has no bfloat16: ours is its two bytes.
    assert dtype == (np.uint16 if datatype == "BF16" else triton_to_np_dtype(datatype))
    array = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_dims=3)))
    raw = to_raw(array, datatype)
    again = from_raw(raw, datatype, array.shape, "input 'x'")
    assert again.shape == array.shape
    assert again.tobytes() == array.tobytes() == raw


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_bytes_are_those_of_the_client(values: list[bytes]) -> None:
    array = np.array(values, object)
    theirs = serialize_byte_tensor(array)
    raw = theirs.item() if theirs.size else b""
    assert to_raw(array, "BYTES") == raw
    again = from_raw(raw, "BYTES", (len(values),), "input 'x'")
    assert again.tolist() == values == deserialize_bytes_tensor(raw).tolist()


@given(st.binary(max_size=64), st.integers(0, 12))
def test_any_bytes_are_a_tensor_or_a_clear_error(raw: bytes, count: int) -> None:
    for datatype in DATATYPES:
        try:
            array = from_raw(raw, datatype, (count,), "input 'x'")
        except InvalidArgumentError:
            continue
        assert to_raw(array, datatype) == raw


@pytest.mark.parametrize(
    ("raw", "datatype", "shape", "text"),
    [
        (b"1234", "FP32", (2,), "Expected 8, got 4"),
        (b"1234", "FP31", (1,), "unknown datatype 'FP31'"),
        (b"1234", "FP32", (-1,), "negative"),
        (b"\x02", "BOOL", (1,), "neither 0 nor 1"),
        (b"", "BYTES", (1 << 47,), "input byte size mismatch"),
        (b"\xff\xff\xff\xffab", "BYTES", (1,), "ends within element 0"),
        (b"\x01\x00\x00\x00ab", "BYTES", (1,), "1 bytes after"),
    ],
)
def test_wrong_raw_content_is_named(
    raw: bytes, datatype: str, shape: tuple[int, ...], text: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        from_raw(raw, datatype, shape, "input 'x'")


@pytest.mark.parametrize(
    ("values", "datatype", "shape", "expected"),
    [
        ([1, 2, 3, 4], "FP32", (2, 2), [[1, 2], [3, 4]]),
        ([[1, 2], [3, 4]], "INT64", (2, 2), [[1, 2], [3, 4]]),
        ([True, False], "BOOL", (2,), [True, False]),
        (["é", b"\x00"], "BYTES", (2, 1), [["é".encode()], [b"\x00"]]),
        ([1e300], "FP32", (1,), [float("inf")]),
        ([-128, 127], "INT8", (2,), [-128, 127]),
        ([], "FP64", (0, 3), []),
    ],
)
def test_listed_values(
    values: list[Any], datatype: str, shape: tuple[int, ...], expected: list[Any]
) -> None:
    assert from_values(values, datatype, shape, "input 'x'").tolist() == expected


@pytest.mark.parametrize(
    ("values", "datatype", "text"),
    [
        ([1, 2], "FP32", "has 2 values for shape"),
        (["a"], "FP32", "not FP32"),
        ([None], "FP32", "null"),
        ([True], "INT32", "not INT32"),
        ([1.5], "INT32", "not INT32"),
        ([1], "BOOL", "not a bool"),
        ([300], "UINT8", "does not fit UINT8"),
        ([-1], "UINT64", "does not fit UINT64"),
        ([10**400], "FP64", "does not fit FP64"),
        ([1], "BYTES", "not text"),
    ],
)
def test_wrong_values_are_named(values: list[Any], datatype: str, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        from_values(values, datatype, (1,), "input 'x'")


def test_deep_nesting_is_refused() -> None:
    values: Any = 1
    for _ in range(101):
        values = [values]
    with pytest.raises(
        InvalidArgumentError, match="JSON nesting depth exceeds maximum allowed limit"
    ):
        from_values(values, "FP32", (1,), "input 'x'")


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="element 1 of input 'x' is not UTF-8"):
        strings_for_session(np.array([b"a", b"\xff"], object), "input 'x'")


@pytest.mark.parametrize("shape", [(0, 1 << 40, 1 << 40), (0,) * 33, (1,) * 65, (1 << 49, 0)])
@pytest.mark.parametrize("datatype", ["BOOL", "FP32", "BYTES"])
def test_a_shape_that_no_array_has(shape: tuple[int, ...], datatype: str) -> None:
    """Found by the comparison of decoders: it was an internal error."""
    for make in (
        lambda: from_raw(b"", datatype, shape, "x"),
        lambda: from_values([], datatype, shape, "x"),
    ):
        with pytest.raises(InvalidArgumentError, match="the shape of x is too large"):
            make()
