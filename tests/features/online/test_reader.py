"""The reader: what was pushed, as of the event time, or a clear reason why not."""

from __future__ import annotations

import asyncio
import contextlib
import time

import numpy as np
import pytest

from features import Column, definitions_from_source
from features.online.event_log import EventLog
from features.online.keys import CHECKPOINT
from features.online.reader import ServiceReader
from features.online.store import OnlineStore
from headrace.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)
from tests.support.rides import (
    DEFINITIONS,
    HOUR_US,
    MINUTE_US,
    NOON_US,
    SCHEMA_IDS,
    asked,
    ingesting,
    people,
    rides,
    shifts,
    shown,
)
from tests.support.valkey import LiveValkey

LATER_US = NOON_US + 30 * MINUTE_US


async def test_pushed_events_are_served_behind_the_barrier(valkey: LiveValkey) -> None:
    async with ingesting(valkey.url) as rig:
        await rig.log.push([people((0, 1, 86_400_000_000 * 3))])
        offset = await rig.log.push(
            [
                rides(
                    (NOON_US, 1, "Ulm", 10, 12.5),
                    (NOON_US + MINUTE_US, 1, "Bonn", 20, None),
                    (NOON_US + MINUTE_US, 2, "Bonn", None, 1.0),
                ),
                shifts((NOON_US - HOUR_US, 1, "van", 7, 4.5)),
            ]
        )
        inputs = asked((1, "Ulm", 2.0), (2, "Bonn", 0.0), (3, "Ulm", 1.0))
        batch = await rig.read(inputs, LATER_US, offset)
    assert shown(batch, "driver_rides:minutes_sum_1h") == [30, "null", "null"]
    assert shown(batch, "driver_rides:minutes_count_1h") == [2, 0, 0]
    assert shown(batch, "driver_rides:count_7d") == [2, 1, 0]
    assert shown(batch, "driver_rides:fare_mean_1h") == [12.5, 1.0, "null"]
    assert shown(batch, "pair_rides:count_1h") == [1, 1, 0]
    assert shown(batch, "last_shift:seats") == [7, "not_found", "not_found"]
    assert shown(batch, "last_shift:rating") == [4.5, "not_found", "not_found"]
    assert shown(batch, "computed:is_van") == [True, "null", "null"]
    assert shown(batch, "computed:fare_a_km") == [6.25, 0.0, "null"]
    assert shown(batch, "computed:licence_day") == [3, "null", "null"]


async def test_each_row_has_its_own_time_and_sees_nothing_later(valkey: LiveValkey) -> None:
    async with ingesting(valkey.url) as rig:
        offset = await rig.log.push(
            [
                rides((NOON_US, 1, "Ulm", 10, 1.0), (NOON_US + MINUTE_US, 1, "Ulm", 5, 1.0)),
                shifts((NOON_US, 1, "van", 7, 4.5)),
            ]
        )
        when = [NOON_US, NOON_US + 1, NOON_US + MINUTE_US, NOON_US + 12 * HOUR_US + 1]
        batch = await rig.read(asked(*[(1, "Ulm", 1.0)] * 4), when, offset)
    # A window ends before t; a last known value includes t, and expires after its TTL.
    assert shown(batch, "driver_rides:minutes_sum_1h") == ["null", 10, 10, "null"]
    assert shown(batch, "last_shift:seats") == [7, 7, 7, "expired"]


async def test_a_null_in_the_key_is_not_found(valkey: LiveValkey) -> None:
    async with ingesting(valkey.url) as rig:
        offset = await rig.log.push([rides((NOON_US, 1, None, 10, 1.0))])
        inputs = asked((1, None, 1.0), (None, "Ulm", 1.0))
        batch = await rig.read(inputs, LATER_US, offset)
        # What is written can be read before the ingester hears of it.
        async with asyncio.timeout(5):
            while rig.ingester.counters.keyless < 1:
                await rig.store.execute("PING")
    assert shown(batch, "driver_rides:count_7d") == [1, "not_found"]
    assert shown(batch, "pair_rides:count_1h") == ["not_found", "not_found"]


