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
_ARROW: dict[DType, pa.DataType] = {
    DType.INT64: pa.int64(),
    DType.FLOAT64: pa.float64(),
    DType.FLOAT32: pa.float64(),
    DType.BOOL: pa.bool_(),
    DType.TIMESTAMP: pa.int64(),
    DType.STRING: pa.string(),
    DType.BYTES: pa.binary(),
    DType.UUID: pa.string(),
    DType.INT64_ARRAY: pa.list_(pa.int64()),
    DType.FLOAT64_ARRAY: pa.list_(pa.float64()),
    DType.FLOAT32_ARRAY: pa.list_(pa.float32()),
    DType.STRING_ARRAY: pa.list_(pa.string()),
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


def typed_kind(dtype: DType) -> pa.DataType:
    """Return the type of `typed_column`."""
    return _ARROW[dtype]


def typed_column(table: pa.Table, name: str, dtype: DType, where: str) -> Arrow:
    """Return a table's column in the Arrow type of a dtype; a Timestamp as int64 microseconds, a
    Uuid as text.

    Integers may come for floats, decimals without a fraction for integers; a Timestamp as int64
    microseconds or with a time zone.
    Raises InvalidArgumentError for another type, and for a time without a zone.
    """
    column = arrow_column(table, name, where)
    if dtype is DType.TIMESTAMP:
        column = _times(column, name, where)
    if dtype.is_variable:
        return _typed_variable(column, name, dtype, where)
    kind = column.type
    is_whole = pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0)
    fits = {
        DType.INT64: is_whole,
        DType.TIMESTAMP: pa.types.is_integer(kind),
        DType.FLOAT64: pa.types.is_floating(kind) or is_whole,
        DType.FLOAT32: pa.types.is_floating(kind) or is_whole,
        DType.BOOL: pa.types.is_boolean(kind),
    }[dtype] or pa.types.is_null(kind)
    if not fits:
        raise _wrong_type(name, dtype, kind, where)
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
    if dtype.is_variable:
        return _variable_column(column, dtype)
    valid = None
    if column.null_count:
        valid = np.asarray(pc.is_valid(column))
        column = pc.fill_null(column, False if dtype is DType.BOOL else 0)
    return Column(np.asarray(column), valid)


def _wrong_type(name: str, dtype: DType, kind: object, where: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"column {name!r} has a wrong type", where=where, expected=dtype.value, got=str(kind)
    )


def arrow_of_column(column: Column, dtype: DType) -> Arrow:
    """Return a column as Arrow has it: a Float32 as float, a Timestamp in UTC, null where it is."""
    kind = {DType.FLOAT32: pa.float32(), DType.TIMESTAMP: pa.timestamp("us", "UTC")}.get(dtype)
    kind = kind or _ARROW[dtype]
    if not dtype.is_variable:
        return pa.array(column.values, kind, mask=~column.mask, from_pandas=False)
    values = zip(column.values, column.mask.tolist(), strict=True)
    return pa.array([value if there else None for value, there in values], kind)


def _typed_variable(column: Arrow, name: str, dtype: DType, where: str) -> Arrow:
    """Return a column of values of any length. Raises for another type, and a null in an array."""
    if isinstance(column.type, pa.BaseExtensionType):  # Arrow's own UUIDs among them
        column = column.cast(column.type.storage_type)
    kind, wanted = column.type, typed_kind(dtype)
    if pa.types.is_null(kind):
        return pa.chunked_array([pa.array([None] * len(column), wanted)])
    if not _fits(kind, dtype):
        raise _wrong_type(name, dtype, kind, where)
    if dtype is DType.UUID:
        valid = np.asarray(pc.is_valid(column)) if column.null_count else None
        texts = canonical_column(column.to_pylist(), valid, dtype, f"column {name!r}", where)
        return pa.chunked_array([arrow_of_column(texts, dtype)])
    items: Arrow = pc.list_flatten(column) if _is_list(kind) else None
    if items is not None and items.null_count:
        raise InvalidArgumentError(
            f"column {name!r} has a null in an array", where=where, expected=dtype.value
        )
    try:
        # A float may lose digits where a Float32 is wanted; an integer none.
        return column.cast(wanted, safe=dtype not in {DType.FLOAT64_ARRAY, DType.FLOAT32_ARRAY})
    except pa.ArrowInvalid as error:
        raise _wrong_type(name, dtype, kind, where) from error


def _variable_column(column: Arrow, dtype: DType) -> Column:
    """Return a typed column of values of any length; arrays of numbers are views of one array."""
    valid = np.asarray(pc.is_valid(column)) if column.null_count else None
    if not _is_list(column.type):
        return Column(column.to_numpy(zero_copy_only=False), valid)
    values = np.empty(len(column), np.object_)
    if dtype is DType.STRING_ARRAY:
        for row, texts in enumerate(column.to_pylist()):
            values[row] = tuple(texts or ())
        return Column(values, valid)
    numbers = np.asarray(pc.list_flatten(column))
    lengths: Arrow = pc.list_value_length(column)
    ends = np.cumsum(np.asarray(lengths.fill_null(0))).tolist()
    for row, (start, end) in enumerate(pairwise([0, *ends])):
        values[row] = numbers[start:end]
    return Column(values, valid)


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
    if dtype in ITEMS:
        is_whole = _is_list(kind) and pa.types.is_integer(kind.value_type)
        is_float = _is_list(kind) and pa.types.is_floating(kind.value_type)
        return bool(is_whole or (is_float and dtype is not DType.INT64_ARRAY))
    return bool(is_text)


def _is_list(kind: Arrow) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


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
