"""A bundle that can be served whole: definitions, a network on their features, profile, golden."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from features import CompiledService, definitions_from_source
from monitor import build_profile, write_profile
from tests.server.onnx_models import mlp_model
from trainer.bundle import (
    Decision,
    FeatureServiceRef,
    Golden,
    Lineage,
    Manifest,
    Runtime,
    Signature,
    TensorSpec,
    write_bundle,
)
from trainer.calibrators import CALIBRATOR, Calibrator, calibrate, calibrator_bytes
from trainer.golden import golden_bytes

DEFINITIONS = b"""
from features import (
    Aggregation, Entity, EventSource, FeatureService, Field, Float64, StreamFeatureView, String,
    Window,
)

user = Entity("user", ["user"])
payments = EventSource("payments", [Field("user", String), Field("amount", Float64)])
activity = StreamFeatureView(
    "activity", user, payments,
    [Aggregation("amount", ["count", "mean"], [Window("1h", hop="1min")])],
)
score = FeatureService("score", version=1, features=[activity])
"""
MODEL = "score"


def service() -> CompiledService:
    return definitions_from_source(DEFINITIONS).service("score")


def infer(model: bytes, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the network says, by the library's plainest use."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    answer: NDArray[np.float32] = session.run(None, {"features": matrix})[0]
    return answer


def make_served_bundle(
    folder: Path, seed: int = 1, calibrator: Calibrator | None = None
) -> tuple[str, bytes]:
    """Write the bundle as `folder`; return its digest and its model."""
    compiled = service()
    model = mlp_model(len(compiled.columns), seed)
    random = np.random.default_rng(7)
    matrix = random.normal(size=(64, len(compiled.columns))).astype(np.float32)
    outputs = infer(model, matrix)
    if calibrator is not None:
        outputs = calibrate(calibrator, outputs)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "profile.arrow"
        write_profile(build_profile(matrix, compiled.columns, outputs.ravel(), None), path)
        profile = path.read_bytes()
    manifest = Manifest(
        name=MODEL,
        signature=Signature(
            [TensorSpec("features", "FP32", [-1, len(compiled.columns)])],
            [TensorSpec("probability", "FP32", [-1, 1])],
        ),
        feature_service=FeatureServiceRef(
            compiled.name, compiled.version, compiled.hash, compiled.columns
        ),
        decision=Decision(
            ["low", "high"], threshold=0.5, calibrator=CALIBRATOR if calibrator else None
        ),
        runtime=Runtime({"ai.onnx": 21}, ">=1.20,<2"),
        golden=Golden(),
        metrics={},
        lineage=Lineage(
            run="run-1",
            datasets={},
            code_commit="c0ffee",
            code_dirty_digest=None,
            parameters={},
            environment_digest="sha256:" + "2" * 64,
        ),
    )
    contents: dict[str, bytes | Path] = {
        "model.onnx": model,
        "definitions.py": DEFINITIONS,
        "card.md": f"# score {seed}\n".encode(),
        "profile.arrow": profile,
        "golden.arrow": golden_bytes({"features": matrix[:8], "probability": outputs[:8]}),
    }
    if calibrator is not None:
        contents[CALIBRATOR] = calibrator_bytes(calibrator)
    return write_bundle(folder, manifest, contents), model
