"""A Predictor in its caller's process: how soon it answers, and how fast one row is answered.

The model is the wire's (30→64→1); its 30 features are windows over the payments of 20,000
customers, out of a snapshot; another bundle has it without a feature service. A start is the CPU
time of a fresh process from its beginning to its end, with one answer; the peer's does the same by
onnxruntime's plainest use, on a row that is given. `infer` is beside `session.run` on the same row.
Of single answers the median of each run is taken.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import harness

PEER = "onnxruntime"
CUSTOMERS = 20_000
EVENTS = 100_000
RUN_S = 0.5
RUNS = 15
RUNS_QUICK = 5
ROWS_MANY = 256
NOW_US = 1_714_564_800_000_000  # 2024-05-01 12:00 UTC
DEFINITIONS = b"""
from features import (
    Aggregation, Entity, EventSource, FeatureService, Field, Float64, Int64, StreamFeatureView,
    Window,
)

customer = Entity("customer", ["customer_id"])
payments = EventSource("payments", [Field("customer_id", Int64), Field("amount", Float64)])
windows = [Window(each, hop="5min") for each in ("1h", "2h", "3h", "6h", "12h", "24h")]
spending = StreamFeatureView(
    "spending", customer, payments,
    [Aggregation("amount", ["count", "sum", "mean", "min", "max"], windows)],
)
checkout = FeatureService("checkout", version=1, features=[spending])
"""
OURS_START = """
import sys
from server.embedded import Predictor
with Predictor(sys.argv[1], sys.argv[2] or None) as predictor:
    if sys.argv[2]:
        predictor.predict({"customer_id": [7]})
    else:
        predictor.infer({"features": [[0.5] * 30]})
"""
PEER_START = """
import sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx")
session.run(None, {"features": numpy.full((1, 30), 0.5, numpy.float32)})
"""


def prepare(root: Path) -> None:
    """Write the bundles, `plain` and `windowed`, and `features.snapshot`."""
    import msgspec
    import numpy as np
    import pyarrow as pa

    from benchmarks.common import model as common
    from features import definitions_from_source
    from features.offline import OfflineStore
    from features.snapshots.file import write_snapshot
    from features.snapshots.from_history import rows_of_history
    from trainer import bundle
    from trainer.golden import golden_bytes

    service = definitions_from_source(DEFINITIONS).service("checkout")
    random = np.random.default_rng(common.SEED)
    history = OfflineStore(root / "history")
    events = {
        "customer_id": random.integers(CUSTOMERS, size=EVENTS),
        "amount": random.exponential(20.0, EVENTS),
        "event_time": np.sort(NOW_US - random.integers(86_400_000_000, size=EVENTS)),
    }
    history.append("payments", pa.table(events))
    write_snapshot(
        root / "features.snapshot",
        rows_of_history(history, [each.view for each in service.views], NOW_US),
    )
    onnx_file = common.write_repository(root / "repository")
    rows = random.normal(size=(4, common.WIDTH)).astype(np.float32)
    (answers,) = common.session(onnx_file).run(None, {common.INPUT: rows})
    manifest = bundle.Manifest(
        name="mlp",
        signature=bundle.Signature(
            [bundle.TensorSpec(common.INPUT, "FP32", [-1, common.WIDTH])],
            [bundle.TensorSpec(common.OUTPUT, "FP32", [-1, 1])],
        ),
        feature_service=bundle.FeatureServiceRef(
            service.name, service.version, service.hash, service.columns
        ),
        decision=bundle.Decision(["pass", "hold"], threshold=0.5),
        runtime=bundle.Runtime({"ai.onnx": 21}, ">=1.20,<2"),
        golden=bundle.Golden(),
        metrics={},
        lineage=bundle.Lineage("benchmark", {}, "unknown", None, {}, "sha256:" + "0" * 64),
    )
    contents = {
        "model.onnx": onnx_file,
        "golden.arrow": golden_bytes({common.INPUT: rows, common.OUTPUT: answers}),
        "card.md": b"# mlp\n",
        "profile.arrow": b"",
    }
    bundle.write_bundle(root / "windowed", manifest, {**contents, "definitions.py": DEFINITIONS})
    plain = msgspec.structs.replace(manifest, feature_service=None)
    bundle.write_bundle(root / "plain", plain, contents)


def measure(runs: int, run_s: float = RUN_S) -> list[harness.Figure]:
    """Take all figures, `runs` times each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        return [*starts(folder, runs), *answers(folder, runs, run_s)]


