"""A Python model that asks a model under a release plan: as a client does, arm, log and all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as grpc_client

from tests.server.backends.serving import config, put_python
from tests.server.onnx_models import add_model, put
from tests.server.serving import plan, start_worker, write_plain_version
from tests.server.test_tap import Collector

pytestmark = pytest.mark.slow

ASKS = """
def execute(self, requests):
    found = []
    for request in requests:
        array = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
        given = json.loads(request.parameters())
        version = given.pop("version", -1)
        answer = pb_utils.InferenceRequest(
            request_id=request.request_id(), model_name="plain", model_version=version,
            inputs=[pb_utils.Tensor("x", array)], requested_output_names=["probability"],
            parameters=given,
        ).exec()
        if answer.has_error():
            found.append(pb_utils.InferenceResponse(error=answer.error()))
            continue
        array = answer.output_tensors()[0].as_numpy()
        parameters = json.loads(answer.parameters())
        found.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", array)],
                                                parameters=parameters))
    return found
"""
NAMES = [f"r{number}" for number in range(24)]
# What of a row of the log says how it came to be, but for its id and its times.
COLUMNS = [
    "model", "version", "service", "plan", "policy", "arm", "propensity", "pmf", "flags",
    "key_hash", "context_hash", "sampling_probability", "inputs", "outputs", "decision", "status",
    "worker",
]  # fmt: skip


@pytest.fixture
async def collector(tmp_path: Path) -> AsyncIterator[Collector]:
    collector = Collector(str(tmp_path / "c.sock"))
    await collector.start()
    yield collector
    await collector.stop()


def _request(name: str) -> grpc_client.InferInput:
    values = np.array([[0.5], [-2.0], [3.0]], np.float32)
    tensor = grpc_client.InferInput(name, [3, 1], "FP32")
    tensor.set_data_from_numpy(values)
    return tensor


def _rows(rows: list[dict[str, Any]], of: set[str]) -> list[dict[str, Any]]:
    chosen = [{name: row[name] for name in COLUMNS} for row in rows if _id(row) in of]
    return sorted(chosen, key=repr)


def _id(row: dict[str, Any]) -> str:
    return row["prediction_id"].hex()


def _ids(answer: grpc_client.InferResult) -> set[str]:
    text = answer.get_response().parameters["prediction_id"].string_param
    return {each.replace("-", "").lower() for each in text.split(",")}


async def test_it_is_routed_and_logged_as_a_clients_call(
    tmp_path: Path, collector: Collector
) -> None:
    digests = [write_plain_version(tmp_path / "registry", seed=seed) for seed in (3, 4)]
    arms = [(digest, "live" if not place else "canary", 0.5)
            for place, digest in enumerate(digests)]  # fmt: skip
    root = tmp_path / "models"
    put(root, "plain", add_model())  # of the same name: the plan goes first
    put_python(root, "asks", ASKS, config("IN:FP32:1", "OUT:FP32:1", batch=8))
    settings = {
        "registry": f"file://{tmp_path / 'registry'}", "plan": plan(1, plain=arms),
        "collector": collector.socket, "model_repository": str(root),
    }  # fmt: skip
    with start_worker(tmp_path / "data", **settings) as worker:
        ready = await asyncio.to_thread(worker.event, "ready")
        async with grpc_client.InferenceServerClient(ready["grpc"]) as client:
            outside: set[str] = set()
            inside: set[str] = set()
            for name in NAMES:
                direct = await client.infer("plain", [_request("x")], request_id=name)
                asked = await client.infer("asks", [_request("IN")], request_id=name)
                assert asked.as_numpy("OUT").tolist() == direct.as_numpy("probability").tolist()
                outside |= _ids(direct)
                inside |= _ids(asked)
            with pytest.raises(grpc_client.InferenceServerException) as refused:
                await client.infer("asks", [_request("IN")], parameters={"version": 7})
            rows = await collector.wait_rows(2 * 3 * len(NAMES))
    assert "has no version 7 in release plan 1" in json.dumps(refused.value.message())
    assert not inside & outside
    assert _rows(rows, inside) == _rows(rows, outside)
    assert len(_rows(rows, inside)) == 3 * len(NAMES)
    assert {row["arm"] for row in rows} == {"a", "b"}
