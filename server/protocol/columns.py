"""Tables as columns: `headrace.v1` messages to the tables of `features`, and back."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features import Column, DType, Table
from features.values import ragged
from headrace.errors import InvalidArgumentError
from server.pb import headrace_pb2 as pb

COLUMNS_MAX = 1024
_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1
_FLOAT_MAX = sys.float_info.max  # a larger whole number has no float
_DTYPES: dict[str, np.dtype[Any]] = {
    "int64s": np.dtype(np.int64),
    "doubles": np.dtype(np.float64),
    "bools": np.dtype(np.bool_),
    "strings": np.dtype(object),
    "bytes": np.dtype(object),
}
# The items of arrays; None: text.
_ARRAYS: dict[str, np.dtype[Any] | None] = {
    "int64_arrays": np.dtype(np.int64),
    "double_arrays": np.dtype(np.float64),
    "float_arrays": np.dtype(np.float32),
    "string_arrays": None,
}
_EMPTY: dict[str, Any] = {"strings": "", "bytes": b"", "bools": False, "int64s": 0, "doubles": 0.0}
_EMPTY |= dict.fromkeys(_ARRAYS, ())
KINDS = {
    DType.INT64: "int64s",
    DType.TIMESTAMP: "int64s",
    DType.FLOAT32: "doubles",
    DType.FLOAT64: "doubles",
    DType.BOOL: "bools",
    DType.STRING: "strings",
    DType.UUID: "strings",
    DType.BYTES: "bytes",
    DType.INT64_ARRAY: "int64_arrays",
    DType.FLOAT64_ARRAY: "double_arrays",
    DType.FLOAT32_ARRAY: "float_arrays",
    DType.STRING_ARRAY: "string_arrays",
}


def table_of_messages(columns: Iterable[Any], where: str) -> Table:
    """Return the table of `Column` messages.

    Raises InvalidArgumentError naming a column that has no values, comes twice, names a null row
    that it does not have, or has another length than the first.
    """
    table: Table = {}
    rows = -1
    for message in columns:
        name = message.name
        if name in table:
            raise InvalidArgumentError(f"column {name!r} comes twice", where=where)
        values = _values_of(message, where)
        if rows >= 0 and len(values) != rows:
            raise ragged(name, rows, len(values), where)
        rows = len(values)
        table[name] = Column(values, _valid(message.nulls, rows, name, where))
        if len(table) > COLUMNS_MAX:
            raise InvalidArgumentError("too many columns", where=where, expected=COLUMNS_MAX)
    return table


def _values_of(message: Any, where: str) -> NDArray[Any]:
    kind = message.WhichOneof("values")
    if kind in _DTYPES:
        return np.array(getattr(message, kind).v, _DTYPES[kind])
    if kind not in _ARRAYS:
        raise InvalidArgumentError(
            f"column {message.name!r} has no values that can be used",
            where=where,
            expected="int64s, doubles, strings, bools, bytes or arrays",
            got=kind or "none",
        )
    item = _ARRAYS[kind]
    arrays = getattr(message, kind).v
    values = np.empty(len(arrays), np.object_)
    for row, array in enumerate(arrays):
        values[row] = tuple(array.v) if item is None else np.array(array.v, item)
    return values


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
    """Return `Column` messages. A null's placeholder is 0, False or the empty value."""
    return [message_of_column(name, column, _kind_of(column)) for name, column in table.items()]


def message_of_column(name: str, column: Column, kind: str) -> Any:
    """Return the `Column` message whose `kind` holds the values."""
    message = pb.Column(name=name)
    values = column.values.tolist()
    if column.valid is not None:
        message.nulls.extend(np.flatnonzero(~column.valid).tolist())
        empty = _EMPTY[kind]
        values = [v if ok else empty for v, ok in zip(values, column.valid.tolist(), strict=True)]
    target = getattr(message, kind)
    target.SetInParent()  # of no rows, it is still of this type
    if kind in _ARRAYS:
        for value in values:
            target.v.add().v.extend(value.tolist() if isinstance(value, np.ndarray) else value)
    else:
        target.v.extend(values)
    return message


def _kind_of(column: Column) -> str:
    """Return the field of `Column` for values whose type is not known otherwise."""
    plain = {"i": "int64s", "u": "int64s", "f": "doubles", "b": "bools"}
    if column.values.dtype != np.object_:
        return plain[column.values.dtype.kind]
    valid = column.mask.tolist()
    known = [value for value, ok in zip(column.values, valid, strict=True) if ok]
    first = known[0] if known else ""
    if isinstance(first, bytes):
        return "bytes"
    if isinstance(first, np.ndarray):
        return next(kind for kind, item in _ARRAYS.items() if item == first.dtype)
    return "string_arrays" if isinstance(first, tuple | list) else "strings"
