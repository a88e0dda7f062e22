"""The rows of the fault table about loading and running models, on real servers.

Two workers serve `add` without a pause; each fault is an error of whoever caused it, in its words,
and neither a wrong answer, nor a lost one, nor the end of a worker.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from onnx import TensorProto, helper

from tests.server.onnx_models import (
    add_model,
    always_endless_model,
    always_filling_model,
    endless_model,
    filling_model,
    info,
    mlp_model,
    model_bytes,
    put,
)
from tests.server.processes.running import Running, eventually
from tests.server.test_serve import FREE_PORTS, call, children, ready, serve

pytestmark = pytest.mark.slow
GIB_FLOATS = 1 << 28
MODEL_MIB = 300  # what goes far beyond it fails


def inverse_model() -> bytes:
    """y = 1 / x, FLOAT [N]: inf for 0, NaN for NaN."""
    graph = helper.make_graph(
        [helper.make_node("Reciprocal", ["x"], ["y"])],
        "inverse",
        [info("x", TensorProto.FLOAT, ["N"])],
        [info("y", TensorProto.FLOAT, ["N"])],
    )
    return model_bytes(graph)


class Caller(threading.Thread):
    """Asks `add` without a pause; `wrong` is what was not the right answer."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.answered = 0
        self.wrong: list[str] = []
        self.stop = threading.Event()
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._client = triton.InferenceServerClient(address, channel_args=options)

    def run(self) -> None:
        random = np.random.default_rng()
        while not self.stop.is_set():
            values = random.integers(0, 1000, (2, 1, 4)).astype(np.int32)
            tensors = []
            for name, value in zip(("INPUT0", "INPUT1"), values, strict=True):
                tensors.append(triton.InferInput(name, [1, 4], "INT32"))
                tensors[-1].set_data_from_numpy(value)
            try:
                answer = self._client.infer("add", tensors).as_numpy("OUTPUT0")
            except triton.InferenceServerException as error:
                self.wrong.append(f"{error.status()} {error.message()}")
                continue
            if not np.array_equal(answer, values.sum(0)):
                self.wrong.append(f"{values} gave {answer}")
            self.answered += 1
        self._client.close()


class World:
    """A server of two workers in mode explicit, under calls."""

    def __init__(self, folder: Path) -> None:
        self.models = folder / "models"
        self.data = folder / "data"
        put(self.models, "add", add_model())
        self.process: Running = serve(
            "--model-repository", str(self.models), "--model-control-mode", "explicit",
            "--load-model", "add", "--workers", "2", "--run-timeout-s", "2",
            "--model-memory-mib", str(MODEL_MIB), *FREE_PORTS, "--data-dir", str(self.data),
        )  # fmt: skip
        self.process.__enter__()
        self.addresses = ready(self.process)
        self.callers = [Caller(self.addresses["grpc"]) for _ in range(4)]
        self.pids = self.workers()
        for caller in self.callers:
            caller.start()

    def workers(self) -> dict[str, int]:
        found = children(self.data)
        return {role: pid for role, pid in found.items() if role.startswith("worker-")}

    def load(self, name: str, **parameters: Any) -> tuple[int, str]:
        body = {"parameters": parameters} if parameters else None
        status, answer = self.call("POST", f"/v2/repository/models/{name}/load", body)
        return status, "" if status == 200 else answer["error"]

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return call(self.addresses["http"], method, path, body, timeout_s=60)

    def infer(self, name: str, tensor: str, datatype: str, data: list[Any]) -> tuple[int, Any]:
        body = {"inputs": [
            {"name": tensor, "datatype": datatype, "shape": [len(data)], "data": data}
        ]}  # fmt: skip
        return self.call("POST", f"/v2/models/{name}/infer", body)

    def reason(self, name: str) -> str:
        reasons = set()
        for _ in range(8):  # of both workers
            _, index = self.call("POST", "/v2/repository/index", {})
            reasons |= {entry.get("reason", "") for entry in index if entry["name"] == name}
        (reason,) = reasons
        return str(reason)

    def end(self) -> None:
        """Whatever happened: all was answered, by the same workers."""
        for caller in self.callers:
            caller.stop.set()
        for caller in self.callers:
            caller.join(60)
        assert [caller.wrong for caller in self.callers] == [[]] * len(self.callers)
        assert min(caller.answered for caller in self.callers) > 0
        assert self.workers() == self.pids
        assert self.process.end() == 0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    with contextlib.ExitStack() as stack:
        stack.callback(world.process.__exit__, None, None, None)
        stack.callback(lambda: [caller.stop.set() for caller in world.callers])
        yield world


