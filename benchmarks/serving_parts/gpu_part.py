"""GPU: sessions of ours against onnxruntime's own, both with IO binding, in this process.

No server is between them: what a request costs before and behind the model is the other parts'.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.common import model
from benchmarks.harness import Figure
from benchmarks.serving_parts import workloads
from benchmarks.serving_parts.bench import Bench
from benchmarks.serving_parts.workloads import Rows
from server.execution.device_session import DeviceSession
from server.execution.devices import (
    CPU_PROVIDERS,
    CUDA_PROVIDER,
    Device,
    Placement,
    Provider,
    gpu_count,
)

MODELS = (model.MODEL, workloads.WIDE)
ROWS = (1, 32, 256)
TARGET = 0.95  # against a bare session
BOUND, GRAPHS, BARE = "IO binding", "CUDA graphs", "onnxruntime with IO binding"
_GRAPH_OPTIONS = {"enable_cuda_graph": "1"}
Run = Callable[[], object]


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield a figure for each model, number of rows and way to run it; none without a GPU."""
    import onnxruntime

    if CUDA_PROVIDER not in onnxruntime.get_available_providers():
        bench.note("gpu: skipped: this onnxruntime has no CUDA provider")
    elif not gpu_count():
        bench.note("gpu: skipped: CUDA sees no GPU")
    else:
        files = [bench.files[name] for name in MODELS]
        yield from figures("cuda", (CUDA_PROVIDER,), files, bench.effort.runs, bench.effort.run_s)


def figures(
    kind: str, names: Sequence[str], files: Sequence[Path], runs: int, run_s: float
) -> Iterator[Figure]:
    """Yield the figures on device 0 of a kind, by the providers of these names."""
    import onnxruntime

    for file in files:
        bare = onnxruntime.InferenceSession(file, providers=_providers(names, {}))
        plain = DeviceSession(file, file.parent, _placement(kind, names, {}))
        graphs = DeviceSession(file, file.parent, _placement(kind, names, _GRAPH_OPTIONS))
        graphs.capture([workloads.rows_of(_width(bare), 1, 0)], max(ROWS))
        for rows in ROWS:
            feed = workloads.rows_of(_width(bare), rows, workloads.SEED)
            ways: dict[str, Run] = {
                BARE: partial(bare_run, bare, feed),
                BOUND: partial(plain.run, [feed]),
                GRAPHS: partial(graphs.run, [feed]),
            }
            rates = _rates(ways, runs, run_s)
            for way in (BOUND, GRAPHS):
                yield Figure(
                    figure=f"{file.parent.parent.name} ×{rows} on {kind}, {way}",
                    unit="runs/s",
                    runs=rates[way],
                    peer=BARE,
                    peer_runs=rates[BARE],
                    target=TARGET,
                    higher_is_better=True,
                )


def bare_run(session: Any, feed: Rows) -> list[Rows]:
    """Return what an InferenceSession answers, by IO binding."""
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, feed)
    for node in session.get_outputs():
        binding.bind_output(node.name, "cpu")
    session.run_with_iobinding(binding)
    return [value.numpy() for value in binding.get_outputs()]


def _providers(names: Sequence[str], options: Mapping[str, str]) -> tuple[Provider, ...]:
    return (*((name, dict(options)) for name in names), *CPU_PROVIDERS)


def _placement(kind: str, names: Sequence[str], options: Mapping[str, str]) -> Placement:
    device = Device(kind, 0, _providers(names, options))
    return Placement((device,), graphs=bool(options), buckets=ROWS)


def _width(session: Any) -> int:
    return int(session.get_inputs()[0].shape[1])


def _rates(ways: Mapping[str, Run], runs: int, run_s: float) -> dict[str, list[float]]:
    """Return how often a second each way ran, in each of `runs` turns."""
    for run in ways.values():
        run()
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for way in harness.turns(list(ways), runs):
        rates[way].append(_rate(ways[way], run_s))
    return rates


def _rate(run: Run, run_s: float) -> float:
    count, start_s = 0, time.monotonic()
    while (passed_s := time.monotonic() - start_s) < run_s:
        run()
        count += 1
    return count / passed_s
