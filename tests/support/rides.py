"""A small world for tests of the online path: drivers, rides and shifts."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from features import (
    Column,
    Definitions,
    FeatureBatch,
    StreamFeatureView,
    definitions_from_source,
)
from features.ingest.archiver import Archiver
from features.ingest.ingester import Ingester
from features.offline.archive import Archive
from features.online.event_log import EventLog
from features.online.payload import EventBatch
from features.online.reader import ServiceReader
from features.online.store import OnlineStore
from features.windows.engine import WindowEngine
from headrace.errors import FailedPreconditionError

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
NOON_US = 1_363_348_800 * SECOND_US  # 2013-03-15 12:00 UTC

SOURCE = b'''
"""Rides of drivers in cities."""
import numpy as np

from features import (
    Aggregation, Bool, Column, Entity, EventSource, FeatureService, FeatureView, Field, Float32,
    Float64, Int64, RequestSource, StreamFeatureView, String, TableSource, Timestamp, Window,
    on_demand_feature_view,
)

driver = Entity("driver", ["driver_id"])
pair = Entity("pair", ["city", "driver_id"])

rides = EventSource("rides", [
    Field("driver_id", Int64), Field("city", String), Field("minutes", Int64),
    Field("fare", Float64), Field("night", Bool),
])
shifts = EventSource("shifts", [
    Field("driver_id", Int64), Field("vehicle", String), Field("seats", Int64),
    Field("rating", Float32), Field("began", Timestamp),
])
people = TableSource("people", [Field("driver_id", Int64), Field("licensed", Timestamp)])
asked = RequestSource("asked", [Field("distance", Float64)])

windows = [Window("1h", "1min"), Window("6h", "5min")]
driver_rides = StreamFeatureView("driver_rides", driver, rides, [
    Aggregation("minutes", ["count", "sum", "mean", "min", "max"], windows),
    Aggregation("fare", ["sum", "mean", "max"], windows),
    Aggregation(None, ["count"], [Window("7d", "1h")]),
])
pair_rides = StreamFeatureView("pair_rides", pair, rides, [Aggregation(None, ["count"], windows)])
last_shift = FeatureView("last_shift", driver, shifts, ["vehicle", "seats", "rating"], "12h")
person = FeatureView("person", driver, people, ["licensed"], None)


@on_demand_feature_view(
    inputs=[asked, last_shift["vehicle"], driver_rides["fare_mean_1h"], person],
    fields=[Field("is_van", Bool), Field("fare_a_km", Float64), Field("licence_day", Int64)],
)
def computed(inputs):
    vehicle = inputs["last_shift:vehicle"]
    fare, distance = inputs["driver_rides:fare_mean_1h"], inputs["distance"]
    licensed = inputs["person:licensed"]
    return {
        "is_van": Column(np.array([v == "van" for v in vehicle.values]), vehicle.valid),
        "fare_a_km": Column(
            np.where(fare.mask & (distance.values > 0), fare.values, 0.0)
            / np.where(distance.values > 0, distance.values, 1.0),
            fare.mask & distance.mask,
        ),
        "licence_day": Column(licensed.values // 86_400_000_000, licensed.valid),
    }


tips = FeatureService("tips", 1, [
    driver_rides, pair_rides, last_shift["seats", "rating"], computed,
])
plain = FeatureService("plain", 1, [
    pair_rides["count_1h"], last_shift["rating", "seats"], driver_rides["count_7d", "fare_mean_1h"],
])
counts = FeatureService("counts", 1, [driver_rides["count_7d", "minutes_sum_1h"]])
'''

DEFINITIONS = definitions_from_source(SOURCE)


def schema_ids(definitions: Definitions) -> dict[str, int]:
    """What the registry would give to the views."""
    return {name: 10 + i for i, name in enumerate(definitions.stored_views)}


SCHEMA_IDS = schema_ids(DEFINITIONS)

Cell = int | float | bool | str | None


def column(values: list[Cell], kind: Any) -> Column:
    """A column from Python values; None is null."""
    array: np.ndarray[Any, Any] = np.empty(len(values), dtype=kind)
    blank: Cell = "" if kind is object else 0
    array[:] = [blank if value is None else value for value in values]
    valid = np.array([value is not None for value in values], dtype=np.bool_)
    return Column(array, None if valid.all() else valid)


def times(values: list[int]) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.int64)


def rides(
    *rows: tuple[int, int | None, str | None, int | None, float | None],
    created: list[int] | None = None,
) -> EventBatch:
    """Rides from (event time, driver, city, minutes, fare)."""
    event, driver, city, minutes, fare = zip(*rows, strict=True)
    columns = {
        "driver_id": column(list(driver), np.int64),
        "city": column(list(city), object),
        "minutes": column(list(minutes), np.int64),
        "fare": column(list(fare), np.float64),
        "night": column([None] * len(rows), np.bool_),
    }
    return EventBatch(
        "rides", columns, times(list(event)), None if created is None else times(created)
    )


def shifts(
    *rows: tuple[int, int | None, str | None, int | None, float | None],
    created: list[int] | None = None,
) -> EventBatch:
    """Shifts from (event time, driver, vehicle, seats, rating)."""
    event, driver, vehicle, seats, rating = zip(*rows, strict=True)
    columns = {
        "driver_id": column(list(driver), np.int64),
        "vehicle": column(list(vehicle), object),
        "seats": column(list(seats), np.int64),
        "rating": column(list(rating), np.float64),
        "began": column(list(event), np.int64),
    }
    return EventBatch(
        "shifts", columns, times(list(event)), None if created is None else times(created)
    )


def people(*rows: tuple[int, int, int]) -> EventBatch:
    """Facts from (event time, driver, licensed)."""
    event, driver, licensed = zip(*rows, strict=True)
    columns = {
        "driver_id": column(list(driver), np.int64),
        "licensed": column(list(licensed), np.int64),
    }
    return EventBatch("people", columns, times(list(event)))


def asked(*rows: tuple[int | None, str | None, float]) -> dict[str, Column]:
    """A request's inputs from (driver, city, distance)."""
    driver, city, distance = zip(*rows, strict=True)
    return {
        "driver_id": column(list(driver), np.int64),
        "city": column(list(city), object),
        "distance": column(list(distance), np.float64),
    }