def starts(folder: Path, runs: int) -> Iterator[harness.Figure]:
    """Yield what a fresh process takes until it has answered."""
    plain, windowed = str(folder / "plain"), str(folder / "windowed")
    sides = {
        "plain": (OURS_START, plain, ""),
        "windowed": (OURS_START, windowed, str(folder / "features.snapshot")),
        PEER: (PEER_START, plain),
    }
    for side in sides.values():  # what was never read is not on hand yet
        start_s(*side)
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for name in harness.turns(list(sides), runs):
        taken[name].append(start_s(*sides[name]))
    for name in ("plain", "windowed"):
        yield harness.Figure(f"start of a {name} bundle: CPU", "s", taken[name], PEER, taken[PEER])


def start_s(code: str, *arguments: str) -> float:
    """Return the CPU time of a process that runs `code`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=harness.ROOT, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def answers(folder: Path, runs: int, run_s: float) -> Iterator[harness.Figure]:
    """Yield how long an answer takes in a process that is warm."""
    import numpy as np

    from benchmarks.common import model as common
    from server.embedded import Predictor

    session = common.session(folder / "plain" / "model.onnx")
    row = np.full((1, common.WIDTH), 0.5, np.float32)
    customers = list(range(ROWS_MANY))
    with Predictor(folder / "windowed", folder / "features.snapshot") as ours:
        plain = session.run(None, {"features": row})[0]
        if ours.infer({"features": row})[common.OUTPUT].tobytes() != plain.tobytes():
            raise RuntimeError(f"an answer of {PEER} differs from ours")
        sides: dict[str, Callable[[], Any]] = {
            "infer": lambda: ours.infer({"features": row}),
            PEER: lambda: session.run(None, {"features": row}),
            "one": lambda: ours.predict({"customer_id": [7]}, event_time=NOW_US),
            "many": lambda: ours.predict({"customer_id": customers}, event_time=NOW_US),
        }
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for name in harness.turns(list(sides), runs):
            taken[name].append(median_us(sides[name], run_s))
    yield harness.Figure("infer, 1 row: p50", "µs", taken["infer"], PEER, taken[PEER])
    yield harness.Figure("predict, 1 row of 30 windows: p50", "µs", taken["one"], None, None)
    a_row = [each / ROWS_MANY for each in taken["many"]]
    yield harness.Figure(
        f"predict, {ROWS_MANY} rows of 30 windows: p50", "µs a row", a_row, None, None
    )


def median_us(call: Callable[[], Any], run_s: float) -> float:
    """Return the median time of a call, over calls for `run_s`."""
    taken_ns: list[int] = []
    end_ns = time.perf_counter_ns() + int(run_s * 1e9)
    while (began_ns := time.perf_counter_ns()) < end_ns:
        call()
        taken_ns.append(time.perf_counter_ns() - began_ns)
    return median(taken_ns) / 1000


def main() -> None:
    """Run the benchmark."""
    options = harness.arguments(__doc__)
    machine = harness.machine()
    figures = measure(RUNS_QUICK if options.quick else RUNS)
    versions = harness.versions(("numba", "numpy", "onnxruntime", "pyarrow"), [])
    harness.publish(harness.document("embedded", machine, versions, figures), figures, options.json)


if __name__ == "__main__":
    main()
