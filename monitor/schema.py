"""The inference log and the truth table: their columns, types and flags (CONTRACTS §5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from headrace.errors import InvalidArgumentError

_TIME = pa.timestamp("us", tz="UTC")
_ID = pa.binary(16)
_WORD = pa.dictionary(pa.int32(), pa.string())

_LOG_COLUMNS: list[tuple[str, Any]] = [
    ("prediction_id", _ID),
    ("attempt", pa.uint8()),
    ("event_time", _TIME),
    ("logged_time", _TIME),
    ("model", _WORD),
    ("version", _WORD),
    ("service", _WORD),
    ("plan", pa.uint64()),
    ("policy", _WORD),
    ("arm", _WORD),
    ("propensity", pa.float64()),
    ("pmf", pa.list_(pa.float64())),
    ("flags", pa.uint16()),
    ("key_hash", pa.uint64()),
    ("context_hash", pa.uint64()),
    ("sampling_probability", pa.float32()),
    ("features", pa.binary()),
    ("schema_id", pa.uint32()),
    ("feature_status", pa.binary()),
    ("inputs", pa.binary()),
    ("outputs", pa.list_(pa.float32())),
    ("outputs_raw", pa.binary()),
    ("decision", _WORD),
    ("queue_us", pa.uint32()),
    ("features_us", pa.uint32()),
    ("compute_us", pa.uint32()),
    ("total_us", pa.uint32()),
    ("status", pa.uint8()),
    ("worker", pa.uint16()),
    ("trace_id", _ID),
    ("attributions", pa.list_(pa.float32())),
    ("attribution_base", pa.list_(pa.float32())),
]
LOG_SCHEMA: pa.Schema = pa.schema(_LOG_COLUMNS)

_TRUTH_COLUMNS: list[tuple[str, Any]] = [
    ("prediction_id", _ID),
    ("entity_key", pa.binary()),
    ("name", pa.string()),
    ("value", pa.float64()),
    ("event_time", _TIME),
    ("created_time", _TIME),
    ("source", pa.string()),
]
TRUTH_SCHEMA: pa.Schema = pa.schema(_TRUTH_COLUMNS)

# Bits of the log's `flags` column.
SHADOW = 1
FORCED = 2
FALLBACK = 4
RETRY = 8
CACHED = 16
EXPLAINED = 32

_TYPES = dict(_LOG_COLUMNS)
# Of later releases than the first: a collector of the first knows no frame that has them.
_ADDED = ("attributions", "attribution_base")


def empty_log() -> pa.Table:
    """Return a log table of no rows."""
    return LOG_SCHEMA.empty_table()


def log_batch(columns: Mapping[str, Any], rows: int) -> pa.RecordBatch:
    """Return a batch of LOG_SCHEMA with `rows` rows; columns left out become null.

    `columns` holds lists, numpy arrays or Arrow arrays by column name; times are datetimes or int64
    microseconds UTC. Raises InvalidArgumentError that names an unknown column, a column of another
    length, or one whose values do not fit its type.
    """
    unknown = sorted(set(columns) - set(_TYPES))
    if unknown:
        raise InvalidArgumentError(
            "unknown log column", where=unknown[0], expected="a column of the inference log"
        )
    arrays = []
    for name, kind in _TYPES.items():
        values = columns.get(name)
        array = pa.nulls(rows, kind) if values is None else _as_type(name, values, kind)
        if len(array) != rows:
            raise InvalidArgumentError(
                "log column of the wrong length", where=name, expected=rows, got=len(array)
            )
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=LOG_SCHEMA)


def to_send(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch of LOG_SCHEMA without later releases' columns where they hold nothing, so that
    a collector of an earlier one takes it."""
    held = batch.schema.names
    empty = [name for name in _ADDED if batch.column(name).null_count == batch.num_rows]
    return batch.select([name for name in held if name not in empty])


def as_received(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the rows of another release's worker in LOG_SCHEMA: what it lacks is null, what only
    it knows is left out. Raises InvalidArgumentError for a column of another type."""
    if batch.schema.equals(LOG_SCHEMA):
        return batch
    held = set(batch.schema.names)
    missing = [name for name in _TYPES if name not in held and name not in _ADDED]
    other = [n for n, kind in _TYPES.items() if n in held and batch.column(n).type != kind]
    if missing or other:
        raise InvalidArgumentError(
            "a log batch of another schema", got=", ".join([*missing, *other])
        )
    arrays = [
        batch.column(name) if name in held else pa.nulls(batch.num_rows, kind)
        for name, kind in _TYPES.items()
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=LOG_SCHEMA)


def _as_type(name: str, values: Any, kind: Any) -> Any:
    try:
        if isinstance(values, pa.Array):
            return values if values.type == kind else values.cast(kind)
        if pa.types.is_dictionary(kind):
            return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
        return pa.array(values, kind)
    except (pa.ArrowException, TypeError, OverflowError, ValueError) as error:
        raise InvalidArgumentError(
            "values do not fit the log column", where=name, expected=str(kind)
        ) from error
