"""Features in process, one call at a time: our `FeatureStore` against Feast's SDK.

Each runs in a process of its own on the same core, against the same store. Ours counts up to the
matrix that a model gets; Feast's up to its message, before any dictionary is made of it.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import harness
from benchmarks.common.tools import InvalidRun
from benchmarks.features_parts import facts, feast_servers
from benchmarks.features_parts.bench import Bench
from benchmarks.harness import Figure

if TYPE_CHECKING:
    from features import FeatureStore

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
    from benchmarks.features_parts import world
    from features import FeatureStore, definitions_from_source

    with FeatureStore(definitions_from_source(world.source()), url) as store:
        for line in sys.stdin:
            _, width, rows, run_s = json.loads(line)
            print(json.dumps(_timed(store, width, rows, run_s)), flush=True)


def _timed(store: FeatureStore, width: int, rows: int, run_s: float) -> dict[str, Any]:
    service, key = facts.service_of(width), facts.key_of(width)
    calls = facts.calls_of(facts.calls_for(rows), rows)
    problem = None
    for entities in calls:
        batch = store.get_online_features(service, {key: entities})
        values = np.where(batch.status == 0, batch.words.view(np.float64), np.nan)
        problem = problem or facts.wrong(values, entities, width)
    done, start_s = 0, time.perf_counter()
    for entities in itertools.cycle(calls):
        store.get_online_features(service, {key: entities}).matrix()
        done += 1
        if time.perf_counter() - start_s >= run_s:
            break
    took_s = time.perf_counter() - start_s
    return {"us": took_s / done * 1e6, "problem": problem, "checked": len(calls)}
