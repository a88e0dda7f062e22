"""Columns of plain values to `headrace.v1` columns, and back. NumPy is taken, not needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from headrace_client.errors import InternalError, InvalidArgumentError
from headrace_client.pb import headrace_pb2 as pb

Value: TypeAlias = bool | int | float | str | None
# A list, a tuple, an array, a NumPy array: whatever has values one after the other.
Columns: TypeAlias = Mapping[str, Iterable[Value]]

_INT64 = range(-(1 << 63), 1 << 63)


def messages_of(columns: Columns) -> list[pb.Column]:
    """Return `Column` messages; None is null.

    Raises InvalidArgumentError naming a column whose values are not all of one type (whole numbers
    and floats go together, as floats) or of none that can be sent.
    """
    return [_message(name, _plain(values)) for name, values in columns.items()]


def _plain(values: Any) -> list[Any]:
    to_list = getattr(values, "tolist", None)
    return list(values if to_list is None else to_list())


def _message(name: str, values: list[Any]) -> pb.Column:
    message = pb.Column(name=name)
    kinds = {type(value) for value in values if value is not None}
    message.nulls.extend(row for row, value in enumerate(values) if value is None)
    if kinds == {bool}:
        message.bools.v.extend(value or False for value in values)
    elif kinds == {int}:
        for row, value in enumerate(values):
            if value is not None and value not in _INT64:
                raise InvalidArgumentError(f"column {name!r}, row {row}: {value} has over 64 bits")
        message.int64s.v.extend(value or 0 for value in values)
    elif kinds and kinds <= {int, float}:
        message.doubles.v.extend(0.0 if value is None else value for value in values)
    elif kinds <= {str}:
        message.strings.SetInParent()
        message.strings.v.extend(value or "" for value in values)
    else:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise InvalidArgumentError(
            f"column {name!r}: expected values of one type of bool, int, float or str, got {names}"
        )
    return message


def values_of(column: pb.Column) -> list[Any]:
    """Return the values of a column; null is None."""
    kind = column.WhichOneof("values")
    if kind is None:
        raise InternalError(f"column {column.name!r} of the answer has no values")
    values = list(getattr(column, kind).v)
    for row in column.nulls:
        values[row] = None
    return values
