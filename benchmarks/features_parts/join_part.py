"""The point-in-time join of a spine and three views, against DuckDB's ASOF and Polars' join_asof.

All read the same Parquet files and the same spine, which is in memory, on one core, and leave
columns in memory; what is taken is CPU time. All honour the TTL of the views. Ours joins rows whose
created times lag and honours those; its peers, which cannot, join rows without a lag. On these rows
all three must find the same values. Theirs may come in any order; ours keeps the spine's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import harness
from benchmarks.common.tools import InvalidRun
from benchmarks.features_parts import joined
from benchmarks.features_parts.bench import Bench
from benchmarks.harness import Figure

JOINS = harness.Peer("joins", ("duckdb==2.0.0", "polars==2.1.0", "pyarrow==26.0.1", "numpy==2.4.6"))
OURS = "headrace"
PEERS = ("DuckDB", "Polars")
MODULES = {OURS: "benchmarks.features_parts.join_ours"} | dict.fromkeys(
    PEERS, "benchmarks.features_parts.join_peers"
)
TARGET = 1.6  # against the faster of both


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield a figure for each peer; the faster one has the target."""
    folder = bench.folder / "join"
    joined.write(folder, bench.effort.spine_rows, bench.effort.view_rows)
    python = bench.python(JOINS)
    pythons: dict[str, Path | str] = {OURS: sys.executable}
    if python is not None:
        pythons |= dict.fromkeys(PEERS, python)
    sides = {
        name: bench.side(each, MODULES[name], name, str(folder)) for name, each in pythons.items()
    }
    missing = _agreeing(bench, sides, folder)
    taken: dict[str, list[float]] = {name: [] for name in sides if name not in missing}
    for name in harness.turns(list(taken), bench.effort.runs):
        kind = joined.LAGGING if name == OURS else joined.PLAIN
        taken[name].append(sides[name].ask(kind, None)["cpu_s"])
    present = [name for name in PEERS if name in taken]
    best = min(present, key=lambda name: median(taken[name]), default=None)
    size = f"{bench.effort.spine_rows:,} × 3 views of {bench.effort.view_rows:,}"
    for name in PEERS:
        yield Figure(
            figure=f"point-in-time join, {size}",
            unit="s of CPU",
            runs=taken[OURS],
            peer=name,
            peer_runs=taken.get(name),
            target=TARGET if name == best or best is None else None,
        )


def _agreeing(bench: Bench, sides: dict[str, harness.Side], folder: Path) -> set[str]:
    """Join what all can join, which also warms them up; return the peers that are wrong."""
    files = {name: folder / f"{name}.npy" for name in sides}
    for name, side in sides.items():
        side.ask(joined.PLAIN, str(files[name]))
    ours = np.load(files[OURS])
    share = float(np.isnan(ours).mean())
    if not 0 < share < 1:
        raise InvalidRun(f"the join finds nothing to compare: {share:.0%} are missing")
    wrong = set()
    for name in sides:
        if not np.array_equal(np.load(files[name]), ours, equal_nan=True):
            bench.note(f"{name} joins otherwise than ours, and is missing there")
            wrong.add(name)
        bench.checked += len(ours)
    bench.note(f"join: all agree on {len(ours):,} rows, {share:.0%} of whose features are missing")
    return wrong
