"""Batches of a few fixed sizes, for what runs no other: a CUDA graph is of one shape.

A batch goes into the smallest bucket that holds it. The rows behind its own are copies of its last
one: a value that the model takes, and never a row that somebody else asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
BUCKETS_MAX = 32


def buckets_up_to(rows_max: int, wanted: Iterable[int] = ()) -> tuple[int, ...]:
    """Return the sizes, ascending, of which the last one is `rows_max` (at least 1).

    Without `wanted` they are the powers of two: a batch is then never padded to twice its rows.
    """
    sizes = {size for size in wanted if 0 < size < rows_max}
    if not sizes:
        sizes = {1 << power for power in range(rows_max.bit_length()) if 1 << power < rows_max}
    return (*sorted(sizes), rows_max)


def bucket_for(buckets: Sequence[int], rows: int) -> int | None:
    """Return the place of the smallest bucket that holds `rows`; None where none does."""
    place = bisect_left(buckets, rows)
    return place if place < len(buckets) else None


def fill(target: Array, array: Array) -> None:
    """Put `array` [rows, …], of one row or more, into `target` [bucket, …] of the same dtype."""
    rows = len(array)
    target[:rows] = array
    target[rows:] = array[rows - 1]
