"""Models loaded and unloaded by request, in all workers, under load and through kills."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from onnx import TensorProto, helper, numpy_helper

from tests.server.onnx_models import add_model, info, model_bytes, put
from tests.server.processes.running import eventually
from tests.server.test_serve import FREE_PORTS, children, ready, serve

pytestmark = pytest.mark.slow
TIMEOUT_S = 30.0
SWAPS = 500
CLIENTS = 4


def shift_model(shift: int) -> bytes:
    """y = x + shift, INT64 [batch, 2]."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "shift"], ["y"])],
        "shift",
        [info("x", TensorProto.INT64, ["batch", 2])],
        [info("y", TensorProto.INT64, ["batch", 2])],
        [numpy_helper.from_array(np.array([shift], np.int64), "shift")],
    )
    return model_bytes(graph)


class Server:
    """Two workers in mode explicit, with the means to look at each."""

    def __init__(self, folder: Path) -> None:
        self.repository = folder / "models"
        put(self.repository, "shift", shift_model(1_000))
        put(self.repository, "add", add_model())
        self.data = folder / "data"
        self.process = serve(
            "--model-repository", str(self.repository), "--model-control-mode", "explicit",
            "--load-model", "add", "--workers", "2", *FREE_PORTS, "--data-dir", str(self.data),
        )  # fmt: skip
        self.process.__enter__()
        self.line = ready(self.process)

    def workers(self) -> dict[str, int]:
        return {role: pid for role, pid in children(self.data).items() if role.startswith("worker")}

    def client(self) -> triton.InferenceServerClient:
        options = [("grpc.use_local_subchannel_pool", 1)]
        return triton.InferenceServerClient(self.line["grpc"], channel_args=options)

    def everywhere(self, look: Callable[[Any], Any]) -> list[Any]:
        """What new connections see: they alternate between the workers."""
        clients = [self.client() for _ in range(4)]
        try:
            return [look(client) for client in clients]
        finally:
            for client in clients:
                client.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.process.__exit__(None, None, None)


def shifted(client: Any, *values: int) -> list[int]:
    tensor = triton.InferInput("x", [1, 2], "INT64")
    tensor.set_data_from_numpy(np.array([values], np.int64))
    answer: list[int] = client.infer("shift", [tensor]).as_numpy("y")[0].tolist()
    return answer


def is_ready(name: str) -> Callable[[Any], bool]:
    return lambda client: client.is_model_ready(name)


def test_what_one_worker_is_asked_all_of_them_do(server: Server) -> None:
    with server.client() as client:
        assert server.everywhere(is_ready("shift")) == [False] * 4
        client.load_model("shift")
        assert server.everywhere(lambda one: shifted(one, 1, 2)) == [[1001, 1002]] * 4
        files = {"file:1/model.onnx": shift_model(5)}
        client.load_model("shift", config="{}", files=files)
        assert server.everywhere(lambda one: shifted(one, 1, 2)) == [[6, 7]] * 4
        with pytest.raises(triton.InferenceServerException, match="failed to load 'shift'"):
            client.load_model("shift", config="{}", files={"file:1/model.onnx": b"no model"})
        assert server.everywhere(lambda one: shifted(one, 1, 2)) == [[6, 7]] * 4
        with pytest.raises(triton.InferenceServerException, match="failed to poll"):
            client.load_model("wrong")
        client.unload_model("shift", unload_dependents=True)
        assert server.everywhere(is_ready("shift")) == [False] * 4
    with triton_http.InferenceServerClient(server.line["http"]) as client:
        client.load_model("shift", config="{}", files=files)
        assert server.everywhere(lambda one: shifted(one, 1, 2)) == [[6, 7]] * 4
        client.unload_model("shift")
        client.unload_model("never")
        index = {entry["name"]: entry for entry in client.get_model_repository_index()}
        assert index["shift"]["state"] == "UNAVAILABLE"
        assert index["shift"]["reason"] == "unloaded"
    assert server.process.end() == 0


def test_workers_that_come_later_do_what_was_asked(server: Server) -> None:
    with server.client() as client:
        client.load_model("shift", config="{}", files={"file:1/model.onnx": shift_model(5)})
        client.unload_model("add")
    for pid in server.workers().values():
        os.kill(pid, signal.SIGKILL)
    for _ in range(2):
        server.process.line("ended: signal SIGKILL")
    for _ in range(2):
        server.process.line("is ready")
    assert server.everywhere(lambda one: shifted(one, 1, 2)) == [[6, 7]] * 4
    assert server.everywhere(is_ready("add")) == [False] * 4
    server.process.send(signal.SIGHUP)
    server.process.line("reloaded")
    assert server.everywhere(lambda one: shifted(one, 1, 2)) == [[6, 7]] * 4
    assert server.process.end() == 0


def test_without_the_supervisor_nothing_changes(server: Server) -> None:
    with server.client() as client:
        server.process.send(signal.SIGKILL)
        server.process.process.wait(TIMEOUT_S)

        def is_refused() -> bool:
            with pytest.raises(triton.InferenceServerException) as caught:
                client.load_model("shift", client_timeout=TIMEOUT_S)
            assert caught.value.status() == "StatusCode.UNAVAILABLE"
            return "the supervisor is gone" in caught.value.message()

        eventually(is_refused, "a load is refused")
        assert client.is_model_ready("add")
    for pid in children(server.data).values():  # they outlive it
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Caller(threading.Thread):
    """Calls without a pause, and looks whether each answer is its own and of one version."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.answered = 0
        self.wrong: list[str] = []
        self.stop = threading.Event()
        self._client = server.client()

    def run(self) -> None:
        random = np.random.default_rng(self.ident)
        while not self.stop.is_set():
            first, second = (int(value) for value in random.integers(0, 900, 2))
            try:
                one, other = shifted(self._client, first, second)
            except triton.InferenceServerException as error:
                self.wrong.append(f"{error.status()} {error.message()}")
                continue
            shift = one - first
            if shift % 1_000 or not shift or other - second != shift:
                self.wrong.append(f"{first}, {second} became {one}, {other}")
            self.answered += 1
        self._client.close()


def test_models_change_five_hundred_times_and_nobody_notices(server: Server) -> None:
    """Loaded anew, by files and from the folder, rolled back, and another one unloaded: every
    answer is of one whole version and of its own question."""
    versions = [shift_model(1_000 * number) for number in (2, 3)]
    with server.client() as client:
        client.load_model("shift")
        callers = [Caller(server) for _ in range(CLIENTS)]
        for caller in callers:
            caller.start()
        began = time.monotonic()
        try:
            for number in range(SWAPS // 5):
                for version in versions:
                    client.load_model("shift", config="{}", files={"file:1/model.onnx": version})
                client.load_model("shift")
                client.load_model("add")
                client.unload_model("add")
                assert time.monotonic() - began < 240, f"{5 * number} changes"
        finally:
            for caller in callers:
                caller.stop.set()
            for caller in callers:
                caller.join(TIMEOUT_S)
    assert [caller.wrong for caller in callers] == [[]] * CLIENTS
    assert min(caller.answered for caller in callers) > 50
    assert server.process.end() == 0
