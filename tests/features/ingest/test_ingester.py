"""The ingester at work: poison, fencing, trimming, and the loss of the store."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import numpy as np
import pytest

from features.ingest.ingester import (
    DEAD_LETTER_BYTES_MAX,
    DEAD_LETTERS_MAX,
    IngestCounters,
    Ingester,
)
from features.online.blocks import encode_payload
from features.online.event_log import EventLog
from features.online.keys import (
    BACKLOG_BYTES,
    CATALOG,
    CHECKPOINT,
    DEAD_LETTERS,
    EVENTS,
    Checkpoint,
)
from features.online.payload import EventBatch
from features.online.scripts import WRITE
from features.online.store import OnlineStore, Script
from headrace.errors import FailedPreconditionError, ResourceExhaustedError, UnavailableError
from tests.support.rides import (
    DEFINITIONS,
    MINUTE_US,
    NOON_US,
    SCHEMA_IDS,
    Rig,
    asked,
    ingesting,
    rides,
    shifts,
    shown,
)
from tests.support.valkey import LiveValkey

LATER_US = NOON_US + 30 * MINUTE_US


async def served(rig: Rig, offset: str) -> list[object]:
    """What driver 1 has driven, once the ingester has passed the offset."""
    batch = await rig.read(asked((1, "Ulm", 1.0)), LATER_US, offset, service="counts")
    return shown(batch, "driver_rides:minutes_sum_1h")


async def counted(ingester: Ingester, entries: int) -> IngestCounters:
    """Its counters, once they have so many entries: they follow the reply to a write, and whoever
    reads the store may be quicker."""
    async with asyncio.timeout(10):
        while ingester.counters.entries < entries:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0)
    return ingester.counters


async def test_poison_becomes_dead_letters_and_the_rest_goes_on(valkey: LiveValkey) -> None:
    async with ingesting(valkey.url) as rig:
        await rig.log.push([rides((NOON_US, 1, "Ulm", 1, 1.0))])
        poison: list[list[str | bytes]] = [
            ["b", b"\xc1 not msgpack"],
            ["c", b"no payload field"],
            ["b", encode_payload([EventBatch("ridez", {}, np.array([NOON_US]))])],
        ]
        for fields in poison:
            await rig.store.execute("XADD", EVENTS, "*", *fields)
        offset = await rig.log.push([rides((NOON_US, 1, "Ulm", 2, 1.0))])
        assert await served(rig, offset) == [3]
        counters = await counted(rig.ingester, 5)
        assert (counters.dead_letters, counters.entries, counters.events) == (3, 5, 2)
        letters = await rig.store.execute("XRANGE", DEAD_LETTERS, "-", "+")
    fields = [dict(zip(entry[1][::2], entry[1][1::2], strict=True)) for entry in letters]
    assert [letter[b"payload"] for letter in fields] == [poison[0][1], b"", poison[2][1]]
    assert b"cannot be decoded" in fields[0][b"reason"]
    assert b"no field 'b'" in fields[1][b"reason"]
    assert b"unknown source 'ridez'" in fields[2][b"reason"]
    assert all(b"-" in letter[b"entry"] for letter in fields)


async def test_dead_letters_are_bounded(valkey: LiveValkey) -> None:
    async with ingesting(valkey.url) as rig:
        for number in range(DEAD_LETTERS_MAX + 50):
            await rig.store.execute("XADD", EVENTS, "*", "b", b"\xc1%d" % number)
        await rig.store.execute("XADD", EVENTS, "*", "b", b"\xc1" * 70_000)
        offset = await rig.log.push([rides((NOON_US, 1, "Ulm", 2, 1.0))])
        assert await served(rig, offset) == [2]
        counters = await counted(rig.ingester, DEAD_LETTERS_MAX + 52)
        assert counters.dead_letters == DEAD_LETTERS_MAX + 51
        letters = await rig.store.execute("XRANGE", DEAD_LETTERS, "-", "+")
    # The newest ones, each with the start of its payload.
    assert len(letters) == DEAD_LETTERS_MAX
    assert letters[0][1][5] == b"\xc151"
    assert len(letters[-1][1][5]) == DEAD_LETTER_BYTES_MAX


async def test_what_is_consumed_is_trimmed_and_what_is_not_stays(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    log = EventLog(store, DEFINITIONS)
    for _ in range(5):
        await log.push([rides((NOON_US, 1, "Ulm", 1, 1.0))])
    assert await store.execute("XLEN", EVENTS) == 5
    waiting = int(await store.execute("GET", BACKLOG_BYTES))
    async with ingesting(valkey.url) as rig:
        offset = await log.push([rides((NOON_US, 1, "Ulm", 1, 1.0))])
        assert await served(rig, offset) == [6]
        assert await store.execute("XLEN", EVENTS) == 0
        assert int(await store.execute("GET", BACKLOG_BYTES)) == 0
    await log.push([rides((NOON_US, 1, "Ulm", 1, 1.0))])
    assert await store.execute("XLEN", EVENTS) == 1
    assert int(await store.execute("GET", BACKLOG_BYTES)) * 5 == waiting
    await store.close()


async def test_it_goes_on_where_it_stopped(valkey: LiveValkey) -> None:
    offset = ""
    for round_ in range(4):
        async with ingesting(valkey.url, epoch=round_ // 2) as rig:
            offset = await rig.log.push([rides((NOON_US, 1, "Ulm", 1, 1.0))])
            assert await served(rig, offset) == [2 * round_ + 1]
        store = OnlineStore(valkey.url)
        offset = await EventLog(store, DEFINITIONS).push([rides((NOON_US, 1, "Ulm", 1, 1.0))])
        await store.close()
    async with ingesting(valkey.url, epoch=9) as rig:
        assert await served(rig, offset) == [8]
        assert rig.ingester.checkpoint is not None
        assert rig.ingester.checkpoint.sequence == 8
        assert rig.ingester.checkpoint.epoch == 9


async def test_a_newer_epoch_stops_the_older_ingester_before_it_writes(valkey: LiveValkey) -> None:
    async with ingesting(valkey.url, epoch=1) as old:
        offset = await old.log.push([rides((NOON_US, 1, "Ulm", 1, 1.0))])
        assert await served(old, offset) == [1]
        async with ingesting(valkey.url, epoch=2) as new:
            while new.ingester.checkpoint is None:
                await new.store.execute("PING")
            offset = await new.log.push([rides((NOON_US, 1, "Ulm", 2, 1.0))])
            assert await served(new, offset) == [3]
            with pytest.raises(FailedPreconditionError, match=r"newer ingester.*epoch 1, got 2"):
                await asyncio.wait_for(asyncio.shield(old.task), 5)
            # Nor may it come back.
            again = Ingester(DEFINITIONS, SCHEMA_IDS, old.store, 1)
            with pytest.raises(FailedPreconditionError, match="newer ingester"):
                await asyncio.wait_for(again.run(), 5)
            offset = await new.log.push([rides((NOON_US, 1, "Ulm", 4, 1.0))])
            assert await served(new, offset) == [7]


async def test_two_under_one_epoch_cannot_both_write(valkey: LiveValkey) -> None:
    async with ingesting(valkey.url) as one, ingesting(valkey.url) as two:
        pushed = 0
        async with asyncio.timeout(20):
            # The slower one may sleep through a push; it finds out with the next that it reads.
            while not (one.task.done() or two.task.done()):
                offset = await one.log.push([rides((NOON_US, 1, "Ulm", 1, 1.0))])
                pushed += 1
                assert await served(one, offset) == [pushed]
        loser = one if one.task.done() else two
        with pytest.raises(FailedPreconditionError, match="under the same epoch"):
            loser.task.result()
        offset = await one.log.push([rides((NOON_US, 1, "Ulm", 1, 1.0))])
        assert await served(one, offset) == [pushed + 1]
        assert not (one.task.done() and two.task.done())


class LateStore(OnlineStore):
    """The first write is lost sight of on its way, and done just before the second."""

    held: tuple[Any, ...] | None = None

    async def run(
        self,
        script: Script,
        keys: list[bytes],
        arguments: list[str | bytes | int],
        timeout_s: float | None = None,
    ) -> Any:
        if script is WRITE and self.held is None:
            self.held = (keys, arguments)
            raise UnavailableError("no reply in time", where="test")
        if script is WRITE and self.held:
            held, self.held = self.held, ()
            assert await super().run(WRITE, *held) == []
        return await super().run(script, keys, arguments, timeout_s)


async def test_a_write_that_is_done_late_is_its_own_and_counts_once(valkey: LiveValkey) -> None:
    store = LateStore(valkey.url)
    ingester = Ingester(DEFINITIONS, SCHEMA_IDS, store, 1)
    task = asyncio.create_task(ingester.run())
    rig = Rig(store, EventLog(store, DEFINITIONS), ingester, task)
    ahead_us = NOON_US + 60 * MINUTE_US
    stamps = [NOON_US, NOON_US]
    await rig.log.push(
        [rides((NOON_US, 1, "Ulm", 1, 1.0), (ahead_us, 1, "Ulm", 9, 1.0), created=stamps)]
    )
    offset = await rig.log.push([rides((NOON_US, 1, "Ulm", 2, 1.0))])
    assert await served(rig, offset) == [3]
    assert not task.done()
    counters = await counted(ingester, 2)
    assert (counters.entries, counters.events, counters.future_stamped) == (2, 3, 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.close()


async def test_the_catalog_names_every_view(valkey: LiveValkey) -> None:
    async with ingesting(valkey.url) as rig:
        offset = await rig.log.push([rides((NOON_US, 1, "Ulm", 1, 1.0))])
        await served(rig, offset)
        reply = await rig.store.execute("HGETALL", CATALOG)
    catalog = {key.decode(): int(value) for key, value in zip(reply[::2], reply[1::2], strict=True)}
    views = DEFINITIONS.stored_views
    assert catalog == {view.hash: SCHEMA_IDS[name] for name, view in views.items()}


async def test_a_row_that_every_write_makes_long_holds_each_event_once(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    log = EventLog(store, DEFINITIONS)
    minutes = 0
    # Full writes one after the other: each is prepared, and what the last but one made long is
    # compacted, while another is in the store.
    for number in range(40):
        rows = [(NOON_US + 90 * number + i, 1, "Ulm", i % 7, 1.0) for i in range(701)]
        await log.push([shifts((NOON_US + number, 1, "van", number, 1.0))])
        offset = await log.push([rides(*rows)])
        minutes += sum(i % 7 for i in range(701))
    async with ingesting(valkey.url) as rig:
        assert await served(rig, offset) == [minutes]
        batch = await rig.read(asked((1, "Ulm", 1.0)), LATER_US, offset)
        assert shown(batch, "last_shift:seats") == [39]
        (window,) = await rig.store.execute("KEYS", "*driver_rides*")
        assert await rig.store.execute("STRLEN", window) < 40 * 701 * 8
    await store.close()


async def test_rows_with_a_ttl_expire_by_the_write_not_by_the_event(valkey: LiveValkey) -> None:
    async with ingesting(valkey.url) as rig:
        offset = await rig.log.push(
            [shifts((NOON_US, 1, "van", 1, 1.0)), rides((NOON_US, 1, "Ulm", 1, 1.0))]
        )
        await served(rig, offset)
        (row,) = await rig.store.execute("KEYS", "*last_shift*")
        (window,) = await rig.store.execute("KEYS", "*driver_rides*")
        half_a_day_s = 12 * 3600
        ttl_s = await rig.store.execute("TTL", row)
        assert half_a_day_s + 7 * 86_400 - 60 < ttl_s <= half_a_day_s + 7 * 86_400
        # A window of 7 d, and its hop of 1 h.
        window_ttl_s = await rig.store.execute("TTL", window)
        assert 169 * 3600 + 7 * 86_400 - 60 < window_ttl_s <= 169 * 3600 + 7 * 86_400
        await rig.store.execute("EXPIRE", row, 100)
        offset = await rig.log.push([shifts((NOON_US + 1, 1, "van", 1, 1.0))])
        await served(rig, offset)
        assert await rig.store.execute("TTL", row) > half_a_day_s


async def test_a_small_cache_changes_nothing(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    ingester = Ingester(DEFINITIONS, SCHEMA_IDS, store, 1, cache_bytes_max=2000)
    task = asyncio.create_task(ingester.run())
    rig = Rig(store, EventLog(store, DEFINITIONS), ingester, task)
    for number in range(1, 20):
        offset = await rig.log.push(
            [rides((NOON_US, 1, "Ulm", 1, 1.0), (NOON_US, number + 1, "Bonn", 1, 1.0))]
        )
        assert await served(rig, offset) == [number]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.close()


async def test_a_store_without_memory_holds_ingestion_up_and_loses_nothing(
    own_valkey: LiveValkey,
) -> None:
    store = OnlineStore(own_valkey.url)
    log = EventLog(store, DEFINITIONS)
    await log.push([rides((NOON_US, 1, "Ulm", 1, 1.0))])
    own_valkey.command("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(ResourceExhaustedError, match="out of memory"):
        await log.push([rides((NOON_US, 1, "Ulm", 2, 1.0))])
    async with ingesting(own_valkey.url) as rig:
        async with asyncio.timeout(5):
            while rig.ingester.counters.reconnects < 2:
                await store.execute("PING")
        own_valkey.command("CONFIG", "SET", "maxmemory", "0")
        offset = await log.push([rides((NOON_US, 1, "Ulm", 4, 1.0))])
        assert await served(rig, offset) == [5]
    await store.close()


async def test_a_killed_store_comes_back_with_what_was_acknowledged(
    own_valkey: LiveValkey,
) -> None:
    async with ingesting(own_valkey.url) as rig:
        total = 0
        for _ in range(3):
            total += 1
            offset = await rig.log.push([rides((NOON_US, 1, "Ulm", 1, 1.0))])
            own_valkey.kill()
            own_valkey.start()
            async with asyncio.timeout(10):
                assert await served_when_back(rig, offset) == [total]
        value = await rig.store.execute("GET", CHECKPOINT)
        assert Checkpoint.decode(value).sequence == total
        assert rig.ingester.counters.reconnects >= 1


async def served_when_back(rig: Rig, offset: str) -> list[object]:
    """Ask as a client would until the store is back."""
    while True:
        with contextlib.suppress(UnavailableError):
            return await served(rig, offset)
        await asyncio.sleep(0.02)
