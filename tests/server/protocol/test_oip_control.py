"""Requests that load and unload, on both wires: what they may say, and how they are refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc.aio as grpc_client
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from headrace.errors import UnavailableError
from server.execution.threads import RunThreads
from server.models.control import ModelControl
from server.models.repository import ModelRepository
from server.protocol.oip import InferenceProtocol
from tests.server.onnx_models import add_model, put
from tests.server.protocol.test_oip import NothingReleased, World

STATUS = {
    "grpc": {
        "internal": "StatusCode.INTERNAL", "invalid": "StatusCode.INVALID_ARGUMENT",
        "unavailable": "StatusCode.UNAVAILABLE",
    },
    "http": {"internal": "500", "invalid": "400", "unavailable": "503"},
}  # fmt: skip


class Controlled(World):
    """A server whose repository has one model, in a mode."""

    def __init__(self, root: Path, mode: Any) -> None:
        put(root, "add", add_model())
        self.executor = RunThreads(1, 1)
        self.repository = ModelRepository(root, self.executor)
        self.control = ModelControl(self.repository, mode)
        super().__init__(self.repository, control=self.control)


@pytest.fixture(params=["grpc", "http"])
def wire(request: pytest.FixtureRequest) -> str:
    wire: str = request.param
    return wire


async def start(root: Path, mode: str, wire: str) -> tuple[Controlled, Any]:
    world = Controlled(root, mode)
    await world.control.start()
    await world.start()
    return world, world.client(wire)


async def stop(world: Controlled, client: Any) -> None:
    await client.close()
    await world.stop()
    world.executor.shutdown()


@pytest.fixture
async def explicit(tmp_path: Path, wire: str) -> AsyncIterator[tuple[Controlled, Any]]:
    world, client = await start(tmp_path, "explicit", wire)
    yield world, client
    await stop(world, client)


# aiohttp, which would rather be given a file.
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_load_and_unload(explicit: tuple[Controlled, Any]) -> None:
    world, client = explicit
    assert not await client.is_model_ready("add")
    await client.load_model("add")
    assert await client.is_model_ready("add")
    await client.load_model(
        "add", config=json.dumps({"max_batch_size": 3}), files={"file:7/model.onnx": add_model()}
    )
    assert world.repository.get("add").max_batch_size == 3
    assert world.repository.versions("add") == ["7"]
    # Over REST what is larger than this is taken apart outside of the event loop.
    files = {"file:8/model.onnx": add_model(), "file:8/other.bin": bytes(2 << 20)}
    await client.load_model("add", config="{}", files=files)
    assert world.repository.versions("add") == ["8"]
    await client.unload_model("add")
    await client.unload_model("add", unload_dependents=True)
    assert not await client.is_model_ready("add")


async def test_what_fails_to_load(explicit: tuple[Controlled, Any], wire: str) -> None:
    _, client = explicit
    for name, more in (("wrong", {}), ("add", {"config": "{"}), ("../add", {})):
        with pytest.raises(InferenceServerException, match="failed to load") as caught:
            await client.load_model(name.replace("/", "%2F") if wire == "http" else name, **more)
        assert caught.value.status() == STATUS[wire]["internal"]


async def test_requests_decide_nothing_in_other_modes(tmp_path: Path, wire: str) -> None:
    world, client = await start(tmp_path, "none", wire)
    try:
        for change in (client.load_model("add"), client.unload_model("add")):
            with pytest.raises(InferenceServerException, match="not allowed") as caught:
                await change
            assert caught.value.status() == STATUS[wire]["unavailable"]
        assert await client.is_model_ready("add")
    finally:
        await stop(world, client)


@pytest.mark.parametrize("wire", ["http"])
@pytest.mark.parametrize(
    ("operation", "body", "said"),
    [
        ("load", b"{", "failed to parse the request JSON buffer"),
        ("load", b'{"parameters": {"\xff": 1}}', "failed to parse the request JSON buffer"),
        ("unload", b'{"x": ' + b"[" * 100_000, "failed to parse the request JSON buffer"),
        ("load", b'{"parameters": {"config": 1}}', "Unrecognized load parameter 'config'"),
        ("load", b'{"parameters": {"other": "x"}}', "Unrecognized load parameter 'other'"),
        ("load", b'{"parameters": {"file:1/model.onnx": "?"}}', "not base64"),
        ("load", b'{"parameters": {"file:1/model.onnx": 1}}', "Unrecognized load parameter"),
        ("unload", b'{"parameters": {"other": true}}', "Unrecognized unload parameter 'other'"),
        ("unload", b'{"parameters": {"unload_dependents": "x"}}', "Unrecognized unload parameter"),
    ],
)
async def test_what_rest_refuses(
    explicit: tuple[Controlled, Any], operation: str, body: bytes, said: str
) -> None:
    world, client = explicit
    response = await client._post(
        request_uri=f"v2/repository/models/add/{operation}",
        request_body=body, headers=None, query_params=None,
    )  # fmt: skip
    assert response.status == 400
    assert said in (await response.json())["error"]
    assert world.repository.models() == []


@pytest.mark.parametrize("wire", ["grpc"])
async def test_what_grpc_refuses(explicit: tuple[Controlled, Any]) -> None:
    _, client = explicit
    stub = client._client_stub
    for request, code in (
        (pb.RepositoryModelLoadRequest(repository_name="r", model_name="add"), "UNIMPLEMENTED"),
        (
            pb.RepositoryModelLoadRequest(
                model_name="add", parameters={"x": pb.ModelRepositoryParameter(int64_param=1)}
            ),
            "INVALID_ARGUMENT",
        ),
        (
            pb.RepositoryModelLoadRequest(
                model_name="add", parameters={"config": pb.ModelRepositoryParameter()}
            ),
            "INVALID_ARGUMENT",
        ),
    ):
        with pytest.raises(grpc_client.grpc.RpcError) as caught:
            await stub.RepositoryModelLoad(request)
        assert caught.value.code().name == code
    request = pb.RepositoryModelUnloadRequest(repository_name="r", model_name="add")
    with pytest.raises(grpc_client.grpc.RpcError) as caught:
        await stub.RepositoryModelUnload(request)
    assert caught.value.code().name == "UNIMPLEMENTED"


async def test_without_a_repository_there_is_nothing_to_load() -> None:
    protocol = InferenceProtocol(None, NothingReleased(), lambda: True)
    for change in (protocol.load("add", {}), protocol.unload("add", {})):
        with pytest.raises(UnavailableError, match="there is no model repository"):
            await change
