"""What is ingested: events of many users into one view of ten windowed aggregates.

The amounts are whole cents and the scores whole numbers, so that every sum is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from features import Column, Definitions, definitions_from_source
from features.online.payload import EventBatch

SOURCE, VIEW, SERVICE, KEY = "payments", "spending", "spent", "user"
SCHEMA_IDS = {VIEW: 1}
ENTITIES = 100_000
SEED = 16
START_US = 1_700_000_000_000_000
STEP_US = 1_000  # between two events
DEFINITIONS = f"""
from features import (
    Aggregation, Entity, EventSource, FeatureService, Field, Float64, Int64, StreamFeatureView,
    Window,
)

user = Entity("user", ["{KEY}"])
{SOURCE} = EventSource("{SOURCE}", [
    Field("{KEY}", Int64), Field("amount", Float64), Field("items", Int64),
    Field("score", Float64),
])
hour = [Window("1h", hop="5min")]
{VIEW} = StreamFeatureView("{VIEW}", user, {SOURCE}, [
    Aggregation("amount", ["sum", "mean", "min", "max"], hour),
    Aggregation("items", ["sum", "min", "max"], hour),
    Aggregation("score", ["mean", "max"], hour),
    Aggregation(None, ["count"], hour),
])
{SERVICE} = FeatureService("{SERVICE}", 1, [{VIEW}])
""".encode()


def definitions() -> Definitions:
    """Return the definitions."""
    return definitions_from_source(DEFINITIONS)


def events(count: int) -> dict[str, Any]:
    """Return the columns of so many events, in the order of their times."""
    random = np.random.default_rng(SEED)
    return {
        KEY: random.integers(0, ENTITIES, count),
        "amount": np.round(random.gamma(2.0, 2_000.0, count)),
        "items": random.integers(0, 9, count),
        "score": random.integers(0, 1_000, count).astype(np.float64),
        "event_time": START_US + STEP_US * np.arange(count),
    }


def batches(columns: dict[str, Any], size: int) -> Iterator[EventBatch]:
    """Yield the events as pushes of so many each."""
    times = columns["event_time"]
    fields = {name: values for name, values in columns.items() if name != "event_time"}
    for start in range(0, len(times), size):
        part = slice(start, start + size)
        yield EventBatch(SOURCE, {n: Column(v[part]) for n, v in fields.items()}, times[part])


def spine(columns: dict[str, Any], rows: int) -> pa.Table:
    """Return so many users, each once, as of just after the last event."""
    random = np.random.default_rng(SEED + 1)
    seen = np.unique(columns[KEY])
    users = random.choice(seen, min(rows, len(seen)), replace=False)
    return pa.table({KEY: users, "event_time": np.full(len(users), columns["event_time"][-1] + 1)})
