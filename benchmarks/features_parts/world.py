"""Our side of what is served: definitions, the store and the rows in it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import servers
from benchmarks.common.processes import Process
from benchmarks.common.servers import HOST
from benchmarks.features_parts import facts
from features import Column, Definitions, FeatureBatch, definitions_from_source
from features.ingest.ingester import Ingester
from features.online.event_log import EventLog
from features.online.payload import EventBatch
from features.online.reader import ServiceReader
from features.online.store import OnlineStore
from features.online.tick_reader import TickReader
from headrace.errors import ResourceExhaustedError
from server.processes.valkey import binary_path

HOUR_US = 3_600_000_000
PUSH_VALUES = 100_000  # of one push
WAIT_S = 60.0  # for what was pushed to be in the rows
DURABLE = ("--appendonly", "yes", "--appendfsync", "everysec")
IN_MEMORY = ("--appendonly", "no")


def source() -> bytes:
    """Return the definitions of every view and service."""
    lines = ["from features import Entity, EventSource, FeatureService, FeatureView, Field"]
    lines.append("from features import Float64, Int64")
    for width in facts.WIDTHS:
        view, key = facts.view_of(width), facts.key_of(width)
        lines += [
            f"names_{width} = {facts.names_of(width)!r}",
            f"events_{width} = EventSource('events_{width}', [Field({key!r}, Int64),",
            f"    *(Field(name, Float64) for name in names_{width})])",
            f"{view} = FeatureView({view!r}, Entity('user_{width}', [{key!r}]),",
            f"    events_{width}, names_{width})",
            f"{facts.service_of(width)} = FeatureService({facts.service_of(width)!r}, 1, [{view}])",
        ]
    return "\n".join(lines).encode()


def schema_ids(definitions: Definitions) -> dict[str, int]:
    """Return an id for every stored view."""
    return {name: 10 + place for place, name in enumerate(definitions.stored_views)}


def batches(width: int, event_time_us: int) -> list[EventBatch]:
    """Return every entity's features as events of that time, in what one push takes."""
    values = facts.values_of(width)
    step = PUSH_VALUES // width
    found = []
    for start in range(0, facts.ENTITIES, step):
        part = values[start : start + step]
        ids = np.array(facts.ids()[start : start + step], np.int64)
        columns = {facts.key_of(width): Column(ids)}
        columns |= {
            name: Column(np.ascontiguousarray(part[:, place]))
            for place, name in enumerate(facts.names_of(width))
        }
        times = np.full(len(part), event_time_us, np.int64)
        found.append(EventBatch(f"events_{width}", columns, times))
    return found


def fill(url: str) -> None:
    """Put every entity's features into the store, by push and ingester as a user would."""
    asyncio.run(_fill(url))


async def _fill(url: str) -> None:
    definitions = definitions_from_source(source())
    event_time_us = time.time_ns() // 1000 - HOUR_US
    async with ingesting(url, definitions) as store:
        log = EventLog(store, definitions)
        for width in facts.WIDTHS:
            offset = ""
            for batch in batches(width, event_time_us):
                offset = await pushed(log, batch)
            reader = reader_of(definitions, facts.service_of(width), store)
            await asked(reader, width, facts.ids()[:1], offset)


@contextlib.asynccontextmanager
async def ingesting(url: str, definitions: Definitions) -> AsyncIterator[OnlineStore]:
    """Run an ingester in this process; yield the store."""
    store = OnlineStore(url)
    taken_over = asyncio.Event()
    ingester = Ingester(definitions, schema_ids(definitions), store, 1)
    task = asyncio.create_task(ingester.run(taken_over))
    try:
        await asyncio.wait_for(taken_over.wait(), WAIT_S)
        yield store
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await store.close()


async def pushed(log: EventLog, batch: EventBatch) -> str:
    """Push; wait where the ingester is too far behind. Return the offset."""
    while True:
        try:
            return await log.push([batch])
        except ResourceExhaustedError:
            await asyncio.sleep(0.005)


def reader_of(definitions: Definitions, service: str, store: OnlineStore) -> TickReader:
    """Return the reader of a service, as the server has it."""
    reader = ServiceReader(definitions.service(service), store, schema_ids(definitions))
    return TickReader(reader, store)


async def asked(
    reader: TickReader, width: int, entities: Sequence[int], offset: str | None = None
) -> FeatureBatch:
    """Read the entities' features as of now."""
    inputs = {facts.key_of(width): Column(np.array(entities, np.int64))}
    now_us = np.full(len(entities), time.time_ns() // 1000, np.int64)
    deadline_ns = time.monotonic_ns() + int(WAIT_S * 1e9)
    return await reader.read(inputs, now_us, offset, deadline_ns, time.monotonic_ns)


async def read(reader: TickReader, width: int, entities: Sequence[int]) -> Any:
    """Return the same as float64 [entities, width], NaN where a feature is not there."""
    batch = await asked(reader, width, entities)
    return np.where(batch.status == 0, batch.words.view(np.float64), np.nan)


# The processes


class Store:
    """A Valkey of the embedded server's binary, on one core."""

    def __init__(self, cpu: int, folder: Path, options: Sequence[str] = IN_MEMORY) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = servers.free_port()
        self.url = f"redis://{HOST}:{self.port}"
        command = [str(binary_path()), "--port", str(self.port), "--bind", HOST, "--save", ""]
        self.process = Process([*command, "--dir", str(folder), *options], [cpu])
        self.process.wait_for(self._ready)

    def _ready(self) -> bool | None:
        return True if "Ready to accept connections" in self.process.output() else None

    def stop(self) -> None:
        """End it."""
        self.process.stop()
