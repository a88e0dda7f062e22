"""Two workers on two cores against one, from the same load client."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.common import model, servers
from benchmarks.common.servers import HOST, Server, running
from benchmarks.common.tools import h2load
from benchmarks.harness import Figure
from benchmarks.wire_parts.bench import Bench
from benchmarks.wire_parts.grpc_part import HEADERS
from server.processes.ports import hold

SHAPE = (64, 4)
TARGET = 1.8
CLIENT_SHARE_MAX = 0.95


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield how much a second worker adds."""
    second_cpu = bench.cores.second
    if second_cpu is None:
        bench.note("two workers: skipped, the load needs a third core")
        return
    runs: dict[int, list[float]] = {1: [], 2: []}
    data_dir = bench.folder / "workers"
    with hold(HOST, 0, "grpc_port") as port:
        first = servers.ours(bench.onnx_file, data_dir, bench.cores.server, port)
        second = servers.ours(bench.onnx_file, data_dir, second_cpu, port, worker=1)
        with running(first):
            first.check(bench.wanted)
            for _ in range(bench.effort.runs):
                runs[1].append(_load(bench, first, second_cpu))
                with running(second):
                    runs[2].append(_load(bench, first, second_cpu))
    yield Figure(
        figure=f"two workers on two cores, {SHAPE[0]}×{SHAPE[1]}",
        unit="requests/s",
        runs=runs[2],
        peer="one worker",
        peer_runs=runs[1],
        target=TARGET,
        higher_is_better=True,
    )


def _load(bench: Bench, server: Server, second_cpu: int) -> float:
    cpus = [cpu for cpu in bench.cores.clients if cpu != second_cpu]
    url = f"http://{HOST}:{server.ports.grpc}{model.GRPC_PATH}"
    result = h2load(url, SHAPE, bench.body, HEADERS, cpus, bench.effort.run_s, server.reply_bytes)
    if result.client_share > CLIENT_SHARE_MAX:
        bench.note("two workers: the load client's cores were full, two may be faster")
    return result.requests_per_s
