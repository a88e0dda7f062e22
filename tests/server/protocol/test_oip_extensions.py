"""Shared memory, classification and every datatype: tritonclient, unchanged, on both wires."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.http.aio as http_client
import tritonclient.utils.shared_memory as shm
from onnx import TensorProto
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import (
    InferenceServerException,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

from server.execution.response_cache import ResponseCache
from server.execution.threads import RunThreads
from server.metrics import exposition, model_metrics, parts_of
from server.models.cached import CachedModels
from server.models.repository import ModelRepository
from server.protocol.shared_memory import SharedMemory
from tests.server.onnx_models import add_model, gather_model, identity_model, mlp_model, put
from tests.server.protocol.test_oip import DTYPES, World, sample, tensor, typed

SCORES = """
max_batch_size: 8
input { name: "TEXT" data_type: TYPE_FP32 dims: [ 3 ] }
output { name: "SAME" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" }
"""
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> ModelRepository:
    root = tmp_path_factory.mktemp("repository")
    put(root, "add", add_model(), config="max_batch_size: 8")
    put(root, "mlp", mlp_model())
    scores = identity_model(TensorProto.FLOAT, ["batch", 3])
    put(root, "scores", scores, config=SCORES)
    (root / "scores" / "labels.txt").write_text("cat\ndog\n")
    put(root, "far", scores, config=SCORES.replace("labels.txt", "../scores/labels.txt"))
    put(root, "none", scores, config=SCORES.replace("labels.txt", "no.txt"))
    for datatype, kind in DTYPES.items():
        put(root, f"same_{datatype}", identity_model(kind))
        put(root, f"scalar_{datatype}", identity_model(kind, []))
    with RunThreads(2, 1) as executor:
        repository = ModelRepository(root, executor)
        asyncio.run(repository.load_all())
        return repository


@pytest.fixture
async def world(repository: ModelRepository, tmp_path: Path) -> AsyncIterator[World]:
    world = World(repository, memory=SharedMemory(tmp_path / "regions"))
    await world.start()
    yield world
    await world.stop()


@pytest.fixture
async def without(repository: ModelRepository) -> AsyncIterator[World]:
    world = World(repository)
    await world.start()
    yield world
    await world.stop()


@pytest.fixture(params=["grpc", "http"])
async def client(request: pytest.FixtureRequest, world: World) -> AsyncIterator[Any]:
    async with world.client(request.param) as client:
        yield client


def status_of(error: InferenceServerException) -> str:
    codes = {"INVALID_ARGUMENT": "400", "NOT_FOUND": "404", "UNIMPLEMENTED": "501",
             "INTERNAL": "500", "ALREADY_EXISTS": "400"}  # fmt: skip
    status = str(error.status())
    return codes.get(status.removeprefix("StatusCode."), status)


class Regions:
    """Regions of a client's, made by tritonclient's own helpers."""

    def __init__(self) -> None:
        self.handles: list[Any] = []
        self.keys: list[str] = []

    def make(self, size: int) -> tuple[Any, str]:
        key = f"/test-{secrets.token_hex(8)}"
        handle = shm.create_shared_memory_region(key, key, size)
        self.handles.append(handle)
        return handle, key


@pytest.fixture
def regions() -> Any:
    regions = Regions()
    yield regions
    for handle in regions.handles:
        shm.destroy_shared_memory_region(handle)


async def test_inputs_and_outputs_in_shared_memory(client: Any, regions: Regions) -> None:
    given, given_key = regions.make(64)
    taken, taken_key = regions.make(64)
    rows = [np.arange(4, dtype=np.int32).reshape(1, 4), np.full((1, 4), 2, np.int32)]
    shm.set_shared_memory_region(given, [rows[0]])
    shm.set_shared_memory_region(given, [rows[1]], offset=16)
    await client.register_system_shared_memory("given", given_key, 64)
    await client.register_system_shared_memory("taken", taken_key, 48, offset=16)
    inputs = [client.library.InferInput(name, [1, 4], "INT32") for name in ("INPUT0", "INPUT1")]
    outputs = [client.library.InferRequestedOutput(name) for name in ("OUTPUT0", "OUTPUT1")]
    inputs[0].set_shared_memory("given", 16)
    inputs[1].set_shared_memory("given", 16, offset=16)
    outputs[0].set_shared_memory("taken", 32)
    for _ in range(3):  # never a template's way
        shm.set_shared_memory_region(taken, [np.zeros(16, np.int32)])
        result = await client.infer("add", inputs, outputs=outputs)
        assert shm.get_contents_as_numpy(taken, np.int32, [1, 4], offset=16).tolist() == [
            [2, 3, 4, 5]
        ]
        said = result.get_output("OUTPUT0")
        shape = said["shape"] if isinstance(said, dict) else said.shape
        assert [int(size) for size in shape] == [1, 4]
        assert result.as_numpy("OUTPUT1").tolist() == [[-2, -1, 0, 1]]
    # One in memory, one in the message.
    inputs[1] = tensor(client, "INPUT1", rows[0], "INT32")
    result = await client.infer("add", inputs)
    assert result.as_numpy("OUTPUT0").tolist() == [[0, 2, 4, 6]]
    as_dict: dict[str, Any] = {} if client.library is http_client else {"as_json": True}
    status = await client.get_system_shared_memory_status(**as_dict)
    entries = status if isinstance(status, list) else list(status["regions"].values())
    assert sorted(
        (e["name"], e["key"], int(e.get("offset", 0)), int(e["byte_size"])) for e in entries
    ) == [("given", given_key, 0, 64), ("taken", taken_key, 16, 48)]
    await client.unregister_system_shared_memory("given")
    with pytest.raises(InferenceServerException, match="Unable to find shared memory region: 'giv"):
        await client.infer("add", inputs)
    await client.unregister_system_shared_memory()
    status = await client.get_system_shared_memory_status(**as_dict)
    assert not (status if isinstance(status, list) else status.get("regions"))


async def test_strings_in_shared_memory(client: Any, regions: Regions) -> None:
    handle, key = regions.make(256)
    words = np.array([["a", "é"]], object)
    shm.set_shared_memory_region(handle, [serialize_byte_tensor(words)])
    size = 4 + 1 + 4 + 2
    await client.register_system_shared_memory("r", key, 256)
    source = client.library.InferInput("TEXT", [1, 2], "BYTES")
    source.set_shared_memory("r", size)
    output = client.library.InferRequestedOutput("SAME")
    output.set_shared_memory("r", 100, offset=100)
    await client.infer("same_BYTES", [source], outputs=[output])
    found = shm.get_contents_as_numpy(handle, np.object_, [1, 2], offset=100)
    assert [word.decode() for word in found.reshape(-1)] == ["a", "é"]


async def test_what_is_wrong_with_shared_memory_is_named(client: Any, regions: Regions) -> None:
    handle, key = regions.make(16)
    shm.set_shared_memory_region(handle, [np.zeros(4, np.int32)])
    await client.register_system_shared_memory("r", key, 16)

    def asked(size: int, offset: int = 0, *, out: int | None = None, region: str = "r") -> Any:
        source = client.library.InferInput("TEXT", [1, 4], "INT32")
        source.set_shared_memory(region, size, offset=offset)
        output = client.library.InferRequestedOutput("SAME")
        if out is not None:
            output.set_shared_memory("r", out)
        return client.infer("same_INT32", [source], outputs=[output])

    for attempt, status, text in (
        (client.register_system_shared_memory("r", key, 16), "400", "already in manager"),
        (client.register_system_shared_memory("s", key, 17), "400", "invalid args"),
        (client.register_system_shared_memory("s", "/../x", 1), "400", "invalid shm key"),
        (client.register_system_shared_memory("s", "/test-none", 1), "500", "Unable to open"),
        (client.get_system_shared_memory_status("s"), "404", "Unable to find system"),
        (asked(16, region="s"), "404", "Unable to find shared memory region: 's'"),
        (asked(16, 16), "400", "Invalid offset for shared memory region: 'r'"),
        (asked(16, 1), "400", "Invalid offset + byte size for shared memory region: 'r'"),
        (asked(12), "400", "input byte size mismatch for input 'TEXT'"),
        (asked(16, out=12), "500",
         "for output 'SAME' (12 bytes) should be at least 16 bytes to hold the results"),
        (client.register_cuda_shared_memory("c", b"0" * 64, 0, 16), "501", "CUDA"),
    ):  # fmt: skip
        with pytest.raises(InferenceServerException) as caught:
            await attempt
        assert text in caught.value.message()
        assert status_of(caught.value) == status
    as_dict: dict[str, Any] = {} if client.library is http_client else {"as_json": True}
    assert not await client.get_cuda_shared_memory_status(**as_dict)
    await client.unregister_cuda_shared_memory()
    assert (await asked(16)).as_numpy("SAME").tolist() == [[0] * 4]


@pytest.mark.parametrize("wire", ["grpc", "http"])
async def test_shared_memory_is_off_unless_asked_for(without: World, wire: str) -> None:
    async with without.client(wire) as client:
        status = await client.get_system_shared_memory_status()
        assert not (status if isinstance(status, list) else status.regions)
        source = client.library.InferInput("TEXT", [1, 4], "INT32")
        source.set_shared_memory("r", 16)
        for attempt in (
            client.register_system_shared_memory("r", "/r", 16),
            client.unregister_system_shared_memory(),
            client.unregister_cuda_shared_memory(),
            client.register_cuda_shared_memory("c", b"0" * 64, 0, 16),
            client.infer("same_INT32", [source]),
        ):
            with pytest.raises(InferenceServerException) as caught:
                await attempt
            assert status_of(caught.value) == "501"
            assert "Client shared memory is disabled. Start the server with '--shared-memory'" in (
                caught.value.message()
            )


async def grpc_infer(world: World, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{world.grpc.port}") as channel:
        method = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        return await method(request)


@pytest.mark.parametrize(
    ("parameters", "contents", "text"),
    [
        ({"shared_memory_region": 1, "shared_memory_byte_size": 4}, [],
         "invalid value type for 'shared_memory_region' parameter for tensor 'TEXT', expected str"),
        ({"shared_memory_region": "r"}, [], "'shared_memory_byte_size' must be specified along"),
        ({"shared_memory_offset": 1}, [], "'shared_memory_offset' can not be specified without"),
        ({"shared_memory_byte_size": 1}, [], "'shared_memory_byte_size' can not be specified"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": "4"}, [],
         "invalid value type for 'shared_memory_byte_size' parameter for tensor 'TEXT', expected"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": 4}, [1],
         "unexpected 'content' provided when using shared memory for input tensor 'TEXT'"),
    ],
)  # fmt: skip
async def test_wrong_parameters_of_an_input_are_named(
    world: World, regions: Regions, parameters: dict[str, Any], contents: list[int], text: str
) -> None:
    _, key = regions.make(16)
    async with world.client("http") as client:
        await client.register_system_shared_memory("r", key, 16)
    request = typed("INT32", "int_contents", contents, [1, 1])
    for name, value in parameters.items():
        field = "string_param" if isinstance(value, str) else "int64_param"
        setattr(request.inputs[0].parameters[name], field, value)
    with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT") as caught:
        await grpc_infer(world, request)
    assert text in str(caught.value.details())


async def test_the_largest_classes_come_with_their_labels(client: Any) -> None:
    scores = np.array([[0.25, 1.5, 7], [3, 2, 1]], np.float32)
    output = client.library.InferRequestedOutput("SAME", class_count=2)
    for _ in range(3):  # never a template's way
        result = await client.infer(
            "scores", [tensor(client, "TEXT", scores, "FP32")], outputs=[output]
        )
        assert [[text.decode() for text in row] for row in result.as_numpy("SAME")] == [
            ["7.000000:2", "1.500000:1:dog"], ["3.000000:0:cat", "2.000000:1:dog"],
        ]  # fmt: skip
        plain = await client.infer("scores", [tensor(client, "TEXT", scores, "FP32")])
        assert plain.as_numpy("SAME").tolist() == scores.tolist()


async def test_classes_in_json_and_what_they_do_not_go_with(world: World) -> None:
    body: dict[str, Any] = {
        "inputs": [{"name": "TEXT", "datatype": "FP32", "shape": [1, 3], "data": [1, 3, 2]}],
        "outputs": [{"name": "SAME", "parameters": {"classification": 1}}],
    }
    for _ in range(3):
        status, answer = await world.infer_json("scores", body)
        assert (status, answer["outputs"][0]) == (
            200,
            {"name": "SAME", "datatype": "BYTES", "shape": [1, 1], "data": ["3.000000:1:dog"]},
        )
    for more, text in (
        ({"shared_memory_region": "r", "shared_memory_byte_size": 12},
         "can't set both 'shared_memory_region' and 'classification'"),
        ({"classification": None, "shared_memory_region": "r"}, "'shared_memory_byte_size' must"),
    ):  # fmt: skip
        body["outputs"][0]["parameters"] = {"classification": 1} | more
        status, answer = await world.infer_json("scores", body)
        assert status == 400
        assert text in answer["error"]
    body = {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": ["a"]}],
            "outputs": [{"name": "SAME", "parameters": {"classification": 1}}]}  # fmt: skip
    status, answer = await world.infer_json("same_BYTES", body)
    assert status == 400
    assert "class result not available for output due to unsupported type" in answer["error"]


async def test_labels_lie_in_the_models_folder(repository: ModelRepository) -> None:
    reasons = {entry.name: entry.reason for entry in repository.index()}
    assert "label_filename is not a file of the model's folder" in reasons["far"]
    assert "unable to open label file for reading: no.txt" in reasons["none"]


SHAPES: list[tuple[int, ...]] = [(2, 2), (0, 2), (2, 0), (1, 1), ()]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("datatype", sorted(DTYPES))
async def test_every_datatype_in_every_shape(
    client: Any, datatype: str, shape: tuple[int, ...]
) -> None:
    array = sample(datatype).reshape(-1)[: int(np.prod(shape))].reshape(shape)
    model = f"same_{datatype}" if shape else f"scalar_{datatype}"
    for _ in range(2):  # the second may be a template's
        result = await client.infer(model, [tensor(client, "TEXT", array, datatype)])
        answer = result.as_numpy("SAME")
        said = result.get_output("SAME")
        got = said["shape"] if isinstance(said, dict) else said.shape
        assert tuple(int(size) for size in got) == shape
        if not array.size:
            continue
        assert answer.shape == shape
        if datatype == "BYTES":
            assert [text.decode() for text in answer.reshape(-1)] == list(array.reshape(-1))
        else:
            assert answer.dtype == triton_to_np_dtype(datatype)
            assert answer.tobytes() == array.tobytes()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("datatype", sorted(DTYPES))
async def test_every_datatype_as_json(world: World, datatype: str, shape: tuple[int, ...]) -> None:
    array = sample(datatype).reshape(-1)[: int(np.prod(shape))].reshape(shape)
    model = f"same_{datatype}" if shape else f"scalar_{datatype}"
    finite = [value if np.isfinite(value) else 2.5 for value in array.reshape(-1)] if (
        datatype.startswith("FP")
    ) else array.reshape(-1).tolist()  # fmt: skip
    data = [value.item() if hasattr(value, "item") else value for value in finite]
    body = {"inputs": [{"name": "TEXT", "datatype": datatype, "shape": shape, "data": data}]}
    if datatype in {"FP16", "BF16"}:
        body["inputs"][0]["data"] = [1.0] * len(data)
    status, answer = await world.infer_json(model, body)
    if datatype in {"FP16", "BF16"}:
        assert status == 400
        assert f"receiving {datatype} data via JSON is not supported" in answer["error"]
        return
    assert status == 200, answer
    assert answer["outputs"][0]["shape"] == list(shape)
    assert answer["outputs"][0]["data"] == pytest.approx(data)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
async def test_what_json_cannot_carry_is_not_sent_in_it(world: World, datatype: str) -> None:
    kind = np.float16 if datatype == "FP16" else ml_dtypes.bfloat16
    async with world.client("http") as client:
        source = tensor(client, "TEXT", np.ones((1, 2), kind), datatype)
        output = http_client.InferRequestedOutput("SAME", binary_data=False)
        with pytest.raises(
            InferenceServerException, match=f"sending {datatype} data via JSON is not supported"
        ):
            await client.infer(f"same_{datatype}", [source], outputs=[output])


CACHED = "max_batch_size: 8\nresponse_cache { enable: true }"


@pytest.fixture
async def cached(tmp_path: Path) -> AsyncIterator[tuple[ModelRepository, World]]:
    put(tmp_path, "add", add_model(), config=CACHED)
    put(tmp_path, "plain", add_model(), config="max_batch_size: 8")
    with RunThreads(2, 1) as executor:
        repository = ModelRepository(tmp_path, executor)
        CachedModels(repository, ResponseCache(1 << 20))
        await repository.load_all()
        world = World(repository)
        await world.start()
        yield repository, world
        await world.stop()


@pytest.mark.parametrize("wire", ["grpc", "http"])
async def test_what_was_answered_before_takes_no_run(
    cached: tuple[ModelRepository, World], wire: str
) -> None:
    repository, world = cached
    statistics = repository.get("add").statistics
    ones = np.ones((1, 4), np.int32)
    async with world.client(wire) as client:

        async def ask(value: int, wanted: str = "OUTPUT0", model: str = "add") -> list[int]:
            inputs = [tensor(client, "INPUT0", ones * value, "INT32"),
                      tensor(client, "INPUT1", ones, "INT32")]  # fmt: skip
            outputs = [client.library.InferRequestedOutput(wanted)]
            result = await client.infer(model, inputs, outputs=outputs)
            values: list[int] = result.as_numpy(wanted).reshape(-1).tolist()
            return values

        for _ in range(5):
            assert await ask(3) == [4] * 4
            assert await ask(5, "OUTPUT1") == [4] * 4
        assert await ask(5) == [6] * 4  # another output of a run that was
        as_dict: dict[str, Any] = {} if client.library is http_client else {"as_json": True}
        said = (await client.get_inference_statistics("add", **as_dict))["model_stats"][0]
        counts = {name: int(part.get("count", 0)) for name, part in said["inference_stats"].items()}
        assert counts["cache_hit"] == 9
        assert counts["cache_miss"] == 2
        assert counts["success"] == 11
        assert (int(said["inference_count"]), int(said["execution_count"])) == (2, 2)
        for _ in range(4):
            assert await ask(3, model="plain") == [4] * 4
        assert repository.get("plain").statistics.execution_count == 4
        # A new version knows nothing of what the old one said.
        await repository.load("add")
        assert await ask(3) == [4] * 4
        assert repository.get("add").statistics.cache_miss.count == 1
        assert statistics.cache_miss.count == 2
    metrics = model_metrics(repository.models(), {})
    text = exposition(await parts_of(metrics)).decode()
    assert 'nv_cache_num_misses_per_model{model="add",version="1"} 1' in text
    assert 'nv_cache_num_hits_per_model{model="add",version="1"} 0' in text
    assert 'nv_cache_num_hits_per_model{model="plain"' not in text


async def test_a_failed_request_is_asked_again(
    cached: tuple[ModelRepository, World], tmp_path: Path
) -> None:
    repository, world = cached
    put(tmp_path, "gather", gather_model(), config=CACHED)
    await repository.load("gather")
    body = {"inputs": [{"name": "index", "datatype": "INT64", "shape": [1], "data": [9]}]}
    for count in (1, 2):
        status, _ = await world.infer_json("gather", body)
        assert status == 500
        assert repository.get("gather").statistics.fail.count == count


async def test_without_a_cache_a_model_that_asks_for_one_serves_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "add", add_model(), config=CACHED)
    with RunThreads(2, 1) as executor:
        repository = ModelRepository(tmp_path, executor)
        CachedModels(repository, None)
        await repository.load_all()
        assert repository.get("add").cached is None
    assert "start with --cache-config" in caplog.text
