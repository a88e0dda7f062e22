"""`headrace serve` as an operator meets it: ready line, signals, kills, mistakes."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.onnx_models import add_model, put
from tests.server.processes.running import Running, alive, eventually
from tests.server.served_bundles import MODEL, make_served_bundle

FREE_PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
INFER = {
    "inputs": [
        {"name": name, "datatype": "INT32", "shape": [1, 4], "data": [1, 2, 3, 4]}
        for name in ("INPUT0", "INPUT1")
    ]
}


def serve(*arguments: str, environment: dict[str, str] | None = None) -> Running:
    command = [sys.executable, "-P", "-m", "server.cli.main", "serve", *arguments]
    return Running(*command, environment=environment)


def ready(process: Running) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(process.line("ready", "stdout").string)
    return found


def call(
    address: str, method: str, path: str, body: object = None, timeout_s: float = 10
) -> tuple[int, Any]:
    """Return the status and what the JSON says; None where there is no body."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout_s)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text else None
    finally:
        connection.close()


def answers(address: str) -> bool:
    try:
        status, reply = call(address, "POST", "/v2/models/add/infer", INFER)
    except (OSError, http.client.HTTPException):
        return False
    return status == 200 and reply["outputs"][0]["data"] == [2, 4, 6, 8]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    put(root, "add", add_model())
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def two_workers(repository: Path, folder: Path) -> Iterator[tuple[Running, dict[str, Any]]]:
    arguments = ("--model-repository", str(repository), "--workers", "2")
    with serve(*arguments, *FREE_PORTS, "--data-dir", str(folder)) as process:
        yield process, ready(process)


def children(folder: Path) -> dict[str, int]:
    records = json.loads((folder / "run" / "children.json").read_bytes())
    return {record["role"]: record["pid"] for record in records}


@pytest.mark.slow
def test_the_ready_line_says_where_and_who(two_workers: tuple[Running, dict[str, Any]]) -> None:
    process, line = two_workers
    assert list(line) == ["event", "pid", "grpc", "http", "metrics"]
    assert line["pid"] == process.pid
    assert call(line["http"], "GET", "/v2/health/ready")[0] == 200
    assert answers(line["http"])
    for name in ("grpc", "metrics"):
        host, _, port = line[name].rpartition(":")
        socket.create_connection((host, int(port)), timeout=5).close()


@pytest.mark.slow
def test_workers_that_are_killed_come_back_on_the_same_ports(
    two_workers: tuple[Running, dict[str, Any]], folder: Path
) -> None:
    _, line = two_workers
    before = children(folder)
    for role in ("worker-0", "worker-1"):
        os.kill(before[role], signal.SIGKILL)
    eventually(lambda: answers(line["http"]), "a worker is back")
    eventually(
        lambda: all(
            children(folder).get(role, before[role]) != before[role]
            for role in ("worker-0", "worker-1")
        ),
        "both are back",
    )
    assert children(folder)["collector"] == before["collector"]


@pytest.mark.slow
def test_a_second_server_gets_one_line_that_names_the_busy_port(
    two_workers: tuple[Running, dict[str, Any]], tmp_path: Path
) -> None:
    port = two_workers[1]["http"].rpartition(":")[2]
    with serve("--http-port", port, "--grpc-port", "0", "--data-dir", str(tmp_path)) as second:
        assert second.wait() == 1
    assert len(second.seen) == 1
    assert second.text.startswith(f"headrace: port {port} on 127.0.0.1 is busy")
    assert "--http-port" in second.text


@pytest.mark.slow
def test_a_second_server_on_the_same_data_folder_is_refused(
    two_workers: tuple[Running, dict[str, Any]], folder: Path
) -> None:
    with serve(*FREE_PORTS, "--data-dir", str(folder)) as second:
        assert second.wait() == 1
    assert second.text.startswith(f"headrace: a headrace supervisor already runs in {folder}")
    assert f"(pid {two_workers[0].pid})" in second.text


@pytest.mark.slow
def test_sigterm_ends_all_of_it_with_exit_0(
    two_workers: tuple[Running, dict[str, Any]], folder: Path
) -> None:
    """Last of those that share the server."""
    pids = children(folder).values()
    assert two_workers[0].end(signal.SIGTERM) == 0
    assert not any(alive(pid) for pid in pids)


