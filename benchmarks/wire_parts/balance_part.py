"""How evenly few connections spread over workers: passed on, and left with whoever accepts them."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common.processes import Process
from benchmarks.common.servers import HOST
from benchmarks.common.tools import InvalidRun
from benchmarks.harness import Figure
from benchmarks.wire_parts.bench import Bench
from benchmarks.wire_parts.memory_part import connection
from server.processes.ports import hold

CONNECTIONS = 8
WORKERS = (2, 4)
TRIALS = 10  # in a run, whose value is their mean
MOST_TO_MEAN_MAX = 1.1
SETTLE_TIMEOUT_S = 10.0
_GAUGE = "headrace_grpc_connections{"


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield, for each number of workers, how many connections the fullest one has."""
    cpus = sorted({bench.cores.server, *bench.cores.clients})
    for number in WORKERS:
        runs: dict[bool, list[float]] = {True: [], False: []}
        with (
            _running(number, bench.folder / f"balance-{number}", cpus, passing=True) as ours,
            _running(number, bench.folder / f"plain-{number}", cpus, passing=False) as plain,
        ):
            for _ in range(bench.effort.runs):
                for passing, workers in ((True, ours), (False, plain)):
                    shares = [_most_to_mean(workers) for _ in range(TRIALS)]
                    runs[passing].append(mean(shares))
        yield Figure(
            figure=f"{CONNECTIONS} connections on {number} workers, the most of one",
            unit="× mean",
            runs=runs[True],
            peer="who accepts first",
            peer_runs=runs[False],
            limit=MOST_TO_MEAN_MAX,
        )


@dataclass(frozen=True)
class Workers:
    """Workers on one gRPC port, each with metrics of its own."""

    grpc_port: int
    metrics: list[str]

    def connections(self) -> list[int]:
        """Return how many gRPC connections each has open."""
        return [_open_connections(address) for address in self.metrics]


@contextlib.contextmanager
def _running(number: int, folder: Path, cpus: list[int], *, passing: bool) -> Iterator[Workers]:
    (folder / "run").mkdir(parents=True)
    config: dict[str, Any] = {
        "host": HOST, "grpc_port": 0, "http_port": 0, "metrics_port": 0, "data_dir": str(folder),
        "slots": number if passing else 0,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(hold(HOST, 0, "grpc_port"))

        def start(place: int) -> Process:
            own = json.dumps(config | {"worker": place, "slot": place})
            process = Process([sys.executable, "-m", "server.worker", own], cpus, shared=port)
            stack.callback(process.stop)
            return process

        lines = [_ready(process) for process in [start(place) for place in range(number)]]
        yield Workers(port.port, [line["metrics"] for line in lines])


def _ready(process: Process) -> dict[str, Any]:
    return process.wait_for(lambda: _ready_line(process.output()))


def _ready_line(output: str) -> dict[str, Any] | None:
    lines = [line for line in output.splitlines() if line.startswith('{"event":"ready"')]
    return json.loads(lines[0]) if lines else None


def _most_to_mean(workers: Workers) -> float:
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(connection("a worker", workers.grpc_port))
        most = max(_settled(workers, CONNECTIONS))
    _settled(workers, 0)
    return most / (CONNECTIONS / len(workers.metrics))


def _settled(workers: Workers, total: int) -> list[int]:
    """Return the workers' connections once they are `total` in all."""
    end_s = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        found = workers.connections()
        if sum(found) == total:
            return found
        if time.monotonic() > end_s:
            raise InvalidRun(f"{sum(found)} connections are open instead of {total}")


def _open_connections(address: str) -> int:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=SETTLE_TIMEOUT_S) as answer:
        lines = answer.read().decode().splitlines()
    return next(int(line.rpartition(" ")[2]) for line in lines if line.startswith(_GAUGE))
