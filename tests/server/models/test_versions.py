"""Versions from bundles: what is checked before one may answer, and where bundles come from."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from headrace.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from server.execution.engine import Asked
from server.execution.threads import RunThreads
from server.models.bundles import ReleasedModels
from server.models.versions import BundleSource, VersionLoader
from server.wire.http1.server import HttpServer
from server.wire.routes import Request, Response, Routes
from tests.server.onnx_models import mlp_model
from tests.server.serving import plan, write_plain_version, write_version
from tests.support.bundles import manifest
from tests.support.rides import DEFINITIONS
from trainer.bundle import Decision, FeatureServiceRef, Signature, TensorSpec, write_bundle
from trainer.calibrators import BYTES_MAX, CALIBRATOR, Sigmoid, calibrate, calibrator_bytes
from trainer.golden import golden_bytes
from trainer.registry.artifacts import ArtifactStore


@pytest.fixture
def executor() -> Iterator[RunThreads]:
    with RunThreads(1, 1) as executor:
        yield executor


def loader(root: Path, executor: RunThreads) -> VersionLoader:
    return VersionLoader(BundleSource(f"file://{root}", root), executor)


def test_a_good_bundle_loads_whole(tmp_path: Path, executor: RunThreads) -> None:
    digest = write_version(tmp_path)
    version = loader(tmp_path, executor).load("tips", digest)
    assert version.digest == version.model.version == digest
    assert version.service is not None
    assert version.service.columns == DEFINITIONS.service("tips").columns
    assert version.service_label == f"tips@{version.service.hash}"
    assert version.schema_id == 77
    plain = loader(tmp_path, executor).load("plain", write_plain_version(tmp_path))
    assert plain.service is None
    assert plain.service_label is None
    assert plain.decide(np.ones((2, 1), np.float32)) == []


def reference(**changes: Any) -> FeatureServiceRef:
    service = DEFINITIONS.service("tips")
    fields = {
        "name": service.name, "version": 1, "hash": service.hash, "columns": service.columns,
        "schema_id": 1,
    }  # fmt: skip
    return FeatureServiceRef(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"golden_shift": 0.01}, "golden rows"),
        ({"signature": Signature([TensorSpec("others", "FP32", [-1, 24])],
                                 [TensorSpec("probability", "FP32", [-1, 1])])},
         "input 'others' of the signature"),
        ({"signature": Signature([TensorSpec("features", "FP32", [-1, 24])],
                                 [TensorSpec("probability", "INT64", [-1, 1])])},
         "output 'probability' of the signature"),
        ({"feature_service": reference(hash="sha256:" + "0" * 64)}, "not the one that the model"),
        ({"feature_service": reference(
            columns=list(reversed(DEFINITIONS.service("tips").columns)))}, "not the one"),
    ],
)  # fmt: skip
def test_a_bundle_that_is_not_what_it_says_is_refused(
    tmp_path: Path, executor: RunThreads, changes: dict[str, Any], text: str
) -> None:
    digest = write_version(tmp_path, **changes)
    with pytest.raises(FailedPreconditionError, match=text):
        loader(tmp_path, executor).load("tips", digest)


def test_a_bundle_of_another_model_or_with_other_bytes_is_refused(
    tmp_path: Path, executor: RunThreads
) -> None:
    digest = write_version(tmp_path)
    with pytest.raises(FailedPreconditionError, match="another model"):
        loader(tmp_path, executor).load("other", digest)
    with pytest.raises(NotFoundError, match="no bundle"):
        loader(tmp_path, executor).load("tips", "sha256:" + "0" * 64)
    path = tmp_path / "tips-1" / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # one bit: onnxruntime would load it and answer wrongly
    path.write_bytes(data)
    with pytest.raises(FailedPreconditionError):
        loader(tmp_path, executor).load("tips", digest)


async def test_bundles_come_from_control_once_and_then_from_the_cache(
    tmp_path: Path, executor: RunThreads
) -> None:
    digest = write_version(tmp_path / "made")
    store = ArtifactStore(tmp_path / "control")
    for file in (tmp_path / "made" / "tips-1").iterdir():
        store.put_file(file)
    asked: list[str] = []

    async def blob(request: Request) -> Response:
        asked.append(request.params["digest"])
        return Response(200, store.read(request.params["digest"]), "application/octet-stream")

    routes = Routes()
    routes.add("GET", r"/v1/blobs/(?P<digest>[^/]+)", blob)
    control = HttpServer(routes)
    await control.start("127.0.0.1", 0)
    source = BundleSource(f"http://127.0.0.1:{control.port}", tmp_path / "cache")
    versions = VersionLoader(source, executor)
    version = await asyncio.to_thread(versions.load, "tips", digest)
    assert version.digest == digest
    assert len(asked) == len(set(asked)) == 6
    missing = "sha256:" + "0" * 64
    with pytest.raises(NotFoundError):
        await asyncio.to_thread(versions.load, "tips", missing)
    await control.drain(0)
    again = await asyncio.to_thread(versions.load, "tips", digest)
    assert again.digest == digest
    with pytest.raises(UnavailableError):
        await asyncio.to_thread(versions.load, "tips", missing)


def test_a_wrong_registry_url_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="registry URL"):
        BundleSource("ftp://x", tmp_path)


async def test_a_model_that_cannot_advance_keeps_its_version_and_others_go_on(
    tmp_path: Path, executor: RunThreads
) -> None:
    tips, plain = write_version(tmp_path), write_plain_version(tmp_path)
    models = ReleasedModels(loader(tmp_path, executor), executor)
    assert (await models.apply(plan(1, tips=[(tips, "live", 1.0)])))["applied"]
    first = models.get("tips")
    bad = write_version(tmp_path, seed=5, golden_shift=1.0)
    event = await models.apply(plan(2, tips=[(bad, "live", 1.0)], plain=[(plain, "live", 1.0)]))
    assert event["applied"] is False
    assert "tips" in event["error"]
    assert models.get("tips") is first
    assert models.get("plain").number == 2
    assert (await models.apply(plan(3, plain=[(plain, "live", 1.0)])))["applied"]
    assert models.names() == ["plain"]
    with pytest.raises(NotFoundError, match="'tips' is under no release plan"):
        models.get("tips")
    for wrong in ({"plan": "x"}, {"plan": 2, "models": {}}, {"plan": 9, "models": {"m": {}}}):
        assert (await models.apply(wrong))["applied"] is False
    assert models.number == 3
    await models.close()


async def test_a_plan_without_a_registry_says_so(executor: RunThreads) -> None:
    models = ReleasedModels(None, executor)
    event = await models.apply(plan(1, tips=[("sha256:" + "1" * 64, "live", 1.0)]))
    assert "no registry" in event["error"]


def write_calibrated(root: Path, decision: Decision, calibrator: bytes, shift: float = 0.0) -> str:
    """Write a bundle like `write_plain_version`'s, with a calibrator and golden rows of both."""
    model = mlp_model(1, 3, name="x")
    inputs = np.array([[0.5], [-2.0], [np.nan]], np.float32)
    answers = calibrate(SIGMOID, plain_run(model, inputs))
    return write_bundle(
        root / "calibrated",
        manifest(
            "plain",
            signature=Signature(
                [TensorSpec("x", "FP32", [-1, 1])], [TensorSpec("probability", "FP32", [-1, 1])]
            ),
            decision=decision,
        ),
        {
            "model.onnx": model,
            "golden.arrow": golden_bytes({"x": inputs, "probability": answers + np.float32(shift)}),
            "card.md": b"# card\n",
            "profile.arrow": b"profile",
            CALIBRATOR: calibrator,
        },
    )


