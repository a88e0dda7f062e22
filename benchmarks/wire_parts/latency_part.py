"""Latency at half of a peer's peak: arrivals on a schedule, the same for ours and for the peer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count
from statistics import median

from benchmarks.common import clients, servers
from benchmarks.common.clients import Clients, Open
from benchmarks.common.servers import Server
from benchmarks.common.turns import present
from benchmarks.harness import Figure
from benchmarks.wire_parts import grpc_part
from benchmarks.wire_parts.bench import Bench
from benchmarks.wire_parts.header_styles import write_constant

CONNECTIONS = 16
QUANTILES = (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
PEAK_SHAPES = ((64, 1), (64, 4))  # where the throughput part was not asked for
PEAK_RUN_S = 1.0
LATE_SEND_US_MAX = 200.0


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield the quantiles at half of each peer's peak."""
    cpu = bench.cores.clients[-1]
    with clients.started([cpu]) as load:
        for name in (servers.GRPC_AIO, servers.TRITON):
            peer = bench.server(name)
            if peer is not None:
                yield from _against(bench, load, peer)


def _against(bench: Bench, load: Clients, peer: Server) -> Iterator[Figure]:
    rate = _peak(bench, peer) / 2
    run_s = bench.effort.latency_run_s
    calls = int(rate * (run_s + 1.0) / CONNECTIONS * 1.1) + 100
    scripts = write_constant(bench, calls)

    def run(server: Server, seeds: Iterator[int]) -> Open:
        return load.open(
            server, CONNECTIONS, scripts, bench.body.stat().st_size, rate, run_s, next(seeds)
        )

    # Each side counts its own runs, so that both sides of a pair get the same arrivals.
    loads = {server: partial(run, server, count()) for server in present(bench.ours(), peer)}
    taken = bench.in_turns(bench.effort.latency_runs, loads)
    own, peers = taken[servers.OURS], taken[peer.name]
    assert own is not None
    for runs, name in ((own, servers.OURS), (peers or [], peer.name)):
        _note_trouble(bench, runs, f"latency at {rate:,.0f}/s, {name}")
    for title, share in QUANTILES:
        yield Figure(
            figure=f"{title} at {rate:,.0f}/s, half {peer.name}'s peak",
            unit="µs",
            runs=[r.quantile(share) for r in own],
            peer=peer.name,
            peer_runs=None if peers is None else [r.quantile(share) for r in peers],
            target=1.0 if title == "p99" else None,
        )


def _peak(bench: Bench, server: Server) -> float:
    """Return the most requests/s that the server has answered."""
    if server.name not in bench.peaks:
        bench.peaks[server.name] = max(
            grpc_part.load(bench, server, shape, PEAK_RUN_S).requests_per_s for shape in PEAK_SHAPES
        )
    return bench.peaks[server.name]


def _note_trouble(bench: Bench, runs: list[Open], where: str) -> None:
    if lost := sum(run.failed for run in runs):
        calls = sum(len(run.latencies_us) for run in runs)
        bench.note(f"{where}: {lost} of {calls} calls failed; they count as the slowest")
    late_us = median(run.late_send_us for run in runs) if runs else 0.0
    if late_us > LATE_SEND_US_MAX:
        bench.note(f"{where}: the client sent up to {late_us:.0f} µs late (p99), as counted")
