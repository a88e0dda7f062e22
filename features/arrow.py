"""Arrow columns as feature columns: types checked by name, times pinned to UTC microseconds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.checks import did_you_mean
from features.types import Column, DType
from headrace.errors import InvalidArgumentError

# The stubs of pyarrow know less of its functions than we use.
Arrow = Any
_ARROW = {
    DType.INT64: pa.int64(),
    DType.FLOAT64: pa.float64(),
    DType.FLOAT32: pa.float64(),
    DType.BOOL: pa.bool_(),
    DType.TIMESTAMP: pa.int64(),
    DType.STRING: pa.string(),
}


def arrow_column(table: pa.Table, name: str, where: str) -> Arrow:
    """Return a column, its dictionary decoded. Raises InvalidArgumentError with a did-you-mean."""
    if name not in table.column_names:
        raise InvalidArgumentError(
            f"column {name!r} is missing", where=where, mend=did_you_mean(name, table.column_names)
        )
    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column


def typed_column(table: pa.Table, name: str, dtype: DType, where: str) -> Arrow:
    """Return a table's column in the Arrow type of a dtype; a Timestamp as int64 microseconds.

    Integers may come for floats, decimals without a fraction for integers; a Timestamp as int64
    microseconds or with a time zone.
    Raises InvalidArgumentError for another type, and for a time without a zone.
    """
    column = arrow_column(table, name, where)
    if dtype is DType.TIMESTAMP:
        column = _times(column, name, where)
    kind = column.type
    is_whole = pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0)
    fits = {
        DType.INT64: is_whole,
        DType.TIMESTAMP: pa.types.is_integer(kind),
        DType.FLOAT64: pa.types.is_floating(kind) or is_whole,
        DType.FLOAT32: pa.types.is_floating(kind) or is_whole,
        DType.BOOL: pa.types.is_boolean(kind),
        DType.STRING: pa.types.is_string(kind) or pa.types.is_large_string(kind),
    }[dtype] or pa.types.is_null(kind)
    if not fits:
        raise InvalidArgumentError(
            f"column {name!r} has a wrong type", where=where, expected=dtype.value, got=str(kind)
        )
    try:
        return column.cast(_ARROW[dtype])
    except pa.ArrowInvalid as error:
        raise InvalidArgumentError(
            f"column {name!r} holds a value that does not fit",
            where=where,
            expected=dtype.value,
            got=str(kind),
        ) from error


def column_from_arrow(table: pa.Table, name: str, dtype: DType, where: str) -> Column:
    """Return a table's column as a `Column` of a dtype. Raises as `typed_column` does."""
    column = typed_column(table, name, dtype, where)
    valid = None
    if column.null_count:
        valid = np.asarray(pc.is_valid(column))
        if dtype is not DType.STRING:
            column = pc.fill_null(column, False if dtype is DType.BOOL else 0)
    values = column.to_numpy(zero_copy_only=False) if dtype is DType.STRING else np.asarray(column)
    return Column(values, valid)


def times_from_arrow(
    table: pa.Table, name: str, where: str
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return a column of times as int64[n] UTC microseconds. Raises for a null one too."""
    column = column_from_arrow(table, name, DType.TIMESTAMP, where)
    if column.valid is not None:
        raise InvalidArgumentError(
            f"column {name!r} holds a null", where=where, expected="a time in every row"
        )
    return column.values.astype(np.int64, copy=False)


def _times(column: Arrow, name: str, where: str) -> Arrow:
    if not pa.types.is_timestamp(column.type):
        return column
    if column.type.tz is None:
        raise InvalidArgumentError(
            f"column {name!r} has times without a time zone",
            where=where,
            expected="int64 UTC microseconds, or timestamps with a zone",
            got=str(column.type),
        )
    return microseconds(column)


def microseconds(column: Arrow) -> Arrow:
    """Return timestamps of any unit as int64 microseconds since 1970.

    What is finer is cut, not refused: the system's clock ticks in microseconds. It is cut to the
    earlier microsecond before 1970 too, where Arrow's own cast would go to the later one.
    """
    if column.type.unit != "ns":
        return column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64())
    ticks = column.cast(pa.int64())
    cut = np.asarray(pc.fill_null(ticks, 0)) // 1000
    return pa.chunked_array([pa.array(cut, mask=np.asarray(pc.is_null(ticks)))])
