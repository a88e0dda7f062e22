"""The columns of events as the engine takes them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from features.definitions import StreamFeatureView
from features.types import DType, Table, Words, to_words


def event_words(
    view: StreamFeatureView, table: Table, rows: int
) -> tuple[Words, NDArray[np.bool_]]:
    """Return words int64[n, C] and valid bool[n, C] of the columns that a view aggregates.

    table: a column for each of `view.columns` (there is none when only events are counted), with
    `rows` rows. What is of any length has no words: it can only be counted.
    """
    return field_words({name: view.source.dtypes[name] for name in view.columns}, table, rows)


def field_words(
    dtypes: Mapping[str, DType], table: Table, rows: int
) -> tuple[Words, NDArray[np.bool_]]:
    """Return words int64[rows, F] and valid bool[rows, F] of columns, in the order of `dtypes`."""
    words = np.zeros((rows, len(dtypes)), dtype=np.int64)
    valid = np.ones(words.shape, dtype=np.bool_)
    for i, (name, dtype) in enumerate(dtypes.items()):
        column = table[name]
        if not dtype.is_variable:
            words[:, i] = to_words(column, dtype)
        if column.valid is not None:
            valid[:, i] = column.valid
    return words, valid
