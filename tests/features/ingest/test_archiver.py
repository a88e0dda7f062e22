"""What was pushed becomes history: with the stream's numbers, each event once, whatever is killed;
and history says of any time what the stream said then."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features import FeatureBatch
from features.ingest.archiver import Archiver
from features.ingest.ingester import Ingester
from features.offline import OfflineStore, get_historical_features
from features.offline.archive import Archive
from features.online.blocks import encode_payload
from features.online.event_log import EventLog
from features.online.keys import (
    BACKLOG_BYTES,
    CHECKPOINT,
    EVENTS,
    LOG_START,
    Checkpoint,
    parse_log_start,
    parse_offset,
)
from features.online.payload import EventBatch, check_batch, pushed_sources
from features.online.store import OnlineStore
from headrace.errors import FailedPreconditionError, InternalError
from tests.support.random_events import CITIES, random_push
from tests.support.rides import (
    DEFINITIONS,
    HOUR_US,
    MINUTE_US,
    NOON_US,
    SCHEMA_IDS,
    SECOND_US,
    asked,
    ingesting,
    people,
    rides,
    shifts,
)
from tests.support.valkey import LiveValkey

# `make long` kills more often.
KILLS = int(os.environ.get("HEADRACE_KILLS", "6"))
SOURCES = pushed_sources(DEFINITIONS)

Row = tuple[Any, ...]


def events_of(batch: EventBatch) -> list[Row]:
    """Events as rows: times, then the fields in the order of the source; null is None."""
    checked = check_batch(batch, SOURCES)
    created = checked.created_times_us
    times = [checked.event_times_us, checked.event_times_us if created is None else created]
    columns = [time.tolist() for time in times]
    for column in checked.columns.values():
        values, mask = column.values.tolist(), column.mask.tolist()
        columns.append([v if ok else None for v, ok in zip(values, mask, strict=True)])
    return list(zip(*columns, strict=True))


def pushed_rows(pushes: list[list[EventBatch]]) -> dict[str, list[Row]]:
    """What the history of each source must hold: the sequence first."""
    found: dict[str, list[Row]] = {}
    sequence = 0
    for push in pushes:
        for batch in push:
            for event in events_of(batch):
                found.setdefault(batch.source, []).append((sequence, *event))
                sequence += 1
    return found


def archived_rows(root: Path) -> dict[str, list[Row]]:
    store = OfflineStore(root)
    found = {}
    for source in store.sources():
        table = store.read(source)
        names = ["sequence", "event_time", "created_time", *SOURCES[source].dtypes]
        found[source] = list(zip(*(table[name].to_pylist() for name in names), strict=True))
    return found


def same(left: dict[str, list[Row]], right: dict[str, list[Row]]) -> bool:
    # NaN is NaN, -0.0 is not 0.0.
    return repr(sorted(left.items())) == repr(sorted(right.items()))


async def archived(store: OnlineStore, offset: str) -> None:
    """Wait until the log begins behind an offset."""
    wanted = parse_offset(offset, "test")
    async with asyncio.timeout(20):
        while True:
            value = await store.execute("GET", LOG_START)
            if value is not None and parse_log_start(value)[0] >= wanted:
                return
            await asyncio.sleep(0.005)


async def test_what_is_pushed_becomes_history_and_leaves_the_log(
    valkey: LiveValkey, tmp_path: Path
) -> None:
    rng = np.random.default_rng(5)
    pushes = [random_push(rng, NOON_US, NOON_US + HOUR_US) for _ in range(40)]
    # Without created times, with null in every column, and several batches of one source.
    pushes.append([people((NOON_US, 1, 7)), rides((NOON_US, None, None, None, None))])
    pushes.append([shifts((NOON_US, 1, None, 1, None)), shifts((NOON_US, 1, "van", 2, -0.0))])
    async with ingesting(valkey.url, archive=Archive(tmp_path)) as rig:
        for number, push in enumerate(pushes):
            if number % 7 == 0:
                await rig.store.execute("XADD", EVENTS, "*", "b", b"poison")
                await rig.store.execute("XADD", EVENTS, "*", "c", b"no payload")
            offset = await rig.log.push(push)
        await archived(rig.store, offset)
        assert await rig.store.execute("XLEN", EVENTS) == 0
        assert await rig.store.execute("GET", BACKLOG_BYTES) == b"0"
    assert same(archived_rows(tmp_path), pushed_rows(pushes))


@pytest.mark.parametrize("seed", range(3))
async def test_history_says_what_the_stream_said(
    valkey: LiveValkey, tmp_path: Path, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    archive = Archive(tmp_path)
    served: list[FeatureBatch] = []
    questions: list[tuple[int, str | None, int]] = []
    now_us = NOON_US
    for life in range(3):
        async with ingesting(valkey.url, epoch=life, archive=archive) as rig:
            for _ in range(12):
                before_us = now_us + SECOND_US  # events are stamped by whole seconds
                now_us += int(rng.choice([MINUTE_US, 7 * MINUTE_US, 90 * MINUTE_US]))
                offset = await rig.log.push(random_push(rng, before_us, now_us))
                rows = [(d, CITIES[rng.integers(len(CITIES))], 1.0) for d in range(7)]
                served.append(await rig.read(asked(*rows), now_us, offset))
                questions += [(driver, city, now_us) for driver, city, _ in rows]
            if life < 2:
                continue  # what is not yet archived is left to the next life
            await archived(rig.store, offset)
    drivers, cities, times = zip(*questions, strict=True)
    spine = pa.table(
        {
            "driver_id": pa.array(drivers, pa.int64()),
            "city": pa.array(cities, pa.string()),
            "distance": pa.array([1.0] * len(drivers)),
            "event_time": pa.array(times, pa.int64()),
        }
    )
    service = DEFINITIONS.service("tips")
    history = get_historical_features(spine, service, OfflineStore(tmp_path))
    np.testing.assert_array_equal(np.concatenate([b.words for b in served]), history.words)
    np.testing.assert_array_equal(np.concatenate([b.status for b in served]), history.status)


@pytest.mark.slow
@pytest.mark.timeout(120 + 20 * KILLS)
async def test_killed_at_any_point_each_event_is_there_once(
    valkey: LiveValkey, tmp_path: Path
) -> None:
    rng, chance = np.random.default_rng(9), random.Random(KILLS)
    store = OnlineStore(valkey.url)
    log = EventLog(store, DEFINITIONS)
    pushes: list[list[EventBatch]] = []
    ends = set()
    for epoch in range(KILLS + 1):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.ingest_process", valkey.url, str(epoch), tmp_path
        )
        try:
            before = Archive(tmp_path).end()
            pushes.append([people((NOON_US, 1, epoch))])
            offset = await log.push(pushes[-1])
            async with asyncio.timeout(90):
                # Until it has archived something in this life, and then a little more or less.
                while Archive(tmp_path).end() == before:  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.005)
            for _ in range(chance.randrange(120)):
                push = random_push(rng, NOON_US, NOON_US + HOUR_US, events=30)
                offset = await log.push(push)
                pushes.append(push)
            if epoch == KILLS:
                await archived(store, offset)
        finally:
            process.kill()
            await process.wait()
        ends.add(Archive(tmp_path).end())
    assert len(ends) == KILLS + 1
    assert same(archived_rows(tmp_path), pushed_rows(pushes))
    assert await store.execute("XLEN", EVENTS) == 0
    assert await store.execute("GET", BACKLOG_BYTES) == b"0"
    await store.close()


async def test_a_store_that_has_lost_what_the_archive_has_goes_on_behind_it(
    valkey: LiveValkey, tmp_path: Path
) -> None:
    """A power cut takes the last second of the store's file; of some entries the log is left."""
    store, archive = OnlineStore(valkey.url), Archive(tmp_path)
    log = EventLog(store, DEFINITIONS)
    pushes = [[rides((NOON_US + i, i % 3, "Ulm", i, 1.0))] for i in range(12)]
    async with ingesting(valkey.url, archive=archive) as rig:
        for push in pushes[:4]:
            offset = await log.push(push)
        await archived(store, offset)
        keys = await store.execute("KEYS", "*")
        saved = [(key, await store.execute("DUMP", key)) for key in keys]
        offsets = [await log.push(push) for push in pushes[4:8]]
        await archived(store, offsets[-1])
        await rig.read(asked((1, "Ulm", 1.0)), NOON_US + MINUTE_US, offsets[-1])
    valkey.flush()
    for key, dump in saved:
        await store.execute("RESTORE", key, 0, dump)
    # Two of the four that were lost with their rows are still in the log.
    for offset, push in zip(offsets[:2], pushes[4:6], strict=True):
        payload = encode_payload([check_batch(batch, SOURCES) for batch in push])
        await store.execute("XADD", EVENTS, offset, "b", payload)
        await store.execute("INCRBY", BACKLOG_BYTES, len(payload) + 128)
    async with ingesting(valkey.url, epoch=2, archive=archive):
        for push in pushes[8:]:
            offset = await log.push(push)
        await archived(store, offset)
        checkpoint = Checkpoint.decode(await store.execute("GET", CHECKPOINT))
    # History has all of them once, also what the store has lost for good.
    assert same(archived_rows(tmp_path), pushed_rows(pushes))
    assert checkpoint.sequence == 12
    assert await store.execute("GET", BACKLOG_BYTES) == b"0"
    await store.close()


