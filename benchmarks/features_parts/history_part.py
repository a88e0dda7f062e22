"""Features from history: ten aggregates by three windows at every row of a spine, against DuckDB.

Events are in the same Parquet files for both, the spine is in memory, both have one core, and what
is taken is CPU time. There are five events for each spine row, and 50, 500 or 5,000 an entity.
DuckDB answers in the form of SQL that is its best for these. Every value of both must be the same
to the bit: what is summed are whole numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.common.tools import InvalidRun
from benchmarks.features_parts import history_ours, trips
from benchmarks.features_parts.bench import Bench
from benchmarks.features_parts.join_part import JOINS
from benchmarks.harness import Figure

OURS, DUCKDB = "headrace", "DuckDB"
OUR_MODULE = "benchmarks.features_parts.history_ours"
PEER_MODULE = "benchmarks.features_parts.history_peer"
# By events an entity: how often as fast as DuckDB, and events/s of one core.
TARGETS: dict[int, tuple[float | None, float]] = {
    50: (8.5, 3e6),
    500: (40.0, 1.4e6),
    5_000: (None, 1.4e6),
}
WARM_UP_EVENTS = 2_000


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield a figure for each density."""
    python = bench.python(JOINS)
    ours = bench.side(sys.executable, OUR_MODULE, OURS, "")
    duckdb = None if python is None else bench.side(python, PEER_MODULE, DUCKDB, "")
    warm_up = _written(bench, WARM_UP_EVENTS, 50)
    ours.ask(str(warm_up), None)  # compiles
    for density, (target, limit) in TARGETS.items():
        events = bench.effort.history_events
        folder = _written(bench, events, density)
        sides = {OURS: ours} | ({} if duckdb is None else {DUCKDB: duckdb})
        if duckdb is not None:
            said = _agreed(bench, sides, folder)
            forms = ", ".join(f"{form} {took_s:.2g} s" for form, took_s in said["forms"].items())
            bench.note(
                f"history at {density} an entity: DuckDB's form is {said['form']} (on a tenth of "
                f"the entities: {forms})"
            )
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for name in harness.turns(list(sides), bench.effort.history_runs):
            taken[name].append(events / sides[name].ask(str(folder), None)["cpu_s"])
        yield Figure(
            figure=f"history of 10 aggregates × 3 windows, {density} events an entity",
            unit="events/s",
            runs=taken[OURS],
            peer=DUCKDB,
            peer_runs=taken.get(DUCKDB),
            target=target,
            higher_is_better=True,
            limit=limit,
        )


def _written(bench: Bench, events: int, density: int) -> Path:
    """Write a history of so many events, and its spine."""
    folder = bench.folder / f"history-{events}-{density}"
    entities = max(events // density, 1)
    rows = events // trips.EVENTS_A_SPINE_ROW
    history_ours.write(folder, trips.trips(events, entities), trips.spine(rows, entities))
    return folder


def _agreed(bench: Bench, sides: dict[str, harness.Side], folder: Path) -> dict[str, Any]:
    """Let both compute all; return what DuckDB says. Raises InvalidRun where a value differs."""
    files = {name: folder / f"{name}.npy" for name in sides}
    said = {name: side.ask(str(folder), str(files[name])) for name, side in sides.items()}
    own, theirs = (np.load(files[name]) for name in (OURS, DUCKDB))
    if problem := differing(own, theirs):
        raise InvalidRun(f"history of {folder.name}: {problem}")
    bench.checked += own.size
    return said[DUCKDB]


def differing(own: Any, theirs: Any) -> str | None:
    """Say where two tables of features differ; None: they do not."""
    if own.shape != theirs.shape:
        return f"{own.shape} values, theirs {theirs.shape}"
    same = (own == theirs) | (np.isnan(own) & np.isnan(theirs))
    if same.all():
        return None
    row, column = (int(each[0]) for each in np.nonzero(~same))
    name = trips.feature_names()[column]
    counted = f"{np.count_nonzero(~same):,} of {same.size:,} values differ"
    return f"{counted}; {name} of row {row} is {own[row, column]}, theirs {theirs[row, column]}"