@dataclass
class Rig:
    """A store with an ingester at work, a log to push to and readers."""

    store: OnlineStore
    log: EventLog
    ingester: Ingester
    task: asyncio.Task[None]
    definitions: Definitions = field(default_factory=lambda: DEFINITIONS)
    archiving: asyncio.Task[None] | None = None

    def reader(self, service: str = "tips") -> ServiceReader:
        ids = schema_ids(self.definitions)
        return ServiceReader(self.definitions.service(service), self.store, ids)

    async def read(
        self,
        inputs: dict[str, Column],
        t_us: int | list[int],
        min_offset: str | None = None,
        *,
        service: str = "tips",
        within_s: float = 5.0,
    ) -> FeatureBatch:
        rows = len(next(iter(inputs.values())))
        when = times([t_us] * rows if isinstance(t_us, int) else t_us)
        deadline_ns = time.monotonic_ns() + int(within_s * 1e9)
        return await self.reader(service).read(
            inputs, when, min_offset, deadline_ns, time.monotonic_ns
        )


@functools.cache
def compile_windows() -> None:
    """Where numba's cache is empty this takes seconds, which no test's deadline is for."""
    import features.last_known
    import features.online.row_keys  # noqa: F401 - compiled when they are imported

    engine = next(
        WindowEngine(view)
        for view in DEFINITIONS.views.values()
        if isinstance(view, StreamFeatureView)
    )
    engine.warm_up_insert()
    engine.warm_up_query()


@contextlib.asynccontextmanager
async def ingesting(
    url: str,
    epoch: int = 1,
    definitions: Definitions = DEFINITIONS,
    archive: Archive | None = None,
) -> AsyncIterator[Rig]:
    """Run an ingester of the small world in this process, with an archiver where it archives."""
    compile_windows()
    store = OnlineStore(url)
    ingester = Ingester(definitions, schema_ids(definitions), store, epoch, archive=archive)
    task = asyncio.create_task(ingester.run())
    rig = Rig(store, EventLog(store, definitions), ingester, task, definitions)
    if archive is not None:
        archiver = Archiver(store, archive, epoch, interval_s=0.05)
        rig.archiving = asyncio.create_task(archiver.run())
    try:
        yield rig
    finally:
        # A test that makes one of them stop has looked at why.
        for each in (task, rig.archiving):
            if each is not None:
                each.cancel()
                with contextlib.suppress(asyncio.CancelledError, FailedPreconditionError):
                    await each
        await store.close()


def shown(batch: FeatureBatch, name: str) -> list[object]:
    """A feature's values, or the name of the status where there is none."""
    status = batch.status[:, batch.service.column_index(name)].tolist()
    values = batch.column(name).values.tolist()
    names = ("present", "null", "not_found", "expired", "unavailable")
    return [v if s == 0 else names[s] for v, s in zip(values, status, strict=True)]
