"""Our TreeSHAP against shap's C extension and LightGBM's pred_contrib: 200 trees × 31 leaves.

Each side runs in a process of its own, one thread, in turns, on the same model and the same rows of
50 features, one in twenty missing. What is measured is the process's CPU time of a call, divided by
its rows: a call is made from Python, with a float32 matrix, and gives float64. The
answers of both sides are compared first: none differs by more than 1e-6.

`shap.TreeExplainer` calls pred_contrib for LightGBM by itself: here it is told to use its own code.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import harness

PEERS = harness.Peer("shap", ("shap==0.51.0", "lightgbm==4.7.0"))
OURS, SHAP, LIGHTGBM = "headrace", "shap's C extension", "LightGBM's pred_contrib"

TREES, LEAVES, FEATURES = 200, 31, 50
TRAINING_ROWS = 20_000
ROWS_MAX = 1024
TOLERANCE = 1e-6
COMPARED_ROWS = 64
RUN_S = 0.3
RUNS = 21
RUNS_QUICK = 5
MODULE = "benchmarks.tree_shap"
MODEL_TEXT, MODEL_ONNX, ROWS = "model.txt", "model.onnx", "rows.npy"

Explain = Callable[[Any], Any]


class Case(NamedTuple):
    """One figure: so many rows at once, against this peer."""

    rows: int
    peer: str
    target: float | None

    @property
    def title(self) -> str:
        """How the figures name it."""
        return f"TreeSHAP of {TREES} trees × {LEAVES} leaves, {self.rows} rows at once: CPU"


CASES = [
    Case(1, LIGHTGBM, 2.8),
    Case(1, SHAP, None),
    Case(64, SHAP, 4.4),
    Case(64, LIGHTGBM, None),
    Case(1024, SHAP, 12.0),
    Case(1024, LIGHTGBM, None),
]


def make_model(folder: Path) -> None:
    """Train the model, and write it in both formats with the rows that are explained."""
    import lightgbm
    import numpy as np

    from trainer.export import forest_to_onnx
    from trainer.trees import read_forest, to_single_precision

    rng = np.random.default_rng(1)
    rows = rng.normal(size=(TRAINING_ROWS, FEATURES)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.05] = np.nan
    known = np.nan_to_num(rows)
    score = known @ rng.normal(size=FEATURES) + 2 * known[:, 0] * known[:, 1]
    labels = score + 3 * np.sin(3 * known[:, 2]) + rng.normal(size=len(rows)) > 0
    settings = {"objective": "binary", "num_leaves": LEAVES, "verbose": -1, "num_threads": 1,
                "seed": 1, "deterministic": True, "force_row_wise": True}  # fmt: skip
    booster = lightgbm.train(settings, lightgbm.Dataset(rows, labels), TREES)
    text = to_single_precision(booster.model_to_string())
    model = forest_to_onnx(read_forest(text), "benchmark")
    (folder / MODEL_TEXT).write_text(text)
    (folder / MODEL_ONNX).write_bytes(model.SerializeToString())
    np.save(folder / ROWS, rows[:ROWS_MAX])


# In each side's process


def answer(name: str, folder: str) -> None:
    """Run what each line of stdin asks for, and answer with a line of JSON, until stdin ends."""
    import numpy as np

    warnings.simplefilter("ignore")
    explain = {OURS: ours, SHAP: shap_c, LIGHTGBM: pred_contrib}[name](Path(folder))
    rows = np.load(Path(folder, ROWS))
    for line in sys.stdin:
        count, run_s = json.loads(line)
        part = rows[:count]
        values = np.asarray(explain(part))
        calls, start_s = 0, time.process_time()
        while (taken_s := time.process_time() - start_s) < run_s:
            explain(part)
            calls += 1
        first = values.reshape(count, -1)[:COMPARED_ROWS, :FEATURES].ravel().tolist()
        print(json.dumps({"us": taken_s / calls / count * 1e6, "first": first}), flush=True)


def ours(folder: Path) -> Explain:
    """Return our explanation of a matrix."""
    from server.explain.tree_shap import TreeShap
    from server.explain.trees import read_ensemble

    return TreeShap(read_ensemble((folder / MODEL_ONNX).read_bytes())).explain


def shap_c(folder: Path) -> Explain:
    """Return shap's own, with its check of the sums off."""
    import lightgbm
    import shap

    explainer = shap.TreeExplainer(lightgbm.Booster(model_file=folder / MODEL_TEXT))
    explainer.model.model_type = "internal"
    return lambda rows: explainer.shap_values(rows, check_additivity=False)


def pred_contrib(folder: Path) -> Explain:
    """Return LightGBM's; the base value is its last column."""
    import lightgbm

    booster = lightgbm.Booster(model_file=folder / MODEL_TEXT)
    return lambda rows: booster.predict(rows, pred_contrib=True, num_threads=1)


# In the benchmark's process


def measure(
    runs: int, pythons: dict[str, Path | str], run_s: float = RUN_S
) -> list[harness.Figure]:
    """Run all cases, `runs` times each; `pythons` has the Python of each peer that is there."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        make_model(folder)
        sides = {}
        for side, python in ({OURS: sys.executable, **pythons}).items():
            sides[side] = harness.Side(python, MODULE, side, str(folder))
            stack.callback(sides[side].close)
        return [measure_case(case, runs, run_s, sides) for case in CASES]


def measure_case(
    case: Case, runs: int, run_s: float, sides: dict[str, harness.Side]
) -> harness.Figure:
    """Run both sides of a case in turns."""
    names = [name for name in (case.peer, OURS) if name in sides]
    taken: dict[str, list[float]] = {name: [] for name in names}
    _compare({name: sides[name].ask(case.rows, run_s)["first"] for name in names})
    for name in harness.turns(names, runs):
        taken[name].append(sides[name].ask(case.rows, run_s)["us"])
    return harness.Figure(
        figure=case.title,
        unit="µs a row",
        runs=taken[OURS],
        peer=case.peer,
        peer_runs=taken.get(case.peer),
        target=case.target,
    )


def _compare(found: dict[str, list[float]]) -> None:
    """Raise RuntimeError where two sides do not say the same."""
    for name, values in found.items():
        furthest = max(abs(one - other) for one, other in zip(values, found[OURS], strict=True))
        if furthest > TOLERANCE:
            raise RuntimeError(f"an attribution of {name} differs from ours by {furthest}")


def main() -> None:
    """Run the benchmark."""
    options = harness.arguments(__doc__)
    machine = harness.machine()
    peer = harness.peer_python(PEERS)
    pythons: dict[str, Path | str] = {}
    if peer is not None:
        pythons = {SHAP: peer, LIGHTGBM: peer}
    figures = measure(RUNS_QUICK if options.quick else RUNS, pythons)
    versions = harness.versions(("numba", "lightgbm"), [(PEERS, peer)])
    harness.publish(
        harness.document("tree_shap", machine, versions, figures), figures, options.json
    )


if __name__ == "__main__":
    main()
