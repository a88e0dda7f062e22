"""Both clients against real servers: answers, keys, limits, a server that was killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace_client import (
    AsyncClient,
    Client,
    ClientError,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    Truth,
    UnauthenticatedError,
    UnavailableError,
    calls,
)
from monitor import read_truth
from server.access.keys import new_key
from server.pb import headrace_pb2 as pb
from server.protocol.columns import messages_of_table
from tests.server.onnx_models import mlp_model, put
from tests.server.serving import Process, start_worker
from tests.server.test_predict import FEATURES, T_US, World
from tests.support.rides import asked
from tests.support.tls import Certificates
from tests.support.valkey import free_port

pytestmark = pytest.mark.slow

INPUTS = {"driver_id": [1, 2, None], "city": ["Oslo", "Bern", "Oslo"], "distance": [2.0, 5.0, 1.5]}
ROWS = asked((1, "Oslo", 2.0), (2, "Bern", 5.0), (None, "Oslo", 1.5))
FEATURES_IN = np.ones((2, 3), np.float32)
Ask = Callable[..., Any]


def blocking(target: str, name: str, *args: Any, settings: Any = None, **named: Any) -> Any:
    with Client(target, **(settings or {})) as client:
        return getattr(client, name)(*args, **named)


def awaiting(target: str, name: str, *args: Any, settings: Any = None, **named: Any) -> Any:
    async def run() -> Any:
        async with AsyncClient(target, **(settings or {})) as client:
            return await getattr(client, name)(*args, **named)

    return asyncio.run(run())


@pytest.fixture(params=[blocking, awaiting])
def ask(request: pytest.FixtureRequest) -> Ask:
    function: Ask = request.param
    return function


def test_predictions_are_those_that_the_wire_gives(world: World, ask: Ask) -> None:
    ids = ["r1", "r2", "r3"]
    raw = world.predict(ROWS, request_ids=ids, return_features=True)
    found = ask(
        world.grpc, "predict", "tips", INPUTS,
        request_ids=ids, event_time_us=T_US, return_features=True,
    )  # fmt: skip
    assert [p.outputs for p in found] == [[value] for value in raw.outputs]
    assert [p.version for p in found] == list(raw.versions)
    assert [p.arm for p in found] == list(raw.arms)
    assert [p.decision for p in found] == list(raw.decisions)
    assert [p.features for p in found] == list(raw.features)
    assert len({p.id.bytes for p in found} - set(raw.prediction_ids)) == 3


def test_feedback_is_on_disk_once_it_returns(world: World, ask: Ask) -> None:
    first, second, _ = ask(world.grpc, "predict", "tips", INPUTS)
    assert ask(world.grpc, "feedback", first.id, "tip", 1.0) == 1
    truths = [Truth(first.id, "tip", 2.0), Truth(str(second.id), "tip", 3.0, T_US, "till")]
    assert ask(world.grpc, "feedback_batch", truths) == 2
    rows = read_truth(world.data / "wal").latest.to_pylist()
    found = {row["prediction_id"]: row["value"] for row in rows}
    assert found[first.id.bytes] == 2.0
    assert found[second.id.bytes] == 3.0


def test_features_come_with_their_status(world: World, ask: Ask) -> None:
    request = pb.GetFeaturesRequest(service="tips", inputs=messages_of_table(ROWS), event_time=T_US)
    raw = world.call(f"{FEATURES}GetFeatures", request, pb.GetFeaturesReply)
    found = ask(world.grpc, "get_features", "tips", INPUTS, event_time_us=T_US)
    assert list(found.values) == [column.name for column in raw.features]
    names = ("present", "null", "not_found", "expired", "unavailable")
    statuses = [names[status] for status in raw.status]
    assert [found.status[name][row] for row in range(3) for name in found.status] == statuses
    for column in raw.features:
        values = getattr(column, column.WhichOneof("values")).v
        for row, value in enumerate(found.values[column.name]):
            expected = None if row in column.nulls else values[row]
            assert repr(value) == repr(expected)  # a NaN, too


def test_explanations_add_up_to_the_answer(world: World, ask: Ask) -> None:
    for prediction in ask(world.grpc, "explain", "tips", INPUTS, event_time_us=T_US, timeout_s=30):
        why = prediction.explanation
        total = why.base[0] + sum(values[0] for values in why.attributions.values())
        assert total == pytest.approx(prediction.outputs[0], abs=1e-3)


def test_each_refusal_is_an_error_of_its_kind(world: World, ask: Ask) -> None:
    with pytest.raises(NotFoundError, match="nobody") as refused:
        ask(world.grpc, "predict", "nobody", INPUTS)
    assert (refused.value.code, refused.value.attempts) == ("not_found", 1)
    with pytest.raises(InvalidArgumentError, match="distance"):
        ask(world.grpc, "predict", "tips", INPUTS | {"distance": ["far"] * 3})
    with pytest.raises(DeadlineExceededError) as late:
        ask(world.grpc, "predict", "tips", INPUTS, min_offset="9999999999999-0", timeout_s=0.2)
    assert late.value.attempts == 1
    assert issubclass(NotFoundError, ClientError)


KEYS = {name: new_key(os.urandom) for name in ("good", "none", "paced", "slow")}
ACCESS = f"""
[[principals]]
name = "good"
keys = ["{KEYS["good"][1]}"]
allow = [{{scopes = ["infer"]}}]

