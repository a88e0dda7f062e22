"""kill -9 at any point: what the next start makes of it equals a run that was never interrupted."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Callable, Coroutine

import numpy as np
import pytest

from features.ingest.ingester import Ingester
from features.online.event_log import EventLog
from features.online.keys import CHECKPOINT, EVENTS, Checkpoint, Offset, parse_offset
from features.online.payload import EventBatch
from features.online.store import OnlineStore
from tests.support.cutting_proxy import cutting_proxy
from tests.support.random_events import random_push
from tests.support.rides import DEFINITIONS, MINUTE_US, NOON_US, SCHEMA_IDS, ingesting
from tests.support.valkey import LiveValkey
from tests.support.window_rows import meaning

PUSHES = 600
LIVES = 4


def pushes() -> list[list[EventBatch]]:
    rng = np.random.default_rng(7)
    return [
        random_push(rng, NOON_US + i * MINUTE_US, NOON_US + (i + 1) * MINUTE_US, events=60)
        for i in range(PUSHES)
    ]


async def all_rows(store: OnlineStore) -> dict[bytes, object]:
    keys = sorted(await store.execute("KEYS", "hr:{*"))
    rows = dict(zip(keys, await store.execute("MGET", *keys), strict=True))
    newest_us = NOON_US + (PUSHES + 1) * MINUTE_US
    return meaning(rows, DEFINITIONS, SCHEMA_IDS, newest_us)


async def reached(store: OnlineStore) -> Checkpoint:
    value = await store.execute("GET", CHECKPOINT)
    return Checkpoint("", 0, Offset(0, 0), 0) if value is None else Checkpoint.decode(value)


async def until(store: OnlineStore, done: Callable[[Checkpoint], bool]) -> Checkpoint:
    deadline_s = time.monotonic() + 60
    while not done(checkpoint := await reached(store)):
        assert time.monotonic() < deadline_s, checkpoint
    return checkpoint


@pytest.mark.slow
async def test_killed_again_and_again_it_leaves_the_same_rows(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    log = EventLog(store, DEFINITIONS)
    batches = pushes()
    async with ingesting(valkey.url):
        for push in batches:
            last = parse_offset(await log.push(push), "test")
        whole = await until(store, lambda c: c.offset >= last)
    expected = await all_rows(store)
    assert len(expected) > 20

    valkey.flush()
    for push in batches:
        last = parse_offset(await log.push(push), "test")
    rng = random.Random(11)
    killed_at = []
    for epoch in range(1, LIVES + 1):
        before = (await reached(store)).offset
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.support.ingest_process", valkey.url, str(epoch)
        )
        try:
            if epoch < LIVES:
                # Somewhere in the middle of its work: soon after the first write of this life.
                await until(store, lambda c, before=before: c.offset > before)
                await asyncio.sleep(rng.random() * 0.02)
            else:
                await until(store, lambda c: c.offset >= last)
        finally:
            process.kill()
            await process.wait()
        killed_at.append((await reached(store)).sequence)
    # They were really killed on the way, at different places.
    assert killed_at == sorted(set(killed_at)), killed_at
    assert 0 < killed_at[0] < killed_at[-1] == whole.sequence
    assert await all_rows(store) == expected
    assert await store.execute("XLEN", EVENTS) == 0
    await store.close()


async def test_cancelled_at_any_await_it_leaves_the_same_rows(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    log = EventLog(store, DEFINITIONS)
    batches = pushes()[:40]
    async with ingesting(valkey.url):
        for push in batches:
            last = parse_offset(await log.push(push), "test")
        await until(store, lambda c: c.offset >= last)
    expected = await all_rows(store)

    valkey.flush()
    for push in batches:
        last = parse_offset(await log.push(push), "test")
    lives = 0
    while (await reached(store)).offset < last:
        lives += 1
        own = OnlineStore(valkey.url)
        life = Ingester(DEFINITIONS, SCHEMA_IDS, own, 1, cache_bytes_max=1 << 20).run()
        await step_and_drop(life, lives)
        await own.close()
        assert lives < 1000
    assert lives > 3
    assert await all_rows(store) == expected
    await store.close()


async def test_a_write_whose_reply_is_lost_counts_once(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    log = EventLog(store, DEFINITIONS)
    batches = pushes()[:25]
    async with ingesting(valkey.url):
        for push in batches:
            last = parse_offset(await log.push(push), "test")
        await until(store, lambda c: c.offset >= last)
    expected = await all_rows(store)

    valkey.flush()
    async with cutting_proxy(valkey.port) as proxy, ingesting(proxy.url) as rig:
        await until(store, lambda c: c.store_id != "")
        proxy.cut = lambda call: call % 3 == 0
        for push in batches:
            last = parse_offset(await log.push(push), "test")
            # One write a push, so that each third one is lost after it was done.
            await until(store, lambda c, last=last: c.offset >= last)
        assert proxy.cuts >= 5
        # It may not have noticed the last one yet.
        counters = rig.ingester.counters
        assert counters.reconnects in {proxy.cuts - 1, proxy.cuts}
        async with asyncio.timeout(5):
            while counters.entries < len(batches):
                await store.execute("PING")
        assert counters.entries == len(batches)
        assert counters.events == sum(len(batch) for push in batches for batch in push)
    assert await all_rows(store) == expected
    await store.close()


async def step_and_drop(life: Coroutine[object, object, None], steps: int) -> None:
    """Let a coroutine run for so many turns of the loop, then cancel it."""
    task = asyncio.create_task(life)
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
