"""Backends are found by what a configuration says, and brought in by other distributions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from server.execution.engine import Asked
from server.execution.threads import RunThreads
from server.models.repository import ModelRepository
from tests.server.onnx_models import add_model, put

# A distribution beside ours: a backend that negates, a broken one, and one that nobody wants.
MODULE = """
from server.backends.contract import Made
from server.models.pbtxt import parse_config


class Negative:
    input_names = ["IN"]
    output_names = ["OUT"]

    def run(self, feeds):
        return [-feeds[0]]


class Backend:
    default_filename = ""
    graphs = False

    def load(self, files, number, config, host, statistics):
        return Made(config, Negative())
"""
ENTRY_POINTS = """[headrace.backends]
negative = plugged_backend:Backend
broken = plugged_backend:Nothing
unused = plugged_but_unused:Backend
"""
CONFIG = """
backend: "{}"
max_batch_size: 8
input {{ name: "IN" data_type: TYPE_FP32 dims: [ 2 ] }}
output {{ name: "OUT" data_type: TYPE_FP32 dims: [ 2 ] }}
"""


@pytest.fixture
def executor() -> Iterator[RunThreads]:
    with RunThreads(1, 1) as executor:
        yield executor


@pytest.fixture
def plugged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    metadata = site / "plugged-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    (site / "plugged_backend.py").write_text(MODULE)
    (site / "plugged_but_unused.py").write_text("raise AssertionError('nobody wants it')")
    monkeypatch.syspath_prepend(str(site))


def put_config(root: Path, name: str, config: str) -> None:
    (root / name / "1").mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(config)


async def loaded(root: Path, executor: RunThreads) -> ModelRepository:
    repository = ModelRepository(root, executor)
    await repository.load_all()
    return repository


def reason(repository: ModelRepository, name: str) -> str:
    return next(entry.reason for entry in repository.index() if entry.name == name)


@pytest.mark.usefixtures("plugged")
async def test_a_backend_of_another_distribution(tmp_path: Path, executor: RunThreads) -> None:
    root = tmp_path / "models"
    put_config(root, "negative", CONFIG.format("negative"))
    put_config(root, "broken", CONFIG.format("broken"))
    put(root, "add", add_model())
    repository = await loaded(root, executor)
    assert [model.name for model in repository.models()] == ["add", "negative"]
    row = np.array([[1.0, 2.0]], np.float32)
    outputs = await repository.get("negative").infer([row], 1, Asked())
    assert outputs.arrays[0].tolist() == [[-1.0, -2.0]]
    assert "the backend 'broken' cannot be loaded" in reason(repository, "broken")
    assert str(tmp_path) not in reason(repository, "broken")
    assert "plugged_but_unused" not in sys.modules


@pytest.mark.parametrize("config", ['backend: "tensorrt"', 'platform: "tensorflow_savedmodel"'])
async def test_a_backend_that_there_is_not(
    tmp_path: Path, executor: RunThreads, config: str
) -> None:
    put(tmp_path, "add", add_model(), config=config)
    repository = await loaded(tmp_path, executor)
    text = reason(repository, "add")
    assert "the backend is not supported" in text
    assert "expected" in text
    assert "onnxruntime" in text
    assert config.split('"')[1] in text


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("model_transaction_policy { decoupled: true }", "a graph cannot be decoupled"),
        ('backend: "onnxruntime" ensemble_scheduling { }', "ensemble_scheduling is of"),
    ],
)
async def test_what_a_graph_cannot_do(
    tmp_path: Path, executor: RunThreads, config: str, text: str
) -> None:
    put(tmp_path, "add", add_model(), config=config)
    assert text in reason(await loaded(tmp_path, executor), "add")
