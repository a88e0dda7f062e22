"""Python's values as tables, tensors and times: a list and an array of the same say the same."""

from __future__ import annotations

from array import array
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features import DType
from features.values import table_of_json, table_of_values, time_us
from headrace.errors import InvalidArgumentError
from server.embedded.inputs import tensor_of_array

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
VALUES = st.one_of(
    st.lists(INT64, min_size=1),
    st.lists(st.floats(allow_nan=False), min_size=1),
    st.lists(st.booleans(), min_size=1),
    st.lists(st.text(), min_size=1),
)


@given(values=VALUES, wanted=st.sampled_from([None, DType.FLOAT64, DType.FLOAT32]))
def test_lists_tuples_and_arrays_are_the_columns_that_json_would_make(
    values: list[Any], wanted: DType | None
) -> None:
    if isinstance(values[0], str | bool):
        wanted = None
    dtypes = {} if wanted is None else {"a": wanted}
    expected = table_of_json({"a": values}, dtypes, "here")["a"]
    as_array = np.array(values, object if isinstance(values[0], str) else None)
    for given_values in (values, tuple(values), as_array, list(as_array)):
        found = table_of_values({"a": given_values}, dtypes, "here")["a"]
        assert found.values.dtype == expected.values.dtype
        assert found.values.tolist() == expected.values.tolist()
        assert found.mask.all()


def test_none_is_null_and_other_containers_are_read() -> None:
    table = table_of_values(
        {"a": [None, 2], "b": array("d", [0.5, 1.5]), "c": np.array([1, 2], np.uint64)}, {}, "here"
    )
    assert table["a"].mask.tolist() == [False, True]
    assert table["b"].values.tolist() == [0.5, 1.5]
    assert table["c"].values.dtype == np.int64
    assert len(table_of_values({"a": np.array([], np.uint64)}, {}, "here")["a"]) == 0
    assert table_of_values({}, {}, "here") == {}


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"a": 1}, "column 'a' is not a list"),
        ({"a": "text"}, "column 'a' is not a list"),
        ({"a": np.float64(1)}, "column 'a' is not a list"),
        ({"a": np.array([1 << 63], np.uint64)}, "column 'a' holds a number over 63 bits"),
        ({"a": [1], "b": [1, 2]}, "column 'b' has another length"),
        ({"a": [object()]}, "column 'a' does not hold string in row 0"),
    ],
)
def test_what_is_no_column_is_named(columns: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        table_of_values(columns, {}, "here")


def test_an_array_keeps_its_type_and_a_list_gets_the_inputs() -> None:
    doubles = np.zeros((2, 1))
    assert tensor_of_array("x", doubles, "FP32").datatype == "FP64"
    assert tensor_of_array("x", doubles, "").datatype == "FP64"
    listed = tensor_of_array("x", [[1, 2]], "FP16")
    assert (listed.datatype, listed.array.dtype, listed.array.shape) == ("FP16", np.float16, (1, 2))
    assert tensor_of_array("x", [True], "").datatype == "BOOL"
    for value in ([["a"]], [[1], [1, 2]], [1e999, None]):
        with pytest.raises(InvalidArgumentError, match="'x' is no array"):
            tensor_of_array("x", value, "INT64")
    with pytest.raises(InvalidArgumentError, match="of a type that no tensor has"):
        tensor_of_array("x", np.array(["text"]), "FP32")


def test_a_time_is_the_same_in_each_form() -> None:
    moment = datetime(2024, 5, 1, 14, 0, tzinfo=timezone(timedelta(hours=2)))
    expected = 1_714_564_800_000_000
    assert time_us(expected, "here") == expected
    assert time_us("2024-05-01T12:00:00Z", "here") == expected
    assert time_us(moment, "here") == time_us(moment.astimezone(UTC), "here") == expected
    with pytest.raises(InvalidArgumentError, match=r"not a time.*with a time zone"):
        time_us(datetime(2024, 5, 1), "here")  # noqa: DTZ001
    with pytest.raises(InvalidArgumentError, match="not a time"):
        time_us("noon", "here")