[[principals]]
name = "none"
keys = ["{KEYS["none"][1]}"]
allow = [{{scopes = ["features"]}}]

[[principals]]
name = "paced"
keys = ["{KEYS["paced"][1]}"]
allow = [{{scopes = ["infer"]}}]

[[principals]]
name = "slow"
keys = ["{KEYS["slow"][1]}"]
allow = [{{scopes = ["infer"]}}]

[[limits]]
tenant = "paced"
requests_per_s = 2
burst = 1

[[limits]]
tenant = "slow"
requests_per_s = 0.001
burst = 1
"""


def key(name: str) -> dict[str, Any]:
    return {"api_key": KEYS[name][0]}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    put(root, "mlp", mlp_model())
    return root


@pytest.fixture(scope="module")
def guarded(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("worker")
    (folder / "access.toml").write_text(ACCESS)
    access = str(folder / "access.toml")
    with start_worker(folder, model_repository=str(repository), access=access) as worker:
        yield worker.event("ready")["grpc"]
        assert worker.end() == 0


def test_tensors_and_keys(guarded: str, ask: Ask) -> None:
    found = ask(guarded, "infer", "mlp", {"features": FEATURES_IN}, settings=key("good"))
    (tensor,) = found.values()
    assert tensor.shape == (2, 1)
    assert tensor.values[0] == tensor.values[1]
    with pytest.raises(UnauthenticatedError):
        ask(guarded, "infer", "mlp", {"features": FEATURES_IN})
    with pytest.raises(PermissionDeniedError):
        ask(guarded, "infer", "mlp", {"features": FEATURES_IN}, settings=key("none"))


def test_a_limit_is_waited_out_as_the_server_says(guarded: str) -> None:
    with Client(guarded, **key("paced")) as client:
        for _ in range(3):
            assert client.infer("mlp", {"features": FEATURES_IN})


def test_a_limit_beyond_the_deadline_is_said_at_once(guarded: str, ask: Ask) -> None:
    with contextlib.suppress(ResourceExhaustedError):  # the other client may have had the burst
        ask(guarded, "infer", "mlp", {"features": FEATURES_IN}, settings=key("slow"))
    with pytest.raises(ResourceExhaustedError) as refused:
        ask(guarded, "infer", "mlp", {"features": FEATURES_IN}, settings=key("slow"))
    assert refused.value.attempts == 1
    assert refused.value.retry_after_s is not None
    assert refused.value.retry_after_s > 500


def started(folder: Path, repository: Path, port: int) -> Process:
    return start_worker(folder, model_repository=str(repository), grpc_port=port)


def test_a_server_that_is_killed_and_comes_back(tmp_path: Path, repository: Path) -> None:
    port = free_port()
    target = f"127.0.0.1:{port}"
    tensors = {"features": FEATURES_IN}
    with Client(target, wait_for_ready=True, timeout_s=60) as patient, Client(target) as brisk:
        with started(tmp_path, repository, port) as worker:
            worker.event("ready")
            before = patient.infer("mlp", tensors)
            brisk.infer("mlp", tensors)
            worker.process.kill()
            worker.process.wait()
        with pytest.raises(UnavailableError) as gone:
            brisk.infer("mlp", tensors)
        assert 1 < gone.value.attempts <= 5
        answers: list[Any] = []
        waiting = threading.Thread(target=lambda: answers.append(patient.infer("mlp", tensors)))
        waiting.start()
        with started(tmp_path, repository, port) as worker:
            worker.event("ready")
            waiting.join(60)
            assert [answer.keys() for answer in answers] == [before.keys()]
            assert brisk.infer("mlp", tensors, timeout_s=30)
            assert worker.end() == 0


def test_nobody_storms_a_server_that_is_gone() -> None:
    attempts = 0
    with Client(f"127.0.0.1:{free_port()}") as client:
        for _ in range(20):
            with pytest.raises(UnavailableError) as gone:
                client.infer("mlp", {"features": FEATURES_IN})
            attempts += gone.value.attempts
    assert 30 <= attempts <= 32


def test_tls_with_an_authority_of_ones_own(tmp_path: Path, repository: Path) -> None:
    certificates = Certificates(tmp_path)
    settings = certificates.settings(mutual=True)
    with start_worker(tmp_path, **settings, model_repository=str(repository)) as worker:
        target = worker.event("ready")["grpc"]
        with Client(target, tls=certificates.credentials("client"), timeout_s=20) as client:
            assert client.send(calls.infer("mlp", {"features": FEATURES_IN}))
        with Client(target, tls=True) as client, pytest.raises(UnavailableError):
            client.infer("mlp", {"features": FEATURES_IN}, timeout_s=1)
        assert worker.end() == 0
