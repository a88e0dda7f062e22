"""A whole server as programs of tritonclient meet it: calls, options and order are those of
Triton's own client examples (docs/triton.md says which of them run)."""

from __future__ import annotations

import asyncio
import http.client
import json
import queue
import secrets
from collections.abc import Iterator
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as httpclient
import tritonclient.http.aio as http_aio
import tritonclient.utils.shared_memory as shm
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.server.test_serve import FREE_PORTS, ready, serve
from tests.server.triton_models import simple_config, write

pytestmark = pytest.mark.slow
PATIENCE_S = 30.0
Array = np.ndarray[Any, Any]
FIRST = np.arange(16, dtype=np.int32).reshape(1, 16)
SECOND = np.ones((1, 16), np.int32)
LIBRARIES = {"grpc": grpcclient, "http": httpclient}


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Two workers over the examples' models, with all that clients may ask for."""
    root = tmp_path_factory.mktemp("models")
    write(root)
    arguments = (
        "--model-repository", str(root), "--model-control-mode", "explicit", "--load-model", "*",
        "--workers", "2", "--shared-memory", "--cache-config", "local,size=1048576",
        "--data-dir", str(tmp_path_factory.mktemp("data")), *FREE_PORTS,
    )  # fmt: skip
    with serve(*arguments) as process:
        yield ready(process)
        assert process.end() == 0


@pytest.fixture(params=sorted(LIBRARIES))
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(addresses: dict[str, str], wire: str) -> Iterator[Any]:
    with LIBRARIES[wire].InferenceServerClient(addresses[wire]) as client:
        yield client


def inputs_of(library: Any, first: Array = FIRST, second: Array = SECOND) -> list[Any]:
    datatype = "BYTES" if first.dtype == object else "INT32"
    inputs = []
    for name, array in (("INPUT0", first), ("INPUT1", second)):
        inputs.append(library.InferInput(name, list(array.shape), datatype))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def outputs_of(library: Any, **options: Any) -> list[Any]:
    return [library.InferRequestedOutput(name, **options) for name in ("OUTPUT0", "OUTPUT1")]


def check(result: Any, first: Array = FIRST, second: Array = SECOND) -> None:
    assert np.array_equal(result.as_numpy("OUTPUT0"), first + second)
    assert np.array_equal(result.as_numpy("OUTPUT1"), first - second)


@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
def test_infer(client: Any, wire: str, algorithm: str | None) -> None:
    library = LIBRARIES[wire]
    options: dict[str, Any] = {"headers": {"test": "1"}}
    if wire == "grpc":
        options |= {"compression_algorithm": algorithm, "client_timeout": PATIENCE_S}
    else:
        options |= {
            "request_compression_algorithm": algorithm,
            "response_compression_algorithm": algorithm,
            "query_params": {"test_1": 1, "test_2": 2},
        }
    for outputs in (outputs_of(library), None):
        check(client.infer("simple", inputs_of(library), outputs=outputs, **options))
    statistics = client.get_inference_statistics("simple")
    models = statistics["model_stats"] if wire == "http" else statistics.model_stats
    assert len(models) == 1


def test_infer_with_one_output_as_json(addresses: dict[str, str]) -> None:
    with httpclient.InferenceServerClient(addresses["http"]) as client:
        inputs = inputs_of(httpclient)
        inputs[0].set_data_from_numpy(FIRST, binary_data=False)
        outputs = [
            httpclient.InferRequestedOutput("OUTPUT0", binary_data=True),
            httpclient.InferRequestedOutput("OUTPUT1", binary_data=False),
        ]
        check(client.infer("simple", inputs, outputs=outputs))


def test_bodies_made_and_read_apart_from_the_client(addresses: dict[str, str]) -> None:
    body, length = httpclient.InferenceServerClient.generate_request_body(
        inputs_of(httpclient), outputs=outputs_of(httpclient, binary_data=True)
    )
    host, _, port = addresses["http"].rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE_S)
    headers = {"Inference-Header-Content-Length": str(length)} if length else {}
    connection.request("POST", "/v2/models/simple/infer", body, headers)
    response = connection.getresponse()
    made = response.getheader("Inference-Header-Content-Length")
    result = httpclient.InferenceServerClient.parse_response_body(
        response.read(), header_length=int(made or 0)
    )
    connection.close()
    check(result)


