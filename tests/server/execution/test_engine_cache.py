"""Engines that TensorRT built are found again by the same model, and by no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headrace.errors import FailedPreconditionError
from server.backends.graph_writer import GraphWriter
from server.execution.devices import CPU_PROVIDERS, TENSORRT_PROVIDER, Device
from server.execution.engine_cache import ENGINES, TIMINGS, with_own_engines
from server.pb import onnx_trees_pb2 as pb

PLAIN = Device("cuda", 0, CPU_PROVIDERS)


def device(folder: Path) -> Device:
    options = {"device_id": "1", ENGINES: str(folder), TIMINGS: str(folder)}
    return Device("cuda", 1, ((TENSORRT_PROVIDER, options), *CPU_PROVIDERS))


def scaled(by: float) -> bytes:
    writer = GraphWriter("scaled")
    rows = writer.input("x", 4)
    writer.node("Mul", [rows, writer.constant(np.full(4, by), "f4")], "y")
    writer.output("y", 4)
    return writer.finished()


def engines(found: tuple[Device, ...]) -> Path:
    ((_, options), *_) = found[0].providers
    return Path(options[ENGINES])


def test_models_that_differ_in_weights_alone_have_folders_of_their_own(tmp_path: Path) -> None:
    cache, file = tmp_path / "cache" / "headrace" / "tensorrt", tmp_path / "model.onnx"
    file.write_bytes(scaled(2.0))
    two, three = (
        engines(with_own_engines([device(cache)], scaled(by), tmp_path)) for by in (2.0, 3.0)
    )
    assert two != three
    assert two.parent == three.parent == cache
    for folder in (two, three):
        assert folder.is_dir()
        assert folder.stat().st_mode & 0o077 == 0
    assert engines(with_own_engines([device(cache)], file, tmp_path)) == two
    ((_, options), *others) = with_own_engines([device(cache)], file, tmp_path)[0].providers
    assert options == {"device_id": "1", ENGINES: str(two), TIMINGS: str(cache)}
    assert tuple(others) == CPU_PROVIDERS


def test_weights_beside_the_model_count(tmp_path: Path) -> None:
    model = pb.Model.FromString(scaled(2.0))
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    # `external_data` {location: "w"} and `data_location` EXTERNAL, that our messages leave out.
    entry = b"\x0a\x08location\x12\x01w"
    spelt = tensor.SerializeToString() + b"\x6a" + bytes([len(entry)]) + entry + b"\x70\x01"
    tensor.ParseFromString(spelt)
    data, found = model.SerializeToString(), []
    assert b"location" in data
    for by in (2.0, 3.0, 2.0):
        (tmp_path / "w").write_bytes(np.full(4, by, "f4").tobytes())
        found.append(engines(with_own_engines([device(tmp_path)], data, tmp_path)))
    assert found[0] == found[2] != found[1]
    (tmp_path / "w").unlink()
    assert engines(with_own_engines([device(tmp_path)], data, tmp_path)).parent == tmp_path


def test_who_keeps_nothing_needs_no_folder(tmp_path: Path) -> None:
    assert with_own_engines([PLAIN], tmp_path / "no file", tmp_path) == (PLAIN,)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FailedPreconditionError, match="no folder for what TensorRT builds"):
        with_own_engines([device(tmp_path / "file" / "tensorrt")], b"no model", tmp_path)
