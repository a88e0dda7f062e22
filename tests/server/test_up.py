"""`headrace up`, whole: from applied definitions to a replayed prediction, through kills."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.errors import UnavailableError
from headrace.ids import id_bytes
from headrace.times import DAY_US, SECOND_US
from monitor import find_prediction
from server.control.client import ControlClient
from server.control.upload import upload_bundle
from tests.server.processes.running import TIMEOUT_S, Running, eventually
from tests.server.served_bundles import DEFINITIONS, MODEL, infer, make_served_bundle

T0_US = 1_380_600_000_000_000  # 2013-10-01T04:00:00Z

pytestmark = pytest.mark.slow


class Up:
    """A running `headrace up` on a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-P", "-m", "server.cli.main", "up", "--data-dir"]
        command += [str(self.folder), "--replay-scope", "--drain-s", "5"]
        for name in ("grpc", "http", "metrics", "control"):
            command += [f"--{name}-port", "0"]
        self.process = Running(*command)
        try:
            line = self.process.line("ready", "stdout").string
        except AssertionError:
            with self.process:
                raise
        self.ready: dict[str, Any] = json.loads(line)
        self.control = ControlClient(self.ready["control"])

    def stop(self) -> None:
        with self.process:
            assert self.process.end(signal.SIGTERM) == 0, self.process.text
            # Not a word of a control that this very end takes away.
            _, found, ending = self.process.text.partition("SIGTERM: draining")
            assert found
            assert "WARNING" not in ending, ending

    def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST to a worker; a connection that a dying worker took with it is UnavailableError."""
        host, _, port = self.ready["http"].rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_S)
        try:
            connection.request("POST", path, json.dumps(body))
            response = connection.getresponse()
            answer: dict[str, Any] = json.loads(response.read())
            if response.status == 503:
                raise UnavailableError(str(answer))
            assert response.status == 200, answer
            return answer
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(str(error)) from None
        finally:
            connection.close()

    def push(self, user: str, amounts: list[float], at_us: int) -> str:
        columns = {"user": [user] * len(amounts), "amount": amounts}
        batch = {"source": "payments", "columns": columns, "event_times": [at_us] * len(amounts)}
        return str(self.call("/v1/push", {"batches": [batch]})["offset"])

    def predict(self, user: str, at_us: int, offset: str = "") -> dict[str, Any]:
        body = {"model": MODEL, "inputs": {"user": [user]}, "event_time": at_us}
        return self.call("/v1/predict", body | {"min_offset": offset})

    def pid(self, role: str) -> int:
        records = json.loads((self.folder / "run" / "children.json").read_bytes())
        return int(next(record["pid"] for record in records if record["role"] == role))


def headrace(*arguments: str) -> tuple[int, str]:
    with Running(sys.executable, "-P", "-m", "server.cli.main", *arguments) as process:
        return process.wait(), process.text


def released(up: Up, folder: Path) -> bytes:
    """Take the model from a bundle to the workers; return its bytes."""
    up.control.apply_definitions(DEFINITIONS, "ada")
    digest, model = make_served_bundle(folder)
    assert upload_bundle(up.control, folder) == (MODEL, digest)
    up.control.register(MODEL, digest, "ada", "first")
    up.control.act(MODEL, digest, "submit", "ada", "please")
    up.control.act(MODEL, digest, "review", "grace", "on it")
    up.control.act(MODEL, digest, "approve", "grace", "good")
    up.control.release(MODEL, [{"version": digest}], "grace", "go")
    eventually(lambda: succeeds(lambda: up.predict("nobody", T0_US)), "the release is served")
    return model


def succeeds(call: Any) -> bool:
    try:
        call()
    except (UnavailableError, AssertionError):
        return False
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("up")


@pytest.fixture(scope="module")
def up(folder: Path) -> Iterator[Up]:
    live = Up(folder / "data")
    yield live
    live.stop()


@pytest.fixture(scope="module")
def model(up: Up, folder: Path) -> bytes:
    return released(up, folder / "bundle")


def expected(model: bytes, amounts: list[float]) -> float:
    matrix = np.array([[len(amounts), np.mean(amounts)]], np.float32)
    return float(infer(model, matrix)[0, 0])


def test_a_prediction_sees_what_was_just_pushed_and_can_be_replayed(up: Up, model: bytes) -> None:
    offset = up.push("ann", [3.0, 5.0], T0_US)
    reply = up.predict("ann", T0_US + SECOND_US, offset)
    assert reply["outputs"] == [[pytest.approx(expected(model, [3.0, 5.0]), abs=1e-6)]]
    prediction_id = reply["prediction_ids"][0]
    log = up.folder / "log"
    eventually(lambda: len(find_prediction(log, id_bytes(prediction_id))) == 1, "it is logged")
    code, text = headrace("replay", prediction_id, "--data-dir", str(up.folder))
    assert code == 0, text
    assert "equal, bit for bit" in text
    assert "propensity" in text
    bits = [line.split("0x")[1] for line in text.splitlines() if "0x" in line]
    assert bits[0] == bits[1]
    assert len(bits) == 2


def test_the_command_line_shows_the_features_a_model_would_get(up: Up, model: bytes) -> None:
    offset = up.push("gil", [3.0, 6.0], T0_US)
    up.predict("gil", T0_US + SECOND_US, offset)
    at_us = str(T0_US + SECOND_US)
    code, text = headrace(
        *("features", "get", "score", "user=gil", "--event-time", at_us),
        *("--server", up.ready["grpc"]),
    )
    assert code == 0, text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()}
    assert rows["activity:amount_count_1h"] == ["2", "present"]
    assert rows["activity:amount_mean_1h"] == ["4.5", "present"]
    code, text = headrace("features", "get", "nothing", "user=gil", "--server", up.ready["grpc"])
    assert code == 1
    assert text.startswith("headrace: ")
    assert "nothing" in text


def test_truth_is_on_disk_when_it_is_acknowledged(up: Up, model: bytes) -> None:
    from monitor import read_truth

    prediction_id = up.predict("bob", T0_US)["prediction_ids"][0]
    truth = {"prediction_id": prediction_id, "name": "paid", "value": 1.0, "event_time": T0_US}
    assert up.call("/v1/feedback", {"truths": [truth]}) == {"accepted": 1}
    kept = read_truth(up.folder / "wal").latest["prediction_id"].to_pylist()
    assert id_bytes(prediction_id) in kept


def test_when_control_is_killed_workers_serve_on_and_it_comes_back(up: Up, model: bytes) -> None:
    first = up.pid("control")
    os.kill(first, signal.SIGKILL)
    for _ in range(20):
        assert len(up.predict("ann", T0_US)["outputs"]) == 1
    eventually(lambda: succeeds(up.control.health), "control is back")
    assert up.pid("control") != first
    assert up.control.plan() is not None
    # So is its ingester: what is pushed from now on is seen.
    offset = up.push("cid", [8.0], T0_US)
    reply = up.predict("cid", T0_US + SECOND_US, offset)
    assert reply["outputs"] == [[pytest.approx(expected(model, [8.0]), abs=1e-6)]]


def test_a_killed_worker_comes_back_with_the_plan(up: Up, model: bytes) -> None:
    first = up.pid("worker-0")
    os.kill(first, signal.SIGKILL)
    eventually(lambda: succeeds(lambda: up.predict("ann", T0_US)), "the worker is back")
    assert up.pid("worker-0") != first


def test_a_killed_store_comes_back_with_what_it_held(up: Up, model: bytes) -> None:
    offset = up.push("dan", [2.0], T0_US)
    before = up.predict("dan", T0_US + SECOND_US, offset)["outputs"]
    os.kill(up.pid("valkey"), signal.SIGKILL)

    def same() -> bool:
        with contextlib.suppress(UnavailableError):
            return bool(up.predict("dan", T0_US + SECOND_US, offset)["outputs"] == before)
        return False

    eventually(same, "the store is back")


def test_the_monitor_runs_on_demand_and_keeps_its_days(up: Up, model: bytes) -> None:
    reply = up.predict("eve", T0_US + DAY_US)
    prediction_id = id_bytes(reply["prediction_ids"][0])
    eventually(lambda: len(find_prediction(up.folder / "log", prediction_id)) == 1, "it is logged")
    result = up.control.run_monitor(MODEL, "2013-10-01")
    assert result["rows"] >= 1
    assert [day["date"] for day in up.control.days(MODEL)] == ["2013-10-01"]
    assert up.control.incidents() == []
    eventually(lambda: up.control.health()["monitor"]["runs"] >= 1, "it is counted")


def test_a_stopped_system_starts_again_where_it_was(up: Up, model: bytes) -> None:
    """Last in this file: it restarts the module's system."""
    offset = up.push("fay", [1.0, 4.0], T0_US)
    before = up.predict("fay", T0_US + SECOND_US, offset)
    up.stop()
    up.start()
    after = up.predict("fay", T0_US + SECOND_US)
    assert after["outputs"] == before["outputs"]
    assert after["versions"] == before["versions"]
    assert after["plan"] == before["plan"]
    assert after["prediction_ids"] != before["prediction_ids"]
