"""From a run's context to a bundle folder."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headrace.times import DAY_US, to_us
from monitor.daily import encode_days, score_days
from monitor.profile import build_profile, profile_from_table, write_profile
from trainer.bundle import (
    Decision,
    FeatureServiceRef,
    Golden,
    Lineage,
    Manifest,
    Metric,
    Runtime,
    Signature,
    TensorSpec,
    write_bundle,
)
from trainer.calibrators import CALIBRATOR, calibrator_bytes
from trainer.card import render_card
from trainer.export import INPUT, OPSETS, OUTPUT
from trainer.golden import golden_bytes
from trainer.recipe import Candidate, Trained, Training
from trainer.scoring import onnx_predictor

BASELINE = "baseline.msgpack"
BOOSTER = "lightgbm.txt"
GOLDEN_ROWS = 64
# Single rounding of the logistic function may differ between machines; nothing else can.
GOLDEN_TOLERANCE = 1e-6
ONNXRUNTIME = ">=1.19"


def pack_bundle(context: Training, candidate: Candidate, folder: Path) -> str:
    """Write a candidate's bundle to `folder` and return its digest."""
    trained = context.trained[candidate.name]
    predictions = context.predictions[candidate.name]
    test = context.period_rows(candidate.test)
    golden = test[np.linspace(0, len(test) - 1, GOLDEN_ROWS).astype(np.int64)]
    learned = context.training_rows(candidate)
    profile = build_profile(
        context.matrix[learned],
        context.service.columns,
        predictions[learned],
        context.labels[learned],
    )
    contents: dict[str, bytes | Path] = {
        "model.onnx": trained.onnx,
        BOOSTER: trained.model.text.encode(),
        "definitions.py": context.definitions.source,
        "card.md": render_card(context, candidate).encode(),
        "golden.arrow": golden_bytes(
            {INPUT: context.matrix[golden], OUTPUT: predictions[golden][:, None]}
        ),
    }
    if trained.calibrator is not None:
        contents[CALIBRATOR] = calibrator_bytes(trained.calibrator)
    if candidate.tune is not None:
        # Whole days before service begins, so that its first days have something to drift from.
        rows = context.period_rows(candidate.tune)
        rows = rows[context.times()[rows] // DAY_US < to_us(candidate.test.start) // DAY_US]
        days = score_days(
            profile_from_table(profile),
            context.times()[rows],
            context.matrix[rows],
            predictions[rows],
            context.labels[rows].astype(np.float64),
        )
        contents[BASELINE] = encode_days(days)
    with tempfile.TemporaryDirectory() as scratch:
        contents["profile.arrow"] = Path(scratch) / "profile.arrow"
        write_profile(profile, Path(scratch) / "profile.arrow")
        tolerance = _tolerance(context, trained, golden)
        return write_bundle(folder, _manifest(context, candidate, tolerance), contents)


def _tolerance(context: Training, trained: Trained, rows: NDArray[np.int64]) -> float:
    """Return how far golden answers may lie apart: a calibrator can be steep where a rounding of
    the model's own answer differs."""
    if trained.calibrator is None:
        return GOLDEN_TOLERANCE
    answers = onnx_predictor(trained.onnx, context.threads)(context.matrix[rows])
    ends = [trained.served(np.nextafter(answers, np.float32(end))) for end in (0, 1)]
    return GOLDEN_TOLERANCE + float(np.abs(ends[1] - ends[0]).max())


def _manifest(context: Training, candidate: Candidate, tolerance: float) -> Manifest:
    recipe, service = context.recipe, context.service
    trained = context.trained[candidate.name]
    return Manifest(
        name=recipe.model,
        signature=Signature(
            inputs=[TensorSpec(INPUT, "FP32", [-1, len(service.columns)])],
            outputs=[TensorSpec(OUTPUT, "FP32", [-1, 1])],
        ),
        feature_service=FeatureServiceRef(
            service.name,
            service.version,
            service.hash,
            service.columns,
            context.schema_ids.get(service.hash),
        ),
        decision=Decision(
            list(recipe.classes),
            threshold=trained.threshold,
            calibrator=None if trained.calibrator is None else CALIBRATOR,
        ),
        runtime=Runtime({domain or "ai.onnx": at for domain, at in OPSETS.items()}, ONNXRUNTIME),
        golden=Golden("golden.arrow", tolerance),
        metrics=_metrics(context, candidate),
        lineage=Lineage(
            run=context.run_id,
            datasets=dict(sorted(context.inputs.items())),
            code_commit=context.code_version.commit,
            code_dirty_digest=context.code_version.dirty_digest,
            parameters=context.parameters[candidate.name],
            environment_digest=context.environment,
        ),
    )


def _metrics(context: Training, candidate: Candidate) -> dict[str, Metric]:
    metrics = context.evaluations[candidate.name].metrics
    if candidate is context.recipe.champion:
        metrics |= {
            f"auc of {name}": evaluation.auc for name, evaluation in context.baselines.items()
        }
    return metrics