async def test_another_service_reads_the_same_rows(valkey: LiveValkey) -> None:
    async with ingesting(valkey.url) as rig:
        offset = await rig.log.push([rides((NOON_US, 1, "Ulm", 10, 1.0))])
        batch = await rig.read(asked((1, "Ulm", 1.0)), LATER_US, offset, service="counts")
    assert batch.words.tolist() == [[1, 10]]


async def test_a_barrier_without_an_ingester_ends_at_the_deadline(valkey: LiveValkey) -> None:
    async with ingesting(valkey.url) as rig:
        first = await rig.log.push([rides((NOON_US, 1, "Ulm", 10, 1.0))])
        await rig.read(asked((1, "Ulm", 1.0)), LATER_US, first)
        rig.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await rig.task
        second = await rig.log.push([rides((NOON_US, 1, "Ulm", 10, 1.0))])
        started_s = time.monotonic()
        with pytest.raises(DeadlineExceededError) as caught:
            await rig.read(asked((1, "Ulm", 1.0)), LATER_US, second, within_s=0.2)
        assert 0.2 <= time.monotonic() - started_s < 0.5
        assert f"expected offset {second}, got checkpoint {first}" in str(caught.value)
        assert rig.store.progress.waiting == 0
        # The others are not held up by it.
        batch = await rig.read(asked((1, "Ulm", 1.0)), LATER_US, first)
        assert shown(batch, "driver_rides:count_7d") == [1]


async def test_many_barriers_wait_at_once_and_leave_nothing_behind(valkey: LiveValkey) -> None:
    async with ingesting(valkey.url) as rig:

        async def one(number: int) -> list[object]:
            offset = await rig.log.push([rides((NOON_US, number, "Ulm", number, 1.0))])
            batch = await rig.read(asked((number, "Ulm", 1.0)), LATER_US, offset)
            return shown(batch, "driver_rides:minutes_sum_1h")

        answers = await asyncio.gather(*(one(number) for number in range(100)))
        assert answers == [[number] for number in range(100)]
        assert rig.store.progress.waiting == 0
        assert rig.store.pending_calls == 0


async def test_a_cancelled_barrier_leaves_nothing_behind(valkey: LiveValkey) -> None:
    async with ingesting(valkey.url) as rig:
        offset = await rig.log.push([rides((NOON_US, 1, "Ulm", 10, 1.0))])
        await rig.read(asked((1, "Ulm", 1.0)), LATER_US, offset)
        never = "9999999999999-0"
        waits = [
            asyncio.create_task(rig.read(asked((1, "Ulm", 1.0)), LATER_US, never))
            for _ in range(20)
        ]
        while rig.store.progress.waiting < 20:
            await rig.store.execute("PING")
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        assert rig.store.progress.waiting == 0


async def test_a_reader_survives_the_loss_of_the_store_and_of_its_subscription(
    own_valkey: LiveValkey,
) -> None:
    async with ingesting(own_valkey.url) as rig:
        offset = await rig.log.push([rides((NOON_US, 1, "Ulm", 10, 1.0))])
        await rig.read(asked((1, "Ulm", 1.0)), LATER_US, offset)
        own_valkey.kill()
        started_s = time.monotonic()
        with pytest.raises(UnavailableError, match="online store"):
            await rig.read(asked((1, "Ulm", 1.0)), LATER_US)
        assert time.monotonic() - started_s < 0.5
        own_valkey.start()

        async def again() -> str:
            """Push as a client would until it works."""
            while True:
                with contextlib.suppress(UnavailableError):
                    return await rig.log.push([rides((NOON_US, 1, "Ulm", 20, 1.0))])
                await asyncio.sleep(0.01)

        second = await asyncio.wait_for(again(), 5)
        batch = await rig.read(asked((1, "Ulm", 1.0)), LATER_US, second)
        assert shown(batch, "driver_rides:minutes_sum_1h") == [30]
        assert rig.ingester.counters.reconnects >= 1