def test_async_infer_with_callbacks(addresses: dict[str, str]) -> None:
    heard: queue.Queue[Any] = queue.Queue()

    def hear(result: Any, error: Any) -> None:
        heard.put(error or result)

    with grpcclient.InferenceServerClient(addresses["grpc"]) as client:
        for _ in range(20):
            client.async_infer(
                "simple", inputs_of(grpcclient), hear, outputs=outputs_of(grpcclient)
            )
        client.async_infer("wrong_model_name", inputs_of(grpcclient), hear)
        found = [heard.get(timeout=PATIENCE_S) for _ in range(21)]
    errors = [each for each in found if isinstance(each, InferenceServerException)]
    assert len(errors) == 1
    assert "Request for unknown model" in errors[0].message()
    for each in found:
        if each is not errors[0]:
            check(each)


def test_async_infer_of_several_connections(addresses: dict[str, str]) -> None:
    with httpclient.InferenceServerClient(addresses["http"], concurrency=4) as client:
        asked = [
            client.async_infer("simple", inputs_of(httpclient), outputs=outputs_of(httpclient))
            for _ in range(20)
        ]
        for each in asked:
            check(each.get_result(timeout=PATIENCE_S))


@pytest.mark.parametrize("library", [grpc_aio, http_aio], ids=["grpc", "http"])
async def test_infer_with_asyncio(addresses: dict[str, str], library: Any) -> None:
    address = addresses["grpc" if library is grpc_aio else "http"]
    async with library.InferenceServerClient(address) as client:
        asked = [
            client.infer("simple", inputs_of(library, FIRST * n), outputs=outputs_of(library))
            for n in range(20)
        ]
        for number, result in enumerate(await asyncio.gather(*asked)):
            check(result, FIRST * number)
        with pytest.raises(InferenceServerException, match="Request for unknown model"):
            await client.infer("wrong_model_name", inputs_of(library))
        metadata = await client.get_server_metadata()
        assert (metadata["name"] if isinstance(metadata, dict) else metadata.name) == "triton"


def test_a_stream(addresses: dict[str, str]) -> None:
    heard: queue.Queue[Any] = queue.Queue()
    with grpcclient.InferenceServerClient(addresses["grpc"]) as client:
        client.start_stream(lambda result, error: heard.put(error or result))
        for number in range(10):
            client.async_stream_infer("simple", inputs_of(grpcclient, FIRST * number))
        for number in range(10):
            check(heard.get(timeout=PATIENCE_S), FIRST * number)
        client.stop_stream()


def test_strings(client: Any, wire: str) -> None:
    library = LIBRARIES[wire]
    first = np.array([[str(n).encode() for n in range(16)]], object)
    second = np.array([[b"1"] * 16], object)
    for outputs in (outputs_of(library), None):
        result = client.infer("simple_string", inputs_of(library, first, second), outputs=outputs)
        for name, sign in (("OUTPUT0", 1), ("OUTPUT1", -1)):
            values = [int(text) for text in result.as_numpy(name).reshape(-1)]
            assert values == [number + sign for number in range(16)]


@pytest.mark.parametrize("text", ["he\x00llo", "日本語", "", "x" * 100_000])
@pytest.mark.parametrize("binary", [True, False])
def test_any_string_comes_back(client: Any, wire: str, text: str, binary: bool) -> None:
    library = LIBRARIES[wire]
    array = np.array([[text.encode()] * 2], object)
    source = library.InferInput("INPUT0", [1, 2], "BYTES")
    choice: dict[str, Any] = {} if wire == "grpc" else {"binary_data": binary}
    source.set_data_from_numpy(array, **choice)
    output = library.InferRequestedOutput("OUTPUT0", **choice)
    result = client.infer("simple_identity", [source], outputs=[output])
    found = [x if isinstance(x, str) else x.decode() for x in result.as_numpy("OUTPUT0")[0]]
    assert found == [text] * 2


def test_health_and_metadata(client: Any, wire: str) -> None:
    headers = {"test": "1", "dummy": "2"}
    options: dict[str, Any] = {} if wire == "http" else {"as_json": True}
    assert client.is_server_live(headers=headers)
    assert client.is_server_ready(headers=headers)
    assert client.is_model_ready("simple")
    assert client.is_model_ready("simple", "1")
    assert not client.is_model_ready("wrong_model_name")
    metadata = client.get_server_metadata(**options)
    assert metadata["name"] == "triton"
    assert {"binary_tensor_data", "system_shared_memory", "classification"} <= set(
        metadata["extensions"]
    )
    assert client.get_model_metadata("simple", headers=headers, **options)["name"] == "simple"
    config = client.get_model_config("simple", **options)
    assert config.get("config", config)["name"] == "simple"
    statistics = client.get_inference_statistics(**options)
    assert len(statistics["model_stats"]) == 7
    for ask in (client.get_model_metadata, client.get_model_config):
        with pytest.raises(InferenceServerException, match="Request for unknown model") as caught:
            ask("wrong_model_name")
        assert caught.value.status() in {"404", "StatusCode.NOT_FOUND"}


