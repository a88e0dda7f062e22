"""Arrow columns as feature columns: types checked by name, times pinned to UTC microseconds."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.checks import did_you_mean
from features.types import Column, DType
from features.variable import ITEMS, canonical_column
from headrace.errors import InvalidArgumentError

# The stubs of pyarrow know less of its functions than we use.
Arrow = Any
_ARROW = {
    DType.INT64: pa.int64(),
    DType.FLOAT64: pa.float64(),
    DType.FLOAT32: pa.float64(),
    DType.BOOL: pa.bool_(),
    DType.TIMESTAMP: pa.int64(),
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


def column_from_arrow(table: pa.Table, name: str, dtype: DType, where: str) -> Column:
    """Return a table's column as a `Column` of a dtype.

    Integers may come for floats; a Timestamp as int64 microseconds or with a time zone.
    Raises InvalidArgumentError for another type, and for a time without a zone.
    """
    column = arrow_column(table, name, where)
    if dtype is DType.TIMESTAMP:
        column = _times(column, name, where)
    if dtype.is_variable:
        return _variable_column(column, name, dtype, where)
    kind = column.type
    fits = {
        DType.INT64: pa.types.is_integer(kind),
        DType.TIMESTAMP: pa.types.is_integer(kind),
        DType.FLOAT64: pa.types.is_floating(kind) or pa.types.is_integer(kind),
        DType.FLOAT32: pa.types.is_floating(kind) or pa.types.is_integer(kind),
        DType.BOOL: pa.types.is_boolean(kind),
    }[dtype] or pa.types.is_null(kind)
    if not fits:
        raise _wrong_type(name, dtype, kind, where)
    try:
        column = column.cast(_ARROW[dtype])
    except pa.ArrowInvalid as error:
        raise InvalidArgumentError(
            f"column {name!r} holds a value that does not fit",
            where=where,
            expected=dtype.value,
            got=str(kind),
        ) from error
    valid = None
    if column.null_count:
        valid = np.asarray(pc.is_valid(column))
        column = pc.fill_null(column, False if dtype is DType.BOOL else 0)
    return Column(np.asarray(column), valid)


def _wrong_type(name: str, dtype: DType, kind: object, where: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"column {name!r} has a wrong type", where=where, expected=dtype.value, got=str(kind)
    )


def _variable_column(column: Arrow, name: str, dtype: DType, where: str) -> Column:
    """Return a column of values of any length. Raises for another type, and a null in an array."""
    if isinstance(column.type, pa.BaseExtensionType):  # Arrow's own UUIDs among them
        column = column.cast(column.type.storage_type)
    kind = column.type
    valid = np.asarray(pc.is_valid(column)) if column.null_count else None
    if pa.types.is_null(kind):
        return canonical_column([None] * len(column), valid, dtype, f"column {name!r}", where)
    if dtype in ITEMS:
        return _number_lists(column, valid, name, dtype, where)
    if not _fits(kind, dtype):
        raise _wrong_type(name, dtype, kind, where)
    if dtype is DType.STRING:
        return Column(column.to_numpy(zero_copy_only=False), valid)
    return canonical_column(column.to_pylist(), valid, dtype, f"column {name!r}", where)


def _fits(kind: Arrow, dtype: DType) -> bool:
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    is_16_bytes = pa.types.is_fixed_size_binary(kind) and kind.byte_width == 16
    if dtype is DType.BYTES:
        binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        return bool(binary or pa.types.is_fixed_size_binary(kind))
    if dtype is DType.UUID:
        return bool(is_text or is_16_bytes)
    if dtype is DType.STRING_ARRAY:
        return _is_list(kind) and _fits(kind.value_type, DType.STRING)
    return bool(is_text)


def _is_list(kind: Arrow) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _number_lists(
    column: Arrow, valid: np.ndarray[Any, Any] | None, name: str, dtype: DType, where: str
) -> Column:
    """Return lists of numbers as views of one array: an embedding is not a Python list."""
    kind = column.type
    integers = dtype is DType.INT64_ARRAY
    if not _is_list(kind) or not (
        pa.types.is_integer(kind.value_type)
        or (not integers and pa.types.is_floating(kind.value_type))
    ):
        raise _wrong_type(name, dtype, kind, where)
    items: Arrow = pc.list_flatten(column)
    if items.null_count:
        raise InvalidArgumentError(
            f"column {name!r} has a null in an array", where=where, expected=dtype.value
        )
    try:
        items = items.cast(pa.from_numpy_dtype(ITEMS[dtype]), safe=integers)
    except pa.ArrowInvalid as error:
        raise _wrong_type(name, dtype, kind, where) from error
    numbers = np.asarray(items)
    lengths: Arrow = pc.list_value_length(column)
    ends = np.cumsum(np.asarray(lengths.fill_null(0))).tolist()
    values = np.empty(len(column), np.object_)
    for row, (start, end) in enumerate(pairwise([0, *ends])):
        values[row] = numbers[start:end]
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
    # Nanoseconds are cut, not refused: the system's clock ticks in microseconds.
    return column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