@pytest.mark.slow
def test_a_folder_of_bundles_is_served_without_a_control(tmp_path: Path) -> None:
    make_served_bundle(tmp_path / "bundles" / "score")
    bundles, data = tmp_path / "bundles", tmp_path / "data"
    with serve("--registry", f"file://{bundles}", *FREE_PORTS, "--data-dir", str(data)) as process:
        address = ready(process)["http"]
        tensor = {"name": "features", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
        status, reply = call(
            address, "POST", f"/v2/models/{MODEL}/infer", {"inputs": [tensor], "id": "r1"}
        )
        assert status == 200, reply
        assert reply["parameters"]["prediction_id"]
        assert process.end() == 0


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--model-repository", "nowhere"], {}, "headrace: no model repository nowhere"),
        (["--redis", "mysql://x"], {}, "headrace: bad value for redis"),
        (["--registry", "ftp://x"], {}, "headrace: bad value for registry"),
        (["--registry", "file:///nowhere"], {}, "headrace: no folder /nowhere"),
        (["--workers", "0"], {}, "headrace: flag --workers: bad value for workers"),
        (["--host", "203.0.113.7"], {}, "headrace: 203.0.113.7 is no address of this machine"),
        ([], {"HEADRACE_GRCP_PORT": "1"}, "did you mean HEADRACE_GRPC_PORT?"),
        (["--config", "nowhere.toml"], {}, "headrace: nowhere.toml: no such configuration file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_1(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], message: str
) -> None:
    with serve(
        *FREE_PORTS, "--data-dir", str(tmp_path), *arguments, environment=environment
    ) as process:
        assert process.wait() == 1
    lines = [line for line in process.seen if " INFO " not in line]
    assert len(lines) == 1, process.text
    assert message in lines[0]


def test_a_config_typo_in_the_file_is_one_line_and_exit_1(tmp_path: Path) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text("grcp_port = 1\n")
    with serve("--config", str(file), "--data-dir", str(tmp_path / "data")) as process:
        assert process.wait() == 1
    assert process.seen == [
        f"headrace: {file}: unknown setting 'grcp_port'; did you mean grpc_port?"
    ]


def test_a_misspelt_flag_is_one_line_and_exit_2() -> None:
    with serve("--grcp-port", "1") as process:
        assert process.wait() == 2
    assert len(process.seen) == 1
    assert "--grpc-port" in process.text


def test_a_server_that_was_given_no_models_says_so_when_it_starts(
    repository: Path, tmp_path: Path
) -> None:
    file = tmp_path / "headrace.toml"
    file.write_text('model_control_mode = "explicit"\n')
    arguments = ("--config", str(file), *FREE_PORTS, "--data-dir", str(tmp_path / "data"))
    with serve(*arguments) as process:
        ready(process)
        process.line(r" WARNING .*serves nothing.*--model-repository FOLDER.*--registry URL")
        file.write_text(f'model_control_mode = "explicit"\nmodel_repository = ["{repository}"]\n')
        process.send(signal.SIGHUP)
        process.line(" reloaded")
        assert process.end() == 0
        assert process.text.count("serves nothing") == 1


@pytest.mark.parametrize(
    ("nursery", "programs"),
    [
        ("--nursery", [b"server.collector", b"server.nursery", b"server.nursery"]),
        ("--no-nursery", [b"server.collector", b"server.worker"]),
    ],
)
def test_a_password_is_not_for_everybody_on_the_machine_to_read(
    repository: Path, tmp_path: Path, nursery: str, programs: list[bytes]
) -> None:
    environment = {"HEADRACE_REDIS": "redis://:s3cret@127.0.0.1:1/0"}
    arguments = ("--model-repository", str(repository), "--data-dir", str(tmp_path), *FREE_PORTS)
    with serve(*arguments, nursery, environment=environment) as process:
        ready(process)
        pids = [process.pid, *children(tmp_path).values()]
        ours = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]
        assert process.end() == 0
        assert "s3cret" not in process.text
    assert [command.split(b"\0")[3] for command in ours[1:]] == programs
    assert not any(b"s3cret" in command for command in ours)