def test_model_control(client: Any, wire: str) -> None:
    options: dict[str, Any] = {} if wire == "http" else {"as_json": True}
    index = client.get_model_repository_index(**options)
    assert len(index if wire == "http" else index["models"]) == 7
    client.load_model("simple_int8")
    assert client.is_model_ready("simple_int8")
    with pytest.raises(InferenceServerException, match="failed to load"):
        client.load_model(
            "simple_int8", config='"parameters": {"config": {{"max_batch_size": "16"}}}'
        )
    client.load_model("simple_int8", config='{"max_batch_size":"16"}')
    config = client.get_model_config("simple_int8", **options)
    assert config.get("config", config)["max_batch_size"] == 16
    client.unload_model("simple_int8")
    assert not client.is_model_ready("simple_int8")
    with pytest.raises(InferenceServerException, match="failed to load"):
        client.load_model("wrong_model_name")
    client.load_model("simple_int8")
    assert client.is_model_ready("simple_int8")


def test_keepalive_and_channel_arguments(addresses: dict[str, str]) -> None:
    options = grpcclient.KeepAliveOptions(
        keepalive_time_ms=2**31 - 1,
        keepalive_timeout_ms=20_000,
        keepalive_permit_without_calls=False,
        http2_max_pings_without_data=2,
    )
    arguments = [("grpc.primary_user_agent", "mine"), ("grpc.max_receive_message_length", 1 << 26)]
    for more in ({"keepalive_options": options}, {"channel_args": arguments}):
        with grpcclient.InferenceServerClient(addresses["grpc"], **more) as client:
            check(client.infer("simple", inputs_of(grpcclient), headers={"test": "1"}))


