"""The Open Inference Protocol end to end: tritonclient, unchanged, on both wires."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc.aio as grpc_client
import tritonclient.http.aio as http_client
from onnx import TensorProto
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from headrace.errors import NotFoundError
from server.execution.threads import RunThreads
from server.grpc_port import TRANSPORTS, GrpcPort
from server.models.control import ModelControl
from server.models.loaded import LoadedModel
from server.models.repository import ModelRepository
from server.protocol.oip import InferAnswer, InferCall, InferenceProtocol
from server.protocol.oip_rest import InferenceRoutes
from server.protocol.shared_memory import SharedMemory
from server.wire.handlers import Context
from server.wire.http1.server import HttpServer
from server.wire.routes import Request, Response, Routes
from tests.server.onnx_models import (
    add_model,
    gather_model,
    identity_model,
    mlp_model,
    put,
)

DTYPES = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16, "INT32": TensorProto.INT32, "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16, "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE, "BYTES": TensorProto.STRING,
}  # fmt: skip


class NothingReleased:
    """No release plan."""

    def names(self) -> list[str]:
        return []

    def loaded(self, name: str, version: str) -> LoadedModel | None:
        return None

    async def infer(self, call: InferCall, context: Context) -> InferAnswer:
        raise NotFoundError("nothing is released")


class World:
    """The protocol over a repository, on both wires."""

    ready = True

    def __init__(
        self,
        repository: ModelRepository,
        transport: str = "headrace",
        *,
        control: ModelControl | None = None,
        memory: SharedMemory | None = None,
    ) -> None:
        self.protocol = InferenceProtocol(
            repository, NothingReleased(), lambda: self.ready, control, memory=memory
        )
        self.routes = Routes()
        InferenceRoutes(self.protocol).add_to(self.routes)
        self.grpc = GrpcPort(self.protocol, {}, transport=transport)
        self.http = HttpServer(self.routes)

    async def start(self) -> None:
        await self.grpc.start("127.0.0.1", 0)
        await self.http.start("127.0.0.1", 0)

    async def stop(self) -> None:
        await self.grpc.drain(0)
        await self.http.drain(0.1)

    def client(self, wire: str) -> Any:
        library = grpc_client if wire == "grpc" else http_client
        port = self.grpc.port if wire == "grpc" else self.http.port
        client = library.InferenceServerClient(f"127.0.0.1:{port}")
        client.library = library
        return client

    async def rest(self, method: str, path: str, body: Any = b"", **headers: str) -> Response:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.answer(Request(method, path, {}, given, data))

    async def infer_json(self, model: str, body: Any, **headers: str) -> tuple[int, Any]:
        response = await self.rest("POST", f"/v2/models/{model}/infer", body, **headers)
        return response.status, json.loads(response.body)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> ModelRepository:
    root = tmp_path_factory.mktemp("repository")
    put(root, "add", add_model(), config="max_batch_size: 8")
    put(root, "mlp", mlp_model())
    put(root, "gather", gather_model())
    put(root, "fixed", add_model(2))
    put(root, "cut", add_model()[:50])
    for datatype, kind in DTYPES.items():
        put(root, f"same_{datatype}", identity_model(kind))
    with RunThreads(2, 1) as executor:
        repository = ModelRepository(root, executor)
        asyncio.run(repository.load_all())
        return repository


@pytest.fixture(params=TRANSPORTS)
async def world(
    repository: ModelRepository, request: pytest.FixtureRequest
) -> AsyncIterator[World]:
    world = World(repository, request.param)
    await world.start()
    yield world
    await world.stop()


@pytest.fixture(params=["grpc", "http"])
async def client(request: pytest.FixtureRequest, world: World) -> AsyncIterator[Any]:
    async with world.client(request.param) as client:
        yield client


def tensor(client: Any, name: str, array: np.ndarray[Any, Any], datatype: str, **how: Any) -> Any:
    result = client.library.InferInput(name, list(array.shape), datatype)
    result.set_data_from_numpy(array, **how)
    return result


def sample(datatype: str) -> np.ndarray[Any, Any]:
    if datatype == "BYTES":
        return np.array([["a", "é"], ["", "x" * 300]], object)
    if datatype == "BOOL":
        return np.array([[True, False], [False, True]])
    if datatype == "BF16":
        return np.array([[1.5, np.nan], [-np.inf, 0]], ml_dtypes.bfloat16)
    if datatype.startswith("FP"):
        kind = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}[datatype]
        return np.array([[1.5, np.nan], [-np.inf, 0]], kind)
    kind = np.dtype(datatype.lower())
    limits = np.iinfo(kind)
    return np.array([[limits.min, limits.max], [0, 1]], kind)


async def test_the_server_says_what_it_is(world: World, client: Any) -> None:
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("add")
    assert not await client.is_model_ready("cut")
    assert not await client.is_model_ready("nope")
    as_dict: dict[str, Any] = {} if client.library is http_client else {"as_json": True}
    assert (await client.get_server_metadata(**as_dict))["name"] == "triton"
    metadata = await client.get_model_metadata("add", **as_dict)
    assert metadata["versions"] == ["1"]
    assert [int(size) for size in metadata["inputs"][0]["shape"]] == [-1, 4]
    config = await client.get_model_config("add", **as_dict)
    config = config.get("config", config)
    assert config["max_batch_size"] == 8
    assert [int(size) for size in config["input"][0]["dims"]] == [4]
    index = await client.get_model_repository_index(**as_dict)
    entries = {
        entry["name"]: entry for entry in (index if isinstance(index, list) else index["models"])
    }
    assert entries["add"]["state"] == "READY"
    assert entries["cut"]["state"] == "UNAVAILABLE"
    assert "InvalidProtobuf" in entries["cut"]["reason"]
    world.ready = False
    assert not await client.is_server_ready()


@pytest.mark.parametrize("datatype", sorted(DTYPES))
async def test_every_datatype_goes_through_unchanged(client: Any, datatype: str) -> None:
    array = sample(datatype)
    result = await client.infer(f"same_{datatype}", [tensor(client, "TEXT", array, datatype)])
    answer = result.as_numpy("SAME")
    if datatype == "BYTES":
        assert [value.decode() for value in answer.reshape(-1)] == list(array.reshape(-1))
    else:
        assert answer.dtype == array.dtype
        assert answer.tobytes() == array.tobytes()


async def test_outputs_can_be_chosen_and_the_id_comes_back(client: Any) -> None:
    ones = np.ones((2, 4), np.int32)
    inputs = [tensor(client, name, ones, "INT32") for name in ("INPUT0", "INPUT1")]
    wanted = [client.library.InferRequestedOutput("OUTPUT1")]
    result = await client.infer("add", inputs, outputs=wanted, request_id="mine")
    assert result.as_numpy("OUTPUT0") is None
    assert result.as_numpy("OUTPUT1").tolist() == [[0] * 4] * 2
    response = result.get_response()
    assert (response["id"] if isinstance(response, dict) else response.id) == "mine"


async def test_statistics_count_requests_rows_and_batches(client: Any) -> None:
    as_dict: dict[str, Any] = {} if client.library is http_client else {"as_json": True}
    array = np.ones((3, 3), np.float32)

    async def counts() -> tuple[int, int, int]:
        stats = await client.get_inference_statistics("mlp", **as_dict)
        (model,) = stats["model_stats"]
        success = model["inference_stats"]["success"].get("count", 0)
        return (
            int(model.get("inference_count", 0)), int(model.get("execution_count", 0)), int(success)
        )  # fmt: skip

    before = await counts()
    await client.infer("mlp", [tensor(client, "features", array, "FP32")])
    after = await counts()
    assert [new - old for new, old in zip(after, before, strict=True)] == [3, 1, 1]


BAD: list[tuple[str, str, Callable[[Any], list[Any]], str, str]] = [
    ("unknown model", "nope", lambda c: [], "NOT_FOUND", "Request for unknown model: 'nope'"),
    ("truncated model", "cut", lambda c: [], "NOT_FOUND", "'cut' has no available versions"),
    ("missing input", "add", lambda c: [tensor(c, "INPUT0", np.ones((1, 4), np.int32), "INT32")],
     "INVALID_ARGUMENT", "expected 2 inputs but got 1 inputs for model 'add'"),
    ("wrong dtype", "mlp", lambda c: [tensor(c, "features", np.ones((1, 3), np.int32), "INT32")],
     "INVALID_ARGUMENT",
     "inference input 'features' data-type is 'INT32', but model 'mlp' expects 'FP32'"),
    ("wrong shape", "mlp", lambda c: [tensor(c, "features", np.ones((1, 5), np.float32), "FP32")],
     "INVALID_ARGUMENT",
     "unexpected shape for input 'features' for model 'mlp'. Expected [-1,3], got [1,5]"),
    ("no batch dim", "mlp", lambda c: [tensor(c, "features", np.ones(3, np.float32), "FP32")],
     "INVALID_ARGUMENT", "Expected [-1,3], got [3]"),
    ("unknown input", "mlp", lambda c: [tensor(c, "feature", np.ones((1, 3), np.float32), "FP32")],
     "INVALID_ARGUMENT", "unexpected inference input 'feature' for model 'mlp'"),
    ("batch too large", "add",
     lambda c: [tensor(c, n, np.ones((9, 4), np.int32), "INT32") for n in ("INPUT0", "INPUT1")],
     "INVALID_ARGUMENT", "inference request batch-size must be <= 8 for 'add'"),
    ("two batch sizes", "add",
     lambda c: [tensor(c, "INPUT0", np.ones((1, 4), np.int32), "INT32"),
                tensor(c, "INPUT1", np.ones((2, 4), np.int32), "INT32")],
     "INVALID_ARGUMENT", "input 'INPUT1' batch size does not match"),
    ("text that is none", "same_BYTES",
     lambda c: [tensor(c, "TEXT", np.array([[b"\xff"]], object), "BYTES")],
     "INVALID_ARGUMENT", "element 0 of input 'TEXT' is not UTF-8"),
    ("fails in the graph", "gather", lambda c: [tensor(c, "index", np.array([9]), "INT64")],
     "INTERNAL", "the model failed on this input"),
]  # fmt: skip
HTTP_STATUS = {"NOT_FOUND": "404", "INVALID_ARGUMENT": "400", "INTERNAL": "500"}


@pytest.mark.parametrize("case", BAD, ids=[case[0] for case in BAD])
async def test_bad_input_is_named_with_its_status_and_the_server_goes_on(
    client: Any, case: tuple[str, str, Callable[[Any], list[Any]], str, str]
) -> None:
    _, model, inputs, code, text = case
    with pytest.raises(InferenceServerException) as caught:
        await client.infer(model, inputs(client))
    message = caught.value.message()
    assert text in message
    expected = f"StatusCode.{code}" if client.library is grpc_client else HTTP_STATUS[code]
    assert caught.value.status() == expected
    ones = np.ones((1, 3), np.float32)
    assert (await client.infer("mlp", [tensor(client, "features", ones, "FP32")])).as_numpy(
        "probability"
    ).shape == (1, 1)


async def test_nan_is_a_legal_value_and_its_neighbours_keep_theirs(client: Any) -> None:
    rows = np.array([[1, 2, 3], [np.nan, np.nan, np.nan], [4, 5, 6]], np.float32)
    whole = (await client.infer("mlp", [tensor(client, "features", rows, "FP32")])).as_numpy(
        "probability"
    )
    for place in (0, 2):
        alone = await client.infer(
            "mlp", [tensor(client, "features", rows[place : place + 1], "FP32")]
        )
        assert alone.as_numpy("probability")[0] == whole[place]


async def test_one_bad_request_among_many_fails_alone(client: Any) -> None:
    def ask(index: int) -> Awaitable[Any]:
        array = np.array([index], np.int64)
        return client.infer("gather", [tensor(client, "index", array, "INT64")])

    answers = await asyncio.gather(*(ask(n % 5) for n in range(20)), return_exceptions=True)
    for number, answer in enumerate(answers):
        if number % 5 == 4:
            assert isinstance(answer, InferenceServerException)
        else:
            assert answer.as_numpy("value").tolist() == [number % 5]


async def grpc_infer(world: World, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{world.grpc.port}") as channel:
        method = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        return await method(request)


def typed(datatype: str, field: str, values: list[Any], shape: list[int]) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=f"same_{datatype}")
    source = request.inputs.add(name="TEXT", datatype=datatype, shape=shape)
    getattr(source.contents, field).extend(values)
    return request


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]), ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-5, 7]), ("INT32", "int_contents", [-5, 7]),
        ("INT64", "int64_contents", [-5, 1 << 40]), ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 65535]), ("UINT32", "uint_contents", [0, 7]),
        ("UINT64", "uint64_contents", [0, (1 << 64) - 1]), ("FP32", "fp32_contents", [1.5, -2]),
        ("FP64", "fp64_contents", [1.5, -2]), ("BYTES", "bytes_contents", [b"a", b""]),
    ],
)  # fmt: skip
async def test_typed_contents(world: World, datatype: str, field: str, values: list[Any]) -> None:
    response = await grpc_infer(world, typed(datatype, field, values, [1, 2]))
    raw = response.raw_output_contents[0]
    if datatype == "BYTES":
        assert raw == b"\x01\x00\x00\x00a\x00\x00\x00\x00"
    else:
        kind = sample(datatype).dtype
        assert np.frombuffer(raw, kind).tolist() == values


def changed(request: pb.ModelInferRequest, **fields: Any) -> pb.ModelInferRequest:
    request.MergeFrom(pb.ModelInferRequest(**fields))
    return request


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (typed("INT32", "int64_contents", [1, 2], [1, 2]), "unexpected explicit tensor data"),
        (typed("INT32", "int_contents", [], [1, 2]), "unable to find data"),
        (typed("INT32", "int_contents", [1], [1, 2]), "has 1 values"),
        (typed("INT8", "int_contents", [128], [1, 1]), "does not fit INT8"),
        (typed("FP16", "fp32_contents", [1], [1, 1]), "only be sent in raw_input_contents"),
        (changed(typed("INT32", "int_contents", [1], [1, 1]), raw_input_contents=[b"1234"]),
         "contents field must not be specified when using raw_input_contents"),
        (changed(typed("INT32", "int_contents", [1], [1, 1]), raw_input_contents=[b"", b""]),
         "raw_input_contents"),
        (changed(typed("INT32", "int_contents", [1], [1, 1]), model_version="1.0.0"),
         "version string"),
        (changed(typed("INT32", "int_contents", [1], [1, 1]),
                 outputs=[{"name": "SAME"}, {"name": "SAME"}]), "output 'SAME' already exists"),
        (changed(typed("INT32", "int_contents", [1], [1, 1]), outputs=[{"name": "X"}]),
         "unexpected inference output 'X'"),
        (changed(typed("INT32", "int_contents", [1], [1, 1]),
                 parameters={"triton_x": {"bool_param": True}}), "reserved"),
        (changed(typed("INT32", "int_contents", [1], [1, 1]), parameters={"a": {}}), "no value"),
        (changed(typed("INT32", "int_contents", [1], [1, 1]),
                 parameters={"timeout": {"string_param": "1"}}), "timeout"),
    ],
)  # fmt: skip
async def test_wrong_grpc_requests_are_named(
    world: World, message: pb.ModelInferRequest, text: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await grpc_infer(world, message)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert text in caught.value.details()


@pytest.mark.parametrize(
    ("priority", "status"), [(0, 200), (2, 200), (1 << 40, 200), (-1, 400), ("1", 400), (1.5, 400)]
)
async def test_a_priority_is_a_whole_number(world: World, priority: Any, status: int) -> None:
    got, said = await world.infer_json("add", {**ADD, "parameters": {"priority": priority}})
    assert got == status, said
    assert status == 200 or "priority" in said["error"]


async def test_health_of_grpc_is_said_before_the_drain(world: World) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{world.grpc.port}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        named = b"\x0a\x1einference.GRPCInferenceService"
        assert await check(b"") == await check(named) == b"\x08\x02"
        world.grpc.set_ready()
        assert await check(b"") == await check(named) == b"\x08\x01"
        world.grpc.set_unready()
        assert await check(b"") == await check(named) == b"\x08\x02"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(b"\x0a\x01x")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


ADD = {
    "inputs": [
        {"name": "INPUT0", "datatype": "INT32", "shape": [1, 4], "data": [1, 2, 3, 4]},
        {"name": "INPUT1", "datatype": "INT32", "shape": [1, 4], "data": [[1, 1, 1, 1]]},
    ]
}


async def test_rest_answers_json_to_json(world: World) -> None:
    status, answer = await world.infer_json("add", {**ADD, "id": "7"})
    assert status == 200
    assert answer == {
        "model_name": "add",
        "model_version": "1",
        "id": "7",
        "outputs": [
            {"name": "OUTPUT0", "datatype": "INT32", "shape": [1, 4], "data": [2, 3, 4, 5]},
            {"name": "OUTPUT1", "datatype": "INT32", "shape": [1, 4], "data": [0, 1, 2, 3]},
        ],
    }
    assert "id" not in (await world.infer_json("add", ADD))[1]
    status, answer = await world.infer_json("mlp", b'{"inputs":[{"name":"features",'
        b'"datatype":"FP32","shape":[1,3],"data":[NaN,Infinity,1]}]}')  # fmt: skip
    assert status == 200


async def test_rest_binary_choice_is_per_output(world: World) -> None:
    body = {
        **ADD,
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": False}}, {"name": "OUTPUT1"}],
    }
    response = await world.rest("POST", "/v2/models/add/infer", body)
    headers = dict(response.headers)
    data = b"".join(response.body)
    length = int(headers["Inference-Header-Content-Length"])
    head = json.loads(data[:length])
    assert response.content_type == "application/octet-stream"
    assert head["outputs"][0]["data"] == [2, 3, 4, 5]
    assert head["outputs"][1]["parameters"] == {"binary_data_size": 16}
    assert np.frombuffer(data[length:], np.int32).tolist() == [0, 1, 2, 3]


async def test_rest_raw_request_of_one_input(world: World) -> None:
    body = np.array([1, 2, 3], np.float32).tobytes()
    response = await world.rest(
        "POST", "/v2/models/mlp/infer", body, inference_header_content_length="0"
    )
    assert response.status == 200, response.body
    response = await world.rest(
        "POST", "/v2/models/add/infer", body, inference_header_content_length="0"
    )
    assert response.status == 400


async def test_rest_compression_both_ways_and_a_bomb(world: World) -> None:
    wide = np.zeros((8, 1000), np.int32)
    body = {"inputs": [{"name": "TEXT", "datatype": "INT32", "shape": list(wide.shape),
                        "data": wide.reshape(-1).tolist()}]}  # fmt: skip
    packed = gzip.compress(json.dumps(body).encode())
    response = await world.rest(
        "POST", "/v2/models/same_INT32/infer", packed,
        content_encoding="gzip", accept_encoding="br, gzip;q=0.5",
    )  # fmt: skip
    assert dict(response.headers)["Content-Encoding"] == "gzip"
    assert json.loads(gzip.decompress(response.body))["outputs"][0]["shape"] == [8, 1000]
    bomb = gzip.compress(b"0" * (65 << 20))
    for data, coding, status in (
        (bomb, "gzip", 400), (packed[:-20], "gzip", 400), (packed, "deflate", 400),
        (packed, "br", 501),
    ):  # fmt: skip
        response = await world.rest(
            "POST", "/v2/models/same_INT32/infer", data, content_encoding=coding
        )
        assert response.status == status, response.body


@pytest.mark.parametrize(
    ("body", "headers", "status", "text"),
    [
        (b"{", {}, 400, "parse"),
        (b"", {}, 400, "parse"),
        (b"\xff", {}, 400, "parse"),
        (b"[" * 100_000, {}, 400, "not an inference request"),
        (b'{"inputs":[{"name":"x","datatype":"INT32","shape":[1],"data":' + b"[" * 100_000, {}, 400,
         "parse"),
        (b"{}", {}, 400, "inputs"),
        ({"inputs": [{"name": "x"}]}, {}, 400, "datatype"),
        (ADD, {"inference_header_content_length": "9999"}, 400, "should be in range (0, "),
        (ADD, {"inference_header_content_length": "-1"}, 400, "should be in range (0, "),
        (ADD, {"inference_header_content_length": "9" * 99}, 400, "should be in range (0, "),
        (ADD, {"inference_header_content_length": "x"}, 400,
         "Unable to parse Inference-Header-Content-Length, got: x"),
        ({"inputs": [{**ADD["inputs"][0], "parameters": {"binary_data_size": 16}}]}, {}, 400,
         "Input must set only one"),
        ({"inputs": [{"name": "INPUT0", "datatype": "INT32", "shape": [1, 4]}]}, {}, 400,
         "Input must set only one"),
        ({"inputs": [{"name": "INPUT0", "datatype": "INT32", "shape": [1, 4],
                      "parameters": {"binary_data_size": 16}}]}, {}, 400,
         "must specify valid 'Infer-Header-Content-Length' in request header"),
        ({"inputs": [{"name": "INPUT0", "datatype": "INT32", "shape": [1, 4],
                      "parameters": {"binary_data_size": -1}}]}, {}, 400, "binary_data_size"),
        ({"inputs": [{"name": "INPUT0", "datatype": "FP16", "shape": [1], "data": [1]}]}, {}, 400,
         "receiving FP16 data via JSON is not supported. Please use the binary data format"),
        ({"inputs": [{"name": "INPUT0", "datatype": "BF16", "shape": [1], "data": [1]}]}, {}, 400,
         "receiving BF16 data via JSON is not supported. Please use the binary data format"),
        ({"inputs": [{"name": "INPUT0", "datatype": "INT32", "shape": [1, 4],
                      "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 16}}]},
         {}, 501, "Client shared memory is disabled. Start the server with '--shared-memory'"),
        ({**ADD, "outputs": [{"name": "OUTPUT0", "parameters": {"classification": 0}}]}, {}, 400,
         "invalid value for 'classification' parameter, expected >= 0"),
        ({**ADD, "outputs": [{"name": "OUTPUT0", "parameters": {"classification": True}}]}, {}, 400,
         "invalid value type for 'classification' parameter, expected int64_param"),
    ],
)  # fmt: skip
async def test_wrong_rest_requests_are_named(
    world: World, body: Any, headers: dict[str, str], status: int, text: str
) -> None:
    got, answer = await world.infer_json("add", body, **headers)
    assert got == status, answer
    assert list(answer) == ["error"]
    assert text in answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/", 404), ("GET", "/v2/models/add/versions/x", 404),
        ("POST", "/v2/models/add", 405), ("GET", "/v2/models/nope", 404),
        ("GET", "/v2/models/nope/ready", 400), ("GET", "/v2/models/add/versions/1", 200),
        ("GET", "/v2/models/add/versions/2/config", 404), ("GET", "/v2/models/stats", 200),
        ("GET", "/v2/models/add/stats", 200), ("GET", "/v2/health/live", 200),
        ("POST", "/v2/repository/index", 200), ("GET", "/v2/repository/index", 405),
    ],
)  # fmt: skip
async def test_rest_paths(world: World, method: str, path: str, status: int) -> None:
    assert (await world.rest(method, path)).status == status


async def test_rest_ready_follows_readiness(world: World) -> None:
    assert (await world.rest("GET", "/v2/health/ready")).status == 200
    world.ready = False
    assert (await world.rest("GET", "/v2/health/ready")).status == 400
    body = json.loads((await world.rest("POST", "/v2/repository/index", {"ready": True})).body)
    assert "cut" not in {entry["name"] for entry in body}
