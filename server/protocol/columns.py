"""Tables as columns: `headrace.v1` messages and JSON to the tables of `features`, and back."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features import Column, DType, Table
from headrace.errors import InvalidArgumentError
from headrace.times import to_us
from server.pb import headrace_pb2 as pb

COLUMNS_MAX = 1024
_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1
_FLOAT_MAX = sys.float_info.max  # a larger whole number has no float
_DTYPES: dict[str, np.dtype[Any]] = {
    "int64s": np.dtype(np.int64),
    "doubles": np.dtype(np.float64),
    "bools": np.dtype(np.bool_),
    "strings": np.dtype(object),
}


def table_of_messages(columns: Iterable[Any], where: str) -> Table:
    """Return the table of `Column` messages.

    Raises InvalidArgumentError naming a column that has no values, holds bytes, comes twice, names
    a null row that it does not have, or has another length than the first.
    """
    table: Table = {}
    rows = -1
    for message in columns:
        name = message.name
        if name in table:
            raise InvalidArgumentError(f"column {name!r} comes twice", where=where)
        kind = message.WhichOneof("values")
        dtype = _DTYPES.get(kind)
        if dtype is None:
            raise InvalidArgumentError(
                f"column {name!r} has no values that can be used",
                where=where,
                expected="int64s, doubles, strings or bools",
                got=kind or "none",
            )
        values = np.array(getattr(message, kind).v, dtype)
        if rows >= 0 and len(values) != rows:
            raise _ragged(name, rows, len(values), where)
        rows = len(values)
        table[name] = Column(values, _valid(message.nulls, rows, name, where))
        if len(table) > COLUMNS_MAX:
            raise InvalidArgumentError("too many columns", where=where, expected=COLUMNS_MAX)
    return table


def _ragged(name: str, rows: int, got: int, where: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"column {name!r} has another length than those before it",
        where=where,
        expected=f"{rows} rows",
        got=got,
    )


def _valid(nulls: Sequence[int], rows: int, name: str, where: str) -> NDArray[np.bool_] | None:
    if not nulls:
        return None
    worst = max(nulls)
    if worst >= rows:
        raise InvalidArgumentError(
            f"column {name!r} says that row {worst} is null", where=where, expected=f"{rows} rows"
        )
    valid = np.ones(rows, np.bool_)
    valid[list(nulls)] = False
    return valid


def messages_of_table(table: Mapping[str, Column]) -> list[Any]:
    """Return `Column` messages. A null's placeholder is 0, False or the empty text."""
    return [_message_of(name, column) for name, column in table.items()]


def _message_of(name: str, column: Column) -> Any:
    message = pb.Column(name=name)
    values = column.values
    if column.valid is not None:
        message.nulls.extend(np.flatnonzero(~column.valid).tolist())
        values = np.where(column.valid, values, np.zeros(1, values.dtype))
    kind = values.dtype.kind
    if kind == "i":
        message.int64s.v.extend(values.tolist())
    elif kind == "f":
        message.doubles.v.extend(values.tolist())
    elif kind == "b":
        message.bools.v.extend(values.tolist())
    else:
        message.strings.v.extend(value or "" for value in values.tolist())
    return message


def table_of_json(columns: Mapping[str, Any], dtypes: Mapping[str, DType], where: str) -> Table:
    """Return the table of JSON columns `{"name": [values…]}`; null is null.

    A column of `dtypes` is read as its type says (a whole number is a float where one is wanted, a
    Timestamp may be ISO text); of any other the values say it. Raises InvalidArgumentError naming
    the column and the row.
    """
    table: Table = {}
    rows = -1
    for name, values in columns.items():
        if not isinstance(values, list):
            raise InvalidArgumentError(
                f"column {name!r} is not a list", where=where, got=type(values).__name__
            )
        if rows >= 0 and len(values) != rows:
            raise _ragged(name, rows, len(values), where)
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
    nothing: Any = "" if dtype is DType.STRING else 0
    plain = [
        nothing
        if value is None
        else _json_value(value, dtype, f"column {name!r}, row {row}", where)
        for row, value in enumerate(values)
    ]
    valid = None
    if None in values:
        valid = np.array([value is not None for value in values], np.bool_)
    return Column(np.array(plain, dtype.numpy), valid)


def _json_value(value: Any, dtype: DType, what: str, where: str) -> Any:
    if dtype is DType.TIMESTAMP and isinstance(value, str):
        return time_us(value, f"{where}: {what}")
    if dtype is DType.STRING:
        fits = isinstance(value, str)
    elif dtype is DType.BOOL:
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
    """Return UTC microseconds of a whole number of them, or of ISO 8601 text with a time zone."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _INT64_MAX:
        return value
    if isinstance(value, str):
        try:
            return to_us(datetime.fromisoformat(value))
        except ValueError:
            pass
    raise InvalidArgumentError(
        "not a time",
        where=where,
        expected="UTC microseconds, or ISO 8601 text such as 2013-10-01T12:00:00Z",
        got=f"{value!r:.60}",
    )
