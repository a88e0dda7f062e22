"""Streams of inference requests, by the client and by exact messages, on both transports."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from server.execution.threads import RunThreads
from server.grpc_port import TRANSPORTS, GrpcPort
from server.models.repository import ModelRepository
from server.protocol.oip import InferenceProtocol
from server.protocol.oip_stream import IN_FLIGHT_MAX, InferStream
from server.wire.handlers import Context
from tests.server.onnx_models import add_model, gather_model, put
from tests.server.protocol.test_oip import NothingReleased
from tests.server.test_serve import FREE_PORTS, ready, serve

TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelRepository]:
    root = tmp_path_factory.mktemp("repository")
    put(root, "add", add_model())
    hurried = "dynamic_batching { default_queue_policy { allow_timeout_override: true } }"
    put(root, "hurried", add_model(), config=f"max_batch_size: 8\n{hurried}")
    put(root, "gather", gather_model())
    with RunThreads(1, 1) as executor:
        repository = ModelRepository(root, executor)
        asyncio.run(repository.load_all())
        yield repository


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    transport: str = request.param
    return transport


@pytest.fixture
async def channel(repository: ModelRepository, transport: str) -> AsyncIterator[Any]:
    protocol = InferenceProtocol(repository, NothingReleased(), lambda: True)
    port = GrpcPort(protocol, {}, transport=transport)
    await port.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port.port}") as channel:
        yield channel
    await port.drain(0)


@pytest.fixture
def stub(channel: Any) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def add(value: int, **changes: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="add", id=f"r{value}", **changes)
    for name in ("INPUT0", "INPUT1"):
        request.inputs.add(name=name, datatype="INT32", shape=[1, 4])
        request.raw_input_contents.append(np.full((1, 4), value, np.int32).tobytes())
    return request


def gather(index: int) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="gather", id=f"g{index}")
    request.inputs.add(name="index", datatype="INT64", shape=[1])
    request.raw_input_contents.append(np.array([index], np.int64).tobytes())
    return request


async def answers(stub: Any, *requests: Any, **how: Any) -> list[Any]:
    call = stub.ModelStreamInfer(iter(requests), timeout=TIMEOUT_S, **how)
    return [answer async for answer in call]


def outcome(answer: Any) -> int | str:
    """The sum that it found, or its error."""
    if answer.error_message:
        return str(answer.error_message)
    return int(np.frombuffer(answer.infer_response.raw_output_contents[0], np.int32)[0])


async def test_answers_come_in_the_order_of_the_requests(stub: Any) -> None:
    count = 3 * IN_FLIGHT_MAX
    found = await answers(stub, *(add(value) for value in range(count)))
    assert [outcome(answer) for answer in found] == [2 * value for value in range(count)]
    assert [answer.infer_response.id for answer in found] == [f"r{n}" for n in range(count)]
    for answer in found:
        assert answer.infer_response.parameters["triton_final_response"].bool_param


async def test_requests_run_together_and_not_without_end() -> None:
    """The first is answered when as many as may be are under way."""
    under_way = 0
    most = 0
    full = asyncio.Event()

    async def infer(data: bytes, _: Context) -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if under_way >= IN_FLIGHT_MAX:
            full.set()
        await full.wait()
        under_way -= 1
        return pb.ModelInferResponse(id=data.decode()).SerializeToString()

    async def requests() -> AsyncIterator[bytes]:
        for number in range(10 * IN_FLIGHT_MAX):
            yield b"%d" % number

    found = [
        pb.ModelStreamInferResponse.FromString(data).infer_response.id
        async for data in InferStream(infer).stream(requests(), Context())
    ]
    assert found == [str(number) for number in range(10 * IN_FLIGHT_MAX)]
    assert IN_FLIGHT_MAX <= most <= IN_FLIGHT_MAX + 2


async def test_an_error_is_one_of_its_request_alone(stub: Any) -> None:
    wrong = add(2, model_version="9")
    reserved = add(3)
    reserved.parameters["triton_x"].bool_param = True
    flagged = add(4)
    flagged.parameters["triton_enable_empty_final_response"].int64_param = 1
    found = await answers(stub, add(1), wrong, gather(7), reserved, flagged, add(5))
    said = [outcome(answer) for answer in found]
    assert said[0] == 2
    assert said[5] == 10
    assert "version 9 is not found" in str(said[1])
    assert "the model failed on this input" in str(said[2])
    assert "(got triton_x)" in str(said[3])
    assert "is not a boolean" in str(said[4])
    assert [answer.infer_response.id for answer in found] == ["r1", "r2", "g7", "r3", "r4", "r5"]
    assert found[1].infer_response.model_version == "9"


async def test_a_client_may_want_the_stream_to_end_with_the_status(stub: Any) -> None:
    call = stub.ModelStreamInfer(metadata=[("triton_grpc_error", "true")], timeout=TIMEOUT_S)
    await call.write(add(1))
    assert outcome(await call.read()) == 2
    # Nothing more is being written when the status comes: grpc.aio would mix them up.
    await call.write(add(2, model_version="9"))
    with pytest.raises(grpc.RpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_timeout_is_one_of_its_request_alone(stub: Any) -> None:
    short, other = add(1), add(1)
    short.model_name = other.model_name = "hurried"
    short.parameters["timeout"].int64_param = 1
    found = await answers(stub, short, other)
    assert "Request timeout expired" in str(outcome(found[0]))
    assert outcome(found[1]) == 2
    # A model that does not let them is as patient as ever, as in Triton.
    short.model_name = "add"
    assert [outcome(answer) for answer in await answers(stub, short)] == [2]


async def test_an_empty_stream(stub: Any) -> None:
    assert await answers(stub) == []


async def test_what_is_no_request_is_answered_without_a_name(channel: Any) -> None:
    method = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    good = add(1).SerializeToString()
    call = method(iter([b"\xff\xff", good]), timeout=TIMEOUT_S)
    found = [pb.ModelStreamInferResponse.FromString(data) async for data in call]
    assert "is not a inference.ModelInferRequest" in found[0].error_message
    assert found[0].infer_response.id == ""
    assert outcome(found[1]) == 2


async def test_a_client_that_leaves_in_the_middle(stub: Any) -> None:
    """Its requests end with it, and the next stream is answered."""

    async def endless() -> AsyncIterator[pb.ModelInferRequest]:
        for value in range(1 << 30):
            yield add(value)

    call = stub.ModelStreamInfer(endless(), timeout=TIMEOUT_S)
    assert outcome(await call.read()) == 0
    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await call.read()
    assert [outcome(answer) for answer in await answers(stub, add(1))] == [2]


@pytest.mark.slow
def test_tritonclient_streams(tmp_path: Path) -> None:
    """Its callbacks, from its own threads."""
    put(tmp_path / "models", "add", add_model())
    arguments = ("--model-repository", str(tmp_path / "models"), "--data-dir", str(tmp_path / "d"))
    with serve(*arguments, *FREE_PORTS) as process:
        line = ready(process)
        heard: queue.Queue[Any] = queue.Queue()
        with triton.InferenceServerClient(line["grpc"]) as client:
            client.start_stream(lambda result, error: heard.put(error or result))
            for value in range(20):
                tensors = []
                for name in ("INPUT0", "INPUT1"):
                    tensors.append(triton.InferInput(name, [1, 4], "INT32"))
                    tensors[-1].set_data_from_numpy(np.full((1, 4), value, np.int32))
                client.async_stream_infer("add", tensors, request_id=str(value))
            client.async_stream_infer("nope", tensors)
            found = [heard.get(timeout=TIMEOUT_S) for _ in range(21)]
            client.stop_stream()
        assert [int(each.as_numpy("OUTPUT0")[0, 0]) for each in found[:20]] == list(range(0, 40, 2))
        assert "unknown model: 'nope'" in found[20].message()
        assert process.end() == 0
