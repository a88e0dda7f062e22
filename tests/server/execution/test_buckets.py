"""Which bucket a batch goes into, and what is behind its rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.execution.buckets import bucket_for, buckets_up_to, fill


@pytest.mark.parametrize(
    ("rows_max", "wanted", "sizes"),
    [
        (1, (), (1,)),
        (2, (), (1, 2)),
        (8, (), (1, 2, 4, 8)),
        (12, (), (1, 2, 4, 8, 12)),
        (12, (3, 6), (3, 6, 12)),
        (12, (6, 3, 3, 12), (3, 6, 12)),
        (12, (0, -1, 99), (1, 2, 4, 8, 12)),
    ],
)
def test_the_sizes(rows_max: int, wanted: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    assert buckets_up_to(rows_max, wanted) == sizes


@given(st.integers(1, 5000), st.integers(1, 6000))
def test_without_wanted_ones_less_than_half_of_a_batch_is_padding(rows_max: int, rows: int) -> None:
    buckets = buckets_up_to(rows_max)
    assert list(buckets) == sorted(set(buckets))
    place = bucket_for(buckets, rows)
    if rows > rows_max:
        assert place is None
        return
    assert place is not None
    assert rows <= buckets[place] < 2 * rows


@given(st.integers(1, 200), st.lists(st.integers(1, 200)), st.integers(1, 200))
def test_it_is_the_smallest_that_holds_the_rows(
    rows_max: int, wanted: list[int], rows: int
) -> None:
    buckets = buckets_up_to(rows_max, wanted)
    place = bucket_for(buckets, rows)
    holding = [size for size in buckets if size >= rows]
    assert (None if place is None else buckets[place]) == min(holding, default=None)


@given(st.data())
def test_behind_a_batch_is_nothing_but_its_own_last_row(data: st.DataObject) -> None:
    rows_max, width = data.draw(st.integers(1, 20)), data.draw(st.integers(0, 4))
    target = np.zeros((rows_max, width), np.int64)
    for before in range(3):  # what was there before is not seen again
        rows = data.draw(st.integers(1, rows_max))
        array = np.arange(rows * width, dtype=np.int64).reshape(rows, width) + 1000 * before
        fill(target, array)
        assert np.array_equal(target[:rows], array)
        assert all(np.array_equal(row, array[-1]) for row in target[rows:])
