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
    """Return words int64[n, C] and taken bool[n, C + F] of the columns that a view aggregates.

    table: a column for each of `view.fields` (there is none when only events are counted), with
    `rows` rows. What is of any length has no words: it can only be counted. taken: whether a column
    has a value, then, for each of `view.filtered`, whether it has one (None: always) and the
    filter takes it.
    """
    dtypes = view.source.dtypes
    words, valid = field_words({name: dtypes[name] for name in view.columns}, table, rows)
    if not view.filtered:
        return words, valid
    taken = np.empty((rows, len(view.columns) + len(view.filtered)), dtype=np.bool_)
    taken[:, : len(view.columns)] = valid
    judged = {where: where.judge(table, dtypes)[0] for _, where in view.filtered}
    for bit, (column, where) in enumerate(view.filtered, len(view.columns)):
        taken[:, bit] = judged[where]
        if column is not None:
            taken[:, bit] &= valid[:, view.columns.index(column)]
    return words, taken


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
