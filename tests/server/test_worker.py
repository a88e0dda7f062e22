"""A worker as a process: ready line, both ports, metrics, drain, busy ports, bad configuration."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client

from tests.server.onnx_models import add_model, mlp_model, put
from tests.server.serving import Process, start_worker


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    put(root, "mlp", mlp_model())
    put(root, "cut", add_model()[:50])
    return root


@pytest.fixture
def worker(tmp_path: Path, repository: Path) -> Iterator[tuple[Process, dict[str, Any]]]:
    with start_worker(tmp_path, model_repository=str(repository)) as process:
        yield process, process.event("ready")


def get(url: str) -> bytes:
    with urllib.request.urlopen(f"http://{url}", timeout=10) as answer:
        return answer.read()


def metric(text: str, name: str) -> float:
    match = re.search(rf"^{name}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
    assert match, name
    return float(match[1])


def test_it_serves_both_clients_counts_and_ends_cleanly(
    worker: tuple[Process, dict[str, Any]],
) -> None:
    process, ready = worker
    assert ready["pid"] == process.process.pid
    assert json.loads(get(f"{ready['http']}/v2/health/ready")) == {"ready": True}
    for library, address in ((grpc_client, ready["grpc"]), (http_client, ready["http"])):
        client = library.InferenceServerClient(address)
        tensor = library.InferInput("features", [2, 3], "FP32")
        tensor.set_data_from_numpy(np.ones((2, 3), np.float32))
        assert client.infer("mlp", [tensor]).as_numpy("probability").shape == (2, 1)
        with pytest.raises(Exception, match="'cut' has no available versions"):
            client.infer("cut", [tensor])
        client.close()
    text = get(f"{ready['metrics']}/metrics").decode()
    assert metric(text, "nv_inference_request_success") == 2
    assert metric(text, "nv_inference_count") == 4
    assert metric(text, "nv_inference_exec_count") == 2
    assert metric(text, "nv_inference_request_duration_us") > 0
    assert metric(text, "headrace_log_rows_dropped_total") == 0
    assert process.end() == 0
    assert any("cut" in line and "InvalidProtobuf" in line for line in process.errors)


@pytest.mark.parametrize("name", ["grpc", "http", "metrics"])
def test_a_busy_port_is_one_clear_line(tmp_path: Path, name: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with start_worker(tmp_path, **{f"{name}_port": port}) as process:
            assert process.process.wait(60) == 1
        assert len(process.errors) == 1
        assert f"127.0.0.1:{port}" in process.errors[0]
        assert f"--{name}-port" in process.errors[0]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"model_repositori": "x"}, "model_repositori"),
        ({"grpc_port": "8001"}, "grpc_port"),
        ({"model_repository": "nowhere"}, "model repository"),
        ({"registry": "ftp://x"}, "registry URL"),
    ],
)
def test_a_wrong_configuration_is_one_clear_line(
    tmp_path: Path, config: dict[str, Any], text: str
) -> None:
    with start_worker(tmp_path, **config) as process:
        assert process.process.wait(60) == 1
    assert len(process.errors) == 1
    assert text in process.errors[0]


def test_it_serves_on_when_stdin_ends(worker: tuple[Process, dict[str, Any]]) -> None:
    process, ready = worker
    assert process.process.stdin is not None
    process.process.stdin.write(b"not a plan\n")
    process.process.stdin.close()
    assert json.loads(get(f"{ready['http']}/v2/health/live")) == {"live": True}
    assert process.end(signal.SIGINT) == 0


def test_no_call_that_was_accepted_is_lost_in_a_drain(
    worker: tuple[Process, dict[str, Any]],
) -> None:
    process, ready = worker
    started = threading.Barrier(5)
    wrong: list[str] = []

    def load() -> None:
        with grpc_client.InferenceServerClient(ready["grpc"]) as client:
            tensor = grpc_client.InferInput("features", [1, 3], "FP32")
            tensor.set_data_from_numpy(np.ones((1, 3), np.float32))
            client.infer("mlp", [tensor])
            started.wait()
            while True:
                try:
                    client.infer("mlp", [tensor])
                except grpc_client.InferenceServerException as error:
                    if error.status() != "StatusCode.UNAVAILABLE":
                        wrong.append(str(error))
                    return

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    assert process.end() == 0
    for thread in threads:
        thread.join()
    assert wrong == []
