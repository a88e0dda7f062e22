"""Ingestion: from the event log to the rows of a view of ten windowed aggregates.

A store of its own keeps an append-only file with an fsync a second; the log is full before the
ingester starts, ten events a push, so that nobody else needs its core. The first run is not counted
(code is compiled). After each run the rows of some users are read as a server would, and must be
equal to the history of the same events, bit for bit.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.common.tools import InvalidRun
from benchmarks.features_parts import stream, world
from benchmarks.features_parts.bench import Bench
from benchmarks.harness import Figure, Side
from features import Column, FeatureBatch
from features.offline import OfflineStore, get_historical_features
from features.online.event_log import EventLog
from features.online.reader import ServiceReader
from features.online.store import OnlineStore

PUSH_EVENTS = 10
PUSHES_AT_ONCE = 64
BACKLOG_BYTES_MAX = 1 << 36
CHECKED_ROWS = 2_000
WARM_UP_EVENTS = 5_000
WAIT_S = 30.0
EVENTS_S_MIN = 170_000.0
EVENTS_CPU_S_MIN = 450_000.0
MODULE = "benchmarks.features_parts.ingest_ours"


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield events/s, and events for each CPU-second of the ingester."""
    side = bench.side(sys.executable, MODULE, "ingester", "")
    root = bench.folder / "ingest"
    _run(bench, side, root / "warm", WARM_UP_EVENTS)
    runs = [
        _run(bench, side, root / str(number), bench.effort.ingest_events)
        for number in range(bench.effort.ingest_runs)
    ]
    title = f"ingestion into 10 aggregates of {stream.ENTITIES:,} users, durable"
    for unit, key, least in (
        ("events/s", "wall_s", EVENTS_S_MIN),
        ("events a CPU-second", "cpu_s", EVENTS_CPU_S_MIN),
    ):
        yield Figure(
            figure=title,
            unit=unit,
            runs=[run["events"] / run[key] for run in runs],
            peer=None,
            peer_runs=None,
            higher_is_better=True,
            limit=least,
        )
    shares = ", ".join(f"{run['store_cpu_s'] / run['wall_s']:.0%}" for run in runs)
    bench.note(f"ingestion: the store took {shares} of its core")


def _run(bench: Bench, side: Side, folder: Path, events: int) -> dict[str, float]:
    """Ingest so many events into a new store. Raises InvalidRun where the rows are wrong."""
    columns = stream.events(events)
    store = world.Store(bench.store_cpu, folder / "store", world.DURABLE)
    try:
        last = asyncio.run(pushed(store.url, columns))
        cpu_start_s = store.process.cpu_s()
        run = bench.ask(side, store.url, 1, last)
        run["store_cpu_s"] = store.process.cpu_s() - cpu_start_s
        if run["events"] != events:
            raise InvalidRun(f"{run['events']} events were applied instead of {events}")
        check(store.url, columns, folder / "history", last)
        bench.checked += CHECKED_ROWS
    finally:
        store.stop()
    return run


async def pushed(url: str, columns: dict[str, Any]) -> str:
    """Fill the log; return the last offset."""
    store = OnlineStore(url)
    log = EventLog(store, stream.definitions(), backlog_bytes_max=BACKLOG_BYTES_MAX)
    last = ""
    try:
        batches = stream.batches(columns, PUSH_EVENTS)
        while group := list(islice(batches, PUSHES_AT_ONCE)):
            *_, last = await asyncio.gather(*(log.push([batch]) for batch in group))
    finally:
        await store.close()
    return last


def check(url: str, columns: dict[str, Any], folder: Path, last: str) -> None:
    """Raise InvalidRun unless the rows of some users are those of their history."""
    history = OfflineStore(folder)
    history.append(stream.SOURCE, pa.table(columns))
    spine = stream.spine(columns, CHECKED_ROWS)
    service = stream.definitions().service(stream.SERVICE)
    wanted = get_historical_features(spine, service, history)
    got = asyncio.run(_read(url, spine, last))
    if not np.array_equal(got.status, wanted.status):
        raise InvalidRun("the stream has other features than the history")
    if not np.array_equal(got.words, wanted.words):
        share = float((got.words != wanted.words).mean())
        raise InvalidRun(f"{share:.2%} of the stream's features differ from those of the history")


async def _read(url: str, spine: pa.Table, last: str) -> FeatureBatch:
    store = OnlineStore(url)
    service = stream.definitions().service(stream.SERVICE)
    reader = ServiceReader(service, store, stream.SCHEMA_IDS)
    inputs = {stream.KEY: Column(spine[stream.KEY].to_numpy())}
    times = spine["event_time"].to_numpy()
    deadline_ns = time.monotonic_ns() + int(WAIT_S * 1e9)
    try:
        return await reader.read(inputs, times, last, deadline_ns, time.monotonic_ns)
    finally:
        await store.close()
