"""Throughput: closed loops of one call at a time on each of several gRPC connections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median

from benchmarks.common import model, servers
from benchmarks.common.clients import Closed
from benchmarks.common.turns import present, values
from benchmarks.harness import Figure
from benchmarks.serving_parts import peers, workloads
from benchmarks.serving_parts.bench import Bench
from benchmarks.serving_parts.workloads import Workload
from benchmarks.wire_parts import grpc_part

CONCURRENCIES = (1, 16, 64, 256)
PEERS = (servers.TRITON, servers.GRPC_AIO, peers.MLSERVER)
TREES_TARGET = 1.5  # against Triton
SMALL_TARGET = 10.0  # against MLServer and BentoML, one row a call
BUSY_SHARE = 0.95
FREE_SHARE = 0.85  # below: the load client was not full, and the server had no whole core


Target = Callable[[Workload, int, str], float | None]  # of a workload, concurrency and peer


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield a figure for each model, number of rows, concurrency and peer."""
    return measure_works(bench, bench.shapes, CONCURRENCIES, PEERS, _target)


def measure_works(
    bench: Bench,
    works: Sequence[Workload],
    concurrencies: Sequence[int],
    names: Sequence[str],
    target: Target,
) -> Iterator[Figure]:
    """Yield a figure for each workload, concurrency and peer of these names."""
    contestants = present(bench.ours(), *map(bench.server, names))
    for work in works:
        warm_ups = {server: partial(bench.closed, server, work, 4, 0.1) for server in contestants}
        bench.in_turns(1, warm_ups)
        for concurrency in concurrencies:
            loads = {
                server: partial(bench.closed, server, work, concurrency, bench.effort.run_s)
                for server in contestants
            }
            taken = bench.in_turns(bench.effort.runs, loads)
            own = _own(bench, work, concurrency, taken)
            for name in names:
                yield Figure(
                    figure=_title(work, concurrency),
                    unit="requests/s",
                    runs=own,
                    peer=name,
                    peer_runs=values(taken.get(name), lambda run: run.requests_per_s),
                    target=target(work, concurrency, name),
                    higher_is_better=True,
                )


def _title(work: Workload, concurrency: int) -> str:
    return f"{work.title}, {concurrency} at once"


def _own(
    bench: Bench, work: Workload, concurrency: int, taken: dict[str, list[Closed] | None]
) -> list[float]:
    """Return our rates; keep everybody's peaks, and note what a reader must know."""
    own = taken[servers.OURS]
    assert own is not None
    title = _title(work, concurrency)
    for name, runs in taken.items():
        if runs is not None:
            key, rate = f"{name} {work.title}", median(run.requests_per_s for run in runs)
            bench.peaks[key] = max(rate, bench.peaks.get(key, 0.0))
    client = median(run.client_share for run in own)
    if client > BUSY_SHARE:
        bench.note(f"{title}: the load client's core was full, ours may be faster")
    share = median(run.server_share for run in own)
    if concurrency > 1 and share < FREE_SHARE and client <= BUSY_SHARE:
        bench.note(f"{title}: ours had {share:.0%} of its core, something else took the rest")
    return [run.requests_per_s for run in own]


def _target(work: Workload, concurrency: int, peer: str) -> float | None:
    if peer == peers.MLSERVER:
        return SMALL_TARGET if work.rows == 1 else None
    if work.model == model.MODEL:
        # The table of the wire holds through the whole server.
        against_aio, against_triton = grpc_part.TARGETS[concurrency, 1]
        return against_triton if peer == servers.TRITON else against_aio
    is_tree = work.model == workloads.GBDT and peer == servers.TRITON
    return TREES_TARGET if is_tree else None
