"""Features in the caller's process: the rows that a server gives, and what may go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features import FeatureBatch, FeatureStore, definitions_from_source
from headrace.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from tests.support.rides import (
    DEFINITIONS,
    MINUTE_US,
    NOON_US,
    SOURCE,
    Rig,
    asked,
    ingesting,
    people,
    rides,
    shifts,
    shown,
)
from tests.support.valkey import LiveValkey

LATER_US = NOON_US + 30 * MINUTE_US
ROWS: list[dict[str, Any]] = [
    {"driver_id": 1, "city": "Ulm", "distance": 2.5},
    {"driver_id": 404, "city": None, "distance": 1},
]
COLUMNS = {"driver_id": np.array([1, 404]), "city": ["Ulm", None], "distance": (2.5, 1)}


@contextlib.asynccontextmanager
async def filled(url: str) -> AsyncIterator[tuple[Rig, str]]:
    async with ingesting(url) as rig:
        batches = [rides((NOON_US, 1, "Ulm", 10, 1.5)), people((NOON_US, 1, NOON_US))]
        offset = await rig.log.push([*batches, shifts((NOON_US, 1, "van", 3, 4.5))])
        await rig.read(asked((1, "Ulm", 1.0)), LATER_US, offset)
        yield rig, offset


async def in_thread(store: FeatureStore, *given: Any, **named: Any) -> FeatureBatch:
    """The ingester lives in this loop, which must not stand still."""
    return await asyncio.to_thread(store.get_online_features, *given, **named)


async def test_both_ways_give_what_the_server_s_reader_gives(valkey: LiveValkey) -> None:
    async with filled(valkey.url) as (rig, _), FeatureStore(DEFINITIONS, valkey.url) as store:
        wanted = await rig.read(asked((1, "Ulm", 2.5), (404, None, 1.0)), LATER_US)
        assert shown(wanted, "driver_rides:minutes_sum_1h") == [10, "null"]
        for rows in (ROWS, COLUMNS):
            for when in (LATER_US, datetime.fromtimestamp(LATER_US / 1e6, UTC)):
                found = await in_thread(store, "tips", rows, event_time=when)
                assert found.pack(1) == wanted.pack(1)
                assert found.pack_status() == wanted.pack_status()
                again = await store.get_online_features_async("tips", rows, event_time=when)
                assert again.pack(1) == wanted.pack(1)
        now = await in_thread(store, "tips", ROWS)
        assert shown(now, "driver_rides:minutes_sum_1h") == ["null", "null"]
        assert shown(now, "last_shift:seats") == ["expired", "not_found"]
        nobody = await in_thread(store, "tips", {"driver_id": [], "city": [], "distance": []})
        assert len(nobody) == 0


async def test_what_was_pushed_can_be_waited_for(valkey: LiveValkey) -> None:
    async with filled(valkey.url) as (rig, _), FeatureStore(DEFINITIONS, valkey.url) as store:
        for number in range(2, 5):
            offset = await rig.log.push([rides((NOON_US, 1, "Ulm", 10, 1.0))])
            ask = in_thread if number % 2 else FeatureStore.get_online_features_async
            found = await ask(
                store, "counts", [{"driver_id": 1}], event_time=LATER_US, min_offset=offset
            )
            assert shown(found, "driver_rides:minutes_sum_1h") == [10 * number]
        started_s = time.monotonic()
        with pytest.raises(DeadlineExceededError, match="has not passed min_offset"):
            await in_thread(
                store, "counts", [{"driver_id": 1}], min_offset="99999999999999-0", timeout_s=0.05
            )
        assert time.monotonic() - started_s < 1.0


async def test_mistakes_are_named(valkey: LiveValkey, tmp_path: Path) -> None:
    path = tmp_path / "definitions.py"
    path.write_bytes(SOURCE)
    async with filled(valkey.url), FeatureStore(path, valkey.url) as store:
        with pytest.raises(NotFoundError, match="did you mean 'tips'"):
            await in_thread(store, "tip", ROWS)
        with pytest.raises(InvalidArgumentError, match="join key 'driver_id' is missing"):
            await in_thread(store, "counts", [{"driver": 1}])
        with pytest.raises(InvalidArgumentError, match="row 1 has other names than row 0"):
            await in_thread(store, "counts", [{"driver_id": 1}, {"driver": 1}])
        with pytest.raises(InvalidArgumentError, match=r"'distance'.*wrong type"):
            await in_thread(store, "tips", [{**ROWS[0], "distance": "far"}])
        with pytest.raises(InvalidArgumentError, match="not an offset"):
            await in_thread(store, "tips", ROWS, min_offset="soon")
        other = definitions_from_source(SOURCE.replace(b'"12h"', b'"13h"'))
        for ask in (in_thread, FeatureStore.get_online_features_async):
            changed = FeatureStore(other, valkey.url)
            with pytest.raises(UnavailableError, match=r"view 'last_shift'.*not in the store"):
                await ask(changed, "tips", ROWS)
            await changed.aclose()


def test_a_service_of_the_request_alone_needs_no_store() -> None:
    definitions = definitions_from_source(b"""
