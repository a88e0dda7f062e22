"""What every error promises: its status on each wire, one safe line, and the shape of its JSON."""

from __future__ import annotations

import json

import grpc
import pytest

from headrace.errors import STATUS, HeadraceError
from server.protocol.rest_messages import error_of
from server.wire.grpc.server import GrpcServer
from server.wire.handlers import Context, Handlers
from server.wire.routes import error_response
from tests.contracts.golden import CHANGED, read_json

GOLDEN: dict[str, list[int]] = read_json("errors.json")
CLASSES = [
    kind for kind in HeadraceError.__subclasses__() if kind.__module__ == HeadraceError.__module__
]
every_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)


def example(kind: type[HeadraceError]) -> HeadraceError:
    return kind("wrong dtype", where="input 'x'", expected="FP32", got="INT64", mend="cast it")


def test_the_table() -> None:
    assert {code: list(status) for code, status in STATUS.items()} == GOLDEN, CHANGED
    assert sorted(kind.code for kind in CLASSES) == sorted(GOLDEN), CHANGED


@every_class
def test_the_text_says_where_what_expected_got_and_mend(kind: type[HeadraceError]) -> None:
    line = "input 'x': wrong dtype (expected FP32, got INT64); cast it"
    assert str(example(kind)) == example(kind).message == line, CHANGED


@every_class
def test_as_json(kind: type[HeadraceError]) -> None:
    error = example(kind)
    response = error_response(error)
    assert isinstance(response.body, bytes)
    assert json.loads(response.body) == {"error": error.message, "code": error.code}, CHANGED
    assert response.status == GOLDEN[error.code][0], CHANGED


@every_class
def test_as_json_of_the_open_inference_protocol(kind: type[HeadraceError]) -> None:
    error = example(kind)
    response = error_of(error)
    assert isinstance(response.body, bytes)
    assert json.loads(response.body) == {"error": error.message}, CHANGED
    triton = {"already_exists": 400}.get(error.code, GOLDEN[error.code][0])
    assert response.status == triton, CHANGED


async def test_as_grpc() -> None:
    async def fail(data: bytes, _: Context) -> bytes:
        raise example(CLASSES[int(data)])

    handlers: Handlers = {"/test.Test/Fail": fail}
    server = GrpcServer(handlers)
    await server.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        method = channel.unary_unary("/test.Test/Fail", bytes, bytes)
        for number, kind in enumerate(CLASSES):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(b"%d" % number)
            assert caught.value.code().value[0] == GOLDEN[kind.code][1], CHANGED
            assert caught.value.details() == example(kind).message, CHANGED
    await server.drain(0)
