"""Two workers on two cores against one, from the same load client."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.harness import Figure
from benchmarks.wire_parts import model, servers
from benchmarks.wire_parts.bench import Bench
from benchmarks.wire_parts.grpc_part import HEADERS
from benchmarks.wire_parts.servers import HOST, running
from benchmarks.wire_parts.tools import h2load

# Many connections: the kernel spreads them by a hash, and few would land unevenly.
SHAPE = (64, 4)
TARGET = 1.8
CLIENT_SHARE_MAX = 0.95


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield how much a second worker adds."""
    second_cpu = bench.cores.second
    if second_cpu is None:
        bench.note("two workers: skipped, the load needs a third core")
        return
    cpus = [cpu for cpu in bench.cores.clients if cpu != second_cpu]
    data_dir = bench.folder / "workers"
    first = servers.ours(bench.onnx_file, data_dir, bench.cores.server)
    runs: dict[int, list[float]] = {1: [], 2: []}
    with running(first):
        first.check(bench.wanted)
        url = f"http://{HOST}:{first.ports.grpc}{model.GRPC_PATH}"
        load = partial(
            h2load, url, SHAPE, bench.body, HEADERS, cpus, bench.effort.run_s, first.reply_bytes
        )
        for _ in range(bench.effort.runs):
            runs[1].append(load().requests_per_s)
            second = servers.ours(bench.onnx_file, data_dir, second_cpu, first.ports)
            with running(second):
                result = load()
            runs[2].append(result.requests_per_s)
            if result.client_share > CLIENT_SHARE_MAX:
                bench.note("two workers: the load client's cores were full, two may be faster")
    yield Figure(
        figure=f"two workers on two cores, {SHAPE[0]}×{SHAPE[1]}",
        unit="requests/s",
        runs=runs[2],
        peer="one worker",
        peer_runs=runs[1],
        target=TARGET,
        higher_is_better=True,
    )