from features import *
asked = RequestSource("asked", [Field("a", Int64)])

@on_demand_feature_view(inputs=[asked], fields=[Field("b", Int64)])
def twice(inputs):
    return {"b": Column(inputs["a"].values * 2)}

doubled = FeatureService("doubled", 1, [twice])
""")
    with FeatureStore(definitions, "redis://127.0.0.1:1") as store:
        found = store.get_online_features("doubled", [{"a": 21}])
    assert shown(found, "twice:b") == [42]


async def test_a_connection_that_was_closed_or_is_late_is_never_used_again(
    own_valkey: LiveValkey,
) -> None:
    async with filled(own_valkey.url), FeatureStore(DEFINITIONS, own_valkey.url) as store:
        await in_thread(store, "tips", ROWS)
        own_valkey.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert len(await in_thread(store, "tips", ROWS)) == 2
        own_valkey.pause()
        started_s = time.monotonic()
        with pytest.raises(DeadlineExceededError, match="did not answer in time"):
            await in_thread(store, "tips", ROWS, timeout_s=0.1)
        assert time.monotonic() - started_s < 1.0
        own_valkey.resume()
        # The late reply went to a connection that is gone: this one gets its own.
        other = await in_thread(store, "counts", [{"driver_id": 404}], event_time=LATER_US)
        assert shown(other, "driver_rides:count_7d") == [0]
        store.close()
        assert len(await in_thread(store, "tips", ROWS)) == 2


async def test_a_store_that_is_gone_or_was_emptied_says_so(own_valkey: LiveValkey) -> None:
    async with filled(own_valkey.url), FeatureStore(DEFINITIONS, own_valkey.url) as store:
        await in_thread(store, "tips", ROWS)
        own_valkey.flush()
        with pytest.raises(UnavailableError, match="it was reset"):
            await in_thread(store, "tips", ROWS)
        own_valkey.kill()
        with pytest.raises(UnavailableError, match="cannot be reached"):
            await in_thread(store, "tips", ROWS)


async def test_threads_get_their_own(valkey: LiveValkey) -> None:
    async with filled(valkey.url) as (rig, _), FeatureStore(DEFINITIONS, valkey.url) as store:
        events = [(NOON_US, driver, "Ulm", driver, 1.0) for driver in range(2, 40)]
        offset = await rig.log.push([rides(*events)])
        await rig.read(asked((2, "Ulm", 1.0)), LATER_US, offset)
        wrong: list[object] = []

        def ask(first: int) -> None:
            for driver in range(first, 40, 4):
                rows = [{"driver_id": driver}]
                found = store.get_online_features("counts", rows, event_time=LATER_US)
                if shown(found, "driver_rides:minutes_sum_1h") != [driver]:
                    wrong.append(driver)

        threads = [threading.Thread(target=ask, args=(first,)) for first in range(2, 6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        assert not wrong
