"""Triton's repository layout: what is completed, what is refused, and what stops nobody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from headrace.errors import InvalidArgumentError, NotFoundError, UnavailableError
from server.execution.engine import Asked
from server.execution.threads import RunThreads
from server.models.repository import ModelRepository
from server.protocol.tensors import Tensor
from tests.server.onnx_models import (
    add_model,
    gather_model,
    identity_model,
    mixing_model,
    mlp_model,
    put,
)


@pytest.fixture
def executor() -> Iterator[RunThreads]:
    with RunThreads(1, 1) as executor:
        yield executor


async def load(root: Path, executor: RunThreads) -> ModelRepository:
    repository = ModelRepository(root, executor)
    await repository.load_all()
    return repository


async def test_a_broken_model_is_listed_with_its_reason_and_stops_nobody(
    tmp_path: Path, executor: RunThreads
) -> None:
    put(tmp_path, "good", add_model())
    put(tmp_path, "cut", add_model()[:60])
    put(tmp_path, "empty", b"")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "no_file" / "1").mkdir(parents=True)
    put(tmp_path, "typo", add_model(), config="max_batch_sise: 8")
    (tmp_path / "notes.txt").write_text("not a model")
    repository = await load(tmp_path, executor)
    index = {entry.name: entry for entry in repository.index()}
    assert [name for name, entry in index.items() if entry.state == "READY"] == ["good"]
    assert "InvalidProtobuf" in index["cut"].reason
    assert "no version folder" in index["nothing"].reason
    assert "1/model.onnx is not there" in index["no_file"].reason
    assert "max_batch_sise" in index["typo"].reason
    assert "1:1" in index["typo"].reason
    assert all(str(tmp_path) not in entry.reason for entry in index.values())
    with pytest.raises(NotFoundError, match="'cut' has no available versions; version 1 could not"):
        repository.get("cut")
    with pytest.raises(UnavailableError, match="'cut' version 1 is not at ready state"):
        repository.get("cut", "1")
    with pytest.raises(NotFoundError, match="Request for unknown model: 'nope' is not found"):
        repository.get("nope")


async def test_the_version_policy_chooses_and_the_latest_answers(
    tmp_path: Path, executor: RunThreads
) -> None:
    policies = {
        "latest": None,
        "two": "version_policy { latest { num_versions: 2 } }",
        "all": "version_policy { all {} }",
        "some": "version_policy { specific { versions: [2, 7] } }",
    }
    for name, config in policies.items():
        for version in (1, 2, 10):
            put(tmp_path, name, add_model(), version, config)
        (tmp_path / name / "backup").mkdir()
        (tmp_path / name / "007").mkdir()
    repository = await load(tmp_path, executor)
    assert repository.versions("latest") == ["10"]
    assert repository.versions("two") == ["2", "10"]
    assert repository.versions("all") == ["1", "2", "10"]
    assert repository.versions("some") == ["2"]
    assert repository.get("all").version == "10"
    assert repository.get("all", "2").version == "2"
    with pytest.raises(NotFoundError, match="'all' version 99 is not found"):
        repository.get("all", "99")
    for wrong in ("1.0.0", "-1", "one", "²"):
        with pytest.raises(InvalidArgumentError, match="version string"):
            repository.get("all", wrong)


async def test_the_configuration_is_completed_from_the_graph(
    tmp_path: Path, executor: RunThreads
) -> None:
    put(tmp_path, "named", mlp_model(4))
    put(tmp_path, "fixed", add_model(2))
    put(tmp_path, "unnamed", mixing_model())
    put(tmp_path, "counts", identity_model(TensorProto.INT64, ["a", "b"]))
    put(tmp_path, "small", add_model(), config="max_batch_size: 8")
    put(tmp_path, "explicit", add_model(), config="""
        backend: "onnxruntime"
        input [{name: "INPUT0" data_type: TYPE_INT32 dims: [-1, 4]},
               {name: "INPUT1" data_type: TYPE_INT32 dims: [-1, 4]}]
        output [{name: "OUTPUT0" data_type: TYPE_INT32 dims: [-1, 4]}]
    """)  # fmt: skip
    repository = await load(tmp_path, executor)
    assert [entry.reason for entry in repository.index() if entry.state != "READY"] == []
    named = repository.get("named")
    assert named.max_batch_size > 0
    assert named.inputs["features"].shape == (-1, 4)
    assert list(named.config.input[0].dims) == [4]
    assert named.config.platform == "onnxruntime_onnx"
    assert repository.get("fixed").max_batch_size == 0
    assert repository.get("fixed").inputs["INPUT0"].shape == (2, 4)
    assert repository.get("small").max_batch_size == 8
    explicit = repository.get("explicit")
    assert explicit.max_batch_size == 0
    assert explicit.inputs["INPUT0"].shape == (-1, 4)
    assert list(explicit.outputs) == ["OUTPUT0"]
    tensors = [Tensor(name, "INT32", np.ones((3, 4), np.int32)) for name in explicit.inputs]
    feeds, rows = explicit.check(tensors, [])
    assert [array.sum() for array in (await explicit.infer(feeds, rows, Asked())).arrays] == [24]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ('name: "other"', "name differs"),
        ('backend: "python"', "1/model.py is not there"),
        ('platform: "tensorrt_plan"', "backend is not supported"),
        ("max_batch_size: -1", "negative"),
        ("batch_output { target_name: 'OUTPUT0' }", "batch_output is not supported"),
        ("model_transaction_policy { decoupled: true }", "decoupled"),
        ('input { name: "X" data_type: TYPE_INT32 dims: 4 }', "no input 'X'"),
        ('input { name: "INPUT0" data_type: TYPE_FP32 dims: [-1, 4] }', "data_type of input"),
        ('input { name: "INPUT0" data_type: TYPE_INT32 dims: [-1, 5] }', "dims of input"),
        ('input { name: "INPUT0" data_type: TYPE_INT32 dims: [-1, 4] }', "'INPUT1'"),
        ('input { name: "INPUT0" data_type: TYPE_INT32 dims: 4 reshape { shape: 4 } }', "reshape"),
        ('default_model_filename: "../1/model.onnx"', "is not there"),
        ("max_batch_size: 8 max_batch_size: oops", "not a model configuration"),
        ("\x00", "not a model configuration"),
    ],
)
async def test_a_wrong_configuration_is_named(
    tmp_path: Path, executor: RunThreads, config: str, reason: str
) -> None:
    put(tmp_path, "m", add_model(), config=config)
    repository = await load(tmp_path, executor)
    (entry,) = repository.index()
    assert entry.state == "UNAVAILABLE"
    assert reason in entry.reason


async def test_a_batch_size_for_a_graph_without_one_is_refused(
    tmp_path: Path, executor: RunThreads
) -> None:
    put(tmp_path, "m", add_model(2), config="max_batch_size: 8")
    repository = await load(tmp_path, executor)
    assert "has no batch dimension" in repository.index()[0].reason


async def test_a_graph_that_refuses_zeros_still_loads(tmp_path: Path, executor: RunThreads) -> None:
    put(tmp_path, "gather", gather_model())
    put(tmp_path, "text", identity_model())
    repository = await load(tmp_path, executor)
    assert [entry.state for entry in repository.index()] == ["READY", "READY"]


async def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, executor: RunThreads) -> None:
    with pytest.raises(NotFoundError, match="model repository"):
        await load(tmp_path / "nope", executor)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (None, "no model is served: {root} holds no NAME/1/model.onnx"),
        ("", "{root} looks like one model; give its parent"),
        ("parent/child", "no model is served"),
        ("cut", None),  # a model that fails says so itself
    ],
)
async def test_a_folder_that_holds_no_models_is_told(
    tmp_path: Path,
    executor: RunThreads,
    caplog: pytest.LogCaptureFixture,
    model: str | None,
    text: str | None,
) -> None:
    if model is not None:
        put(tmp_path, model, add_model()[:60])
    with caplog.at_level("WARNING"):
        await load(tmp_path, executor)
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == (text is not None)
    assert text is None or text.format(root=tmp_path) in told[0]