def test_files_that_are_no_models(world: World) -> None:
    whole = mlp_model(64)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    digest = hashlib.sha256(whole).hexdigest()
    for name, content in (
        ("truncated", whole[: len(whole) // 2]), ("random", os.urandom(5_000)), ("empty", b""),
        ("zeros", bytes(5_000)), ("flipped", bytes(flipped)),
    ):  # fmt: skip
        version = put(world.models, name, content) / "1"
        if name == "flipped":
            (version / "SHA256SUMS").write_text(f"{digest}  model.onnx\n")
        status, error = world.load(name)
        assert status == 500
        assert f"failed to load '{name}', version 1: " in error
        assert str(world.models) not in error
        assert world.reason(name)
    world.end()


def test_a_new_version_that_is_broken_leaves_the_old_one(world: World) -> None:
    put(world.models, "add", add_model()[:60])
    assert world.load("add")[0] == 500
    assert "InvalidProtobuf" in world.reason("add")
    shutil.rmtree(world.models / "add")
    put(world.models, "add", add_model("N"))
    assert world.load("add") == (200, "")
    world.end()


def test_few_bytes_that_take_gigabytes(world: World) -> None:
    """At the load, and in a request."""
    put(world.models, "bomb", always_filling_model(2 * GIB_FLOATS))
    status, error = world.load("bomb")
    assert status == 500
    assert "not enough memory" in error
    put(world.models, "filling", filling_model())
    assert world.load("filling") == (200, "")
    for _ in range(3):
        status, answer = world.infer("filling", "size", "INT64", [2 * GIB_FLOATS])
        assert status == 429
        assert "not enough memory" in answer["error"]
        assert world.infer("filling", "size", "INT64", [2])[1]["outputs"][0]["data"] == [0, 0]
    world.end()


def test_a_model_that_is_too_large_for_the_budget(world: World) -> None:
    put(world.models, "large", mlp_model(4_000_000))
    status, error = world.load("large")
    assert status == 500
    assert f"of {MODEL_MIB} MiB, got an estimate of 4" in error
    assert "raise --model-memory-mib" in world.reason("large")
    put(world.models, "small", mlp_model(500_000))
    assert world.load("small") == (200, "")
    _, answer = world.call("GET", "/v2/models/small/stats")
    (memory,) = answer["model_stats"][0]["memory_usage"]
    assert memory["type"] == "CPU"
    assert 15 << 20 < memory["byte_size"] < 80 << 20  # of a file of 15 MiB
    with triton.InferenceServerClient(world.addresses["grpc"]) as client:
        counted = client.get_inference_statistics("small").model_stats[0].memory_usage[0]
    assert counted.byte_size > 0
    world.end()


def test_a_loop_without_an_end(world: World) -> None:
    """At the load, and in a request: then the first one of its model holds up the loop for half a
    second, and no later one does."""
    put(world.models, "endless", always_endless_model())
    status, error = world.load("endless")
    assert status == 500
    assert "did not end in time" in error
    put(world.models, "loop", endless_model())
    assert world.load("loop") == (200, "")
    for _ in range(3):
        status, answer = world.infer("loop", "x", "FP32", [-1.0])
        assert status == 504
        assert "did not end in time" in answer["error"]
    assert world.infer("loop", "x", "FP32", [2.0])[1]["outputs"][0]["data"] == [2.0]
    world.end()


def test_values_that_are_no_numbers(world: World) -> None:
    """What the model says goes to the caller, as it is; JSON has no word for it but null."""
    put(world.models, "inverse", inverse_model())
    assert world.load("inverse") == (200, "")
    with triton.InferenceServerClient(world.addresses["grpc"]) as client:
        tensor = triton.InferInput("x", [4], "FP32")
        tensor.set_data_from_numpy(np.array([0, np.nan, -np.inf, 2], np.float32))
        answer = client.infer("inverse", [tensor]).as_numpy("y")
    assert answer[:1] == np.inf
    assert np.isnan(answer[1])
    assert answer[2:].tolist() == [0.0, 0.5]
    status, body = world.infer("inverse", "x", "FP32", [0, 2])
    assert status == 200
    assert body["outputs"][0]["data"] == [None, 0.5]
    world.end()


def test_a_disk_that_is_full(world: World) -> None:
    """Nothing can be written by the workers: a load by files has nowhere to keep them."""
    for pid in world.pids.values():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, 4096))
    large = mlp_model(1_000)
    with triton.InferenceServerClient(world.addresses["grpc"]) as client:
        with pytest.raises(triton.InferenceServerException, match="a disk that is full") as caught:
            client.load_model("new", config="{}", files={"file:1/model.onnx": large})
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        client.load_model("new", config="{}", files={"file:1/model.onnx": add_model()})
        assert client.is_model_ready("new")
    kept = list((world.data / "run" / "model-files").iterdir())
    assert [path.read_bytes() for path in kept] == [add_model()]
    put(world.models, "mlp", large)
    assert world.load("mlp") == (200, "")
    world.end()


