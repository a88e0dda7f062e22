"""Words and statuses of Triton's that its own tests look for, and clients with them (REST)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from server.execution.threads import RunThreads
from server.models.repository import ModelRepository
from server.wire.routes import Response
from tests.server.onnx_models import add_model, identity_model, mlp_model, put
from tests.server.protocol.test_oip import World

BATCHED = "max_batch_size: 8"
Ask = Any
ADD: dict[str, Any] = {
    "inputs": [
        {"name": name, "datatype": "INT32", "shape": [1, 4], "data": [1, 2, 3, 4]}
        for name in ("INPUT0", "INPUT1")
    ]
}


@pytest.fixture
async def ask(tmp_path: Path) -> AsyncIterator[Ask]:
    """Answers a request of REST."""
    put(tmp_path, "add", add_model(), config=BATCHED)
    put(tmp_path, "mlp", mlp_model(), config=BATCHED)
    put(tmp_path, "numbers", identity_model(TensorProto.FLOAT), config=BATCHED)
    put(tmp_path, "text", identity_model(TensorProto.STRING), config=BATCHED)
    put(tmp_path, "word", identity_model(TensorProto.STRING, ["batch", 1]), config=BATCHED)
    put(tmp_path, "squares", identity_model(TensorProto.FLOAT, ["a", "b", "c"]), config=BATCHED)
    with RunThreads(2, 1) as executor:
        repository = ModelRepository(tmp_path, executor)
        await repository.load_all()
        yield partial(World(repository).rest, "POST")


def error_of(response: Response) -> tuple[int, str]:
    assert isinstance(response.body, bytes)
    said = json.loads(response.body)
    assert list(said) == ["error"]
    return response.status, said["error"]


def raw_of(response: Response) -> bytes:
    assert response.status == 200, response.body
    data = b"".join(response.body) if isinstance(response.body, list) else response.body
    assert isinstance(data, bytes)
    return data[int(dict(response.headers)["Inference-Header-Content-Length"]) :]


@pytest.mark.parametrize("count", [8, 32])
async def test_a_body_that_is_the_only_input(ask: Ask, count: int) -> None:
    body = np.arange(count, dtype=np.float32).tobytes()
    path = "/v2/models/numbers/infer"
    assert raw_of(await ask(path, body, inference_header_content_length="0")) == body
    answer = await ask("/v2/models/word/infer", b"427", inference_header_content_length="0")
    assert raw_of(answer) == b"\3\0\0\x00427"


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("text", "For BYTE datatype raw input 'TEXT', the model must have input shape [1]"),
        ("squares", ("The shape of the raw input 'TEXT' can not be deduced because there are more "
         "than one variable-sized dimension")),
        ("add", ("Raw request must only have 1 input (found 1) to be deduced but got 2 inputs in "
         "'add' model configuration")),
    ],
)  # fmt: skip
async def test_a_body_that_cannot_be_the_only_input(ask: Ask, model: str, text: str) -> None:
    answer = await ask(f"/v2/models/{model}/infer", b"1234", inference_header_content_length="0")
    assert error_of(answer) == (400, text)


@pytest.mark.parametrize(("depth", "status"), [(1, 200), (50, 200), (120, 400), (50_000, 400)])
async def test_how_deep_values_may_nest(ask: Ask, depth: int, status: int) -> None:
    data = b"[" * depth + b'"hello"' + b"]" * depth
    body = (b'{"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": '
            + data + b"}]}")  # fmt: skip
    answer = await ask("/v2/models/word/infer", body)
    assert answer.status == status
    if depth == 120:
        assert "JSON nesting depth exceeds maximum allowed limit (100)" in error_of(answer)[1]


@pytest.mark.parametrize(
    ("behind", "text"),
    [
        (b"1234", ("unexpected size for input 'INPUT1', expecting 16 additional bytes for model "
         "'add'")),
        (bytes(33), "unexpected additional input data for model 'add'"),
    ],
)  # fmt: skip
async def test_raw_tensors_that_are_too_short_or_too_long(
    ask: Ask, behind: bytes, text: str
) -> None:
    body: dict[str, Any] = {"inputs": [
        {"name": name, "datatype": "INT32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}
        for name in ("INPUT0", "INPUT1")
    ]}  # fmt: skip
    if len(behind) == 4:
        behind = bytes(16)
    head = json.dumps(body).encode()
    answer = await ask(
        "/v2/models/add/infer", head + behind, inference_header_content_length=str(len(head))
    )
    status, said = error_of(answer)
    assert status == 400
    assert text in said


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/v2/repository/index", {"ready": 1}, 400,
         "Invalid value for 'ready': expected a boolean"),
        ("/v2/repository/index", b'{"ready":' + b"[" * 250_000 + b"]" * 250_000 + b"}", 400, ""),
        ("/v2/repository/mine/index", b"", 501,
         "'repository_name' specification is not supported"),
        ("/v2/repository/mine/models/add/load", b"", 501,
         "'repository_name' specification is not supported"),
        ("/v2/repository/models/add/load", b"", 503,
         "explicit model load / unload is not allowed"),
        ("/v2/models/add/versions/9/infer", ADD, 404,
         "Request for unknown model: 'add' version 9 is not found"),
        ("/v2/models/add/infer", ADD | {"parameters": {"triton_x": 1}}, 400,
         ("parameter keys starting with 'triton_' are reserved for Triton usage. Only the "
         "following keys starting with 'triton_' are allowed: ")),
        ("/v2/models/add/infer", ADD | {"outputs": [{"name": "OUTPUT0"}] * 2}, 400,
         "[request id: <id_unknown>] output 'OUTPUT0' already exists in request"),
        ("/v2/models/add/infer", ADD | {"id": "7", "outputs": [{"name": "X"}]}, 400,
         "[request id: 7] unexpected inference output 'X' for model 'add'"),
        ("/v2/models/add/infer", {"inputs": ADD["inputs"][:1]}, 400,
         ("expected 2 inputs but got 1 inputs for model 'add'. Got input(s) ['INPUT0'], but "
         "missing required input(s) ['INPUT1']. Please provide all required input(s).")),
        ("/v2/models/add/infer", {"inputs": [{**ADD["inputs"][0], "shape": [1, -4]}]}, 400,
         "negative"),
        ("/v2/models/add/infer", {"inputs": [{**ADD["inputs"][0], "data": None}]}, 400,
         ("Input must set only one of the following fields: 'data', 'binary_data_size' in "
         "'parameters', 'shared_memory_region' in 'parameters'. But no field is set")),
        ("/v2/models/add/infer",
         {"inputs": [{**ADD["inputs"][0], "parameters": {"binary_data_size": 16}}]}, 400,
         "But set 'data' 'binary_data_size'"),
    ],
)  # fmt: skip
async def test_what_is_wrong_in_tritons_words(
    ask: Ask, path: str, body: Any, status: int, text: str
) -> None:
    got, said = error_of(await ask(path, body))
    assert got == status, said
    assert text in said
    assert (await ask("/v2/models/add/infer", ADD)).status == 200
