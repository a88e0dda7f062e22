"""Our ingester in a process of its own, on the loop that it has in `headrace up`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time

from benchmarks.features_parts import stream
from features.ingest.ingester import Ingester
from features.online.keys import parse_offset
from features.online.store import OnlineStore

POLL_S = 0.005


def answer(_name: str, _source: str) -> None:
    """For each line of stdin (store's URL, epoch, last offset): ingest until there.

    Says the events applied, wall time and this process's CPU time, from when it has taken over.
    """
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for line in sys.stdin:
            print(json.dumps(runner.run(_ingested(*json.loads(line)))), flush=True)


async def _ingested(url: str, epoch: int, last: str) -> dict[str, float]:
    goal = parse_offset(last, "the last offset")
    store = OnlineStore(url)
    ingester = Ingester(stream.definitions(), stream.SCHEMA_IDS, store, epoch)
    taken_over = asyncio.Event()
    task = asyncio.create_task(ingester.run(taken_over))
    try:
        await taken_over.wait()
        start_s, cpu_start_s = time.perf_counter(), time.process_time()
        while ingester.checkpoint is None or ingester.checkpoint.offset < goal:
            if task.done():
                task.result()
            await asyncio.sleep(POLL_S)
        wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_start_s
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await store.close()
    return {"events": ingester.counters.events, "wall_s": wall_s, "cpu_s": cpu_s}
