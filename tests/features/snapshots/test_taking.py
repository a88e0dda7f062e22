"""Snapshots of a store and of history: read by the reader, they say what the store says."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest

from features import FeatureBatch
from features.offline.store import OfflineStore
from features.online.payload import EventBatch
from features.online.reader import ServiceReader
from features.online.store import OnlineStore
from features.snapshots.file import Snapshot, TakenRows, open_snapshot, write_snapshot
from features.snapshots.from_history import rows_of_history
from features.snapshots.from_store import rows_of_store
from headrace.errors import FailedPreconditionError, NotFoundError
from tests.support.ride_history import history_of
from tests.support.rides import (
    DEFINITIONS,
    HOUR_US,
    MINUTE_US,
    NOON_US,
    asked,
    ingesting,
    people,
    rides,
    shifts,
)
from tests.support.valkey import LiveValkey

SERVICE = DEFINITIONS.service("tips")
VIEWS = [entry.view for entry in SERVICE.views]
UNTIL_US = NOON_US + 8 * HOUR_US
CITIES = ("Oslo", "Bern", "Ulm")


def events(seed: int = 3) -> list[EventBatch]:
    """Rides, shifts and people of six drivers; some late, some with nulls, one far too early."""
    draw = random.Random(seed)

    def ride() -> tuple[int, int | None, str | None, int | None, float | None]:
        return (
            NOON_US + draw.randrange(8 * HOUR_US),
            draw.choice([1, 2, 3, 4, 5, 6, None]),
            draw.choice([*CITIES, None]),
            draw.choice([None, draw.randrange(90)]),
            draw.choice([None, float("nan"), draw.uniform(3, 80)]),
        )

    rows = sorted((ride() for _ in range(400)), key=lambda row: row[0])
    created = [row[0] + draw.choice([0, 0, MINUTE_US]) for row in rows]
    return [
        rides(*rows, created=created),
        shifts(
            (NOON_US - 9 * HOUR_US, 1, "van", 6, 4.5),  # expires before the end
            (NOON_US + HOUR_US, 2, "car", None, 3.25),
            (NOON_US + 2 * HOUR_US, 2, None, 4, None),
        ),
        people((NOON_US - 100 * HOUR_US, 1, NOON_US - 900 * HOUR_US)),
    ]


QUESTIONS = asked(*[(driver, city, 2.5) for driver in (1, 2, 3, 6, 404, None) for city in CITIES])


async def read(store: OnlineStore | Snapshot, ids: dict[str, int], t_us: int) -> FeatureBatch:
    times = np.full(len(QUESTIONS["city"]), t_us, np.int64)
    deadline_ns = time.monotonic_ns() + 5_000_000_000
    reader = ServiceReader(SERVICE, store, ids)
    return await reader.read(QUESTIONS, times, None, deadline_ns, time.monotonic_ns)


def written(path: Path, taken: TakenRows) -> tuple[Snapshot, dict[str, int]]:
    write_snapshot(path, taken)
    return open_snapshot(path), {view.name: taken.schema_ids[view.hash] for view in VIEWS}


@pytest.mark.slow
async def test_a_store_its_snapshot_and_that_of_history_say_the_same(
    valkey: LiveValkey, tmp_path: Path
) -> None:
    pushed = events()
    history = history_of(tmp_path / "history", pushed)
    async with ingesting(valkey.url) as rig:
        offset = ""
        for batch in pushed:
            offset = await rig.log.push([batch])
        await rig.read(QUESTIONS, UNTIL_US, offset)
        from_store, ids = written(
            tmp_path / "store", await rows_of_store(rig.store, VIEWS, UNTIL_US)
        )
        from_history, own_ids = written(
            tmp_path / "history.snapshot", rows_of_history(history, VIEWS, UNTIL_US + MINUTE_US)
        )
        assert len(from_store) == len(from_history) > 10
        statuses = set()
        for t_us in (UNTIL_US, UNTIL_US + 37 * MINUTE_US, UNTIL_US + 30 * HOUR_US, NOON_US):
            served = await read(rig.store, ids, t_us)
            for snapshot, schema_ids in ((from_store, ids), (from_history, own_ids)):
                found = await read(snapshot, schema_ids, t_us)
                assert found.words.tobytes() == served.words.tobytes()
                assert found.status.tobytes() == served.status.tobytes()
            statuses |= set(served.status.ravel().tolist())
    assert statuses == {0, 1, 2, 3}


def test_history_is_cut_where_it_was_not_known_yet(tmp_path: Path) -> None:
    history = history_of(tmp_path, events())
    known = rows_of_history(history, VIEWS, NOON_US + HOUR_US)
    later = rows_of_history(history, VIEWS, UNTIL_US)
    assert known.taken_at_us == NOON_US + HOUR_US
    assert sum(map(len, known.rows.values())) < sum(map(len, later.rows.values()))


def test_a_source_without_history_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="'rides' has no history"):
        rows_of_history(OfflineStore(tmp_path), VIEWS, UNTIL_US)


async def test_a_store_that_has_not_what_is_wanted_says_so(valkey: LiveValkey) -> None:
    store = OnlineStore(valkey.url)
    with pytest.raises(FailedPreconditionError, match="no view 'driver_rides' as it is defined"):
        await rows_of_store(store, VIEWS, UNTIL_US)
    await store.close()
