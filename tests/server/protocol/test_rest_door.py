"""REST's door against the general way: the same bytes, the same counts, whatever comes in."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.execution.threads import RunThreads
from server.models.repository import ModelRepository
from server.protocol.oip import InferenceProtocol
from server.protocol.oip_rest import InferenceRoutes
from server.wire.http1.server import HttpServer
from server.wire.routes import Call, Request, Routes
from tests.server.onnx_models import mlp_model, put
from tests.server.protocol.infer_worlds import Released, load

LENGTH = "inference-header-content-length"


class Said(NamedTuple):
    """A response, without what is the connection's."""

    status: int
    headers: dict[str, str]
    body: bytes


class World:
    """The REST port of a repository. `taken` counts what its door took."""

    def __init__(self, repository: ModelRepository) -> None:
        self.repository = repository
        self.released = Released()
        self.rest = InferenceRoutes(InferenceProtocol(repository, self.released, lambda: True))
        self.taken = 0
        take = self.rest._door.take

        def counting(calls: list[Call], *more: Any) -> list[Call]:
            rest = take(calls, *more)
            self.taken += len(calls) - len(rest)
            return rest

        self.rest._door.take = counting  # type: ignore[method-assign]
        routes = Routes()
        self.rest.add_to(routes)
        self.server = HttpServer(routes)

    async def general(self, model: str, body: bytes, headers: dict[str, str]) -> Said:
        """The answer of the handler, that no wire and no door is in front of."""
        path = f"/v2/models/{model}/infer"
        response = await self.server.answer(Request("POST", path, {}, headers, body))
        parts = response.body if isinstance(response.body, list) else [response.body]  # type: ignore[list-item]
        said = {"content-type": response.content_type} | {
            name.lower(): value for name, value in response.headers
        }
        return Said(response.status, said, b"".join(parts))

    async def wire(self, *requests: tuple[str, bytes, dict[str, str]]) -> list[Said]:
        """The answers to pipelined requests: they come in one tick."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        for model, body, headers in requests:
            head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        found = []
        for _ in requests:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            said = dict(line.split(": ", 1) for line in lines[1:-2])
            said = {name.lower(): value for name, value in said.items()}
            body = await reader.readexactly(int(said.pop("content-length")))
            found.append(Said(int(lines[0].split()[1]), said, body))
        writer.close()
        await writer.wait_closed()
        return found


@pytest.fixture(scope="module")
def executor() -> Iterator[RunThreads]:
    with RunThreads(1, 1) as executor:
        yield executor


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, executor: RunThreads) -> ModelRepository:
    return load(tmp_path_factory.mktemp("models"), executor)


@pytest.fixture
async def world(repository: ModelRepository) -> AsyncIterator[World]:
    world = World(repository)
    await world.server.start("127.0.0.1", 0)
    yield world
    await world.server.drain(0)
    assert world.server.calls.live == 0
    assert world.server.calls.started == world.server.calls.ended.total()


def rows(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)


def as_json(array: np.ndarray[Any, Any], *, nested: bool = False, **more: Any) -> bytes:
    data = array.tolist() if nested else array.ravel().tolist()
    source = {"name": "features", "datatype": "FP32", "shape": array.shape, "data": data}
    return json.dumps({"inputs": [source], **more}).encode()


def as_raw(
    *tensors: tuple[str, str, np.ndarray[Any, Any]], **more: Any
) -> tuple[bytes, dict[str, str]]:
    call = {
        "inputs": [
            {"name": name, "datatype": datatype, "shape": array.shape,
             "parameters": {"binary_data_size": array.nbytes}}
            for name, datatype, array in tensors
        ],
        **more,
    }  # fmt: skip
    head = json.dumps(call).encode()
    body = head + b"".join(array.tobytes() for _, _, array in tensors)
    return body, {LENGTH: str(len(head))}


def features(count: int, seed: int = 0, **more: Any) -> tuple[bytes, dict[str, str]]:
    return as_raw(("features", "FP32", rows(count, seed)), **more)


BINARY = {"parameters": {"binary_data_output": True}}
# (model, body, headers) of requests that a door may learn
LEARNT: dict[str, list[tuple[str, bytes, dict[str, str]]]] = {
    "json": [("mlp", as_json(rows(1, n)), {}) for n in range(4)],
    "json_in_rows": [("mlp", as_json(rows(2, n), nested=True), {}) for n in range(4)],
    "json_two_sizes": [("mlp", as_json(rows(1 + n % 2, n)), {}) for n in range(4)],
    "json_wanted": [
        ("mlp", as_json(rows(1, n), outputs=[{"name": "probability"}]), {}) for n in range(4)
    ],
    "json_to_raw": [("mlp", as_json(rows(1, n), **BINARY), {}) for n in range(4)],
    "raw_to_json": [("mlp", *features(2, n)) for n in range(4)],
    "raw_to_raw": [("mlp", *features(1, n, **BINARY)) for n in range(4)],
    "two_models": [(name, as_json(rows(1)), {}) for name in ("mlp", "twin") * 2],
    "accepts_gzip": [("mlp", as_json(rows(1, n)), {"Accept-Encoding": "gzip"}) for n in range(4)],
}  # fmt: skip


def _exists(world: World, model: str) -> dict[str, Any]:
    loaded = world.repository.get(model)
    return {name: spec.shape for name, spec in loaded.inputs.items()}


@pytest.mark.parametrize("name", LEARNT)
async def test_what_a_door_takes_is_answered_byte_for_byte(world: World, name: str) -> None:
    requests = LEARNT[name]
    output = next(iter(world.repository.get("mlp").outputs))
    requests = [(m, b.replace(b'"probability"', f'"{output}"'.encode()), h) for m, b, h in requests]
    general = [await world.general(*request) for request in requests]
    assert all(said.status == 200 for said in general), general
    for request in requests:  # one after the other teaches every form
        await world.wire(request)
    world.taken = 0
    assert await world.wire(*requests) == general
    assert world.taken == len(requests)
    assert [(await world.wire(request))[0] for request in requests] == general


async def test_a_tick_is_one_batch(world: World) -> None:
    requests = [("mlp", as_json(rows(1, n)), {}) for n in range(6)]
    await world.wire(requests[0])
    before = world.repository.get("mlp").statistics.execution_count
    successes = world.repository.get("mlp").statistics.success.count
    await world.wire(*requests)
    statistics = world.repository.get("mlp").statistics
    assert statistics.execution_count == before + 1
    assert statistics.success.count == successes + 6


# Behind a learnt form: what looks like it and is not, or is and must be refused.
ODD = [
    b'{"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 3], "data": %b}]}' % data
    for data in (
        b"[1, 2, 3]", b"[1, 2.5, -0.0]", b"[1, 2]", b"[1, 2, 3, 4]", b"[]", b'["1", 2, 3]',
        b"[true, 2, 3]", b"[null, 2, 3]", b"[NaN, 2, 3]", b"[1e39, 2, 3]", b"[1e400, 2, 3]",
        b"[-1e39, 1e-50, 3]", b"[123456789012345678901234567890, 2, 3]", b"[[1, 2, 3]]",
        b"[[1], [2, 3]]", b"[[[1, 2, 3]]]", b"[1, 2, 3]]", b"[1, 2, 3", b"1", b"{}", b"",
        b'[1, 2, 3], "data": [4, 5, 6]', b'[1, 2, 3], "x": [4]', b"[01, 2, 3]", b"[+1, 2, 3]",
        b"[.5, 2, 3]", b"[1.e3, 2, 3]", b"[0x1, 2, 3]", b"[1, 2, 3,]", b"[1,\n2,\t3]",
        b"[1, 2, /**/ 3]", b"\xff", b"[1, 2, 3]\x00",
    )
]  # fmt: skip


async def test_what_looks_like_it_is_answered_the_general_way(world: World) -> None:
    general = [await world.general("mlp", body, {}) for body in ODD]
    await world.wire(("mlp", as_json(rows(1)), {}), ("mlp", as_json(rows(1), nested=True), {}))
    assert await world.wire(*[("mlp", body, {}) for body in ODD]) == general
    assert {said.status for said in general} == {200, 400}


_NUMBERS = st.one_of(
    st.integers(-(10**20), 10**20), st.floats(allow_nan=False, allow_infinity=False)
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(numbers=st.lists(_NUMBERS, min_size=3, max_size=3))
def test_any_numbers_are_read_alike(repository: ModelRepository, numbers: list[float]) -> None:
    async def run() -> None:
        world = World(repository)
        await world.server.start("127.0.0.1", 0)
        source = {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": numbers}
        body = json.dumps({"inputs": [source]}).encode()
        general = await world.general("mlp", body, {})
        await world.wire(("mlp", as_json(rows(1)), {}))
        world.taken = 0
        spaced = as_json(rows(1)).split(b"[1, 3]")[0]  # written as the form that was learnt
        assert body.startswith(spaced)
        assert await world.wire(("mlp", body, {})) == [general]
        assert world.taken == 1
        await world.server.drain(0)

    asyncio.run(run())


async def test_raw_tensors_of_another_length_are_refused(world: World) -> None:
    body, headers = features(1, **BINARY)
    odd = [body[:-1], body + b"x", body[:-12], b"x" + body[1:], body[:50]]
    general = [await world.general("mlp", each, headers) for each in odd]
    await world.wire(("mlp", body, headers))
    assert await world.wire(*[("mlp", each, headers) for each in odd]) == general
    assert {said.status for said in general} == {400}


async def test_a_long_answer_is_compressed_where_the_client_takes_it(world: World) -> None:
    ((name, shape),) = _exists(world, "same_FP32").items()
    array = np.zeros([8 if size < 0 else size for size in shape], "<f4")
    array = np.zeros((8, *array.shape[1:]), "<f4") if array.size < 400 else array
    body, headers = as_raw((name, "FP32", array))
    headers["Accept-Encoding"] = "gzip"
    first = await world.wire(("same_FP32", body, headers))
    again = await world.wire(("same_FP32", body, headers))
    assert first == again
    if again[0].headers.get("content-encoding") == "gzip":
        assert json.loads(gzip.decompress(again[0].body))["outputs"]


async def test_a_release_plan_takes_the_model_from_the_door(world: World) -> None:
    request = ("mlp", as_json(rows(1)), {})
    await world.wire(request)
    await world.wire(request)
    assert world.taken == 1
    world.released.planned.append("mlp")
    (said,) = await world.wire(request)
    assert (said.status, world.taken) == (404, 1)


async def test_a_model_that_is_exchanged_is_not_answered_for(
    world: World, tmp_path: Path, executor: RunThreads
) -> None:
    request = ("mlp", as_json(rows(1)), {})
    await world.wire(request)
    (before,) = await world.wire(request)
    put(tmp_path, "mlp", mlp_model(seed=9), config="max_batch_size: 8")
    other = ModelRepository(tmp_path, executor)
    await other.load_all()
    world.rest._protocol._repository = other
    (after,) = await world.wire(request)
    assert after.status == 200
    assert after.body != before.body
    assert world.taken == 1
