"""The largest classes as text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headrace.errors import InvalidArgumentError
from server.protocol.classification import top_classes


def test_values_are_written_as_triton_does() -> None:
    array = np.array([[0.25, 3.0, -1.5], [9, 8, 7]], np.float32)
    top = top_classes(array, "FP32", 2, ["cat", "dog"], has_batch=True)
    assert top.tolist() == [
        ["3.000000:1:dog", "0.250000:0:cat"],
        ["9.000000:0:cat", "8.000000:1:dog"],
    ]
    whole = top_classes(array, "FP32", 9, [], has_batch=False)
    assert whole.tolist()[:3] == ["9.000000:3", "8.000000:4", "7.000000:5"]
    assert whole.shape == (6,)
    numbers = np.array([[200, 7, 200]], np.uint8)
    assert top_classes(numbers, "UINT8", 3, [], has_batch=True).tolist() == [
        ["200:0", "200:2", "7:1"]
    ]


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int8, np.uint64, np.int64]),
        hnp.array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=5),
    ),
    st.integers(1, 6),
)
def test_it_is_the_sorted_head(array: Any, count: int) -> None:
    top = top_classes(array, "any", count, [], has_batch=True)
    width = int(np.prod(array.shape[1:]))
    assert top.shape == (len(array), min(count, width) if array.size else 0)
    for row, texts in zip(array.reshape(len(array), -1) if array.size else (), top, strict=False):
        keys = [(-np.inf if np.isnan(value) else value) for value in row.tolist()]
        expected = sorted(range(len(keys)), key=lambda at: -keys[at])[:count]
        assert [int(text.split(":")[1]) for text in texts] == expected


@pytest.mark.parametrize(
    ("array", "datatype"),
    [(np.array(["a"], object), "BYTES"), (np.array([True]), "BOOL"),
     (np.zeros(1, np.float16), "FP16"), (np.zeros(1, np.uint16), "BF16")],
)  # fmt: skip
def test_what_has_no_order_is_refused(array: Any, datatype: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"unsupported type '{datatype}'"):
        top_classes(array, datatype, 1, [], has_batch=False)


def test_a_row_of_millions_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="too large"):
        top_classes(np.zeros(1_000_001, np.int8), "INT8", 1, [], has_batch=False)
