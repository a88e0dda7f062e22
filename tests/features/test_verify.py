"""Consistency: what differs is counted by feature, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest

from features import FeatureBatch
from features.verify import Consistency, FeatureDifference, compare
from headrace.errors import InvalidArgumentError
from tests.features.test_batch import SERVICE, bits


def batch(rows: list[list[int]], status: list[list[int]] | None = None) -> FeatureBatch:
    words = np.array(rows, dtype=np.int64).reshape(len(rows), 4)
    statuses = np.zeros(words.shape) if status is None else np.array(status)
    return FeatureBatch(SERVICE, words, statuses.astype(np.uint8))


ROW = [5, bits(0.5), bits(0.25), 1]


def test_equal_rows_are_equal() -> None:
    one = batch([ROW, ROW])
    assert compare(one.pack(3), one, 3) == Consistency(2, 2)
    assert compare(one.pack(3), one, 3).equal_share == 1.0
    assert compare([], batch([]), 3).equal_share == 1.0


def test_differences_are_counted_by_feature() -> None:
    history = batch([ROW, ROW, ROW, ROW], [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    served = batch(
        [[7, bits(0.5), bits(0.25), 1], [5, bits(0.0), bits(0.25), 1], ROW, ROW],
        [[0, 0, 0, 0], [0, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    )
    result = compare(served.pack(3), history, 3)
    assert result == Consistency(
        rows=4,
        equal_rows=1,
        differences=[
            FeatureDifference("v:n", mismatch=1, missing=0, extra=0, max_difference=2.0),
            FeatureDifference("v:x", mismatch=0, missing=1, extra=1, max_difference=0.0),
        ],
        first_unequal=0,
    )
    assert result.equal_share == 0.25


def test_bits_count_not_values() -> None:
    minus_zero = [5, bits(-0.0), bits(0.25), 1]
    plus_zero = [5, bits(0.0), bits(0.25), 1]
    result = compare(batch([minus_zero]).pack(), batch([plus_zero]), 0)
    assert result.equal_rows == 0
    assert result.differences == [FeatureDifference("v:x", 1, 0, 0, 0.0)]


def test_another_number_of_rows_or_another_schema_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"different numbers of rows.*expected 1, got 2"):
        compare(batch([ROW]).pack(), batch([ROW, ROW]), 0)
    with pytest.raises(InvalidArgumentError, match="packed row 0"):
        compare(batch([ROW]).pack(4), batch([ROW]), 3)
