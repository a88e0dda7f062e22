"""Tables of plain Python values, as JSON and callers have them: columns of one type each, and back.

What is declared decides the type of a column; of any other its values do.
"""

from __future__ import annotations

import base64
import contextlib
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.types import Column, DType, Table, row_count
from features.variable import canonical_column
from headrace.errors import InvalidArgumentError
from headrace.times import to_us

When = int | str | datetime
_PLAIN = {"i": np.int64, "u": np.int64, "f": np.float64, "b": np.bool_}
_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1
_FLOAT_MAX = sys.float_info.max  # a larger whole number has no float


def table_of_values(columns: Mapping[str, Any], dtypes: Mapping[str, DType], where: str) -> Table:
    """Return the table of columns: lists (None is null), NumPy arrays, or what has `tolist()`.

    Raises InvalidArgumentError naming the column, and the row of a value that does not fit.
    """
    table: Table = {}
    for name, values in columns.items():
        kind = values.dtype.kind if isinstance(values, np.ndarray) else ""
        if kind in _PLAIN and values.ndim == 1:
            if kind == "u" and len(values) and values.max() > np.iinfo(np.int64).max:
                raise InvalidArgumentError(
                    f"column {name!r} holds a number over 63 bits", where=where
                )
            table[name] = _of_dtype(values.astype(_PLAIN[kind]), dtypes.get(name))
            continue
        listed = values.tolist() if hasattr(values, "tolist") else values
        if isinstance(listed, list | tuple):
            listed = [each.item() if isinstance(each, np.generic) else each for each in listed]
        table |= table_of_json({name: listed}, dtypes, where)
    row_count(table, where)
    return table


def _of_dtype(values: NDArray[Any], dtype: DType | None) -> Column:
    """Return a column of plain numbers; whole ones are floats where those are wanted."""
    if dtype is not None and dtype.is_float and values.dtype.kind == "i":
        values = values.astype(np.float64)
    return Column(values)


def table_of_json(columns: Mapping[str, Any], dtypes: Mapping[str, DType], where: str) -> Table:
    """Return the table of JSON columns `{"name": [values…]}`; null is null.

    A column of `dtypes` is read as its type says (a whole number is a float where one is wanted, a
    Timestamp may be ISO text, Bytes are base64); of any other the values say it. Raises
    InvalidArgumentError naming the column and the row.
    """
    table: Table = {}
    rows = -1
    for name, values in columns.items():
        if not isinstance(values, list):
            raise InvalidArgumentError(
                f"column {name!r} is not a list", where=where, got=type(values).__name__
            )
        if rows >= 0 and len(values) != rows:
            raise ragged(name, rows, len(values), where)
        rows = len(values)
        dtype = dtypes.get(name) or _inferred(values)
        table[name] = _json_column(values, dtype, name, where)
    return table


def _inferred(values: list[Any]) -> DType:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return DType.BOOL
    if kinds == {int}:
        return DType.INT64
    if kinds and kinds <= {int, float}:
        return DType.FLOAT64
    return DType.STRING


def _json_column(values: list[Any], dtype: DType, name: str, where: str) -> Column:
    valid = None
    if None in values:
        valid = np.array([value is not None for value in values], np.bool_)
    if dtype.is_variable:
        if dtype is DType.BYTES:
            values = [_bytes_of_json(value) for value in values]
        return canonical_column(values, valid, dtype, f"column {name!r}", where)
    plain = [
        0 if value is None else _json_value(value, dtype, f"column {name!r}, row {row}", where)
        for row, value in enumerate(values)
    ]
    return Column(np.array(plain, dtype.numpy), valid)


def _bytes_of_json(value: object) -> object:
    """Return the bytes of base64 text; anything else as it is, for whoever names it."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return base64.b64decode(value, validate=True)
    return value


def _json_value(value: Any, dtype: DType, what: str, where: str) -> Any:
    if dtype is DType.TIMESTAMP and isinstance(value, str | datetime):
        return time_us(value, f"{where}: {what}")
    if dtype is DType.BOOL:
        fits = isinstance(value, bool)
    elif dtype.is_float:
        whole = isinstance(value, int) and not isinstance(value, bool)
        fits = isinstance(value, float) or (whole and abs(value) <= _FLOAT_MAX)
        value = float(value) if fits else value
    else:
        fits = isinstance(value, int) and not isinstance(value, bool)
        fits = fits and _INT64_MIN <= value <= _INT64_MAX
    if not fits:
        raise InvalidArgumentError(
            f"{what} has a wrong type",
            where=where,
            expected=dtype.value,
            got=f"{type(value).__name__} {value!r:.40}",
        )
    return value


def time_us(value: object, where: str) -> int:
    """Return UTC microseconds of a whole number of them, of ISO 8601 text or of a datetime.

    Raises InvalidArgumentError for what is none of these, and for one without a time zone.
    """
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _INT64_MAX:
        return value
    with contextlib.suppress(ValueError):
        if isinstance(value, str):
            return to_us(datetime.fromisoformat(value))
        if isinstance(value, datetime):
            return to_us(value)
    raise InvalidArgumentError(
        "not a time",
        where=where,
        expected="UTC microseconds, ISO 8601 text such as 2013-10-01T12:00:00Z, or a datetime, "
        "with a time zone",
        got=f"{value!r:.60}",
    )


def ragged(name: str, rows: int, got: int, where: str) -> InvalidArgumentError:
    """Return the error for a column of another length."""
    return InvalidArgumentError(
        f"column {name!r} has another length than those before it",
        where=where,
        expected=f"{rows} rows",
        got=got,
    )


def json_of_table(table: Mapping[str, Column]) -> dict[str, list[Any]]:
    """Return JSON columns; null where a row has no value, base64 text for bytes."""
    result = {}
    for name, column in table.items():
        values = column.values.tolist()
        if column.values.dtype == np.object_:
            values = [_json_of(value) for value in values]
        if column.valid is not None:
            values = [
                v if ok else None for v, ok in zip(values, column.valid.tolist(), strict=True)
            ]
        result[name] = values
    return result


def _json_of(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.tolist() if isinstance(value, np.ndarray) else value
