"""Features in process, one call at a time: our reader on uvloop against Feast's SDK.

Each runs in a process of its own on the same core, against the same store. Ours counts up to the
matrix that a model gets; Feast's up to its message, before any dictionary is made of it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks import harness
from benchmarks.common.tools import InvalidRun
from benchmarks.features_parts import facts, feast_servers
from benchmarks.features_parts.bench import Bench
from benchmarks.harness import Figure

MODULE = "benchmarks.features_parts.inprocess_part"
WARM_UP_S = 0.3
# By (features, entities).
TARGETS = {(50, 1): 4.0, (50, 10): None, (50, 100): 50.0, (250, 100): None}


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield the figure of each shape."""
    ours = bench.side(sys.executable, MODULE, "headrace", bench.store.url)
    feast = bench.feast
    sides = {"headrace": ours} | ({} if feast is None else {feast_servers.SDK: feast})
    for (width, rows), target in TARGETS.items():
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for side in sides.values():
            side.ask("measure", width, rows, WARM_UP_S)
        for name in harness.turns(list(sides), bench.effort.runs):
            said = bench.ask(sides[name], "measure", width, rows, bench.effort.run_s)
            if said["problem"]:
                raise InvalidRun(f"{name} answers wrongly: {said['problem']}")
            taken[name].append(said["us"])
        yield Figure(
            figure=f"{rows} × {width} in process, one call at a time",
            unit="µs a call",
            runs=taken["headrace"],
            peer=feast_servers.SDK,
            peer_runs=taken.get(feast_servers.SDK),
            target=target,
        )


# In our process


def answer(_name: str, url: str) -> None:
    """Run what each line of stdin asks for, until it ends."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_answer(url))


async def _answer(url: str) -> None:
    from benchmarks.features_parts import world
    from features import definitions_from_source
    from features.online.store import OnlineStore

    store = OnlineStore(url)
    definitions = definitions_from_source(world.source())
    for line in sys.stdin:  # nothing else is to run between the runs
        _, width, rows, run_s = json.loads(line)
        reader = world.reader_of(definitions, facts.service_of(width), store)
        print(json.dumps(await _timed(reader, width, rows, run_s)), flush=True)
    await store.close()


async def _timed(reader: Any, width: int, rows: int, run_s: float) -> dict[str, Any]:
    from benchmarks.features_parts import world

    calls = facts.calls_of(facts.calls_for(rows), rows)
    problem = None
    for entities in calls:
        values = await world.read(reader, width, entities)
        problem = problem or facts.wrong(values, entities, width)
    done, start_s = 0, time.perf_counter()
    for entities in itertools.cycle(calls):
        (await world.asked(reader, width, entities)).matrix()
        done += 1
        if time.perf_counter() - start_s >= run_s:
            break
    took_s = time.perf_counter() - start_s
    return {"us": took_s / done * 1e6, "problem": problem, "checked": len(calls)}
