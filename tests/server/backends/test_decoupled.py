"""Models with any number of responses: by stream, by events, and asked by other models."""

from __future__ import annotations

import http.client
import json
import queue
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpc_client
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from server.execution.engine import Asked, Part
from server.grpc_port import GrpcPort
from server.models.loaded import CalledModel
from tests.server.backends.serving import Served, config, put_python, tensors_of
from tests.server.onnx_models import add_model, identity_model, put

pytestmark = pytest.mark.slow
WAIT_S = 30.0

DECOUPLED = "model_transaction_policy { decoupled: true }"
# OUT: IN[i], i times in all, each from a thread; the final flag alone, or with the last one.
REPEAT = """
def execute(self, requests):
    for request in requests:
        threading.Thread(target=self.respond, args=(request,), daemon=True).start()

def respond(self, request):
    sender = request.get_response_sender()
    values = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
    last_is_final = request.request_id().startswith("with")
    final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
    for index, value in enumerate(values.reshape(-1)):
        if value == -1:
            response = pb_utils.InferenceResponse(error=pb_utils.TritonError("minus one"))
        else:
            tensor = pb_utils.Tensor("OUT", np.array([value], np.int32))
            response = pb_utils.InferenceResponse([tensor], parameters={"index": index})
        sender.send(response, final if last_is_final and index == len(values) - 1 else 0)
    if not last_is_final:
        sender.send(flags=final)
"""
# One response, then until nobody waits any more; FILE says what came of it.
ENDLESS = """
def execute(self, requests):
    (request,) = requests
    sender = request.get_response_sender()
    path = pb_utils.get_input_tensor_by_name(request, "FILE").as_numpy()[0].decode()
    sent = 0
    while not request.is_cancelled():
        sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("N", np.array([sent], np.int64))]))
        sent += 1
        with open(path, "w") as file:
            file.write(str(sent))
    sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    with open(path, "w") as file:
        file.write(f"cancelled {sent}")
"""
ASYNC = """
async def execute(self, requests):
    for request in requests:
        sender = request.get_response_sender()
        value = int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()[0])
        if value < 0:
            raise ValueError("below nothing")
        for number in range(value):
            await asyncio.sleep(0.001)
            tensor = pb_utils.Tensor("OUT", np.array([number], np.int32))
            sender.send(pb_utils.InferenceResponse([tensor]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
SUM = """
def execute(self, requests):
    values = pb_utils.get_input_tensor_by_name(requests[0], "IN")
    decoupled = requests[0].request_id() != "plain"
    request = pb_utils.InferenceRequest(
        model_name="repeat", inputs=[values], requested_output_names=["OUT"])
    found = request.exec(decoupled=decoupled)
    if not decoupled:
        raise pb_utils.TritonModelException(found.error().message())
    total = np.zeros(1, np.int32)
    for number, response in enumerate(found):
        if response.has_error():
            raise pb_utils.TritonModelException(response.error().message())
        if response.output_tensors():
            total += pb_utils.get_output_tensor_by_name(response, "OUT").as_numpy()
        if requests[0].request_id() == "first":
            found.cancel()
    return [pb_utils.InferenceResponse([pb_utils.Tensor("SUM", total)])]
