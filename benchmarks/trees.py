"""Our evaluation of a tree ensemble against onnxruntime's: 200 trees × 31 leaves, 50 features.

The model is the serving benchmark's GBDT, a probability, and both sides answer through a session's
`run` in one thread of this process, in turns. No two calls in a row have the same rows: of a row
that comes again the processor remembers which way it went down the trees, and onnxruntime looks
twice as fast as it is. All answers are compared first, bit for bit.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness

SIZES = (1, 8, 32, 256)  # rows of a call
TARGET = 1.5
ROWS = 16_384
RUN_S = 0.3
RUNS = 21
RUNS_QUICK = 5
SEED = 3
PEER = "onnxruntime"

Run = Callable[[Any], Any]


def sides(model: bytes) -> tuple[Run, Run]:
    """Return what answers a matrix: our session, and onnxruntime's own."""
    from benchmarks.common import model as common
    from server.execution.session import Session

    with tempfile.TemporaryDirectory() as name:
        file = Path(name, "model.onnx")
        file.write_bytes(model)
        ours, theirs = Session(file, file.parent), common.session(file)
    return (
        lambda rows: ours.run([rows])[0],
        lambda rows: theirs.run([common.OUTPUT], {common.INPUT: rows})[0],
    )


def measure(runs: int, run_s: float = RUN_S) -> list[harness.Figure]:
    """Run all sizes, `runs` times each."""
    from benchmarks.serving_parts.workloads import GBDT_WIDTH, gbdt_onnx, rows_of

    ours, theirs = sides(gbdt_onnx())
    rows = rows_of(GBDT_WIDTH, ROWS, SEED)
    figures = []
    for size in SIZES:
        batches = [rows[at : at + size] for at in range(0, ROWS, size)]
        compare(ours, theirs, batches[: ROWS // max(SIZES)])
        taken: tuple[list[float], list[float]] = ([], [])
        for side in harness.turns((1, 0), runs):
            taken[side].append(row_us((ours, theirs)[side], batches, run_s))
        figures.append(
            harness.Figure(
                figure=f"GBDT of 200 trees × 31 leaves, {size} rows at once: CPU",
                unit="µs a row",
                runs=taken[0],
                peer=PEER,
                peer_runs=taken[1],
                target=TARGET,
            )
        )
    return figures


def row_us(run: Run, batches: Sequence[Any], run_s: float) -> float:
    """Return the CPU time of a row, over calls for `run_s`."""
    calls, start_s = 0, time.process_time()
    while (taken_s := time.process_time() - start_s) < run_s:
        for _ in range(8):
            run(batches[calls % len(batches)])
            calls += 1
    return taken_s / calls / len(batches[0]) * 1e6


def compare(ours: Run, theirs: Run, batches: Sequence[Any]) -> None:
    """Raise RuntimeError where an answer differs in a bit."""
    for batch in batches:
        if ours(batch).tobytes() != theirs(batch).tobytes():
            raise RuntimeError(f"an answer of {PEER} differs from ours")


def main() -> None:
    """Run the benchmark."""
    options = harness.arguments(__doc__)
    machine = harness.machine()
    figures = measure(RUNS_QUICK if options.quick else RUNS)
    versions = harness.versions(("numba", "onnxruntime", "lightgbm"), [])
    harness.publish(harness.document("trees", machine, versions, figures), figures, options.json)


if __name__ == "__main__":
    main()
