"""Replacing and losing workers under load, with clients that make no call twice."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from tests.server.onnx_models import add_model, put
from tests.server.processes.running import Running, alive, eventually
from tests.server.test_serve import FREE_PORTS, answers, children, ready, serve

pytestmark = pytest.mark.slow

CLIENTS = 6
TIMEOUT_S = 20.0
WATCH = "/grpc.health.v1.Health/Watch"
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"  # messages with this status


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    put(root, "add", add_model())
    return root


@contextlib.contextmanager
def serving(
    repository: Path, folder: Path, *arguments: str
) -> Iterator[tuple[Running, dict[str, str]]]:
    arguments = ("--model-repository", str(repository), "--workers", "2", *arguments)
    with serve(*arguments, *FREE_PORTS, "--data-dir", str(folder)) as process:
        yield process, ready(process)


def workers(folder: Path) -> dict[str, int]:
    """The last of each role is the newest."""
    return {role: pid for role, pid in children(folder).items() if role.startswith("worker")}


class Load:
    """Clients that call without a pause, each on a connection of its own."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.answered = [0] * CLIENTS
        self.failures: Counter[str] = Counter()
        self.failed: set[int] = set()  # the clients that had one
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._call_on, args=(number,)) for number in range(CLIENTS)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.goes_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def goes_on(self) -> None:
        """Wait until every client was answered again."""
        before = self.answered.copy()
        eventually(
            lambda: all(now > then for now, then in zip(self.answered, before, strict=True)),
            "every client is answered",
        )

    def _call_on(self, number: int) -> None:
        # No retry policy is set: a call that left the client is never made again. To switch off
        # even the library's own second look at calls that did not leave yet would show its race
        # between choosing a connection and hearing that it goes.
        options = [("grpc.use_local_subchannel_pool", 1)]
        tensors = []
        for name in ("INPUT0", "INPUT1"):
            tensors.append(triton.InferInput(name, [1, 4], "INT32"))
            tensors[-1].set_data_from_numpy(np.array([[1, 2, 3, 4]], np.int32))
        with triton.InferenceServerClient(self.address, channel_args=options) as client:
            while not self._stop.is_set():
                try:
                    answer = client.infer("add", tensors, client_timeout=TIMEOUT_S)
                except triton.InferenceServerException as error:
                    self.failed.add(number)
                    self.failures[f"{error.status()} {error.message()}"] += 1
                else:
                    assert answer.as_numpy("OUTPUT0").tolist() == [[2, 4, 6, 8]]
                    self.answered[number] += 1


def test_a_reload_under_load_loses_no_call(repository: Path, tmp_path: Path) -> None:
    with serving(repository, tmp_path) as (process, line), Load(line["grpc"]) as load:
        for _ in range(2):
            before = workers(tmp_path)
            process.send(signal.SIGHUP)
            process.line("reloaded")
            after = workers(tmp_path)
            assert after.keys() == before.keys()
            assert not set(after.values()) & set(before.values())
            assert not any(alive(pid) for pid in before.values())
            load.goes_on()
        assert load.failures == {}
        load.__exit__()
        assert process.end() == 0


def test_a_reload_reads_models_and_settings_again(tmp_path: Path) -> None:
    put(tmp_path / "models", "other", add_model())
    config = tmp_path / "headrace.toml"
    config.write_text("replay_scope = false\n")
    data = tmp_path / "data"
    with serving(tmp_path / "models", data, "--config", str(config)) as (process, line):
        assert not answers(line["http"])
        put(tmp_path / "models", "add", add_model())
        config.write_text('transport = "grpcio"\nworkers = 3\nhost = "0.0.0.0"\n')
        process.send(signal.SIGHUP)
        process.line("reloaded")
        assert answers(line["http"])
        assert process.end() == 0
        for name in ("host", "transport"):
            assert f"WARNING the new {name} is not used" in process.text


def test_a_reload_that_cannot_be_leaves_everything_as_it_was(
    repository: Path, tmp_path: Path
) -> None:
    config = tmp_path / "headrace.toml"
    config.write_text("replay_scope = false\n")
    data = tmp_path / "data"
    with serving(repository, data, "--config", str(config)) as (process, line):
        before = workers(data)
        config.write_text("replay_scoop = true\n")
        process.send(signal.SIGHUP)
        process.line("the reload ended: .*unknown setting 'replay_scoop'.*serve on")
        assert workers(data) == before
        assert answers(line["http"])
        config.write_text("replay_scope = true\n")
        process.send(signal.SIGHUP)
        process.line("reloaded")
        assert process.end() == 0


