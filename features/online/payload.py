"""Batches of events, checked against their source.

Both ends of the event log do that: `EventLog.push` checks what a caller sends, the ingester checks
what it reads (the definitions may have changed in between, and anybody can write to a stream).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.checks import unknown
from features.loading import Definitions
from features.sources import EventSource, Source, TableSource
from features.types import Column, DType, Table
from features.variable import canonical_column
from headrace.errors import InvalidArgumentError

# Far outside any clock, and far enough from the ends of int64 for every window's arithmetic.
TIME_US_MAX = 1 << 60

Times = NDArray[np.int64]


@dataclass
class EventBatch:
    """Events of one source, as columns.

    columns: one per field of the source, one element an event; event_times_us: int64[n], UTC
    microseconds; created_times_us: the same, or None: each counts as created at its event time.
    """

    source: str
    columns: Table
    event_times_us: Times
    created_times_us: Times | None = None

    def __len__(self) -> int:
        return len(self.event_times_us)


def pushed_sources(definitions: Definitions) -> dict[str, Source]:
    """Return the sources that events can be pushed to: all but those of the request."""
    return {
        name: source
        for name, source in definitions.sources.items()
        if isinstance(source, EventSource | TableSource)
    }


def check_batch(batch: EventBatch, sources: Mapping[str, Source]) -> EventBatch:
    """Return the batch in its source's order and types (Float32 rounded to it).

    Raises InvalidArgumentError naming source, field and row: unknown source or field, a missing
    field, another type, lengths that differ, a time that cannot be one.
    """
    source = sources.get(batch.source)
    if source is None:
        raise unknown("source", batch.source, sources, "push")
    where = f"push to source {source.name!r}"
    dtypes = source.dtypes
    for name in batch.columns:
        if name not in dtypes:
            raise unknown("field", name, dtypes, where)
    events = len(batch)
    columns: Table = {}
    for name, dtype in dtypes.items():
        column = batch.columns.get(name)
        if column is None:
            raise InvalidArgumentError(
                f"field {name!r} is missing",
                where=where,
                expected=f"a column of {dtype.value}",
                mend="send it with nulls where it is not known",
            )
        columns[name] = _check_column(column, name, dtype, events, where)
    created = batch.created_times_us
    return EventBatch(
        source.name,
        columns,
        _check_times(batch.event_times_us, "event_times", events, where),
        None if created is None else _check_times(created, "created_times", events, where),
    )


def _check_times(times: Times, name: str, events: int, where: str) -> Times:
    times = np.asarray(times)
    if times.dtype != np.int64 or times.ndim != 1 or len(times) != events:
        raise InvalidArgumentError(
            f"{name} do not fit the events",
            where=where,
            expected=f"{events} int64 microseconds",
            got=f"{times.size} of {times.dtype}",
        )
    outside = (times > TIME_US_MAX) | (times < -TIME_US_MAX)
    if outside.any():
        row = int(outside.argmax())
        raise InvalidArgumentError(
            f"{name} holds what is no time in row {row}",
            where=where,
            expected="UTC microseconds since 1970",
            got=int(times[row]),
        )
    return times


def _check_column(column: Column, name: str, dtype: DType, events: int, where: str) -> Column:
    values, valid = column.values, column.valid
    if len(values) != events or (valid is not None and len(valid) != events):
        raise InvalidArgumentError(
            f"field {name!r} has another number of rows than event_times",
            where=where,
            expected=events,
            got=len(values) if len(values) != events or valid is None else len(valid),
        )
    if valid is not None and bool(valid.all()):
        valid = None
    if dtype.is_variable:
        return _check_variable(values, valid, dtype, name, where)
    wanted = dtype.numpy
    # Widening within a kind keeps every value; anything else would change what was meant.
    if values.dtype.kind != wanted.kind or values.dtype.itemsize > wanted.itemsize:
        raise InvalidArgumentError(
            f"field {name!r} has another type",
            where=where,
            expected=dtype.value,
            got="string" if values.dtype.kind == "O" else str(values.dtype),
        )
    if dtype is DType.FLOAT32:
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
    return Column(values.astype(wanted), valid)


def _check_variable(
    values: NDArray[Any], valid: NDArray[np.bool_] | None, dtype: DType, name: str, where: str
) -> Column:
    """Return the column with the empty value where null: what lies there must not travel."""
    what = f"field {name!r}"
    if values.dtype.kind != "O":
        raise InvalidArgumentError(
            f"{what} has another type", where=where, expected=dtype.value, got=str(values.dtype)
        )
    if dtype is DType.STRING and valid is None:
        # The usual case, quicker.
        texts = values.tolist()
        with contextlib.suppress(TypeError, UnicodeEncodeError):
            "".join(texts).encode()
            return Column(values)
    return canonical_column(values.tolist(), valid, dtype, what, where)
