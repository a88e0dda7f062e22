"""Tables as `Column` messages of `headrace.v1`, as a client makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from features import Column
from server.pb import headrace_pb2 as pb


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