@pytest.mark.parametrize(
    ("model", "datatype", "field", "values"),
    [
        ("simple", "INT32", "int_contents", (list(range(16)), [1] * 16)),
        ("simple_int8", "INT8", "int_contents", (list(range(16)), [1] * 16)),
        ("simple_string", "BYTES", "bytes_contents",
         ([str(n).encode() for n in range(16)], [b"1"] * 16)),
    ],
)  # fmt: skip
def test_explicit_contents(
    addresses: dict[str, str], model: str, datatype: str, field: str, values: tuple[Any, Any]
) -> None:
    request = service_pb2.ModelInferRequest(model_name=model, id="my request id")
    for name, its in zip(("INPUT0", "INPUT1"), values, strict=True):
        source = request.inputs.add(name=name, datatype=datatype, shape=[1, 16])
        getattr(source.contents, field).extend(its)
    for name in ("OUTPUT0", "OUTPUT1"):
        request.outputs.add(name=name)
    with grpc.insecure_channel(addresses["grpc"]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        response = stub.ModelInfer(request)
        result = grpcclient.InferResult(response)
        found = [int(value) for value in result.as_numpy("OUTPUT0").reshape(-1)]
        assert found == [number + 1 for number in range(16)]
        assert response.id == "my request id"
        del request.inputs[1]
        with pytest.raises(grpc.RpcError, match="expected 2 inputs but got 1 inputs"):
            stub.ModelInfer(request)


@pytest.fixture
def regions(client: Any) -> Iterator[Any]:
    """Makes a region and registers it, as `name`."""
    handles = []
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()

    def make(name: str, size: int) -> Any:
        key = f"/test-{secrets.token_hex(8)}"
        handle = shm.create_shared_memory_region(name, key, size)
        handles.append(handle)
        client.register_system_shared_memory(name, key, size)
        return handle

    yield make
    client.unregister_system_shared_memory()
    for handle in handles:
        shm.destroy_shared_memory_region(handle)


def test_objects_that_are_used_again_with_and_without_shared_memory(
    client: Any, wire: str, regions: Any
) -> None:
    library = LIBRARIES[wire]
    size = FIRST.nbytes
    given, taken = regions("input_data", 2 * size), regions("output_data", 2 * size)
    inputs, outputs = inputs_of(library), outputs_of(library)
    for _ in range(2):
        shm.set_shared_memory_region(given, [FIRST])
        shm.set_shared_memory_region(given, [SECOND], offset=size)
        shm.set_shared_memory_region(taken, [np.zeros(32, np.int32)])
        for place, (source, output) in enumerate(zip(inputs, outputs, strict=True)):
            source.set_shared_memory("input_data", size, offset=place * size)
            output.set_shared_memory("output_data", size, offset=place * size)
        result = client.infer("simple", inputs, outputs=outputs)
        for place, (name, expected) in enumerate(
            (("OUTPUT0", FIRST + SECOND), ("OUTPUT1", FIRST - SECOND))
        ):
            said = result.get_output(name)
            shape = said["shape"] if wire == "http" else said.shape
            found = shm.get_contents_as_numpy(taken, np.int32, shape, offset=place * size)
            assert np.array_equal(found, expected)
        for source, array in zip(inputs, (FIRST, SECOND), strict=True):
            source.set_data_from_numpy(array)
        for output in outputs:
            output.unset_shared_memory()
        check(client.infer("simple", inputs, outputs=outputs))
    status = client.get_system_shared_memory_status()
    assert len(status if wire == "http" else status.regions) == 2


def test_classes_with_their_labels(client: Any, wire: str) -> None:
    library = LIBRARIES[wire]
    source = library.InferInput("data_0", [3, 224, 224], "FP32")
    source.set_data_from_numpy(np.full((3, 224, 224), 0.5, np.float32))
    output = library.InferRequestedOutput("fc6_1", class_count=3)
    plain = client.infer("densenet_onnx", [source]).as_numpy("fc6_1").reshape(-1)
    result = client.infer("densenet_onnx", [source], outputs=[output]).as_numpy("fc6_1")
    best = np.argsort(-plain)[:3].tolist()
    assert [text.decode() for text in result] == [
        f"{plain[place]:f}:{place}:CLASS {place}" for place in best
    ]


def test_a_model_with_a_cache(client: Any, wire: str) -> None:
    library = LIBRARIES[wire]
    config = {"max_batch_size": 8, "response_cache": {"enable": True}}
    client.load_model("custom_identity_int32", config=json.dumps(config))
    source = library.InferInput("INPUT0", [1, 16], "INT32")
    source.set_data_from_numpy(FIRST)
    for _ in range(4):  # one connection: one worker
        answer = client.infer("custom_identity_int32", [source]).as_numpy("OUTPUT0")
        assert np.array_equal(answer, FIRST)
    options: dict[str, Any] = {} if wire == "http" else {"as_json": True}
    statistics = client.get_inference_statistics("custom_identity_int32", **options)
    counted = statistics["model_stats"][0]["inference_stats"]
    assert (int(counted["cache_hit"]["count"]), int(counted["cache_miss"]["count"])) == (3, 1)
    client.load_model("custom_identity_int32")


def test_errors_have_tritons_status_and_words(client: Any, wire: str) -> None:
    library = LIBRARIES[wire]
    big = np.ones((9, 16), np.int32)
    wrong = library.InferInput("INPUT0", [1, 16], "FP32")
    wrong.set_data_from_numpy(FIRST.astype(np.float32))
    infer = partial(client.infer, "simple")
    cases: list[tuple[Any, str, str]] = [
        (partial(client.infer, "simple", inputs_of(library), model_version="9"), "404",
         "'simple' version 9 is not found"),
        (partial(infer, inputs_of(library)[:1]), "400",
         "expected 2 inputs but got 1 inputs for model 'simple'"),
        (partial(infer, inputs_of(library, big, big)), "400",
         "inference request batch-size must be <= 8 for 'simple'"),
        (partial(infer, [wrong, inputs_of(library)[1]]), "400",
         "inference input 'INPUT0' data-type is 'FP32', but model 'simple' expects 'INT32'"),
        (partial(infer, inputs_of(library, FIRST.T.copy(), SECOND.T.copy())), "400",
         "unexpected shape for input 'INPUT0' for model 'simple'. Expected [-1,16], got [16,1]"),
    ]  # fmt: skip
    codes = {"StatusCode.NOT_FOUND": "404", "StatusCode.INVALID_ARGUMENT": "400"}
    for attempt, status, text in cases:
        with pytest.raises(InferenceServerException) as caught:
            attempt()
        assert text in caught.value.message()
        assert codes.get(str(caught.value.status()), caught.value.status()) == status
    check(client.infer("simple", inputs_of(library)))


def test_the_models_configuration_is_tritons(addresses: dict[str, str]) -> None:
    """What a repository says is what the server says of it, completed."""
    with grpcclient.InferenceServerClient(addresses["grpc"]) as client:
        config = client.get_model_config("simple").config
        assert config.platform == "onnxruntime_onnx"
        assert config.backend == "onnxruntime"
        assert config.max_batch_size == 8
        assert [tensor.name for tensor in config.input] == ["INPUT0", "INPUT1"]
        assert [list(tensor.dims) for tensor in config.output] == [[16], [16]]
        assert simple_config("TYPE_INT32").count("INPUT") == len(config.input)
