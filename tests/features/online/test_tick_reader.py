"""Reads that share a tick: each call gets its own rows, its own errors, and its own patience."""

from __future__ import annotations

import asyncio
import random
import time

import numpy as np
import pytest

from features import Column
from features.online.reader import ServiceReader
from features.online.row_keys import RowKeys
from features.online.store import AskedRows
from features.online.tick_reader import ROWS_OF_A_CALL_MAX, ROWS_OF_A_READ_MAX, TickReader
from headrace.errors import DeadlineExceededError, InvalidArgumentError, UnavailableError
from tests.support.rides import (
    MINUTE_US,
    NOON_US,
    Rig,
    asked,
    ingesting,
    rides,
    shifts,
    shown,
    times,
)
from tests.support.valkey import LiveValkey

LATER_US = NOON_US + 30 * MINUTE_US
DRIVERS = 300


class Counting:
    """A store that counts what is asked of it."""

    def __init__(self, rig: Rig) -> None:
        self._store = rig.store
        self.store_id: str | None = None
        self.progress = rig.store.progress
        self.asked: list[int] = []
        self.held: asyncio.Event | None = None

    @property
    def connected(self) -> bool:
        return self._store.connected

    async def get_rows(self, keys: RowKeys) -> list[bytes | None]:
        self.asked.append(keys.keys)
        return await self._store.get_rows(keys)

    def ask_rows(self, keys: RowKeys) -> AskedRows:
        self.asked.append(keys.keys)
        asked = self._store.ask_rows(keys)
        if self.held is not None:
            asked = AskedRows(asked.connection, asyncio.ensure_future(self._hold(asked.reply)))
        return asked

    async def _hold(self, reply: asyncio.Future[object]) -> object:
        assert self.held is not None
        await self.held.wait()
        return await reply

    def rows_of(self, asked: AskedRows) -> list[bytes | None]:
        return self._store.rows_of(asked)


async def filled(rig: Rig) -> tuple[TickReader, Counting]:
    """A reader of the service `tips`, and drivers who drove as many minutes as their number."""
    events = [(NOON_US, driver, "Ulm", driver, 1.0) for driver in range(1, DRIVERS + 1)]
    offset = await rig.log.push([rides(*events), shifts((NOON_US, 1, "van", 7, 4.5))])
    await rig.read(asked((1, "Ulm", 1.0)), LATER_US, offset)
    store = Counting(rig)
    plain = rig.reader("tips")
    own = ServiceReader(plain.service, store, rig.ingester._schema_ids)
    return TickReader(own, store), store  # type: ignore[arg-type]


def ask(reader: TickReader, *drivers: int | None, within_s: float = 5.0):  # type: ignore[no-untyped-def]
    rows = [(driver, "Ulm", 1.0) for driver in drivers]
    when = times([LATER_US] * len(rows))
    deadline_ns = time.monotonic_ns() + int(within_s * 1e9)
    return reader.read(asked(*rows), when, None, deadline_ns, time.monotonic_ns)


def minutes(batch) -> list[object]:  # type: ignore[no-untyped-def]
    return shown(batch, "driver_rides:minutes_sum_1h")


async def test_calls_of_a_tick_are_one_read_and_each_gets_its_rows(valkey: LiveValkey) -> None:
    async with ingesting(valkey.url) as rig:
        reader, store = await filled(rig)
        calls = [[d, d + 1] for d in range(1, 40)] + [[None], [7]]
        batches = await asyncio.gather(*(ask(reader, *drivers) for drivers in calls))
        assert len(store.asked) == 1
        for drivers, batch in zip(calls, batches, strict=True):
            assert minutes(batch) == ["not_found" if d is None else d for d in drivers]
        alone = await ask(reader, 3, 4)
        assert len(store.asked) == 2
        assert alone.words.tobytes() == batches[2].words.tobytes()
        assert alone.status.tobytes() == batches[2].status.tobytes()


async def test_a_tick_of_many_rows_is_several_reads(valkey: LiveValkey) -> None:
    async with ingesting(valkey.url) as rig:
        reader, store = await filled(rig)
        few = list(range(1, 31))
        calls = [ask(reader, *few) for _ in range(2 * ROWS_OF_A_READ_MAX // len(few))]
        many = list(range(1, ROWS_OF_A_CALL_MAX + 2))
        *batches, large = await asyncio.gather(*calls, ask(reader, *many))
        assert len(store.asked) == 3
        assert all(minutes(batch) == few for batch in batches)
        assert minutes(large) == many


async def test_a_fault_stays_with_its_call(valkey: LiveValkey) -> None:
    async with ingesting(valkey.url) as rig:
        reader, _ = await filled(rig)
        wrong = asked((2, "Ulm", 1.0)) | {"driver_id": Column(np.array([2.5]))}
        short = {name: column for name, column in asked((2, "Ulm", 1.0)).items() if name != "city"}
        when, deadline_ns = times([LATER_US]), time.monotonic_ns() + 5_000_000_000
        results = await asyncio.gather(
            ask(reader, 1),
            reader.read(wrong, when, None, deadline_ns, time.monotonic_ns),
            reader.read(short, when, None, deadline_ns, time.monotonic_ns),
            reader.read(asked((2, "Ulm", 1.0)), times([LATER_US] * 2), None, deadline_ns,
                        time.monotonic_ns),
            ask(reader, 2),
            return_exceptions=True,
        )  # fmt: skip
        assert minutes(results[0]) == [1]
        assert minutes(results[4]) == [2]
        assert all(isinstance(error, InvalidArgumentError) for error in results[1:4])


async def test_who_waits_too_long_or_goes_away_holds_nobody_up(valkey: LiveValkey) -> None:
    async with ingesting(valkey.url) as rig:
        reader, store = await filled(rig)
        store.held = asyncio.Event()
        patient = asyncio.ensure_future(ask(reader, 1))
        gone = asyncio.ensure_future(ask(reader, 2))
        with pytest.raises(DeadlineExceededError):
            await ask(reader, 3, within_s=0.02)
        with pytest.raises(DeadlineExceededError):
            await ask(reader, 3, within_s=0.0)
        gone.cancel()
        store.held.set()
        assert minutes(await patient) == [1]
        assert gone.cancelled()


async def test_thousands_that_go_away_leave_the_others_their_own(valkey: LiveValkey) -> None:
    rng = random.Random(5)
    async with ingesting(valkey.url) as rig:
        reader, _ = await filled(rig)

        async def one(driver: int) -> None:
            call = asyncio.ensure_future(ask(reader, driver))
            if rng.random() < 0.5:
                for _ in range(rng.randrange(6)):
                    await asyncio.sleep(0)
                call.cancel()
            try:
                assert minutes(await call) == [driver]
            except asyncio.CancelledError:
                assert call.cancelled()

        for _ in range(20):
            await asyncio.gather(*(one(rng.randint(1, DRIVERS)) for _ in range(100)))


async def test_a_store_that_is_gone_is_everybodys_error(own_valkey: LiveValkey) -> None:
    async with ingesting(own_valkey.url) as rig:
        reader, _ = await filled(rig)
        own_valkey.kill()
        results = await asyncio.gather(ask(reader, 1), ask(reader, 2), return_exceptions=True)
        assert all(isinstance(error, UnavailableError) for error in results)
