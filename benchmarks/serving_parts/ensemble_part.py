"""Ensembles of three: closed loops as of the single models, against Triton's of the same steps."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.common import servers
from benchmarks.harness import Figure
from benchmarks.serving_parts import closed_part
from benchmarks.serving_parts.bench import Bench

CONCURRENCIES = (1, 16, 64)
TARGET = 1.5


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield a figure for each ensemble and concurrency."""
    return closed_part.measure_works(
        bench, bench.chains, CONCURRENCIES, (servers.TRITON,), lambda *_: TARGET
    )
