"""Models on GPUs, whole: here on the CPU in a GPU's place, on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from headrace.errors import NotFoundError
from server.backends import onnx as onnx_backend
from server.execution.device_session import DeviceSession
from server.execution.devices import CPU_PROVIDERS, CUDA_PROVIDER, Device, Placement, gpu_count
from server.execution.engine import Asked
from server.execution.threads import RunThreads
from server.models.loaded import LoadedModel
from server.models.repository import ModelRepository
from tests.server.onnx_models import identity_model, mlp_model, put

CPU = Device("cpu", 0, CPU_PROVIDERS)
GRAPHS = 'max_batch_size: 8 parameters { key: "enable_cuda_graph" value { string_value: "1" } }\n'
has_gpu = CUDA_PROVIDER in onnxruntime.get_available_providers() and gpu_count() > 0
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_gpu, reason="no NVIDIA GPU, or no onnxruntime-gpu"),
]


@pytest.fixture
def executor() -> Iterator[RunThreads]:
    with RunThreads(2, 2) as executor:
        yield executor


async def loaded(root: Path, executor: RunThreads, name: str) -> LoadedModel:
    repository = ModelRepository(root, executor)
    await repository.load_all()
    model = repository.get(name, "")
    assert isinstance(model, LoadedModel)
    return model


def stand_in(monkeypatch: pytest.MonkeyPatch, placement: Placement) -> None:
    """Let the CPU be the device of every model from here on."""
    monkeypatch.setattr(onnx_backend, "placement_of", lambda *_: placement)


async def answers(model: LoadedModel, rows: np.ndarray) -> np.ndarray:
    return (await model.infer([rows], len(rows), Asked())).arrays[0]


def plain_answers(model: bytes, rows: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: rows})[0]


@pytest.mark.parametrize("graphs", [False, True], ids=["bound", "graphs"])
async def test_a_repository_s_model_runs_on_its_devices(
    tmp_path: Path, executor: RunThreads, monkeypatch: pytest.MonkeyPatch, graphs: bool
) -> None:
    stand_in(monkeypatch, Placement((CPU, CPU), graphs=graphs, buckets=(2,)))
    put(tmp_path, "m", mlp_model(5), config="max_batch_size: 8")
    model = await loaded(tmp_path, executor, "m")
    assert isinstance(model._engine, DeviceSession)
    (group,) = model.config.instance_group
    assert (group.kind, list(group.gpus)) == (group.KIND_GPU, [0, 0])
    for rows in (1, 2, 3, 8):
        feed = np.random.default_rng(rows).normal(size=(rows, 5)).astype(np.float32)
        assert np.array_equal(await answers(model, feed), plain_answers(mlp_model(5), feed))


@pytest.mark.parametrize(
    ("model", "config", "words"),
    [
        (mlp_model(5), "max_batch_size: 0", "max_batch_size"),
        (identity_model(TensorProto.FLOAT), "max_batch_size: 4", "fixed sizes, but 'TEXT'"),
        (identity_model(TensorProto.STRING, ["N", 2]), "max_batch_size: 4", "text or BF16"),
    ],
)
async def test_a_model_that_has_no_graphs_does_not_load(
    tmp_path: Path, executor: RunThreads, monkeypatch: pytest.MonkeyPatch,
    model: bytes, config: str, words: str,
) -> None:  # fmt: skip
    stand_in(monkeypatch, Placement((CPU,), graphs=True))
    if config == "max_batch_size: 0":
        config = 'input { name: "features" data_type: TYPE_FP32 dims: [ -1, 5 ] }'
    put(tmp_path, "m", model, config=config)
    repository = ModelRepository(tmp_path, executor)
    await repository.load_all()
    (entry,) = repository.index()
    assert words in entry.reason


@pytest.mark.skipif(has_gpu, reason="there is a GPU")
async def test_without_a_gpu_kind_gpu_is_refused_and_kind_auto_is_on_the_cpu(
    tmp_path: Path, executor: RunThreads
) -> None:
    put(tmp_path, "gpu", mlp_model(5), config="instance_group { kind: KIND_GPU }")
    put(tmp_path, "auto", mlp_model(5), config="instance_group { count: 2 }\n" + GRAPHS)
    repository = ModelRepository(tmp_path, executor)
    await repository.load_all()
    reasons = {entry.name: entry.reason for entry in repository.index()}
    assert "KIND_GPU" in reasons["gpu"]
    with pytest.raises(NotFoundError):
        repository.get("gpu", "")
    (group,) = repository.get("auto", "").config.instance_group
    assert group.kind == group.KIND_CPU


class TestOnAGpu:
    """Held against the CPU, within what sums in another order, or TF32, may differ."""

    pytestmark = on_gpu

    @pytest.mark.parametrize("graphs", [False, True], ids=["bound", "graphs"])
    async def test_it_answers_as_the_cpu_does(
        self, tmp_path: Path, executor: RunThreads, graphs: bool
    ) -> None:
        config = GRAPHS if graphs else "max_batch_size: 8\n"
        put(tmp_path, "m", mlp_model(5), config=config + "instance_group { kind: KIND_GPU }")
        model = await loaded(tmp_path, executor, "m")
        assert isinstance(model._engine, DeviceSession)
        for rows in (1, 2, 3, 5, 8):
            feed = np.random.default_rng(rows).normal(size=(rows, 5)).astype(np.float32)
            wanted = plain_answers(mlp_model(5), feed)
            assert np.allclose(await answers(model, feed), wanted, rtol=1e-2, atol=1e-3)

    async def test_half_precision_is_kept(self, tmp_path: Path, executor: RunThreads) -> None:
        half = identity_model(TensorProto.FLOAT16, ["N", 3])
        put(tmp_path, "m", half, config=GRAPHS + "instance_group { kind: KIND_GPU }")
        model = await loaded(tmp_path, executor, "m")
        feed = np.array([[1.5, -2, 0], [6e-8, 65504, np.inf]], np.float16)
        assert np.array_equal(await answers(model, feed), feed)

    async def test_a_gpu_that_is_not_there_is_refused(
        self, tmp_path: Path, executor: RunThreads
    ) -> None:
        put(tmp_path, "m", mlp_model(5), config="instance_group { kind: KIND_GPU gpus: [999] }")
        repository = ModelRepository(tmp_path, executor)
        await repository.load_all()
        (entry,) = repository.index()
        assert "got 999" in entry.reason
