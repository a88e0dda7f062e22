"""Filling views from history: a year of events behind a stream that goes on, each counted once."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from features import Column, Definitions, FeatureBatch, definitions_from_source
from features.definitions import StreamFeatureView
from features.ingest.archiver import Archiver
from features.ingest.ingester import Ingester
from features.offline import OfflineStore, get_historical_features
from features.offline.archive import Archive
from features.online.event_log import EventLog
from features.online.keys import CATALOG, CHECKPOINT, FILLS, LOG_START, Checkpoint, parse_log_start
from features.online.payload import EventBatch
from features.online.reader import ServiceReader
from features.online.store import OnlineStore
from headrace.errors import FailedPreconditionError
from tests.features import oracle
from tests.features.oracle import Event
from tests.support.valkey import LiveValkey

SOURCE = b"""
from features import (
    Aggregation, Entity, EventSource, FeatureService, FeatureView, Field, Float64, Int64,
    LifetimeWindow, SessionWindow, StreamFeatureView, String, TumblingWindow, Where, Window,
)

user = Entity("user", ["user"])
payments = EventSource("payments", [
    Field("user", Int64), Field("amount", Float64), Field("items", Int64), Field("shop", String),
])
hours = StreamFeatureView("hours", user, payments, [
    Aggregation(None, ["count"], [Window("1h", hop="5min")]),
])
was = FeatureService("was", 1, [hours])
"""
MORE = b"""
year = StreamFeatureView("year", user, payments, [
    Aggregation("amount", ["sum", "mean", "min", "max"], [
        Window("365d", hop="1d"), Window("7d", hop="1h"),
    ]),
    Aggregation("items", ["sum", "count"], [Window("365d", hop="1d")]),
])
ways = StreamFeatureView("ways", user, payments, [
    Aggregation("amount", ["sum", "count"], [
        LifetimeWindow(), TumblingWindow("7d", previous=True),
    ], where=Where("shop", "==", "shop 3"), label="threes"),
    Aggregation("items", ["sum"], [SessionWindow("1d", max_length="28d")]),
])
last = FeatureView("last", user, payments, ["shop", "amount", "items"], "30d")
now = FeatureService("now", 1, [hours, year, ways, last["amount", "items"]])
"""
BEFORE = definitions_from_source(SOURCE)
AFTER = definitions_from_source(SOURCE + MORE)
IDS = {"hours": 3, "year": 4, "ways": 6, "last": 5}
NEW = ["year", "ways", "last"]
DAY_US = 86_400_000_000
BEGIN_US = 1_700_000_000_000_000
USERS = 5


class World:
    """The events so far, as the oracle sees them, and a log that gets more."""

    def __init__(self, url: str, root: Path, seed: int) -> None:
        self.store = OnlineStore(url)
        self.archive = Archive(root)
        self.log = EventLog(self.store, AFTER)
        self.rng = np.random.default_rng(seed)
        self.events: list[tuple[int, Event]] = []
        self.now_us = BEGIN_US
        self.offset = ""

    def batch(self, count: int, step_us: int) -> EventBatch:
        """Events that go on from the last, some late, some without values."""
        users = self.rng.integers(0, USERS, count)
        created = self.now_us + step_us * np.arange(1, count + 1)
        late = self.rng.choice([0, 0, 0, DAY_US // 24, 3 * DAY_US], count)
        amounts = np.round(self.rng.normal(20.0, 9.0, count), 2)
        items = self.rng.integers(0, 9, count)
        there = self.rng.random(count) > 0.1
        shops = np.empty(count, object)
        shops[:] = [f"shop {i % 7}" for i in range(count)]
        first = len(self.events)
        for i in range(count):
            values = {"amount": float(amounts[i]) if there[i] else None, "items": int(items[i])}
            times = (int(created[i] - late[i]), int(created[i]))
            self.events.append((int(users[i]), Event(*times, first + i, values)))
        self.now_us = int(created[-1])
        columns = {
            "user": Column(users),
            "amount": Column(amounts, there),
            "items": Column(items),
            "shop": Column(shops),
        }
        return EventBatch("payments", columns, created - late, created)

    async def push(self, count: int, step_us: int) -> None:
        self.offset = await self.log.push([self.batch(count, step_us)])

    def ingester(self, definitions: Definitions, epoch: int) -> Ingester:
        ids = {name: IDS[name] for name in definitions.stored_views}
        return Ingester(definitions, ids, self.store, epoch, archive=self.archive)

    async def archived(self) -> None:
        """Run an ingester and an archiver of the views before until all is history."""
        ingester = self.ingester(BEFORE, 1)
        archiver = Archiver(self.store, self.archive, 1, interval_s=0.0)
        tasks = [asyncio.create_task(ingester.run()), asyncio.create_task(archiver.run())]
        async with asyncio.timeout(30):
            while True:
                value = await self.store.execute("GET", LOG_START)
                if value is not None and str(parse_log_start(value)[0]) == self.offset:
                    break
                await asyncio.sleep(0.01)
        await ended(tasks)

    async def read(self) -> FeatureBatch:
        reader = ServiceReader(AFTER.service("now"), self.store, IDS)
        users = np.arange(USERS)
        deadline_ns = time.monotonic_ns() + 20_000_000_000
        times = np.full(USERS, self.now_us + 1)
        return await reader.read(
            {"user": Column(users)}, times, self.offset, deadline_ns, time.monotonic_ns
        )

    def check(self, served: FeatureBatch) -> None:
        """Every feature of every user is what the oracle says of all events."""
        view = AFTER.stored_views["year"]
        assert isinstance(view, StreamFeatureView)
        t_us = self.now_us + 1
        for user in range(USERS):
            events = [event for each, event in self.events if each == user]
            expected = oracle.windows(view, events, t_us)
            for (name, _), value in zip(view.feature_dtypes.items(), expected, strict=True):
                column = served.service.column_index(f"year:{name}")
                assert served.status[user, column] == (1 if value is None else 0), name
                if value is not None:
                    assert served.words[user, column] == oracle.word(value), (user, name, value)
            last = oracle.last_known(events, t_us, 30 * DAY_US)
            column = served.service.column_index("last:items")
            assert isinstance(last, Event)
            assert served.words[user, column] == last.values["items"]


async def ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def catalog(store: OnlineStore) -> dict[bytes, int]:
    reply = await store.execute("HGETALL", CATALOG)
    return {key: int(value) for key, value in zip(reply[::2], reply[1::2], strict=True)}


def entry(name: str) -> bytes:
    return AFTER.stored_views[name].hash.encode()


async def taken_over(ingester: Ingester) -> asyncio.Task[None]:
    done = asyncio.Event()
    task = asyncio.create_task(ingester.run(done))
    await asyncio.wait_for(done.wait(), 20)
    return task


async def filled(ingester: Ingester, *names: str) -> None:
    async with asyncio.timeout(60):
        while ingester.fills.keys() & set(names):  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.005)


async def test_a_year_is_filled_behind_a_stream_that_goes_on(
    valkey: LiveValkey, tmp_path: Path
) -> None:
    world = World(valkey.url, tmp_path, 1)
    # Some of it was loaded as a whole, the rest has come by the stream.
    loaded = world.batch(700, DAY_US // 4)
    table = {name: column.values for name, column in loaded.columns.items()}
    amounts = loaded.columns["amount"]
    table["amount"] = pa.array(amounts.values, mask=~amounts.mask)
    times = {"event_time": loaded.event_times_us, "created_time": loaded.created_times_us}
    OfflineStore(tmp_path).append("payments", pa.table({**table, **times}))
    for _ in range(8):
        await world.push(900, DAY_US // 40)
    await world.archived()

    ingester = world.ingester(AFTER, 2)
    task = await taken_over(ingester)
    archiver = Archiver(world.store, world.archive, 2, interval_s=0.02)
    archiving = asyncio.create_task(archiver.run())
    # What was there from the beginning lacks only what was loaded.
    assert {name: mark.cut for name, mark in ingester.fills.items()} == {
        "hours": 0,
        **dict.fromkeys(NEW, 7200),
    }
    # Not served yet: it would be a wrong count.
    assert not await catalog(world.store)
    await world.push(50, 1_000_000)
    ingester.fill(["hours", *NEW])
    for _ in range(30):
        await world.push(40, 1_000_000)
    await filled(ingester, "hours", *NEW)
    await world.push(3, 1_000_000)
    assert (await catalog(world.store)).keys() >= {entry("year"), entry("last")}
    assert await world.store.execute("HGETALL", FILLS) == []
    served = await world.read()
    world.check(served)
    assert ingester.counters.filled == 4 * 700 + 3 * 8 * 900
    # And it is what history says, to the bit.
    spine = pa.table({"user": np.arange(USERS), "event_time": np.full(USERS, world.now_us + 1)})
    async with asyncio.timeout(20):
        while archiver.counters.events < len(world.events) - 700 - 8 * 900:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    offline = get_historical_features(spine, AFTER.service("now"), OfflineStore(tmp_path))
    np.testing.assert_array_equal(served.words, offline.words)
    np.testing.assert_array_equal(served.status, offline.status)
    await ended([task, archiving])
    await world.store.close()


@pytest.mark.parametrize("seed", range(3))
async def test_stopped_at_any_await_it_fills_each_event_once(
    valkey: LiveValkey, tmp_path: Path, seed: int
) -> None:
    world = World(valkey.url, tmp_path, seed)
    for _ in range(8):
        await world.push(900, DAY_US // 40)
    await world.archived()
    first = world.ingester(AFTER, 2)
    task = await taken_over(first)
    first.fill(NEW)
    async with asyncio.timeout(20):
        while not all(mark.state == "runs" for mark in first.fills.values()):  # noqa: ASYNC110
            await asyncio.sleep(0)
    await ended([task])
    # From here on nobody asks again: the store knows that it was begun.
    lives = 0
    while await world.store.execute("HLEN", FILLS):
        lives += 1
        await world.push(5, 1_000_000)
        store = OnlineStore(valkey.url)
        life = Ingester(AFTER, IDS, store, 2, archive=world.archive)
        task = asyncio.create_task(life.run())
        for _ in range(int(world.rng.integers(2, 25))):
            await asyncio.sleep(0.001 if world.rng.random() < 0.3 else 0)
        await ended([task])
        await store.close()
        assert lives < 1000
    assert lives > 3
    last = world.ingester(AFTER, 2)
    task = await taken_over(last)
    await world.push(3, 1_000_000)
    world.check(await world.read())
    await ended([task])
    await world.store.close()


async def test_a_view_may_be_served_without_its_history(valkey: LiveValkey, tmp_path: Path) -> None:
    world = World(valkey.url, tmp_path, 5)
    await world.push(100, DAY_US // 40)
    await world.archived()
    ingester = world.ingester(AFTER, 2)
    task = await taken_over(ingester)
    with pytest.raises(FailedPreconditionError, match=r"'hours' does not wait.*last"):
        ingester.fill(["hours"])
    ingester.fill(NEW, empty=True)
    await filled(ingester, *NEW)
    world.events.clear()
    for _ in range(4):
        await world.push(50, 1_000_000)
    world.check(await world.read())
    await ended([task])
    await world.store.close()


async def test_an_event_that_is_not_history_yet_is_waited_for(
    valkey: LiveValkey, tmp_path: Path
) -> None:
    world = World(valkey.url, tmp_path, 6)
    before = world.ingester(BEFORE, 1)
    task = await taken_over(before)
    for _ in range(3):
        await world.push(60, DAY_US // 40)
    async with asyncio.timeout(20):
        while before.checkpoint is None or str(before.checkpoint.offset) != world.offset:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await ended([task])
    ingester = world.ingester(AFTER, 2)
    task = await taken_over(ingester)
    # There is no file of this source, but the log will be one.
    assert set(ingester.fills) == set(NEW)
    assert {mark.cut for mark in ingester.fills.values()} == {180}
    ingester.fill(NEW)
    await world.push(10, 1_000_000)
    archiver = Archiver(world.store, world.archive, 2, interval_s=0.0)
    archiving = asyncio.create_task(archiver.run())
    await filled(ingester, *NEW)
    world.check(await world.read())
    await ended([task, archiving])
    await world.store.close()


async def test_an_empty_store_waits_for_its_history_again(
    valkey: LiveValkey, tmp_path: Path
) -> None:
    world = World(valkey.url, tmp_path, 7)
    await world.push(300, DAY_US // 40)
    await world.archived()
    valkey.flush()
    ingester = world.ingester(AFTER, 3)
    task = await taken_over(ingester)
    assert set(ingester.fills) == {"hours", *NEW}
    ingester.fill(["hours", *NEW])
    await world.push(10, 1_000_000)
    await filled(ingester, "hours", *NEW)
    world.check(await world.read())
    value = await world.store.execute("GET", CHECKPOINT)
    assert Checkpoint.decode(value).sequence == 310
    await ended([task])
    await world.store.close()
