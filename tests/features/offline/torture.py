"""Worlds made of the cases that point-in-time joins are known to get wrong.

Few entities, few moments and small steps between them, so that everything meets everything: equal
times, ages that are exactly the TTL, corrections, three of a kind, keys that run together.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from hypothesis import strategies as st

from features import (
    Aggregation,
    Bool,
    Column,
    CompiledService,
    CsvFiles,
    Entity,
    EventSource,
    FeatureBatch,
    FeatureService,
    FeatureStatus,
    FeatureView,
    Field,
    Float64,
    Int64,
    JsonFiles,
    ParquetFiles,
    RequestSource,
    SqlTable,
    StreamFeatureView,
    String,
    Table,
    Window,
    on_demand_feature_view,
)
from features.locations import Location
from features.offline import OfflineStore
from features.types import from_words
from tests.features import oracle
from tests.features.oracle import MINUTE_US, Event

TTL_US = 2 * MINUTE_US
FIELDS = [
    Field("shop", Int64),
    Field("user", String),
    Field("number", Int64),
    Field("real", Float64),
    Field("flag", Bool),
    Field("word", String),
]
NAMES = [field.name for field in FIELDS]
KEYS = ["shop", "user"]
# Around 1970, and where a zone moves its clocks; minutes and just beside them.
BASES = [0, 1_792_886_400_000_000]
STEPS = [0, 1, MINUTE_US - 1, MINUTE_US, MINUTE_US + 1, TTL_US, TTL_US + 1, 7 * MINUTE_US]
moments = st.builds(lambda base, a, b: base + a - b, *map(st.sampled_from, (BASES, STEPS, STEPS)))
shops = st.sampled_from([0, 1, 12, None])
users = st.sampled_from(["3", "23", "", "0", "Łódź", None])
numbers = st.sampled_from([None, 0, 1, -5, 2**53 + 1, -(2**63), 2**63 - 1])
# One number, so that no sum overflows; float sums have tests of their own.
reals = st.sampled_from([None, math.nan, 0.0, math.inf, 0.1])
words = st.sampled_from([None, "", "ü", "a,b"])
lags = st.sampled_from([0, 0, 0, 1, -1, MINUTE_US, -5 * MINUTE_US, -5 * MINUTE_US - 1])


@st.composite
def events(draw: st.DrawFn) -> list[Event]:
    """Events in the order of a history."""
    out = []
    for _ in range(draw(st.integers(0, 25))):
        time_us, lag_us = draw(moments), draw(lags)
        values = dict(
            zip(NAMES, map(draw, (shops, users, numbers, reals, st.booleans(), words)), strict=True)
        )
        # Three of a kind: the last one counts.
        for _ in range(draw(st.sampled_from([1, 1, 1, 3]))):
            values = values | {"number": draw(numbers), "word": draw(words)}
            out.append(Event(time_us, time_us + lag_us, len(out), values))
    return out


@dataclass
class Row:
    shop: int | None
    user: str | None
    t_us: int
    asked: int


rows = st.lists(st.builds(Row, shops, users, moments, st.integers(0, 3)), min_size=0, max_size=30)


def spine(some: list[Row], key: str = "int64") -> pa.Table:
    """The rows as a table; `key`: the type in which the shop comes."""
    shop = pa.array([row.shop for row in some], pa.int64()).cast(getattr(pa, key)())
    columns = {
        "label": pa.array(np.arange(len(some))),
        "event_time": pa.array([row.t_us for row in some], pa.int64()),
        "shop": shop,
        "user": pa.array([row.user for row in some], pa.string()),
        "asked": pa.array([row.asked for row in some], pa.int64()),
        # Called like a field of the source, and like a view.
        "number": pa.array([7] * len(some), pa.int64()),
        "known": pa.array(["x"] * len(some), pa.string()),
    }
    return pa.table(columns)


def arrow(some: list[Event]) -> pa.Table:
    """The events as a table."""
    kinds = [pa.int64(), pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.string()]
    columns = {
        name: pa.array([event.values[name] for event in some], kind, from_pandas=False)
        for name, kind in zip(NAMES, kinds, strict=True)
    }
    columns["event_time"] = pa.array([e.event_time_us for e in some], pa.int64())
    columns["created_time"] = pa.array([e.created_time_us for e in some], pa.int64())
    return pa.table(columns)


LOCATIONS = ("own", "parquet", "csv", "json", "duckdb")
_TIMES = {"event_time": "event_time", "created_time": "created_time"}


def write(root: Path, some: list[Event], kind: str) -> Location | None:
    """Write the history; return where it lies, None: in the store's own folder."""
    table = arrow(some)
    half = len(some) // 2
    if kind == "own":
        for part in (table[:half], table[half:]):
            OfflineStore(root / "own").append("facts", part)
        return None
    utc = pa.timestamp("us", "UTC")
    timed = table.set_column(6, "event_time", table["event_time"].cast(utc))
    if kind == "parquet":
        (root / "p").mkdir()
        pq.write_table(timed[:half], root / "p" / "a.parquet", row_group_size=3)
        nanos = timed["event_time"].cast(pa.timestamp("ns", "UTC"))
        pq.write_table(timed.set_column(6, "event_time", nanos)[half:], root / "p" / "b.parquet")
        return ParquetFiles("p", **_TIMES)
    if kind == "csv":
        pa_csv.write_csv(table, root / "facts.csv")
        return CsvFiles("facts.csv", **_TIMES)
    if kind == "json":
        lines = [json.dumps(row) for row in table.to_pylist()]
        (root / "facts.jsonl").write_text("\n".join(lines))
        return JsonFiles("facts.jsonl", **_TIMES)
    with duckdb.connect(str(root / "facts.duckdb")) as connection:
        connection.register("given", timed)
        connection.execute("CREATE TABLE facts AS FROM given")
    return SqlTable("facts.duckdb", "facts", **_TIMES)


