"""Materializing into a real store: what has arrived is in the event log, each row once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from features.ingest.ingester import Ingester
from features.materialize import Materialized, Materializer
from features.offline import OfflineStore, get_historical_features
from features.online.event_log import EventLog
from features.online.keys import CHECKPOINT, EVENTS, Checkpoint
from features.online.payload import EventBatch
from features.online.reader import ServiceReader
from features.online.store import OnlineStore
from features.types import Column
from headrace.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from tests.support.clicks import (
    DAY_US,
    NOON_US,
    NOW_US,
    add_orders,
    clicks,
    definitions,
    pushed_rows,
    rows_of,
    write_clicks,
)
from tests.support.cutting_proxy import cutting_proxy
from tests.support.valkey import LiveValkey, free_port

DEFINITIONS = definitions()


async def run(url: str, project: Path, name: str, **options: object) -> Materialized:
    store = OnlineStore(url)
    try:
        materializer = Materializer(store, DEFINITIONS, project, **options)  # type: ignore[arg-type]
        return await materializer.run(name, NOW_US)
    finally:
        await store.close()


async def in_log(url: str, name: str) -> Counter[tuple[object, ...]]:
    store = OnlineStore(url)
    try:
        return (await pushed_rows(store)).get(name, Counter())
    finally:
        await store.close()


async def test_files_that_are_new_are_pushed_and_others_are_not(
    valkey: LiveValkey, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    one, two = clicks(rng, 5000), clicks(rng, 100)
    write_clicks(tmp_path, "b.parquet", one)
    assert await run(valkey.url, tmp_path, "clicks") == ("clicks", 5000, 5000)
    assert await in_log(valkey.url, "clicks") == rows_of(one)
    assert await run(valkey.url, tmp_path, "clicks") == ("clicks", 0, 0)
    # By arrival: a file whose events are older and whose name comes first.
    write_clicks(tmp_path, "a.parquet", two)
    assert await run(valkey.url, tmp_path, "clicks") == ("clicks", 100, 100)
    assert await in_log(valkey.url, "clicks") == rows_of(one) + rows_of(two)
    # Another time, the same rows.
    os.utime(tmp_path / "clicks" / "a.parquet", ns=(1, 1))
    assert await run(valkey.url, tmp_path, "clicks") == ("clicks", 100, 0)
    assert await in_log(valkey.url, "clicks") == rows_of(one) + rows_of(two)


async def test_of_a_file_that_grows_the_new_rows_are_pushed(
    valkey: LiveValkey, tmp_path: Path
) -> None:
    file = tmp_path / "notes.csv"
    lines = ["user_id,page,weight,at", *(f"{i},p,{i}.5,{NOON_US + i}" for i in range(4000))]
    for count in (3, 3, 2500, 2501, 4001):
        file.write_text("\n".join(lines[:count]) + "\n")
        await run(valkey.url, tmp_path, "notes")
        expected = {(i, "p", i + 0.5, NOON_US + i, NOON_US + i): 1 for i in range(count - 1)}
        assert await in_log(valkey.url, "notes") == expected


@pytest.mark.parametrize("change", ["value", "order", "fewer"])
async def test_a_file_that_was_changed_is_refused_by_name(
    valkey: LiveValkey, tmp_path: Path, change: str
) -> None:
    table = clicks(np.random.default_rng(2), 50)
    write_clicks(tmp_path, "a.parquet", table)
    await run(valkey.url, tmp_path, "clicks")
    changed = {
        "value": table.set_column(4, "loaded", pa.array(table["loaded"].to_numpy() + 1)),
        "order": table.take(list(range(50))[::-1]),
        "fewer": table[:49],
    }[change]
    write_clicks(tmp_path, "a.parquet", changed)
    with pytest.raises(FailedPreconditionError, match=r"file 'clicks/a\.parquet' was changed"):
        await run(valkey.url, tmp_path, "clicks")
    assert await in_log(valkey.url, "clicks") == rows_of(table)


async def test_of_a_table_late_rows_and_twins_are_each_pushed_once(
    valkey: LiveValkey, tmp_path: Path
) -> None:
    first = [(1, 100, NOON_US, NOON_US), (1, 100, NOON_US, NOON_US), (2, 7, NOON_US, NOON_US + 5)]
    add_orders(tmp_path, first)
    assert await run(valkey.url, tmp_path, "orders") == ("orders", 3, 3)
    assert await run(valkey.url, tmp_path, "orders") == ("orders", 3, 0)
    # A third twin, a row committed late, an event of long ago that became known now, one of later.
    late = [
        (1, 100, NOON_US, NOON_US),
        (3, 9, NOON_US, NOON_US + 4),
        (4, 1, NOON_US - 99 * DAY_US, NOON_US + 6),
        (5, 1, NOON_US, NOW_US + 1),
    ]
    add_orders(tmp_path, late)
    assert await run(valkey.url, tmp_path, "orders") == ("orders", 6, 3)
    assert await run(valkey.url, tmp_path, "orders") == ("orders", 6, 0)
    assert await in_log(valkey.url, "orders") == Counter([*first, *late[:3]])


async def test_what_is_forgotten_is_not_pushed_again(valkey: LiveValkey, tmp_path: Path) -> None:
    rows = [(i, i, NOON_US, NOON_US + i) for i in range(100)]
    add_orders(tmp_path, rows)
    await run(valkey.url, tmp_path, "orders", lookback_us=10)
    store = OnlineStore(valkey.url)
    assert await store.execute("ZCARD", "hr:fed:rows:orders") == 11
    await store.close()
    # A longer look back than rows are remembered for does not double them.
    assert (await run(valkey.url, tmp_path, "orders", lookback_us=DAY_US)).pushed == 0
    add_orders(tmp_path, [(1, 2, NOON_US, NOON_US + 95)])
    assert (await run(valkey.url, tmp_path, "orders", lookback_us=10)).pushed == 1
    assert len(await in_log(valkey.url, "orders")) == 101


@pytest.mark.parametrize("seed", range(3))
async def test_a_table_that_grows_at_random_is_pushed_whole(
    valkey: LiveValkey, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    added: Counter[tuple[int, int, int, int]] = Counter()
    newest = 0
    for _ in range(5):
        rows = []
        for _ in range(rng.randrange(40)):
            # As late as the look back allows, and the same rows again and again.
            newest = max(newest, newest + rng.randrange(-1, 3))
            created = NOON_US + max(newest - rng.randrange(6), 0)
            rows.append((rng.randrange(2), rng.randrange(2), NOON_US, created))
        add_orders(tmp_path, rows)
        added.update(rows)
        await run(valkey.url, tmp_path, "orders", lookback_us=1000)
        assert await in_log(valkey.url, "orders") == added


@pytest.mark.slow
async def test_replies_that_are_lost_double_nothing(valkey: LiveValkey, tmp_path: Path) -> None:
    table = clicks(np.random.default_rng(3), 20_000)
    write_clicks(tmp_path, "a.parquet", table)
    add_orders(tmp_path, [(i, i, NOON_US, NOON_US + i % 7) for i in range(5000)])
    async with cutting_proxy(valkey.port) as proxy:
        proxy.cut = lambda call: call % 2 == 0
        await run(proxy.url, tmp_path, "clicks")
        await run(proxy.url, tmp_path, "orders")
        assert proxy.cuts >= 4
    assert await in_log(valkey.url, "clicks") == rows_of(table)
    assert sum((await in_log(valkey.url, "orders")).values()) == 5000


@pytest.mark.slow
async def test_cancelled_at_any_await_it_doubles_nothing(
    valkey: LiveValkey, tmp_path: Path
) -> None:
    table = clicks(np.random.default_rng(4), 9000)
    write_clicks(tmp_path, "a.parquet", table)
    add_orders(tmp_path, [(i, i, NOON_US, NOON_US + i % 7) for i in range(5000)])
    for name in ("clicks", "orders"):
        lives = 0
        while True:
            lives += 1
            life = asyncio.create_task(run(valkey.url, tmp_path, name))
            # So many turns of the loop: each life ends at another await.
            for _ in range(3 * lives):
                await asyncio.sleep(0.0005)
                if life.done():
                    break
            life.cancel()
            (ended,) = await asyncio.gather(life, return_exceptions=True)
            if isinstance(ended, Materialized):
                break
            assert isinstance(ended, asyncio.CancelledError), ended
        assert lives > 2
    assert await in_log(valkey.url, "clicks") == rows_of(table)
    assert sum((await in_log(valkey.url, "orders")).values()) == 5000


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_killed_again_and_again_it_leaves_each_row_once(
    valkey: LiveValkey, tmp_path: Path
) -> None:
    rng = np.random.default_rng(5)
    tables = [clicks(rng, 60_000) for _ in range(3)]
    for number, table in enumerate(tables):
        write_clicks(tmp_path, f"{number}.parquet", table)
    notes = "\n".join(f"{i % 7},p,{i}.5,{NOON_US + i}" for i in range(60_000))
    (tmp_path / "notes.csv").write_text(f"user_id,page,weight,at\n{notes}\n")
    orders = [(i, i, NOON_US, NOON_US + i % 977) for i in range(30_000)]
    add_orders(tmp_path, [])
    insert_many(tmp_path, orders)
    chance = random.Random(6)
    store = OnlineStore(valkey.url)
    killed_at = []
    while True:
        before = await store.execute("XLEN", EVENTS)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.materialize_process", valkey.url, str(tmp_path)
        )
        deadline_s = time.monotonic() + 60
        while process.returncode is None and await store.execute("XLEN", EVENTS) == before:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.002)
        if len(killed_at) < 6:
            # Somewhere in the middle of its work: soon after the first push of this life.
            await asyncio.sleep(chance.random() * 0.15)
            if process.returncode is None:
                process.kill()
        code = await process.wait()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed_at.append(await store.execute("XLEN", EVENTS))
    assert len(set(killed_at)) >= 5, killed_at
    expected = sum((rows_of(table) for table in tables), Counter())
    found = await pushed_rows(store)
    assert found["clicks"] == expected
    assert found["orders"] == Counter(orders)
    assert sum(found["notes"].values()) == len(found["notes"]) == 60_000
    await store.close()


def insert_many(project: Path, rows: list[tuple[int, int, int, int]]) -> None:
    import duckdb

    table = pa.table(
        dict(zip(["u", "c", "a", "l"], map(list, zip(*rows, strict=True)), strict=True))
    )
    with duckdb.connect(str(project / "shop.duckdb")) as connection:
        connection.register("given", table)
        connection.execute("INSERT INTO orders SELECT u, c, a, make_timestamptz(l) FROM given")


async def test_two_at_once_double_nothing(valkey: LiveValkey, tmp_path: Path) -> None:
    table = clicks(np.random.default_rng(7), 30_000)
    write_clicks(tmp_path, "a.parquet", table)
    both = await asyncio.gather(
        *(run(valkey.url, tmp_path, "clicks") for _ in range(2)), return_exceptions=True
    )
    assert any(isinstance(one, Materialized) for one in both)
    for one in both:
        assert isinstance(one, Materialized) or "another materialize" in str(one)
    await run(valkey.url, tmp_path, "clicks")
    assert await in_log(valkey.url, "clicks") == rows_of(table)


async def test_it_waits_for_the_ingester_and_gives_up_when_nothing_moves(
    valkey: LiveValkey, tmp_path: Path
) -> None:
    table = clicks(np.random.default_rng(8), 9000)
    write_clicks(tmp_path, "a.parquet", table)
    small = {"backlog_bytes_max": 200_000, "patience_s": 0.2}
    with pytest.raises(ResourceExhaustedError, match=r"the ingester makes no headway.*it runs"):
        await run(valkey.url, tmp_path, "clicks", **small)
    ids = {name: number for number, name in enumerate(DEFINITIONS.stored_views, 1)}
    store = OnlineStore(valkey.url)
    ingester = Ingester(DEFINITIONS, ids, store, 1)
    task = asyncio.create_task(ingester.run())
    await run(valkey.url, tmp_path, "clicks", backlog_bytes_max=200_000, patience_s=30.0)
    async with asyncio.timeout(30):
        while ingester.counters.events < table.num_rows:
            await store.execute("PING")
    assert ingester.counters.events == table.num_rows
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.close()


async def test_what_is_served_is_what_history_gives(valkey: LiveValkey, tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    for number in range(3):
        write_clicks(tmp_path, f"{number}.parquet", clicks(rng, 700))
    add_orders(tmp_path, [(i % 9, i, NOON_US + i, NOON_US + i) for i in range(40)])
    for name in ("clicks", "orders"):
        await run(valkey.url, tmp_path, name)
    ids = {name: number for number, name in enumerate(DEFINITIONS.stored_views, 1)}
    store = OnlineStore(valkey.url)
    task = asyncio.create_task(Ingester(DEFINITIONS, ids, store, 1).run())
    async with asyncio.timeout(60):
        while await store.execute("XLEN", EVENTS):
            pass
    assert Checkpoint.decode(await store.execute("GET", CHECKPOINT)).sequence == 2140
    service = DEFINITIONS.service("clicked")
    # After all that was created, as far as windows and the TTL reach back.
    t_us = NOON_US + 6 * DAY_US
    users = np.arange(22)
    reader = ServiceReader(service, store, ids)
    online = await reader.read(
        {"user_id": Column(users)},
        np.full(22, t_us),
        None,
        time.monotonic_ns() + 10**10,
        time.monotonic_ns,
    )
    spine = pa.table({"user_id": users, "event_time": np.full(22, t_us)})
    offline = OfflineStore(tmp_path / "none", tmp_path)
    assert online.pack() == get_historical_features(spine, service, offline).pack()
    assert not np.isnan(online.matrix()).all()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.close()


async def test_what_is_wrong_is_named(valkey: LiveValkey, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="'pushed'"):
        await run(valkey.url, tmp_path, "pushed")
    add_orders(tmp_path, [(1, 1, NOON_US, NOON_US)])
    (tmp_path / "notes.csv").write_text(f"user_id,page,weight,at\n1,p,0.5,{1 << 62}\n")
    with pytest.raises(InvalidArgumentError, match=r"source 'notes'.*no time in row 0"):
        await run(valkey.url, tmp_path, "notes")
    with pytest.raises(UnavailableError):
        await run(f"redis://127.0.0.1:{free_port()}", tmp_path, "orders", patience_s=0.1)
    assert await in_log(valkey.url, "notes") == Counter()


async def test_a_push_to_a_located_source_is_refused(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    columns = {"user_id": Column(np.array([1])), "cents": Column(np.array([1]))}
    with pytest.raises(FailedPreconditionError, match="headrace features materialize orders"):
        await EventLog(store, DEFINITIONS).push(
            [EventBatch("orders", columns, np.array([NOON_US]))]
        )
    assert await store.execute("XLEN", EVENTS) == 0
    await store.close()
