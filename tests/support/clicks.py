"""A small world of located sources: clicks in files, orders in a table."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features import Definitions, definitions_from_source
from features.online.blocks import decode_payloads
from features.online.keys import EVENTS
from features.online.store import OnlineStore

DAY_US = 86_400_000_000
NOON_US = 1_767_268_800_000_000  # 2026-01-01 12:00 UTC
NOW_US = NOON_US + 30 * DAY_US

SOURCE = b"""
from features import (
    Aggregation, CsvFiles, Entity, EventSource, FeatureService, FeatureView, Field, Float64, Int64,
    ParquetFiles, SqlTable, StreamFeatureView, String, Window,
)

user = Entity("user", ["user_id"])
fields = [Field("user_id", Int64), Field("page", String), Field("weight", Float64)]
clicks = EventSource("clicks", fields,
    history=ParquetFiles("clicks", event_time="at", created_time="loaded"))
notes = EventSource("notes", fields, history=CsvFiles("notes.csv", event_time="at"))
orders = EventSource("orders", [Field("user_id", Int64), Field("cents", Int64)],
    history=SqlTable("shop.duckdb", "orders", event_time="at", created_time="loaded"))
pushed = EventSource("pushed", fields)

counts = StreamFeatureView("counts", user, clicks, [
    Aggregation("weight", ["sum", "count"], [Window("1d", "1h"), Window("7d", "1h")]),
])
last_order = FeatureView("last_order", user, orders, ["cents"], "30d")
service = FeatureService("clicked", 1, [counts, last_order])
"""

Row = tuple[object, ...]


def definitions() -> Definitions:
    return definitions_from_source(SOURCE)


def clicks(rng: np.random.Generator, count: int) -> pa.Table:
    """Clicks with nulls, text, and rows that are there more than once."""
    at = NOON_US + rng.integers(0, 20, count) * (DAY_US // 7)
    return pa.table(
        {
            "user_id": pa.array(rng.integers(0, 20, count), mask=rng.random(count) < 0.05),
            "page": pa.array(rng.choice(["a", "ü", "", "long" * 9], count)),
            "weight": pa.array(rng.choice([0.1, 0.25, 7.0], count), mask=rng.random(count) < 0.1),
            "at": at,
            "loaded": at + rng.integers(0, 3, count) * DAY_US,
        }
    )


def write_clicks(project: Path, name: str, table: pa.Table) -> None:
    (project / "clicks").mkdir(exist_ok=True)
    pq.write_table(table, project / "clicks" / name, row_group_size=3000)


def add_orders(project: Path, rows: list[tuple[int, int, int, int]]) -> None:
    """Add (user, cents, event time, created time)."""
    with duckdb.connect(str(project / "shop.duckdb")) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS orders"
            ' (user_id BIGINT, cents BIGINT, "at" BIGINT, loaded TIMESTAMPTZ)'
        )
        if rows:
            connection.executemany("INSERT INTO orders VALUES (?, ?, ?, make_timestamptz(?))", rows)


def rows_of(table: pa.Table) -> Counter[Row]:
    """How often each row is in a table; the columns in their order."""
    return Counter(tuple(row.values()) for row in table.to_pylist())


async def pushed_rows(store: OnlineStore) -> dict[str, Counter[Row]]:
    """How often each row stands in the event log, by source: fields, event and created time."""
    found: dict[str, Counter[Row]] = {}
    for _, (_, payload) in await store.execute("XRANGE", EVENTS, "-", "+", timeout_s=10.0):
        for batch, _places in decode_payloads([payload]):
            assert batch.created_times_us is not None
            columns = [
                [
                    v if ok else None
                    for v, ok in zip(c.values.tolist(), c.mask.tolist(), strict=True)
                ]
                for c in batch.columns.values()
            ]
            times = (batch.event_times_us.tolist(), batch.created_times_us.tolist())
            counts = found.setdefault(batch.source, Counter())
            counts.update(zip(*columns, *times, strict=True))
    return found
