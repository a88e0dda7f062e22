"""Sessions: what loads, what does not, and that nothing is reported home."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from headrace.errors import FailedPreconditionError, InternalError
from server.execution.session import Session
from tests.server.onnx_models import OPSETS, gather_model, info, mlp_model


@pytest.mark.parametrize("setting", [None, "0"])
def test_telemetry_is_off_before_onnxruntime_loads_unless_set(setting: str | None) -> None:
    script = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'onnxruntime':\n"
        "            print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import server.execution.session\n"
    )
    environment = {} if setting is None else {"ORT_DISABLE_TELEMETRY": setting}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [setting or "1"]


def test_a_row_gives_the_same_bits_alone_and_in_any_batch() -> None:
    session = Session(mlp_model(5), Path())
    rows = np.random.default_rng(7).normal(size=(64, 5)).astype(np.float32)
    (whole,) = session.run([rows])
    for size in (1, 2, 3, 7, 33):
        parts = [session.run([rows[at : at + size]])[0] for at in range(0, 64, size)]
        assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("model", [b"", b"\x00" * 100, mlp_model()[:80], b"random bytes" * 20])
def test_what_is_no_model_is_refused_without_a_path(tmp_path: Path, model: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    for source in (path, model):
        with pytest.raises(FailedPreconditionError) as caught:
            Session(source, tmp_path)
        assert str(tmp_path) not in caught.value.message
        assert caught.value.__cause__ is not None


def test_values_that_the_graph_refuses_are_an_error_of_this_run_only() -> None:
    session = Session(gather_model(), Path())
    with pytest.raises(InternalError):
        session.run([np.array([99], np.int64)])
    assert session.run([np.array([2], np.int64)])[0].tolist() == [2.0]


def test_a_model_from_bytes_reads_external_tensors_beside_it_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = numpy_helper.from_array(np.ones((2, 300), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "external",
        [info("x", TensorProto.FLOAT, ["N", 2])],
        [info("y", TensorProto.FLOAT, ["N", 300])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=OPSETS, ir_version=10)
    beside, elsewhere = tmp_path / "beside", tmp_path / "elsewhere"
    for folder in (beside, elsewhere):
        folder.mkdir()
    external_data_helper.convert_model_to_external_data(model, location="w.bin", size_threshold=0)
    onnx.save(model, beside / "model.onnx")
    data = (beside / "model.onnx").read_bytes()
    monkeypatch.chdir(elsewhere)
    session = Session(data, beside)
    assert session.run([np.ones((1, 2), np.float32)])[0][0, 0] == 2.0
    monkeypatch.chdir(beside)
    with pytest.raises(FailedPreconditionError):
        Session(data, elsewhere)
