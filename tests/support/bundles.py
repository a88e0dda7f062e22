"""Small, whole bundles for tests that need a version but no model worth the name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.bundle import (
    Decision,
    Golden,
    Lineage,
    Manifest,
    Metric,
    Runtime,
    Signature,
    TensorSpec,
    write_bundle,
)

CONTENTS: dict[str, bytes | Path] = {
    "card.md": b"# delay\n",
    "golden.arrow": b"golden",
    "model.onnx": b"model",
    "profile.arrow": b"profile",
}


def manifest(name: str = "delay", **changes: Any) -> Manifest:
    """A manifest without files, with `changes` to its fields."""
    fields: dict[str, Any] = {
        "name": name,
        "signature": Signature(
            [TensorSpec("features", "FP32", [-1, 2])],
            [TensorSpec("probability", "FP32", [-1, 1])],
        ),
        "decision": Decision(["on time", "late"], threshold=0.5),
        "runtime": Runtime({"ai.onnx": 15, "ai.onnx.ml": 3}, ">=1.20,<2"),
        "golden": Golden(),
        "metrics": {"auc": Metric(0.76, 0.75, 0.77, 84_000, {"carrier=UA": Metric(0.74)})},
        "lineage": Lineage(
            run="run-1",
            datasets={"departures": "sha256:" + "1" * 64},
            code_commit="c0ffee",
            code_dirty_digest=None,
            parameters={"num_leaves": 63},
            environment_digest="sha256:" + "2" * 64,
        ),
    }
    return Manifest(**(fields | changes))


def make_bundle(folder: Path, seed: object = 0, name: str = "delay") -> str:
    """Write a bundle that differs from that of every other `seed`; return its digest."""
    contents = CONTENTS | {"model.onnx": f"model {seed}".encode()}
    return write_bundle(folder, manifest(name), contents)