def service(history: Location | None) -> CompiledService:
    """A service with all kinds of views over one history."""
    facts = EventSource("facts", FIELDS, history=history)
    pair, shop = Entity("pair", ["user", "shop"]), Entity("shop", ["shop"])
    known = FeatureView("known", pair, facts, ["number", "real", "word"], "2min")
    ever = FeatureView("ever", shop, facts, ["flag", "number"])
    windows = [Window("2min", "1min"), Window("5min", "5min")]
    sums = StreamFeatureView(
        "sums",
        pair,
        facts,
        [
            Aggregation("real", ["count", "sum", "max"], windows),
            Aggregation("flag", ["sum"], windows),
            Aggregation(None, ["count"], windows),
        ],
    )
    asked = RequestSource("request", [Field("asked", Int64)])

    @on_demand_feature_view(
        inputs=[asked, known["word"], ever["number"]],
        fields=[Field("letters", Int64), Field("asked", Int64)],
    )
    def computed(inputs: Table) -> Table:
        word, number = inputs["known:word"], inputs["ever:number"]
        lengths = np.array([len(text or "") for text in word.values], np.int64)
        return {
            "letters": Column(lengths, word.mask),
            "asked": Column(inputs["asked"].values - (number.values < 0), number.mask),
        }

    views = [known["number", "real"], sums, ever, computed]
    return CompiledService(FeatureService("tortured", 1, views))


def wanted(some: list[Event], row: Row) -> list[object]:
    """What the service's columns hold at a row, by the oracle: a value, or a status."""
    views = {v.view.name: v.view for v in service(None).views}

    def mine(keys: list[str]) -> list[Event] | None:
        key = {"shop": row.shop, "user": row.user}
        if any(key[k] is None for k in keys):
            return None
        return [e for e in some if all(e.values[k] == key[k] for k in keys)]

    def known(keys: list[str], names: list[str], ttl_us: int | None) -> dict[str, object]:
        own = mine(keys)
        last: Event | str = "not_found"
        if own is not None:
            last = oracle.last_known(own, row.t_us, ttl_us)
        if isinstance(last, Event):
            return {n: "null" if last.values[n] is None else last.values[n] for n in names}
        return dict.fromkeys(names, last)

    pair = known(["user", "shop"], ["number", "real", "word"], TTL_US)
    ever = known(["shop"], ["flag", "number"], None)
    own = mine(["user", "shop"])
    sums: list[object] = ["not_found"] * 10
    if own is not None:
        values = oracle.windows(views["sums"], own, row.t_us)
        sums = ["null" if value is None else value for value in values]
    word, number = pair["word"], ever["number"]
    gone = ("null", "not_found", "expired")
    letters = "null" if word in gone else len(str(word))
    asked = "null" if number in gone else row.asked - (int(str(number)) < 0)
    return [pair["number"], pair["real"], *sums, ever["flag"], ever["number"], letters, asked]


def cells(batch: FeatureBatch) -> list[list[object]]:
    """What a batch holds: values, or the names of statuses."""
    out = []
    for words_row, status_row in zip(batch.words, batch.status, strict=True):
        row: list[object] = []
        for word, status, dtype in zip(words_row, status_row, batch.service.dtypes, strict=True):
            if status != FeatureStatus.PRESENT:
                row.append(("present", "null", "not_found", "expired")[status])
                assert word == 0
            else:
                row.append(from_words(np.array([word]), None, dtype).values[0].item())
        out.append(row)
    return out
