"""Histories that a team has already: the same rows whatever they lie in."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from features import (
    Bool,
    CsvFiles,
    EventSource,
    Field,
    Float64,
    Int64,
    JsonFiles,
    ParquetFiles,
    SqlTable,
    String,
    Timestamp,
)
from features.locations import Location
from features.offline import OfflineStore
from features.offline.reach import EVERYTHING, Reach
from headrace.errors import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
)
from headrace.times import DAY_US, to_us

FIELDS = [
    Field("id", Int64),
    Field("name", String),
    Field("amount", Float64),
    Field("ok", Bool),
    Field("seen", Timestamp),
]
NAMES = [field.name for field in FIELDS]
# 2026-01-01, and a day long before 1970.
DAY_2026_US = to_us(datetime(2026, 1, 1, tzinfo=UTC))
BIG = 2**53 + 1
Row = dict[str, object]


def source(location: Location) -> EventSource:
    return EventSource("payments", FIELDS, history=location)


def read(root: Path, location: Location, reach: Reach = EVERYTHING) -> list[Row]:
    store = OfflineStore(root / "nowhere", root)
    return store.rows(source(location), NAMES, reach).to_pylist()


def iso(time_us: int | None) -> str | None:
    if time_us is None:
        return None
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)).isoformat()


def some_rows(rng: random.Random, count: int) -> list[Row]:
    moments = [DAY_2026_US, DAY_2026_US + 1, -1, -86_400_000_001, 0]
    rows = []
    for sequence in range(count):
        event_us = rng.choice([*moments, DAY_2026_US + rng.randrange(9 * DAY_US)])
        rows.append(
            {
                "id": rng.choice([None, 0, -7, BIG, -BIG, 2**63 - 1]),
                "name": rng.choice([None, "", "007", 'Łódź, "x"\ny', "null"]),
                "amount": rng.choice([None, math.nan, -0.0, math.inf, -math.inf, 0.1, 5.0]),
                "ok": rng.choice([None, True, False]),
                "seen": rng.choice([None, DAY_2026_US, -1]),
                "event_time": event_us,
                "created_time": rng.choice([event_us, event_us + 1_000_000, event_us - 5]),
                "sequence": sequence,
            }
        )
    return rows


def table(rows: list[Row], unit: str = "us") -> pa.Table:
    kinds = [pa.int64(), pa.string(), pa.float64(), pa.bool_(), pa.timestamp("us", "UTC")]
    columns = {
        name: pa.array([row[name] for row in rows], pa.int64() if name == "seen" else kind)
        for name, kind in zip(NAMES, kinds, strict=True)
    }
    columns["seen"] = columns["seen"].cast(kinds[-1])
    for name, kind in (("event_time", pa.timestamp("us", "UTC")), ("created_time", pa.int64())):
        columns[name] = pa.array([row[name] for row in rows], pa.int64()).cast(kind)
    columns["event_time"] = columns["event_time"].cast(pa.timestamp(unit, "UTC"))
    return pa.table(columns)


def write_parquet(root: Path, rows: list[Row]) -> Location:
    (root / "p").mkdir()
    half = len(rows) // 2
    pq.write_table(table(rows[:half]), root / "p" / "a.parquet", row_group_size=7)
    pq.write_table(table(rows[half:], "ns"), root / "p" / "b.parquet")
    return ParquetFiles("p", event_time="event_time", created_time="created_time")


def write_csv(root: Path, rows: list[Row]) -> Location:
    whole = table(rows)
    whole = whole.set_column(4, "seen", whole["seen"].cast(pa.int64()))
    times = pa.array([iso(row["event_time"]) for row in rows])
    whole = whole.set_column(5, "event_time", times)
    pa_csv.write_csv(whole, root / "rows.csv")
    return CsvFiles("rows.csv", event_time="event_time", created_time="created_time")


def write_json(root: Path, rows: list[Row]) -> Location:
    (root / "j").mkdir()
    for number in range(2):
        part = rows[number * len(rows) // 2 : (number + 1) * len(rows) // 2]
        lines = []
        for row in part:
            given = {n: row[n] for n in [*NAMES, "created_time"] if row[n] is not None}
            given |= {"seen": iso(row["seen"]), "event_time": iso(row["event_time"]), "more": [1]}
            # JSON has no infinity that everybody reads.
            if math.isinf(float(given.get("amount", 0.0))):
                row["amount"] = given["amount"] = 5.0
            lines.append(json.dumps(given))
        (root / "j" / f"{number}.jsonl").write_text("\n".join(lines))
    return JsonFiles("j", event_time="event_time", created_time="created_time")


def write_duckdb(root: Path, rows: list[Row]) -> Location:
    arrow = table(rows)
    with duckdb.connect(str(root / "x.duckdb")) as connection:
        connection.register("given", arrow)
        connection.execute("CREATE TABLE main.paid AS SELECT * FROM given")
    return SqlTable("x.duckdb", "main.paid", event_time="event_time", created_time="created_time")


def write_view(root: Path, rows: list[Row]) -> Location:
    write_parquet(root, rows)
    query = "SELECT * FROM 'p/*.parquet';"
    return SqlTable(query=query, event_time="event_time", created_time="created_time")


WRITERS = [write_parquet, write_csv, write_json, write_duckdb, write_view]


def same(found: list[Row], rows: list[Row]) -> None:
    # NaN is not equal to itself, and -0.0 equals 0.0: their text tells.
    assert [list(map(repr, row.items())) for row in found] == [
        list(map(repr, row.items())) for row in rows
    ]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("seed", range(3))
def test_every_location_gives_the_rows_as_they_are(
    tmp_path: Path, write: Callable[[Path, list[Row]], Location], seed: int
) -> None:
    rows = some_rows(random.Random(seed), 40)
    location = write(tmp_path, rows)
    same(read(tmp_path, location), rows)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("seed", range(3))
def test_reach_leaves_out_the_rows_beyond_it(
    tmp_path: Path, write: Callable[[Path, list[Row]], Location], seed: int
) -> None:
    rng = random.Random(seed)
    rows = some_rows(rng, 40)
    location = write(tmp_path, rows)
    for _ in range(6):
        low, high = sorted(rng.choice(rows)["event_time"] for _ in range(2))
        kept = [row for row in rows if low <= row["event_time"] <= high]
        expected = [row | {"sequence": i} for i, row in enumerate(kept)]
        same(read(tmp_path, location, Reach(low, high)), expected)
    assert read(tmp_path, location, Reach(0, -1)) == []


def test_columns_may_be_called_otherwise_and_others_are_not_read(tmp_path: Path) -> None:
    written = pa.table(
        {"cust": [1], "amount": [0.5], "ts": [7], "big": pa.array([[1]]), "ok": [True]}
    )
    pq.write_table(written.rename_columns(["cust", "amount", "ts", "name", "ok"]), tmp_path / "a")
    location = ParquetFiles("a", event_time="ts", columns={"id": "cust"})
    store = OfflineStore(tmp_path, tmp_path)
    # `name` holds lists, which are no text: it is not looked at unless it is asked for.
    assert store.rows(source(location), ["id"]).to_pylist() == [
        {"id": 1, "event_time": 7, "created_time": 7, "sequence": 0}
    ]
    with pytest.raises(InvalidArgumentError, match="'name' has a wrong type"):
        store.rows(source(location), ["name"])


def test_a_created_time_that_is_null_is_the_event_time(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2], "t": [5, 6], "c": [None, 9]}), tmp_path / "a")
    location = ParquetFiles("a", event_time="t", created_time="c")
    found = OfflineStore(tmp_path, tmp_path).rows(source(location), ["id"])
    assert found["created_time"].to_pylist() == [5, 9]


def test_folders_of_days_nobody_asks_for_are_not_opened(tmp_path: Path) -> None:
    for day in range(1, 9):
        folder = tmp_path / "p" / f"date=2026-01-0{day}" / "region=e%20u"
        folder.mkdir(parents=True)
        noon_us = DAY_2026_US + (day - 1) * DAY_US + DAY_US // 2
        pq.write_table(pa.table({"id": [day], "t": [noon_us]}), folder / "x.parquet")
    (tmp_path / "p" / "date=2026-01-08" / "region=e%20u" / "x.parquet").write_bytes(b"broken")
    (tmp_path / "p" / "_SUCCESS.parquet").write_bytes(b"")
    files = ParquetFiles("p", event_time="t", event_date="date", columns={"name": "region"})
    store = OfflineStore(tmp_path, tmp_path)
    reach = Reach(DAY_2026_US + 2 * DAY_US, DAY_2026_US + 4 * DAY_US)
    found = store.rows(source(files), ["id", "name"], reach)
    assert found["id"].to_pylist() == [3, 4]
    assert found["name"].to_pylist() == ["e u", "e u"]
    with pytest.raises(FailedPreconditionError, match=r"date=2026-01-08/region=e%20u/x\.parquet"):
        store.rows(source(files), ["id"])


def test_a_row_in_the_folder_of_another_day_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "p" / "date=2026-01-04"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"id": [1], "t": [DAY_2026_US]}), folder / "x.parquet")
    files = ParquetFiles("p", event_time="t", event_date="date")
    with pytest.raises(InvalidArgumentError, match="another day than its folder"):
        OfflineStore(tmp_path, tmp_path).rows(source(files), ["id"])
    (folder.parent / "date=soon").mkdir()
    (folder / "x.parquet").rename(folder.parent / "date=soon" / "x.parquet")
    with pytest.raises(InvalidArgumentError, match="is in no folder of a day"):
        OfflineStore(tmp_path, tmp_path).rows(source(files), ["id"])


LOCAL = ["2026-10-25T02:30:00", "2026-10-25T03:30:00", "2026-03-29T01:59:59", "1890-01-01"]
UTC_US = [
    to_us(datetime(2026, 10, 25, 1, 30, tzinfo=UTC)),  # the later of two
    to_us(datetime(2026, 10, 25, 2, 30, tzinfo=UTC)),
    to_us(datetime(2026, 3, 29, 0, 59, 59, tzinfo=UTC)),
    to_us(datetime(1889, 12, 31, 23, 6, 32, tzinfo=UTC)),  # the sun's time
]


def write_local(root: Path, kind: str, times: list[str]) -> Location:
    columns = {"id": list(range(len(times))), "t": times}
    naive = pa.array(times).cast(pa.timestamp("us"))
    zone = "Europe/Berlin"
    if kind == "csv":
        pa_csv.write_csv(pa.table(columns), root / "a")
        return CsvFiles("a", event_time="t", time_zone=zone)
    if kind == "parquet":
        pq.write_table(pa.table(columns | {"t": naive.cast(pa.timestamp("ms"))}), root / "a")
        return ParquetFiles("a", event_time="t", time_zone=zone)
    if kind == "json":
        lines = [json.dumps({"id": i, "t": text}) for i, text in enumerate(times)]
        (root / "a").write_text("\n".join(lines))
        return JsonFiles("a", event_time="t", time_zone=zone)
    with duckdb.connect(str(root / "a")) as connection:
        connection.register("given", pa.table(columns | {"t": naive}))
        connection.execute("CREATE TABLE x AS FROM given")
    return SqlTable("a", "x", event_time="t", time_zone=zone)


KINDS = ["csv", "parquet", "json", "duckdb"]


@pytest.mark.parametrize("kind", KINDS)
def test_local_times_are_of_the_zone_and_the_later_of_two(tmp_path: Path, kind: str) -> None:
    location = write_local(tmp_path, kind, LOCAL)
    store = OfflineStore(tmp_path, tmp_path)
    assert store.rows(source(location), ["id"])["event_time"].to_pylist() == UTC_US
    for t in UTC_US:
        found = store.rows(source(location), ["id"], Reach(t, t))
        assert found["event_time"].to_pylist() == [t]


@pytest.mark.parametrize("kind", KINDS)
def test_a_local_time_that_a_clock_change_skips_is_refused(tmp_path: Path, kind: str) -> None:
    location = write_local(tmp_path, kind, [*LOCAL, "2026-03-29T02:30:00"])
    with pytest.raises(InvalidArgumentError, match=r"'t' holds a local time.*skips.*02:30:00"):
        OfflineStore(tmp_path, tmp_path).rows(source(location), ["id"])


@pytest.mark.parametrize("kind", KINDS)
def test_times_without_a_zone_are_refused_unless_it_is_said(tmp_path: Path, kind: str) -> None:
    location = write_local(tmp_path, kind, LOCAL)
    object.__setattr__(location, "time_zone", None)
    with pytest.raises(InvalidArgumentError, match=r"'t' has times without a time zone.*'UTC'"):
        OfflineStore(tmp_path, tmp_path).rows(source(location), ["id"])


def test_times_finer_than_a_microsecond_are_cut_to_the_earlier_one(tmp_path: Path) -> None:
    ticks = [-1, -1000, -1001, 1999]
    nanos = pa.array(ticks).cast(pa.timestamp("ns", "UTC"))
    pq.write_table(pa.table({"id": ticks, "t": nanos}), tmp_path / "a")
    texts = ["1969-12-31T23:59:59.999999999Z", "1970-01-01T00:00:00.0000019+00:00"]
    pa_csv.write_csv(pa.table({"id": [1, 2], "t": texts}), tmp_path / "b")
    store = OfflineStore(tmp_path, tmp_path)
    found = store.rows(source(ParquetFiles("a", event_time="t")), ["id"])
    assert found["event_time"].to_pylist() == [-1, -1, -2, 1]
    found = store.rows(source(CsvFiles("b", event_time="t")), ["id"])
    assert found["event_time"].to_pylist() == [-1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,t\n1.5,7", "'a' of the history cannot be read.*int64.*1.5"),
        ("id,t\n9223372036854775808,7", "cannot be read.*9223372036854775808"),
        ("id,t\n1,yesterday", "'t' holds what is no time.*yesterday"),
        ("id,t\n1,", "'t' holds a null"),
        ("ids,t\n1,7", "'id' is missing in file 'a'.*did you mean 'ids'"),
    ],
)
def test_csv_that_does_not_fit_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a").write_text(text)
    store = OfflineStore(tmp_path, tmp_path)
    with pytest.raises(HeadraceError, match=message) as caught:
        store.rows(source(CsvFiles("a", event_time="t")), ["id"])
    assert str(tmp_path) not in str(caught.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    store = OfflineStore(tmp_path, tmp_path)
    with pytest.raises(NotFoundError, match=r"ParquetFiles\('p'\): there is no file"):
        store.rows(source(ParquetFiles("p", event_time="t")), ["id"])
    with pytest.raises(NotFoundError, match=r"there is no database 'x\.duckdb'"):
        store.rows(source(SqlTable("x.duckdb", "t", event_time="t")), ["id"])
    with duckdb.connect(str(tmp_path / "x.duckdb")) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS ids, 7::BIGINT AS t")
    with pytest.raises(InvalidArgumentError, match=r"'id' is missing.*did you mean 'ids'"):
        store.rows(source(SqlTable("x.duckdb", "t", event_time="t")), ["id"])
    with pytest.raises(FailedPreconditionError, match="DuckDB cannot read it") as caught:
        store.rows(source(SqlTable("x.duckdb", "u", event_time="t")), ["id"])
    assert str(tmp_path) not in str(caught.value)
    location = ParquetFiles("p", event_time="t")
    with pytest.raises(FailedPreconditionError, match="below which folder is not said"):
        OfflineStore(tmp_path).rows(source(location), ["id"])


def test_a_sum_of_sql_is_an_integer(tmp_path: Path) -> None:
    query = f"SELECT sum(x) AS id, 7::BIGINT AS t FROM (VALUES ({BIG}), (1)) v(x)"
    found = OfflineStore(tmp_path, tmp_path).rows(
        source(SqlTable(query=query, event_time="t")), ["id"]
    )
    assert found["id"].to_pylist() == [BIG + 1]


def test_a_name_in_sql_never_means_a_variable_of_this_process(tmp_path: Path) -> None:
    secret = pa.table({"id": [1], "t": [7]})
    assert secret.num_rows
    with pytest.raises(FailedPreconditionError, match="secret"):
        OfflineStore(tmp_path, tmp_path).rows(
            source(SqlTable(table="secret", event_time="t")), ["id"]
        )


def test_sqlite_is_read_by_an_extension_that_is_there_or_is_asked_for(tmp_path: Path) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / "x.db") as connection:
        connection.execute("CREATE TABLE p (id INTEGER, t INTEGER)")
        connection.execute("INSERT INTO p VALUES (1, 7)")
    connection.close()
    location = SqlTable("x.db", "p", event_time="t")
    store = OfflineStore(tmp_path, tmp_path)
    with duckdb.connect() as connection:
        connection.execute("SET autoinstall_known_extensions = false")
        try:
            connection.execute("LOAD sqlite")
        except duckdb.Error:
            with pytest.raises(FailedPreconditionError, match="extension 'sqlite', which is not"):
                store.rows(source(location), ["id"])
            return
    assert store.rows(source(location), ["id"])["id"].to_pylist() == [1]


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", "a\0b", 7])
def test_a_location_stays_below_its_folder(path: str) -> None:
    with pytest.raises(InvalidArgumentError, match="path that is not usable"):
        ParquetFiles(path, event_time="t")
    if path:
        with pytest.raises(InvalidArgumentError, match="path that is not usable"):
            SqlTable(path, "t", event_time="t")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SqlTable("x", event_time="t"), "a table or a query is needed"),
        (lambda: SqlTable("x", "t", "SELECT 1", event_time="t"), "not both"),
        (lambda: CsvFiles("x", event_time=""), "event_time must name a column"),
        (lambda: CsvFiles("x", event_time="t", time_zone="Mars/X"), "unknown time zone 'Mars/X'"),
        (lambda: source("x"), "history is no location"),
        (lambda: source(CsvFiles("x", event_time="t", columns={"ids": "x"})), "'ids'.*mean 'id'"),
        (
            lambda: source(CsvFiles("x", event_time="t", columns={"event_time": "x"})),
            "say event_time='…' instead",
        ),
    ],
)
def test_a_mistake_in_a_location_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        make()


def test_where_history_lies_is_no_part_of_what_a_view_means() -> None:
    assert (
        source(ParquetFiles("a", event_time="t")).meaning()
        == EventSource("payments", FIELDS).meaning()
    )


def test_a_large_file_is_read_in_parts(tmp_path: Path) -> None:
    rows = 700_000
    whole = pa.table({"id": np.arange(rows), "t": np.arange(rows)})
    pq.write_table(whole, tmp_path / "a", row_group_size=rows)
    pa_csv.write_csv(whole, tmp_path / "b")
    store = OfflineStore(tmp_path, tmp_path)
    for location in (ParquetFiles("a", event_time="t"), CsvFiles("b", event_time="t")):
        sizes = [part.num_rows for part in store.batches(source(location), ["id"])]
        assert sum(sizes) == rows
        assert max(sizes) < rows