def test_a_worker_without_descriptors(world: World) -> None:
    put(world.models, "mlp", mlp_model())
    limits = {}
    for pid in world.pids.values():
        limits[pid] = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with triton.InferenceServerClient(world.addresses["grpc"]) as client:
        assert client.is_server_live()  # connected before there is no descriptor left
        for pid, (_, hard) in limits.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
        with pytest.raises(triton.InferenceServerException, match="failed to load 'mlp'"):
            client.load_model("mlp")
        for pid, limit in limits.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
        client.load_model("mlp")
        assert client.is_model_ready("mlp")
    world.end()


def test_one_worker_that_fails_keeps_all_of_them_as_they_are(world: World) -> None:
    """Neither serves what only one of them could load; then both do."""
    victim = world.pids["worker-1"]
    put(world.models, "mlp", mlp_model())
    before = resource.prlimit(victim, resource.RLIMIT_NOFILE)
    with triton.InferenceServerClient(world.addresses["grpc"]) as client:
        assert client.is_server_live()
        resource.prlimit(victim, resource.RLIMIT_NOFILE, (3, before[1]))
        with pytest.raises(triton.InferenceServerException, match="failed to load 'mlp'"):
            client.load_model("mlp")
        resource.prlimit(victim, resource.RLIMIT_NOFILE, before)
        assert {world.call("GET", "/v2/models/mlp/ready")[0] for _ in range(8)} == {400}
        assert "1 of 2 workers failed" in world.process.line("of 2 workers failed").string
        client.load_model("mlp")
        assert {world.call("GET", "/v2/models/mlp/ready")[0] for _ in range(8)} == {200}
    world.end()


def test_polling_workers_change_together(tmp_path: Path) -> None:
    put(tmp_path / "models", "add", add_model())
    arguments = (
        "--model-repository", str(tmp_path / "models"), "--model-control-mode", "poll",
        "--repository-poll-s", "0.2", "--workers", "2", "--strict-readiness",
        "--data-dir", str(tmp_path / "data"), *FREE_PORTS,
    )  # fmt: skip
    with serve(*arguments) as process:
        address = ready(process)["http"]

        def status(path: str) -> int:
            return call(address, "GET", path, timeout_s=20)[0]

        def everywhere(path: str, wanted: int) -> bool:
            return {status(path) for _ in range(6)} == {wanted}

        put(tmp_path / "models", "late", mlp_model())
        eventually(lambda: everywhere("/v2/models/late/ready", 200), "both have it")
        shutil.rmtree(tmp_path / "models" / "late")
        eventually(lambda: everywhere("/v2/models/late/ready", 400), "none has it")
        assert everywhere("/v2/health/ready", 200)
        put(tmp_path / "models", "wrong", b"no model")
        eventually(lambda: everywhere("/v2/health/ready", 400), "not all are ready")
        assert status("/v2/models/add/ready") == 400  # as Triton: the server is not
        shutil.rmtree(tmp_path / "models" / "wrong")
        eventually(lambda: everywhere("/v2/health/ready", 200), "all are ready")
        assert process.end() == 0


def test_an_error_that_ends_the_start_where_it_is_asked_to(tmp_path: Path) -> None:
    put(tmp_path / "models", "add", add_model())
    put(tmp_path / "models", "wrong", b"no model")
    arguments = ("--model-repository", str(tmp_path / "models"), "--data-dir",
                 str(tmp_path / "data"), *FREE_PORTS)  # fmt: skip
    with serve(*arguments, "--exit-on-error") as process:
        assert process.wait() == 1
    assert "wrong: the file is not an ONNX model" in process.text
    with serve(*arguments) as process:
        address = ready(process)["http"]
        assert call(address, "GET", "/v2/models/add")[0] == 200
        assert call(address, "GET", "/v2/health/ready")[0] == 200
        assert process.end() == 0
