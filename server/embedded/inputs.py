"""What callers hand over in Python, as the server's tables, tensors and times."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from features import Column, DType, Table
from features.types import row_count
from headrace.errors import InvalidArgumentError
from headrace.times import to_us
from server.protocol.columns import table_of_json, time_us
from server.protocol.tensors import DATATYPES, Tensor, datatype_of_array

When = int | str | datetime
_PLAIN = {"i": np.int64, "u": np.int64, "f": np.float64, "b": np.bool_}


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


def _of_dtype(values: npt.NDArray[Any], dtype: DType | None) -> Column:
    """Return a column of plain numbers; whole ones are floats where those are wanted."""
    if dtype is not None and dtype.is_float and values.dtype.kind == "i":
        values = values.astype(np.float64)
    return Column(values)


def tensor_of_array(name: str, value: npt.ArrayLike, datatype: str) -> Tensor:
    """Return the tensor of an array; what is none becomes one of `datatype` ("": of its values').

    Raises InvalidArgumentError naming it for what no tensor can hold.
    """
    where = f"inference input '{name}'"
    if isinstance(value, np.ndarray):
        array = value
    else:
        wanted = DATATYPES[datatype].dtype if datatype else None
        try:
            array = np.asarray(value, wanted)
        except (ValueError, TypeError, OverflowError):
            raise InvalidArgumentError(f"{where} is no array", expected=datatype or None) from None
    found = datatype_of_array(array, datatype or "FP32")
    if DATATYPES[found].dtype != array.dtype:
        raise InvalidArgumentError(
            f"{where} is of a type that no tensor has", expected=datatype or None, got=array.dtype
        )
    return Tensor(name, found, array)


def us_of(when: When | None) -> int | None:
    """Return UTC microseconds of a time: those themselves, ISO 8601 text, or an aware datetime.

    Raises InvalidArgumentError for what is none.
    """
    if not isinstance(when, datetime):
        return None if when is None else time_us(when, "event_time")
    try:
        return to_us(when)
    except ValueError:
        raise InvalidArgumentError(
            "event_time has no time zone", expected="an aware datetime", got=when.isoformat()
        ) from None
