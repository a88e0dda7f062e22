"""What calls send and how answers are read, against the server's own messages."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sys
import tomllib
from array import array
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

import headrace_client
from headrace_client import AsyncClient, Client, InternalError, InvalidArgumentError, Tensor, calls
from server.pb import headrace_pb2 as pb
from server.protocol.columns import table_of_messages

ID = UUID("0195a000-0000-7000-8000-000000000001")
FOLDER = Path(headrace_client.__file__).parent


def test_it_imports_nothing_of_ours_and_nothing_large() -> None:
    allowed = {"headrace_client", "grpc", "google", "__future__"}
    found = set()
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.module, path
                found.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
    assert found - allowed <= sys.stdlib_module_names


def test_it_asks_for_a_protobuf_that_its_messages_run_with() -> None:
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    (wanted,) = [word for word in project["dependencies"] if word.startswith("protobuf")]
    made_by = {
        re.search(r"Protobuf Python Version: (\S+)", path.read_text())[1]  # type: ignore[index]
        for path in FOLDER.glob("pb/*_pb2.py")
    }
    # Messages run with what made them and with the next major version.
    (version,) = made_by
    assert wanted == f"protobuf>={version},<{int(version.partition('.')[0]) + 2}"


def test_columns_are_read_by_the_server_as_they_were_meant() -> None:
    call = calls.predict(
        "m",
        {
            "whole": [1, None, -(1 << 63)],
            "number": [1, 2.5, None],
            "text": ("a", "", None),
            "flag": [True, None, False],
            "nothing": [None, None, None],
            "numpy": np.array([1.5, 2.5, float("nan")], np.float32),
            "array": array("q", [7, 8, 9]),
        },
        request_ids=["a", "b", "c"],
        event_time_us=5,
    )
    request = pb.PredictRequest.FromString(call.request)
    table = table_of_messages(request.inputs, "test")
    rows = {name: column.values.tolist() for name, column in table.items()}
    nulls = {
        name: [] if column.valid is None else np.flatnonzero(~column.valid).tolist()
        for name, column in table.items()
    }
    assert rows["whole"] == [1, 0, -(1 << 63)]
    assert rows["number"] == [1.0, 2.5, 0.0]
    assert rows["text"] == ["a", "", ""]
    assert rows["flag"] == [True, False, False]
    assert rows["numpy"][:2] == [1.5, 2.5]
    assert rows["array"] == [7, 8, 9]
    assert nulls == {
        "whole": [1], "number": [2], "text": [2], "flag": [1], "nothing": [0, 1, 2],
        "numpy": [], "array": [],
    }  # fmt: skip
    assert (request.event_time, list(request.request_ids)) == (5, ["a", "b", "c"])
    assert not pb.PredictRequest.FromString(calls.predict("m", {}).request).HasField("event_time")


@pytest.mark.parametrize(
    "values", [[1, "a"], [True, 1], [b"raw"], [1 << 63], [object()]], ids=lambda v: repr(v)[:12]
)
def test_a_column_that_cannot_be_sent_is_named(values: list[object]) -> None:
    with pytest.raises(InvalidArgumentError, match="column 'x'"):
        calls.predict("m", {"x": values})  # type: ignore[dict-item]


@pytest.mark.parametrize("given", [ID, str(ID), ID.bytes])
def test_feedback_takes_an_id_as_it_is_at_hand(given: UUID | str | bytes) -> None:
    request = pb.FeedbackRequest.FromString(calls.feedback(given, "tip", 1.0).request)
    assert [truth.prediction_id for truth in request.truths] == [ID.bytes]
    for bad in ("x", b"short"):
        with pytest.raises(InvalidArgumentError, match="no id"):
            calls.feedback(bad, "tip", 1.0)


@pytest.mark.parametrize("dtype", ["?", "b", "h", "i", "l", "q", "B", "H", "I", "L", "Q", "f", "d"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_tensors_arrive_as_they_were(dtype: str, shape: tuple[int, ...]) -> None:
    tensor = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    call = calls.infer("m", {"x": tensor, "turned": tensor.T}, outputs=["y"])
    request = service_pb2.ModelInferRequest.FromString(call.request)
    assert request.model_name == "m"
    assert [output.name for output in request.outputs] == ["y"]
    assert request.raw_input_contents[1] == tensor.T.tobytes()
    reply = service_pb2.ModelInferResponse(
        outputs=[
            service_pb2.ModelInferResponse.InferOutputTensor(
                name=each.name, datatype=each.datatype, shape=each.shape
            )
            for each in request.inputs
        ],
        raw_output_contents=request.raw_input_contents,
    )
    back = call.read(reply.SerializeToString())["x"]
    assert back.shape == shape
    np.testing.assert_array_equal(np.asarray(back.values, dtype).reshape(back.shape), tensor)


def test_a_tensor_shows_its_first_values() -> None:
    halves = memoryview(array("d", [0.5, 1.5]))
    assert str(Tensor("FP64", (2, 1), halves)) == "Tensor(FP64, (2, 1), [0.5, 1.5])"
    many = Tensor("UINT8", (10,), memoryview(bytes(range(10))))
    assert str(many) == "Tensor(UINT8, (10,), [0, 1, 2, 3, 4, 5, 6, 7] and 2 more)"
    assert str(Tensor("BYTES", (1,), memoryview(b"abc"))) == "Tensor(BYTES, (1,), b'abc')"
    assert str(Tensor("BOOL", (0,), memoryview(b"").cast("?"))) == "Tensor(BOOL, (0,), [])"


def test_what_is_no_tensor_is_named() -> None:
    for bad in ([1.0], np.array([1j]), np.array(["a"], object), np.array([1.0], ">f4")):
        with pytest.raises(InvalidArgumentError, match="tensor 'x'"):
            calls.infer("m", {"x": bad})


def test_an_answer_that_does_not_add_up_is_an_error() -> None:
    replies = [
        pb.PredictReply(prediction_ids=[ID.bytes]),
        pb.PredictReply(prediction_ids=[b"short"], versions=["v"], arms=[""]),
        pb.PredictReply(
            prediction_ids=[ID.bytes], versions=["v"], arms=[""], outputs=[1.0], output_width=2
        ),
        pb.PredictReply(
            prediction_ids=[ID.bytes], versions=["v"], arms=[""], outputs=[1.0], output_width=1,
            explanations=[pb.Explanation(features=["a"], base=[0.0], attributions=[1.0, 2.0])],
        ),
    ]  # fmt: skip
    for reply in replies:
        with pytest.raises(InternalError):
            calls.predict("m", {}).read(reply.SerializeToString())
    with pytest.raises(InternalError):
        calls.predict("m", {}).read(b"\xff")
    column = pb.Column(name="a", int64s=pb.Int64Values(v=[1]))
    for tables in (
        pb.GetFeaturesReply(features=[column], status=b"\x09"),
        pb.GetFeaturesReply(features=[column], status=b""),
        pb.GetFeaturesReply(features=[pb.Column(name="a")]),
        pb.GetFeaturesReply(
            features=[pb.Column(name="a", nulls=[4], int64s=pb.Int64Values(v=[1]))], status=b"\0"
        ),
    ):
        with pytest.raises(InternalError):
            calls.get_features("s", {}).read(tables.SerializeToString())


def test_both_clients_have_the_same_calls_with_the_calls_own_signatures() -> None:
    names = ["predict", "explain", "feedback", "feedback_batch", "get_features", "infer"]
    for name in names:
        parameters = list(inspect.signature(getattr(calls, name)).parameters)
        for kind in (Client, AsyncClient):
            method = getattr(kind, name)
            assert list(inspect.signature(method).parameters) == ["self", *parameters]
            assert method.__doc__ == getattr(calls, name).__doc__
    client = Client("127.0.0.1:1")
    assert next(iter(inspect.signature(client.predict).parameters)) == "model"
    client.close()


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("inf"), float("nan")])
def test_there_is_no_call_without_a_deadline(timeout_s: float) -> None:
    with pytest.raises(InvalidArgumentError, match="timeout_s"):
        Client("127.0.0.1:1", timeout_s=timeout_s)

    async def awaited() -> None:
        async with AsyncClient("127.0.0.1:1") as client:
            await client.predict("m", {}, timeout_s=timeout_s)

    with pytest.raises(InvalidArgumentError, match="timeout_s"):
        asyncio.run(awaited())
