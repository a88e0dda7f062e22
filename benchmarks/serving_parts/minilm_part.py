"""Where the model dominates: MiniLM through the whole server against bare onnxruntime in a loop.

Both have the same core and the same session of one thread, in turns. Two callers ask, so that the
next request is there when an answer leaves; no request is joined with another.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing

from benchmarks import harness
from benchmarks.common import servers
from benchmarks.common.servers import Server
from benchmarks.harness import Figure
from benchmarks.serving_parts import minilm
from benchmarks.serving_parts.bench import Bench
from benchmarks.serving_parts.workloads import Workload

SENTENCES = (1, 4, 16)  # a request
CALLERS = 2
TARGET = 0.97


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield a figure for each number of sentences a request."""
    python = bench.python(minilm.PEER)
    if python is None:
        return
    cpu = bench.cores.server
    file = minilm.write_model(python, bench.folder / "sentences")
    source = json.dumps({"file": str(file), "cpu": cpu})
    ours = servers.ours(file, bench.folder / "sentences-data", cpu)
    bare = harness.Side(sys.executable, minilm.MODULE, minilm.BARE, source)
    with closing(bare), servers.running(ours):
        for rows in SENTENCES:
            yield _figure(bench, ours, bare, minilm.write_workload(file, bench.folder, rows))


def _figure(bench: Bench, ours: Server, bare: harness.Side, work: Workload) -> Figure:
    # Enough answers in a run: one that is half counted at its end must not matter.
    run_s = bench.effort.sentences_run_s * (1 + work.rows / 8)
    taken: dict[str, list[float]] = {servers.OURS: [], minilm.BARE: []}
    for name in harness.turns(list(taken), bench.effort.sentences_runs):
        if name == servers.OURS:
            rate = bench.closed(ours, work, CALLERS, run_s).requests_per_s
        else:
            rate = bare.ask(work.rows, run_s)["requests_per_s"]
        taken[name].append(rate)
    return Figure(
        figure=f"{work.title}, {CALLERS} at once",
        unit="requests/s",
        runs=taken[servers.OURS],
        peer=minilm.BARE,
        peer_runs=taken[minilm.BARE],
        target=TARGET,
        higher_is_better=True,
    )
