"""Whether the data is what the definitions say, before an hour of work is built on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features import CompiledService, Definitions, RequestSource
from features.types import DType
from headrace.errors import InvalidArgumentError
from trainer.recipe import Period, Recipe

_TIMES = ("event_time", "created_time")
_ARROW: dict[DType, Callable[[pa.DataType], bool]] = {
    DType.INT64: pa.types.is_int64,
    DType.TIMESTAMP: pa.types.is_int64,
    DType.FLOAT64: pa.types.is_float64,
    DType.FLOAT32: pa.types.is_floating,
    DType.BOOL: pa.types.is_boolean,
    DType.STRING: pa.types.is_string,
}


def check_events(definitions: Definitions, events: Mapping[str, pa.Table]) -> None:
    """Raise InvalidArgumentError that names the source and the column that is not as defined.

    Every source has a table with its fields and the two times (int64 µs); no event was known before
    it happened; no value is NaN or infinite where null is meant.
    """
    for name, source in definitions.sources.items():
        if isinstance(source, RequestSource):
            continue
        where = f"source {name!r}"
        if name not in events:
            raise InvalidArgumentError("no events", where=where, got=sorted(events))
        table = events[name]
        for field in source.fields:
            _check_column(table, field.name, field.dtype, where)
        for time in _TIMES:
            _check_column(table, time, DType.TIMESTAMP, where)
            _check_no_null(table, time, where)
        early = int((_times(table, "created_time") < _times(table, "event_time")).sum())
        if early:
            raise InvalidArgumentError(
                f"{early} events were created before they happened",
                where=where,
                expected="created_time ≥ event_time",
            )


def check_spine(spine: pa.Table, service: CompiledService, recipe: Recipe) -> None:
    """Raise InvalidArgumentError unless the spine fits the service and the recipe's periods.

    In time order; no null in the label; no label known before its decision; both classes in every
    period.
    """
    where = f"spine of {recipe.model!r}"
    keys = [key for entity in service.entities for key in entity.join_keys]
    needed = [*keys, *service.request_fields, "event_time"]
    for name in [*needed, recipe.label, recipe.label_time, *recipe.slices]:
        if name not in spine.column_names:
            raise InvalidArgumentError(f"no column {name!r}", where=where, got=spine.column_names)
    for name in ("event_time", recipe.label, recipe.label_time):
        _check_no_null(spine, name, where)
    times = _times(spine, "event_time")
    if (np.diff(times) < 0).any():
        raise InvalidArgumentError("not in the order of event_time", where=where)
    if (_times(spine, recipe.label_time) <= times).any():
        raise InvalidArgumentError(
            "a label was known before its decision: it would leak",
            where=where,
            expected=f"{recipe.label_time} > event_time",
        )
    labels = spine[recipe.label].to_numpy()
    for candidate in recipe.candidates:
        for use in ("train", "tune", "test"):
            period: Period | None = getattr(candidate, use)
            if period is None:
                continue
            found = labels[period.rows(times)]
            if not 0 < found.sum() < len(found):
                raise InvalidArgumentError(
                    f"the {use} period of {candidate.name!r} cannot be used",
                    where=where,
                    expected="rows of both classes",
                    got=f"{int(found.sum())} positives in {len(found)} rows, {period}",
                )


def _check_column(table: pa.Table, name: str, dtype: DType, where: str) -> None:
    if name not in table.column_names:
        raise InvalidArgumentError(f"no column {name!r}", where=where, got=table.column_names)
    column = table[name]
    if not _ARROW[dtype](column.type):
        raise InvalidArgumentError(
            f"column {name!r} has another type", where=where, expected=dtype.value, got=column.type
        )
    if dtype.is_float and pc.any(pc.invert(pc.is_finite(column))).as_py():
        raise InvalidArgumentError(
            f"column {name!r} holds NaN or an infinity", where=where, mend="make it null"
        )


def _times(table: pa.Table, name: str) -> NDArray[np.int64]:
    return table[name].to_numpy().astype(np.int64)


def _check_no_null(table: pa.Table, name: str, where: str) -> None:
    if table[name].null_count:
        raise InvalidArgumentError(
            f"column {name!r} holds nulls", where=where, got=table[name].null_count
        )
