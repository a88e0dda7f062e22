"""What a version's folder holds: listed bytes, golden answers, external tensors."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import external_data_helper

from headrace.errors import InternalError
from server.execution.engine import Asked
from server.execution.threads import RunThreads
from server.models.integrity import VersionFiles, check_folder, read_sums
from server.models.loading import Overrides
from server.models.repository import ModelRepository
from tests.server.onnx_models import add_model, identity_model, mlp_model, put
from tests.server.served_bundles import infer, make_served_bundle, service
from tests.server.serving import write_plain_version
from trainer.calibrators import Sigmoid, calibrate

GOLDEN = {
    "inputs": [
        {"name": "INPUT0", "datatype": "INT32", "shape": [1, 4], "data": [1, 2, 3, 4]},
        {"name": "INPUT1", "datatype": "INT32", "shape": [1, 4], "data": [[1, 1, 1, 1]]},
    ],
    "outputs": [{"name": "OUTPUT0", "datatype": "INT32", "shape": [1, 4], "data": [2, 3, 4, 5]}],
}


@pytest.fixture
def executor() -> Iterator[RunThreads]:
    with RunThreads(2, 1) as executor:
        yield executor


@pytest.fixture
def repository(tmp_path: Path, executor: RunThreads) -> ModelRepository:
    return ModelRepository(tmp_path / "models", executor)


def write_sums(version: Path) -> None:
    """As an operator would: `sha256sum * > SHA256SUMS`."""
    names = sorted(path.name for path in version.iterdir())
    listed = subprocess.run(["sha256sum", *names], cwd=version, capture_output=True, check=True)
    (version / "SHA256SUMS").write_bytes(listed.stdout)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


async def refused(repository: ModelRepository, name: str) -> str:
    """Load; return why it failed, which the index must say, too."""
    with pytest.raises(InternalError) as caught:
        await repository.load(name)
    (entry,) = [entry for entry in repository.index() if entry.name == name]
    assert entry.reason
    assert entry.reason in caught.value.message
    return entry.reason


async def test_one_flipped_bit_is_found(repository: ModelRepository) -> None:
    """Without the list such a model loads, and answers wrongly."""
    version = put(repository.roots[0], "mlp", mlp_model(64)) / "1"
    write_sums(version)
    await repository.load("mlp")
    serving = repository.get("mlp")
    weights = (version / "model.onnx").read_bytes().find(b"w1") - 1500
    flip(version / "model.onnx", weights)
    assert "'model.onnx' has other bytes than are listed" in await refused(repository, "mlp")
    assert repository.get("mlp") is serving
    (version / "SHA256SUMS").unlink()
    await repository.load("mlp")


@pytest.mark.parametrize("model", [b"", b"\0" * 100, mlp_model()[:80], b"location" * 20])
async def test_what_is_no_model_has_its_reason_in_the_index(
    repository: ModelRepository, model: bytes
) -> None:
    put(repository.roots[0], "wrong", model)
    put(repository.roots[0], "add", add_model())
    await repository.load_all()
    assert [model.name for model in repository.models()] == ["add"]
    assert "ONNX model" in await refused(repository, "wrong")


@pytest.mark.parametrize(
    ("sums", "reason"),
    [
        (b"", "'model.onnx' is not listed"),
        (b"0123  model.onnx\n", "line 1 is none of sha256sum's"),
        (b"%064x  ../add/model.onnx\n" % 1, "line 1 is none of sha256sum's"),
        (b"%064x  /etc/passwd\n" % 1, "line 1 is none of sha256sum's"),
        (b"\xff\xfe", "line 1 is none of sha256sum's"),
        (b"x" * (2 << 20), "too large"),
    ],
)
async def test_a_list_that_is_none(repository: ModelRepository, sums: bytes, reason: str) -> None:
    version = put(repository.roots[0], "add", add_model()) / "1"
    (version / "SHA256SUMS").write_bytes(sums)
    assert reason in await refused(repository, "add")


def test_the_forms_that_sha256sum_writes() -> None:
    digest = hashlib.sha256(b"a").hexdigest()
    text = f"{digest}  a b\n{digest.upper()} *c\n{digest}  ./d/e\n"
    assert read_sums(text.encode()) == dict.fromkeys(["a b", "c", "d/e"], f"sha256:{digest}")


async def test_a_listed_file_that_is_gone(repository: ModelRepository) -> None:
    version = put(repository.roots[0], "add", add_model()) / "1"
    (version / "labels.txt").write_text("a\n")
    write_sums(version)
    (version / "labels.txt").unlink()
    assert "'labels.txt' is not there" in await refused(repository, "add")


async def test_files_of_a_request_are_looked_at_as_well(repository: ModelRepository) -> None:
    repository.roots[0].mkdir()
    model = add_model()
    sums = f"{hashlib.sha256(model).hexdigest()}  model.onnx\n".encode()
    files = {"1/model.onnx": model, "1/SHA256SUMS": sums, "1/golden.json": golden()}
    await repository.load("add", Overrides("{}", files))
    with pytest.raises(InternalError, match="other bytes"):
        await repository.load("add", Overrides("{}", files | {"1/model.onnx": mlp_model()}))
    with pytest.raises(InternalError, match="'OUTPUT0' is not what it was"):
        await repository.load(
            "add", Overrides("{}", files | {"1/golden.json": golden(data=[0] * 4)})
        )
    with pytest.raises(InternalError, match="its tensors inside"):
        await repository.load("add", Overrides("{}", {"1/model.onnx": external("weights")}))


def golden(**changes: Any) -> bytes:
    outputs = [GOLDEN["outputs"][0] | changes]
    return json.dumps(GOLDEN | {"outputs": outputs}).encode()


async def test_a_golden_input_is_asked_before_anybody_else(repository: ModelRepository) -> None:
    version = put(repository.roots[0], "add", add_model()) / "1"
    (version / "golden.json").write_bytes(golden())
    await repository.load("add")
    assert repository.get("add").statistics.success.count == 0
    (version / "golden.json").write_bytes(golden(data=[2, 3, 4, 6]))
    assert "golden.json: output 'OUTPUT0' is not what it was" in await refused(repository, "add")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a request and its answer"),
        (b"[" * 100_000, "not a request and its answer"),
        (b'{"inputs": []}', "missing required field `outputs`"),
        (json.dumps(GOLDEN | {"outputs": []}).encode(), "no output to compare"),
        (json.dumps(GOLDEN | {"inputs": []}).encode(), "expected 2 inputs"),
        (golden(name="nope"), "unexpected inference output 'nope'"),
        (golden(shape=[3]), "4 values for shape"),
        (golden(shape=[4]), "is not what it was"),
        (golden(datatype="FP99"), "unknown datatype"),
    ],
)
async def test_a_golden_input_that_is_none(
    repository: ModelRepository, content: bytes, reason: str
) -> None:
    version = put(repository.roots[0], "add", add_model()) / "1"
    (version / "golden.json").write_bytes(content)
    assert reason in await refused(repository, "add")


async def test_golden_answers_may_be_text_and_nan(repository: ModelRepository) -> None:
    version = put(repository.roots[0], "text", identity_model()) / "1"
    tensor = {"datatype": "BYTES", "shape": [1, 2], "data": ["a", "é"]}
    content = {"inputs": [tensor | {"name": "TEXT"}], "outputs": [tensor | {"name": "SAME"}]}
    (version / "golden.json").write_text(json.dumps(content))
    number = put(repository.roots[0], "number", identity_model(1)) / "1"
    tensor = {"datatype": "FP32", "shape": [1, 2], "data": [float("nan"), 1e9]}
    near = tensor | {"data": [float("nan"), 1e9 + 1e3]}
    content = {"inputs": [tensor | {"name": "TEXT"}], "outputs": [near | {"name": "SAME"}]}
    (number / "golden.json").write_text(json.dumps(content))
    await repository.load_all()
    assert [model.name for model in repository.models()] == ["number", "text"]


async def test_a_version_that_is_a_bundle_is_verified_as_one(
    repository: ModelRepository, tmp_path: Path
) -> None:
    write_plain_version(tmp_path, "plain", 3)
    version = repository.roots[0] / "plain" / "1"
    version.parent.mkdir(parents=True)
    (tmp_path / "plain-3").rename(version)
    await repository.load("plain")
    flip(version / "card.md", 0)
    assert "'card.md' has other bytes than the manifest says" in await refused(repository, "plain")


SCORES = np.linspace(-3, 3, 50, dtype=np.float32)[:, None]


async def test_a_bundle_in_a_repository_answers_with_its_calibrated_output(
    repository: ModelRepository,
) -> None:
    calibrator = Sigmoid(-3.0, 1.0)
    version = repository.roots[0] / "score" / "1"
    version.parent.mkdir(parents=True)
    _, model = make_served_bundle(version, calibrator=calibrator)
    rows = np.repeat(SCORES, len(service().columns), axis=1)
    wanted = calibrate(calibrator, infer(model, rows))
    await repository.load("score")
    served = repository.get("score")
    (found,) = (await served.infer([rows], len(rows), Asked())).arrays
    assert found.tobytes() == wanted.tobytes()
    explained = await served.explain([rows], len(rows), None)
    assert np.allclose(explained.values.sum(axis=1) + explained.base, wanted, atol=1e-6)


async def test_a_calibrated_bundle_has_no_sequences(repository: ModelRepository) -> None:
    folder = repository.roots[0] / "score"
    folder.mkdir(parents=True)
    make_served_bundle(folder / "1", calibrator=Sigmoid(-3.0, 1.0))
    (folder / "config.pbtxt").write_text("max_batch_size: 8 sequence_batching {}")
    assert "a calibrator is of models without sequences" in await refused(repository, "score")


def external(location: str) -> bytes:
    """A model whose weights lie in another file."""
    model = onnx.load_from_string(mlp_model(64))
    external_data_helper.convert_model_to_external_data(
        model, all_tensors_to_one_file=True, location="w", size_threshold=0
    )
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    return model.SerializeToString()


def weights() -> bytes:
    return np.arange(10_000, dtype=np.float32).tobytes()


def put_external(repository: ModelRepository, location: str) -> Path:
    model = onnx.load_from_string(external(location))
    at = 0
    for tensor in model.graph.initializer:
        size = 4 * int(np.prod(tensor.dims))
        tensor.ClearField("raw_data")
        del tensor.external_data[:]
        for key, value in (("location", location), ("offset", at), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        at += size + -size % 4096
    return put(repository.roots[0], "mlp", model.SerializeToString()) / "1"


def linked(version: Path, secret: Path) -> None:
    (version / "w").symlink_to(secret)


def hard_linked(version: Path, secret: Path) -> None:
    os.link(secret, version / "w")


def inside_link(version: Path, secret: Path) -> None:
    shutil.copy(secret, version / "real")
    (version / "w").symlink_to("real")


def pipe(version: Path, secret: Path) -> None:
    os.mkfifo(version / "w")


def folder(version: Path, secret: Path) -> None:
    (version / "w").mkdir()


def nothing(version: Path, secret: Path) -> None:
    pass


@pytest.mark.parametrize("make", [linked, hard_linked, inside_link, pipe, folder, nothing])
async def test_external_tensors_lie_in_plain_files(
    repository: ModelRepository, tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(weights())
    make(put_external(repository, "w"), secret)
    reason = await refused(repository, "mlp")
    assert "a tensor's data is " in reason
    assert str(tmp_path) not in reason


@pytest.mark.parametrize(
    "location", ["../w", "/etc/passwd", "a/../../w", "./w", "a//w", "..", "a\\..\\w"]
)
async def test_external_tensors_lie_in_the_folder(
    repository: ModelRepository, location: str
) -> None:
    version = put_external(repository, location)
    (version.parent / "w").write_bytes(weights())
    assert "outside the version's folder" in await refused(repository, "mlp")


def test_what_is_looked_for_may_lie_across_two_pieces(tmp_path: Path) -> None:
    for cut in range(len("TreeEnsemble") + 1):
        model = mlp_model()
        padding = (1 << 20) - cut
        (tmp_path / "model.onnx").write_bytes(bytes(padding) + b"TreeEnsemble" + model)
        assert check_folder(tmp_path, "model.onnx").has_trees
    (tmp_path / "model.onnx").write_bytes(model)
    assert check_folder(tmp_path, "model.onnx") == VersionFiles(len(model), 0, has_trees=False)


async def test_external_tensors_beside_the_model_are_read_and_listed(
    repository: ModelRepository,
) -> None:
    version = put_external(repository, "data/w")
    (version / "data").mkdir()
    (version / "data" / "w").write_bytes(weights())
    await repository.load("mlp")
    listed = hashlib.sha256((version / "model.onnx").read_bytes()).hexdigest()
    (version / "SHA256SUMS").write_text(f"{listed}  model.onnx\n")
    assert "is in a file that is not listed" in await refused(repository, "mlp")