"""
WORDS = """
def execute(self, requests):
    for request in requests:
        text = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()[0].decode()
        said = json.loads(request.parameters())
        sender = request.get_response_sender()
        for word in text.split():
            if word == "raise":
                raise ValueError("a word that raises")
            tensor = pb_utils.Tensor("word", np.array([word * said.get("times", 1)], object))
            sender.send(pb_utils.InferenceResponse([tensor]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("models")
    put(root, "add", add_model())
    put(root, "same", identity_model())
    put_python(root, "repeat", REPEAT, config("IN:INT32:-1", "OUT:INT32:1", DECOUPLED))
    put_python(root, "endless", ENDLESS, config("FILE:STRING:1", "N:INT64:1", DECOUPLED))
    put_python(
        root, "twice", ENDLESS,
        config("FILE:STRING:1", "N:INT64:1", DECOUPLED + " instance_group { count: 2 }"),
    )  # fmt: skip
    put_python(root, "async", ASYNC, config("IN:INT32:1", "OUT:INT32:1", DECOUPLED))
    put_python(root, "sum", SUM, config("IN:INT32:-1", "SUM:INT32:1"))
    put_python(root, "words", WORDS, config("text:STRING:1", "word:STRING:1", DECOUPLED))
    with Served(root) as served:
        assert all(entry.state == "READY" for entry in served.repository.index())
        yield served


@pytest.fixture(scope="module")
def address(served: Served) -> Iterator[str]:
    port = GrpcPort(served.protocol, {})
    served.run(port.start("127.0.0.1", 0))
    yield f"127.0.0.1:{port.port}"
    served.run(port.drain(0))


@pytest.fixture(scope="module")
def http_address(served: Served) -> Iterator[str]:
    with served.over_http() as (host, port):
        yield f"{host}:{port}"


def request(model: str, request_id: str, **inputs: Any) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=model, id=request_id)
    for tensor in tensors_of(inputs):
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
        message.raw_input_contents.append(tensor.array.tobytes())
    return message


def values_of(found: list[Any]) -> list[Any]:
    """Of each response its error, its value, or None where it is empty."""
    return [
        answer.error_message
        or (
            int(np.frombuffer(answer.infer_response.raw_output_contents[0], np.int32)[0])
            if answer.infer_response.raw_output_contents
            else None
        )
        for answer in found
    ]


def finals_of(found: list[Any]) -> list[bool]:
    return [
        answer.infer_response.parameters["triton_final_response"].bool_param for answer in found
    ]


def streamed(address: str, *requests: Any) -> list[Any]:
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return list(stub.ModelStreamInfer(iter(requests), timeout=WAIT_S))


def ints(*values: int) -> Any:
    return np.array(values, np.int32)


def test_many_responses_and_which_of_them_is_the_last(address: str) -> None:
    found = streamed(address, request("repeat", "with the last", IN=ints(5, 6, 7)))
    assert values_of(found) == [5, 6, 7]
    assert finals_of(found) == [False, False, True]
    assert [answer.infer_response.parameters["index"].int64_param for answer in found] == [0, 1, 2]
    assert {answer.infer_response.id for answer in found} == {"with the last"}
    assert {answer.infer_response.model_name for answer in found} == {"repeat"}
    found = streamed(address, request("repeat", "alone", IN=ints(5, 6)))
    assert values_of(found) == [5, 6]
    assert finals_of(found) == [False, False]


@pytest.mark.parametrize("values", [(), (1,), (1, 2)])
def test_the_end_alone_where_it_is_asked_for(address: str, values: tuple[int, ...]) -> None:
    asked = request("repeat", "alone", IN=ints(*values))
    assert values_of(streamed(address, asked)) == list(values)
    asked.parameters["triton_enable_empty_final_response"].bool_param = True
    found = streamed(address, asked)
    assert values_of(found) == [*values, None]
    assert finals_of(found) == [False] * len(values) + [True]
    assert found[-1].infer_response.id == "alone"


def test_errors_are_responses_and_others_go_on(address: str) -> None:
    found = streamed(address, request("repeat", "with", IN=ints(1, -1, 3)))
    assert values_of(found) == [1, "minus one", 3]
    assert finals_of(found) == [False, False, True]
    wrong = request("repeat", "w", OTHER=ints(1))
    found = streamed(address, wrong, request("repeat", "with", IN=ints(2)))
    assert min(map(str, values_of(found))) == "2"
    assert "OTHER" in str(values_of(found))


def test_requests_of_one_stream_do_not_wait_for_each_other(address: str) -> None:
    many = [request("repeat", f"with{n}", IN=ints(*range(n, n + 20))) for n in range(100)]
    found = streamed(address, *many)
    for n in range(100):
        of_it = [answer for answer in found if answer.infer_response.id == f"with{n}"]
        assert values_of(of_it) == list(range(n, n + 20))


def test_models_that_answer_in_a_coroutine(address: str) -> None:
    many = [request("async", str(n), IN=ints(n)) for n in range(5)]
    found = streamed(address, *many, request("async", "bad", IN=ints(-1)))
    for n in range(5):
        of_it = [answer for answer in found if answer.infer_response.id == str(n)]
        assert values_of(of_it) == list(range(n))
    (bad,) = [answer for answer in found if answer.infer_response.id == "bad"]
    assert "ValueError: below nothing" in bad.error_message
    assert finals_of([bad]) == [True]


def test_one_response_is_not_to_be_had(address: str, http_address: str) -> None:
    client = grpc_client.InferenceServerClient(address)
    tensor = grpc_client.InferInput("IN", [1], "INT32")
    tensor.set_data_from_numpy(ints(1))
    with pytest.raises(grpc_client.InferenceServerException) as caught:
        client.infer("repeat", [tensor])
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    words = "doesn't support models with decoupled transaction policy"
    assert caught.value.message() == f"ModelInfer RPC {words}"
    assert client.get_model_config("repeat").config.model_transaction_policy.decoupled
    client.close()
    body = {"inputs": [{"name": "IN", "datatype": "INT32", "shape": [1], "data": [1]}]}
    status, _, text = post(http_address, "repeat/infer", body)
    assert (status, json.loads(text)["error"]) == (501, f"HTTP end point {words}")


def test_tritonclients_callbacks(address: str) -> None:
    """As Triton's example of a repeating model does it."""
    client = grpc_client.InferenceServerClient(address)
    found: queue.Queue[Any] = queue.Queue()
    client.start_stream(callback=lambda result, error: found.put(error or result))
    tensor = grpc_client.InferInput("IN", [10], "INT32")
    tensor.set_data_from_numpy(np.arange(10, dtype=np.int32))
    client.async_stream_infer("repeat", [tensor], enable_empty_final_response=True)
    results = [found.get(timeout=WAIT_S) for _ in range(11)]
    client.stop_stream()
    client.close()
    assert [int(result.as_numpy("OUT")[0]) for result in results[:10]] == list(range(10))
    assert results[10].get_response().parameters["triton_final_response"].bool_param


def read_until(path: Path, text: str) -> str:
    end_s = time.monotonic() + WAIT_S
    while True:
        found = path.read_text() if path.exists() else ""
        if found.startswith(text):
            return found
        assert time.monotonic() < end_s, found
        time.sleep(0.01)


def test_a_client_that_leaves_reaches_the_model(address: str, tmp_path: Path) -> None:
    path = tmp_path / "sent"
    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        message = pb.ModelInferRequest(model_name="endless")
        message.inputs.add(name="FILE", datatype="BYTES", shape=[1])
        message.inputs[0].contents.bytes_contents.append(str(path).encode())
        call = stub.ModelStreamInfer(iter([message]), timeout=WAIT_S)
        assert not next(call).error_message
        call.cancel()
        read_until(path, "cancelled")


def test_a_model_waits_for_a_client_that_does_not_read(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "sent"
    model = served.repository.get("endless")
    assert isinstance(model, CalledModel)
    feeds, rows = model.check(tensors_of({"FILE": np.array([str(path).encode()], object)}), ())

    async def opened() -> AsyncGenerator[Part]:
        return model.stream(feeds, rows, Asked())

    async def take(parts: AsyncGenerator[Part], count: int) -> list[Part]:
        return [await anext(parts) for _ in range(count)]

    async def leave(parts: AsyncGenerator[Part]) -> None:
        await parts.aclose()

    parts = served.run(opened())
    served.run(take(parts, 1))
    read_until(path, "6")  # as many as it has credit for, and no more
    time.sleep(0.2)
    assert 60 <= int(path.read_text()) <= 65
    served.run(take(parts, 500))
    read_until(path, "5")
    served.run(leave(parts))
    assert int(read_until(path, "cancelled").split()[1]) < 700


def test_one_that_is_left_in_one_process_is_no_other_in_another(
    served: Served, tmp_path: Path
) -> None:
    model = served.repository.get("twice")
    assert isinstance(model, CalledModel)
    paths = [tmp_path / "first", tmp_path / "second"]

    async def opened(path: Path) -> AsyncGenerator[Part]:
        feeds, rows = model.check(tensors_of({"FILE": np.array([str(path).encode()], object)}), ())
        parts = model.stream(feeds, rows, Asked())
        await anext(parts)
        return parts

    async def leave(parts: AsyncGenerator[Part]) -> None:
        await parts.aclose()

    first, second = (served.run(opened(path)) for path in paths)
    served.run(leave(first))
    read_until(paths[0], "cancelled")
    assert not read_until(paths[1], "6").startswith("cancelled")
    served.run(leave(second))
    read_until(paths[1], "cancelled")


def test_other_models_ask_for_many(served: Served) -> None:
    def ask(request_id: str, *values: int) -> Any:
        answer = served.run(served.answer("sum", {"IN": ints(*values)}, request_id=request_id))
        return answer.outputs[0].array.tolist()

    assert ask("all", *range(200)) == [sum(range(200))]
    assert ask("all") == [0]
    assert ask("first", 7, *range(100)) == [7]
    assert "minus one" in served.error("sum", IN=ints(1, -1)).message
    with pytest.raises(Exception, match="is decoupled"):
        ask("plain", 1)


def post(address: str, path: str, body: Any) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection(address, timeout=WAIT_S)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", f"/v2/models/{path}", data)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, response.headers["Content-Type"], text


def events(text: bytes) -> list[Any]:
    assert text.endswith(b"\n\n") or not text
    return [json.loads(event.removeprefix(b"data: ")) for event in text.split(b"\n\n")[:-1]]


def test_a_stream_of_events(http_address: str) -> None:
    body = {"text": "so it goes", "parameters": {"times": 2}, "id": "e1"}
    status, kind, text = post(http_address, "words/generate_stream", body)
    assert (status, kind) == (200, "text/event-stream; charset=utf-8")
    assert events(text) == [
        {"id": "e1", "model_name": "words", "model_version": "1", "word": word * 2}
        for word in ("so", "it", "goes")
    ]
    assert post(http_address, "words/generate_stream", {"text": ""})[::2] == (200, b"")


def test_the_first_event_decides_the_status(http_address: str) -> None:
    status, _, text = post(http_address, "words/generate_stream", {"text": "so raise"})
    assert status == 200
    first, second = events(text)
    assert first["word"] == "so"
    assert "a word that raises" in second["error"]
    status, _, text = post(http_address, "words/generate_stream", {"text": "raise"})
    assert status == 500
    assert "a word that raises" in events(text)[0]["error"]


def test_one_response_of_a_stream(http_address: str) -> None:
    status, kind, text = post(http_address, "words/versions/1/generate", {"text": "one"})
    assert (status, kind) == (200, "application/json")
    assert json.loads(text) == {"model_name": "words", "model_version": "1", "word": "one"}
    for words in ("", "two words"):
        status, _, text = post(http_address, "words/generate", {"text": words})
        assert status == 500
        assert "exactly 1 response" in json.loads(text)["error"]


def test_plain_models_generate_too(http_address: str) -> None:
    status, _, text = post(http_address, "same/generate", {"TEXT": ["a", "b"]})
    assert (status, json.loads(text)["SAME"]) == (200, ["a", "b"])
    body = {"INPUT0": [1, 2, 3, 4], "INPUT1": [1] * 4}
    status, _, text = post(http_address, "add/generate_stream", body)
    assert events(text)[0]["OUTPUT0"] == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("nope/generate", {"text": "a"}, 404, "unknown model"),
        ("words/generate_stream", {}, 400, "missing required input"),
        ("words/generate", b"{", 400, "failed to parse"),
        ("words/generate", b"[]", 400, "failed to parse"),
        ("words/generate", b'{"text": ' + b"[" * 100_000, 400, "failed to parse"),
        ("words/generate", {"text": 1}, 400, "is not text"),
        ("words/generate", {"text": ["a", "b"]}, 400, "do not fit its shape"),
        ("words/generate", {"text": "a", "more": {"a": 1}}, 400, "'more' is no input"),
        ("words/generate", {"text": "a", "parameters": 1}, 400, "Expected JSON object"),
        ("words/generate_stream", {"text": "a", "timeout": -1}, 400, "timeout"),
        ("add/generate", {"INPUT0": [1, 2, 3], "INPUT1": 1}, 400, "do not fit its shape"),
    ],
)
def test_what_generate_refuses(
    http_address: str, path: str, body: Any, status: int, error: str
) -> None:
    found, _, text = post(http_address, path, body)
    assert found == status
    assert error in json.loads(text)["error"]


async def test_closing_a_stream_twice_is_harmless(served: Served) -> None:
    async def closed() -> None:
        model = served.repository.get("repeat")
        assert isinstance(model, CalledModel)
        feeds, rows = model.check(tensors_of({"IN": ints(1, 2)}), ())
        async with aclosing(model.stream(feeds, rows, Asked())) as parts:
            await anext(parts)
        await parts.aclose()

    served.run(closed())
    assert [part.final for part in served.stream("repeat", IN=ints(1))] == [False, True]
