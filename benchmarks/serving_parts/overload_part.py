"""Goodput: answers within their callers' patience, at the peak and at three times its load.

The model's run time dominates: a wide network that takes about 2.5 ms for its largest batch, eight
requests of one row. Callers wait a few times as long, and tell the server so (`grpc-timeout`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import partial
from itertools import count
from statistics import median

from benchmarks.common import servers
from benchmarks.common.clients import Open
from benchmarks.common.servers import Server
from benchmarks.common.tools import InvalidRun
from benchmarks.common.turns import present, values
from benchmarks.harness import Figure
from benchmarks.serving_parts.bench import PATIENCE_MS, Bench

PEAK_CONCURRENCIES = (8, 16, 24)
PEAK_SHARES = (0.5, 0.7, 0.9, 1.0)  # of the closed loop's rate, offered on a schedule
OVERLOAD = 3.0
SHARE_MIN = 90.0


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield the peak of each, and what is left of it at three times the load."""
    contestants = present(bench.ours(), bench.server(servers.TRITON))
    run_s = bench.effort.overload_run_s
    measured = bench.in_turns(1, {each: partial(peak, bench, each) for each in contestants})
    peaks = {name: found[0] for name, found in measured.items() if found}
    contestants = [server for server in contestants if server.name in peaks]
    triton_peak = peaks.get(servers.TRITON)
    yield Figure(
        figure=f"{bench.hurried.title}: peak goodput, {PATIENCE_MS} ms",
        unit="requests/s",
        runs=[peaks[servers.OURS]],
        peer=servers.TRITON,
        peer_runs=None if triton_peak is None else [triton_peak],
        higher_is_better=True,
    )

    def run(server: Server, seeds: Iterator[int]) -> float:
        rate = OVERLOAD * peaks[server.name]
        result = offered(bench, server, rate, run_s, next(seeds))
        _note_fates(bench, server, rate, result)
        return goodput(result, run_s)

    loads = {server: partial(run, server, count()) for server in contestants}
    taken = bench.in_turns(bench.effort.overload_runs, loads)
    own, peer_runs = taken[servers.OURS], taken.get(servers.TRITON)
    assert own is not None
    yield Figure(
        figure=f"{bench.hurried.title}: goodput at {OVERLOAD:g}× the own peak",
        unit="% of the peak",
        runs=[100 * rate / peaks[servers.OURS] for rate in own],
        peer=servers.TRITON,
        peer_runs=values(peer_runs, lambda rate: 100 * rate / (triton_peak or 1.0)),
        limit=SHARE_MIN,
        higher_is_better=True,
    )


def peak(bench: Bench, server: Server) -> float:
    """Return the server's best goodput, of closed loops and of arrivals on a schedule, in
    requests/s. Raises InvalidRun where no answer came in time.
    """
    run_s = bench.effort.overload_run_s
    patience_s = PATIENCE_MS / 1e3
    closed = [
        median(
            bench.closed(server, bench.hurried, concurrency, run_s / 2).requests_per_s
            for _ in range(bench.effort.peak_runs)
        )
        for concurrency in PEAK_CONCURRENCIES
    ]
    # By Little's law: the mean latency of a closed loop. Above half of the patience not all of its
    # answers can be taken to be in time.
    in_time = [
        rate
        for rate, concurrency in zip(closed, PEAK_CONCURRENCIES, strict=True)
        if concurrency / rate <= patience_s / 2
    ]
    scheduled = [
        goodput(offered(bench, server, max(closed) * share, run_s, seed), run_s)
        for seed, share in enumerate(PEAK_SHARES)
    ]
    best = max(in_time + scheduled)
    if best == 0:
        raise InvalidRun(f"no answer in {PATIENCE_MS} ms, at no load")
    return best


def offered(bench: Bench, server: Server, rate: float, run_s: float, seed: int) -> Open:
    """Offer so many requests/s, each with a deadline."""
    return bench.open(server, bench.hurried, rate, run_s, seed, PATIENCE_MS)


def goodput(result: Open, run_s: float) -> float:
    """Return how many right answers a second came within their patience."""
    return bisect_right(result.right_us, PATIENCE_MS * 1e3) / run_s


def _note_fates(bench: Bench, server: Server, rate: float, result: Open) -> None:
    good = bisect_right(result.right_us, PATIENCE_MS * 1e3)
    late = len(result.right_us) - good
    rest = result.offered - good - late
    bench.note(
        f"overload, {server.name} at {rate:,.0f}/s: {good} in time, {late} too late, "
        f"{rest} refused or unanswered; the client sent {result.late_send_us:.0f} µs late (p99)"
    )