async def test_an_empty_store_is_unavailable_not_zero(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    reader = ServiceReader(DEFINITIONS.service("tips"), store, SCHEMA_IDS)
    deadline_ns = time.monotonic_ns() + 10**9
    with pytest.raises(UnavailableError, match="holds no features: it was reset"):
        await reader.read(
            asked((1, "Ulm", 1.0)), np.array([LATER_US]), None, deadline_ns, time.monotonic_ns
        )
    await store.close()


async def test_a_store_that_lost_everything_is_noticed_by_all(valkey: LiveValkey) -> None:
    async with ingesting(valkey.url) as rig:
        offset = await rig.log.push([rides((NOON_US, 1, "Ulm", 10, 1.0))])
        await rig.read(asked((1, "Ulm", 1.0)), LATER_US, offset)
        valkey.flush()
        with pytest.raises(UnavailableError, match="it was reset"):
            await rig.read(asked((1, "Ulm", 1.0)), LATER_US)
        await rig.log.push([rides((NOON_US, 1, "Ulm", 10, 1.0))])
        with pytest.raises(FailedPreconditionError, match="store was reset while this ingester"):
            await asyncio.wait_for(asyncio.shield(rig.task), 5)
        # One that starts anew sets the store up; a reader that knew the old one still refuses.
        async with ingesting(valkey.url, epoch=2) as fresh:
            offset = await fresh.log.push([rides((NOON_US, 1, "Ulm", 10, 1.0))])
            await fresh.read(asked((1, "Ulm", 1.0)), LATER_US, offset)
            with pytest.raises(UnavailableError, match="restart this worker"):
                await rig.read(asked((1, "Ulm", 1.0)), LATER_US)


async def test_a_barrier_waits_for_the_first_ingester_of_all(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    offset = await EventLog(store, DEFINITIONS).push([rides((NOON_US, 1, "Ulm", 10, 1.0))])
    reader = ServiceReader(DEFINITIONS.service("counts"), store, SCHEMA_IDS)
    inputs, when = asked((1, "Ulm", 1.0)), np.array([LATER_US])
    soon_ns = time.monotonic_ns() + 50_000_000
    with pytest.raises(DeadlineExceededError, match=f"offset {offset}, got no checkpoint yet"):
        await reader.read(inputs, when, offset, soon_ns, time.monotonic_ns)
    with pytest.raises(DeadlineExceededError, match="not read in time"):
        await reader.read(inputs, when, None, soon_ns, time.monotonic_ns)
    late_ns = time.monotonic_ns() + 5 * 10**9
    waiting = asyncio.create_task(reader.read(inputs, when, offset, late_ns, time.monotonic_ns))
    async with ingesting(valkey.url):
        batch = await waiting
    assert shown(batch, "driver_rides:minutes_sum_1h") == [10]
    await store.close()


async def test_without_the_subscription_a_barrier_still_ends(valkey: LiveValkey) -> None:
    async with ingesting(valkey.url) as rig:
        for number in range(1, 8):
            offset = await rig.log.push([rides((NOON_US, 1, "Ulm", 1, 1.0))])
            valkey.command("CLIENT", "KILL", "TYPE", "pubsub")
            batch = await rig.read(asked((1, "Ulm", 1.0)), LATER_US, offset, within_s=2.0)
            assert shown(batch, "driver_rides:minutes_sum_1h") == [number]
        # It subscribes again by itself.
        async with asyncio.timeout(5):
            while not rig.store.progress.live:
                await rig.store.execute("PING")


async def test_a_store_that_stands_still_costs_the_caller_its_deadline(
    own_valkey: LiveValkey,
) -> None:
    async with ingesting(own_valkey.url) as rig:
        offset = await rig.log.push([rides((NOON_US, 1, "Ulm", 10, 1.0))])
        await rig.read(asked((1, "Ulm", 1.0)), LATER_US, offset)
        own_valkey.pause()
        started_s = time.monotonic()
        with pytest.raises(DeadlineExceededError, match="features were not read in time"):
            await rig.read(asked((1, "Ulm", 1.0)), LATER_US, within_s=0.1)
        assert time.monotonic() - started_s < 0.5
        own_valkey.resume()
        batch = await rig.read(asked((1, "Ulm", 1.0)), LATER_US)
        assert shown(batch, "driver_rides:minutes_sum_1h") == [10]


async def test_what_is_all_in_the_request_needs_no_store() -> None:
    definitions = definitions_from_source(b"""
from features import *
asked = RequestSource("asked", [Field("a", Int64)])

@on_demand_feature_view(inputs=[asked], fields=[Field("b", Int64)])
def twice(inputs):
    return {"b": Column(inputs["a"].values * 2)}

only = FeatureService("only", 1, [twice])
""")
    store = OnlineStore("redis://127.0.0.1:1")
    reader = ServiceReader(definitions.service("only"), store, {})
    deadline_ns = time.monotonic_ns() + 10**9
    inputs = {"a": Column(np.array([1, 2]))}
    batch = await reader.read(inputs, np.array([0, 0]), None, deadline_ns, time.monotonic_ns)
    assert batch.words.tolist() == [[2], [4]]
    assert not store.connected


@pytest.mark.parametrize("damage", [b"", b"\x00" * 64, b"garbage"])
async def test_a_damaged_row_is_told_and_costs_no_other_call(
    valkey: LiveValkey, damage: bytes
) -> None:
    async with ingesting(valkey.url) as rig:
        offset = await rig.log.push([rides((NOON_US, 1, "Ulm", 10, 1.0))])
        await rig.read(asked((1, "Ulm", 1.0)), LATER_US, offset)
        keys = await rig.store.execute("KEYS", "*driver_rides*")
        await rig.store.execute("SET", keys[0], damage or b"\x00")
        with pytest.raises(InternalError, match="window state of row 0 cannot be read"):
            await rig.read(asked((1, "Ulm", 1.0)), LATER_US)
        batch = await rig.read(asked((2, "Ulm", 1.0)), LATER_US)
        assert shown(batch, "driver_rides:count_7d") == [0]


async def test_a_damaged_checkpoint_is_told(valkey: LiveValkey) -> None:
    async with ingesting(valkey.url) as rig:
        offset = await rig.log.push([rides((NOON_US, 1, "Ulm", 10, 1.0))])
        await rig.read(asked((1, "Ulm", 1.0)), LATER_US, offset)
        await rig.store.execute("SET", CHECKPOINT, b"nonsense")
        with pytest.raises(InternalError, match="checkpoint cannot be read"):
            await rig.read(asked((1, "Ulm", 1.0)), LATER_US)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"distance": None}, "request field 'distance' is missing"),
        ({"driver_id": None}, "join key 'driver_id' is missing"),
    ],
)
async def test_a_missing_input_is_named(
    valkey: LiveValkey, change: dict[str, None], says: str
) -> None:
    async with ingesting(valkey.url) as rig:
        inputs = {k: v for k, v in asked((1, "Ulm", 1.0)).items() if k not in change}
        with pytest.raises(InvalidArgumentError, match=says):
            await rig.read(inputs, LATER_US)
        with pytest.raises(InvalidArgumentError, match="event_time is not one a row"):
            await rig.read(asked((1, "Ulm", 1.0)), [LATER_US, LATER_US])
        with pytest.raises(InvalidArgumentError, match="min_offset: not an offset"):
            await rig.read(asked((1, "Ulm", 1.0)), LATER_US, "soon")


def test_a_view_without_a_schema_id_is_named() -> None:
    store = OnlineStore("redis://127.0.0.1:1")
    with pytest.raises(FailedPreconditionError, match="view 'last_shift' has no schema id"):
        ServiceReader(DEFINITIONS.service("tips"), store, {"driver_rides": 10})