def plain_run(model: bytes, inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"x": inputs})
    return outputs


SIGMOID = Sigmoid(-2.0, 1.0, logit=True)
LATE = Decision(["no", "yes"], threshold=0.5, calibrator=CALIBRATOR)


async def test_a_version_answers_what_its_calibrator_makes_of_its_model(
    tmp_path: Path, executor: RunThreads
) -> None:
    digest = write_calibrated(tmp_path, LATE, calibrator_bytes(SIGMOID))
    version = loader(tmp_path, executor).load("plain", digest)
    rows = np.linspace(-3, 3, 50, dtype=np.float32)[:, None]
    raw = plain_run((tmp_path / "calibrated" / "model.onnx").read_bytes(), rows)
    found = (await version.model.infer([rows], 50, Asked())).arrays[0]
    wanted = calibrate(SIGMOID, raw)
    assert found.dtype == np.float32
    assert np.array_equal(found.view(np.int32), wanted.view(np.int32))
    assert not np.array_equal(version.decide(found), version.decide(raw))
    explained = await version.model.explain([rows], 50, None)
    total = explained.values.sum(axis=1) + explained.base
    assert np.abs(total - wanted).max() < 1e-6


@pytest.mark.parametrize(
    ("decision", "calibrator", "shift", "text"),
    [
        (LATE, calibrator_bytes(SIGMOID), 0.01, "golden rows"),
        (LATE, calibrator_bytes(Sigmoid(-2.1, 1.0, logit=True)), 0.0, "golden rows"),
        (LATE, b'{"kind": "forest"}', 0.0, "calibrator"),
        (LATE, b" " * (BYTES_MAX + 1), 0.0, "too large"),
        (Decision(["a", "b"], rule="argmax", calibrator=CALIBRATOR), calibrator_bytes(SIGMOID),
         0.0, "decision does not fit"),
    ],
)  # fmt: skip
def test_a_decision_layer_that_is_not_what_it_says_is_refused(
    tmp_path: Path,
    executor: RunThreads,
    decision: Decision,
    calibrator: bytes,
    shift: float,
    text: str,
) -> None:
    digest = write_calibrated(tmp_path, decision, calibrator, shift)
    with pytest.raises((FailedPreconditionError, InvalidArgumentError), match=text):
        loader(tmp_path, executor).load("plain", digest)