def test_a_killed_worker_costs_only_its_own_clients_anything(
    repository: Path, tmp_path: Path
) -> None:
    with serving(repository, tmp_path) as (process, line), Load(line["grpc"]) as load:
        os.kill(workers(tmp_path)["worker-0"], signal.SIGKILL)
        process.line("worker-0 ended: signal SIGKILL")
        load.goes_on()
        process.line("worker-0 is ready")
        load.goes_on()
        load.__exit__()
        # Those with the other worker hear nothing of it. The others lose what was on a connection
        # that broke, and are taken at once: nobody is refused.
        broken = "StatusCode.UNAVAILABLE Stream removed"
        assert all(failure.startswith(broken) for failure in load.failures)
        assert len(load.failed) < CLIENTS
        assert process.end() == 0


def test_when_the_supervisor_is_killed_no_call_is_lost(repository: Path, tmp_path: Path) -> None:
    with serving(repository, tmp_path) as (process, line):
        with Load(line["grpc"]) as load:
            process.send(signal.SIGKILL)
            process.process.wait(TIMEOUT_S)
            load.goes_on()
            load.goes_on()
        assert load.failures == {}
        orphans = workers(tmp_path)
        assert all(alive(pid) for pid in orphans.values())
        with serving(repository, tmp_path) as (second, new):
            assert answers(new["http"])
            assert not any(alive(pid) for pid in orphans.values())
            assert second.end() == 0


def test_health_says_so_before_the_connection_is_asked_to_go(
    repository: Path, tmp_path: Path
) -> None:
    with serving(repository, tmp_path) as (process, line):
        with grpc.insecure_channel(line["grpc"]) as channel:
            watch = channel.unary_stream(WATCH)(b"", timeout=TIMEOUT_S)
            assert next(watch) == SERVING
            process.send(signal.SIGHUP)
            assert next(watch) == NOT_SERVING
            watch.cancel()
            process.line("reloaded")
        assert process.end() == 0


def test_few_connections_are_spread_over_the_workers(repository: Path, tmp_path: Path) -> None:
    with serving(repository, tmp_path) as (process, line), Load(line["grpc"]) as load:
        load.goes_on()
        assert spread(line["metrics"]) == [CLIENTS // 2, CLIENTS // 2]
        process.send(signal.SIGHUP)
        process.line("reloaded")
        load.goes_on()
        eventually(
            lambda: spread(line["metrics"]) == [CLIENTS // 2, CLIENTS // 2], "they are spread again"
        )
        load.__exit__()
        assert load.failures == {}
        assert process.end() == 0


def spread(metrics: str) -> list[int]:
    """The open gRPC connections of both workers: the port of the metrics is any of theirs."""
    found: dict[str, int] = {}
    deadline_s = time.monotonic() + TIMEOUT_S
    while len(found) < 2:
        assert time.monotonic() < deadline_s
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=5) as answer:
            for text in answer.read().decode().splitlines():
                if text.startswith('headrace_grpc_connections{worker="'):
                    worker, _, value = text.partition('"')[2].partition('"} ')
                    found[worker] = int(value)
    return list(found.values())


def test_a_stop_refuses_who_connects_and_the_next_start_finds_its_ports(
    repository: Path, tmp_path: Path
) -> None:
    """Also while connections that the server closed are still in TIME_WAIT."""
    arguments = ("--model-repository", str(repository), "--data-dir", str(tmp_path))
    with serve(*arguments, *FREE_PORTS) as process:
        line = ready(process)
        kept = http.client.HTTPConnection(line["http"], timeout=TIMEOUT_S)
        kept.request("GET", "/v2/health/live")
        kept.getresponse().read()
        with grpc.insecure_channel(line["grpc"]) as channel:
            watch = channel.unary_stream(WATCH)(b"", timeout=TIMEOUT_S)
            assert next(watch) == SERVING
            process.send(signal.SIGTERM)
            assert next(watch) == NOT_SERVING  # and its call is open: the drain goes on
            for name in ("grpc", "http"):
                eventually(lambda name=name: refuses(line[name]), f"{name} refuses")
            assert process.process.poll() is None
            watch.cancel()
        assert process.process.wait(TIMEOUT_S) == 0
        kept.close()
    numbers = {name: line[name].rpartition(":")[2] for name in ("grpc", "http", "metrics")}
    ports = [f"--{name}-port={number}" for name, number in numbers.items()]
    with serve(*arguments, *ports) as process:
        again = ready(process)
        assert {name: again[name] for name in ("grpc", "http")} == {
            name: line[name] for name in ("grpc", "http")
        }
        assert answers(again["http"])
        assert process.end() == 0


def refuses(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=TIMEOUT_S).close()
    except ConnectionRefusedError:
        return True
    return False
