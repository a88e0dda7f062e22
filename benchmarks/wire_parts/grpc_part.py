"""gRPC throughput: h2load with one ModelInfer body, against grpc.aio and Triton."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from statistics import median

from benchmarks.common import model, servers
from benchmarks.common.servers import HOST, Server
from benchmarks.common.tools import Run, h2load
from benchmarks.common.turns import present, values
from benchmarks.harness import Figure
from benchmarks.wire_parts.bench import Bench

# (connections, streams each) → the targets against grpc.aio and against Triton.
TARGETS = {
    (1, 1): (2.4, 1.9),
    (16, 1): (15.0, 4.0),
    (64, 1): (14.0, 4.0),
    (256, 1): (13.0, 4.0),
    (64, 4): (35.0, 9.0),
    (4, 8): (40.0, 9.0),
    (8, 32): (60.0, 14.0),
}
HEADERS = {"content-type": "application/grpc", "te": "trailers"}
BUSY_SHARE = 0.95
WARM_UP_S = 0.5


def load(bench: Bench, server: Server, shape: tuple[int, int], run_s: float) -> Run:
    """Load one server from one core."""
    client = bench.cores.clients[-1:]
    url = f"http://{HOST}:{server.ports.grpc}{model.GRPC_PATH}"
    return h2load(url, shape, bench.body, HEADERS, client, run_s, server.reply_bytes)


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield a figure for each shape and peer."""
    peers = {name: bench.server(name) for name in (servers.GRPC_AIO, servers.TRITON)}
    contestants = present(bench.ours(), *peers.values())
    for server in contestants:
        load(bench, server, (4, 8), WARM_UP_S)
    for shape, targets in TARGETS.items():
        loads = {
            server: partial(load, bench, server, shape, bench.effort.run_s)
            for server in contestants
        }
        taken = bench.in_turns(bench.effort.runs, loads)
        own = taken[servers.OURS]
        assert own is not None
        title = f"{shape[0]}×{shape[1]}"
        for name, runs in taken.items():
            if runs is not None:
                rate = median(run.requests_per_s for run in runs)
                bench.peaks[name] = max(rate, bench.peaks.get(name, 0.0))
        if median(run.client_share for run in own) > BUSY_SHARE:
            bench.note(f"gRPC {title}: h2load's core was full, ours may be faster")
        for name, target in zip(peers, targets, strict=True):
            yield Figure(
                figure=f"gRPC {title}",
                unit="requests/s",
                runs=[run.requests_per_s for run in own],
                peer=name,
                peer_runs=values(taken.get(name), lambda run: run.requests_per_s),
                target=target,
                higher_is_better=True,
            )
