"""Latency: arrivals on a schedule (Poisson), at shares of the peak that the closed loops found.

A latency counts from when its call was due. Ours and Triton's arrivals have the same seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count

from benchmarks.common import servers
from benchmarks.common.clients import Open
from benchmarks.common.servers import Server
from benchmarks.common.turns import present, values
from benchmarks.harness import Figure
from benchmarks.serving_parts.bench import Bench
from benchmarks.serving_parts.workloads import Workload

SHARES = (0.25, 0.5, 0.75, 0.9)
QUANTILES = (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
P99_TARGET = 1 / 0.7  # at half load: ours takes at most 0.7 of Triton's
PEAK_CONCURRENCIES = (64, 256)  # where the closed loops were not asked for
PEAK_RUN_S = 0.5


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield the quantiles for each workload: at shares of each one's own peak, and of Triton's."""
    ours, triton = bench.ours(), bench.server(servers.TRITON)
    for work in bench.shapes:
        own_peak = _peak(bench, ours, work)
        rates = {ours: own_peak}
        if triton is not None:
            rates[triton] = _peak(bench, triton, work)
        for share in SHARES:
            at = {server: peak * share for server, peak in rates.items()}
            place = f"{work.title} at {share:.0%} of the own peak"
            yield from _compared(bench, work, at, place, share)
        if triton is not None:
            rate = rates[triton] / 2
            place = f"{work.title} at {rate:,.0f}/s, half Triton's"
            yield from _compared(bench, work, dict.fromkeys(rates, rate), place, 0.5)


def _compared(
    bench: Bench, work: Workload, rates: dict[Server, float], place: str, share: float
) -> Iterator[Figure]:
    def run(server: Server, seeds: Iterator[int]) -> Open:
        return bench.open(server, work, rates[server], bench.effort.open_run_s, next(seeds))

    loads = {server: partial(run, server, count()) for server in present(*rates)}
    taken = bench.in_turns(bench.effort.open_runs, loads)
    own, peer_runs = taken[servers.OURS], taken.get(servers.TRITON)
    assert own is not None
    for name, runs in taken.items():
        bench.note_trouble(runs or [], f"{place}, {name}")
    for title, quantile in QUANTILES:
        yield Figure(
            figure=f"{title}, {place}",
            unit="µs",
            runs=[run.quantile(quantile) for run in own],
            peer=servers.TRITON,
            peer_runs=values(peer_runs, lambda run, q=quantile: run.quantile(q)),  # type: ignore[misc]
            target=P99_TARGET if title == "p99" and share == 0.5 else None,
        )


def _peak(bench: Bench, server: Server, work: Workload) -> float:
    """Return the most requests/s that the server has answered in a closed loop."""
    key = f"{server.name} {work.title}"
    if key not in bench.peaks:
        bench.peaks[key] = max(
            bench.closed(server, work, concurrency, PEAK_RUN_S).requests_per_s
            for concurrency in PEAK_CONCURRENCIES
        )
    return bench.peaks[key]