async def test_a_new_store_gives_no_number_again(valkey: LiveValkey, tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    pushes = [[rides((NOON_US + i, 1, "Ulm", i, 1.0))] for i in range(6)]
    for life in range(3):
        valkey.flush()
        async with ingesting(valkey.url, archive=archive) as rig:
            for push in pushes[2 * life : 2 * life + 2]:
                offset = await rig.log.push(push)
            await archived(rig.store, offset)
    assert same(archived_rows(tmp_path), pushed_rows(pushes))


async def test_an_archive_begins_with_what_comes_after_it(
    valkey: LiveValkey, tmp_path: Path
) -> None:
    pushes = [[rides((NOON_US + i, 1, "Ulm", i, 1.0))] for i in range(4)]
    async with ingesting(valkey.url) as rig:  # nobody archives: events leave with their write
        for push in pushes[:2]:
            offset = await rig.log.push(push)
        await archived(rig.store, offset)
    async with ingesting(valkey.url, epoch=2, archive=Archive(tmp_path)) as rig:
        for push in pushes[2:]:
            offset = await rig.log.push(push)
        await archived(rig.store, offset)
    assert [row[0] for row in archived_rows(tmp_path)["rides"]] == [2, 3]


async def test_the_archive_of_another_store_is_left_alone(
    valkey: LiveValkey, tmp_path: Path
) -> None:
    async with ingesting(valkey.url, archive=Archive(tmp_path / "one")) as rig:
        for i in range(3):
            offset = await rig.log.push([rides((NOON_US + i, 1, "Ulm", i, 1.0))])
        await archived(rig.store, offset)
    valkey.flush()
    store = OnlineStore(valkey.url)
    async with ingesting(valkey.url, archive=Archive(tmp_path / "two")) as rig:
        offset = await rig.log.push([rides((NOON_US, 1, "Ulm", 0, 1.0))])
        await archived(rig.store, offset)
        assert rig.archiving is not None
        rig.archiving.cancel()
        offset = await rig.log.push([rides((NOON_US, 1, "Ulm", 1, 1.0))])
        await rig.read(asked((1, "Ulm", 1.0)), NOON_US + MINUTE_US, offset)
    # One event waits, numbered by this store; the other store's archive is ahead.
    async with ingesting(valkey.url, epoch=2, archive=Archive(tmp_path / "two")):
        with pytest.raises(FailedPreconditionError, match="that of another store"):
            await asyncio.wait_for(Archiver(store, Archive(tmp_path / "one"), 2).run(), 10)
    await store.close()


async def test_a_newer_ingester_ends_the_archiver_of_the_older(
    valkey: LiveValkey, tmp_path: Path
) -> None:
    store = OnlineStore(valkey.url)
    async with ingesting(valkey.url, epoch=5) as rig:
        offset = await rig.log.push([rides((NOON_US, 1, "Ulm", 0, 1.0))])
        await archived(rig.store, offset)
        with pytest.raises(FailedPreconditionError, match="newer ingester"):
            await asyncio.wait_for(Archiver(store, Archive(tmp_path), 4).run(), 10)
    await store.close()


async def test_a_log_that_was_trimmed_by_somebody_is_told(
    valkey: LiveValkey, tmp_path: Path
) -> None:
    archive = Archive(tmp_path)
    async with ingesting(valkey.url, archive=archive) as rig:
        offset = await rig.log.push([rides((NOON_US, 1, "Ulm", 0, 1.0))])
        await archived(rig.store, offset)
    store = OnlineStore(valkey.url)
    await EventLog(store, DEFINITIONS).push([rides((NOON_US, 1, "Ulm", 1, 1.0))])
    ingester = Ingester(DEFINITIONS, SCHEMA_IDS, store, 2, archive=archive)
    task = asyncio.create_task(ingester.run())
    async with asyncio.timeout(10):
        while ingester.counters.entries < 1:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.005)
    await store.execute("XTRIM", EVENTS, "MAXLEN", 0)
    with pytest.raises(InternalError, match=r"does not hold what was applied.*sequence 2.*got 1"):
        await asyncio.wait_for(Archiver(store, archive, 2, interval_s=0.0).run(), 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.close()
