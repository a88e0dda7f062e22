"""A whole server as Triton's examples of sequences meet it: calls, options and order are theirs."""

from __future__ import annotations

import queue
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from tests.server.sequence_models import write
from tests.server.test_serve import FREE_PORTS, ready, serve

pytestmark = pytest.mark.slow
PATIENCE_S = 30.0
VALUES = [11, 7, 5, 3, 2, 0, 1]
LIBRARIES = {"grpc": grpcclient, "http": httpclient}
# Without it all clients of a process have one connection.
OWN: dict[str, dict[str, Any]] = {
    "grpc": {"channel_args": [("grpc.use_local_subchannel_pool", 1)]},
    "http": {},
}
# By model: a sequence's name, its inputs, and what comes back.
SEQUENCES: list[tuple[str, int | str, list[int], list[int]]] = [
    ("simple_sequence", 1000, [0, *VALUES], [1, *VALUES]),
    ("simple_sequence", "9d1c", [100, *VALUES], [101, *VALUES]),
    ("simple_dyna_sequence", 1000, [0, *VALUES], [1, *VALUES[:-1], 1001]),
    ("simple_dyna_sequence", 1001, [100, *VALUES], [101, *VALUES[:-1], 1002]),
    (
        "simple_string_dyna_sequence",
        "1002",
        [20, *(-value for value in VALUES)],
        [20, 9, 2, -3, -6, -8, -8, 993],
    ),
]


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Two workers over the examples' models."""
    root = tmp_path_factory.mktemp("models")
    write(root)
    arguments = (
        "--model-repository", str(root), "--workers", "2",
        "--data-dir", str(tmp_path_factory.mktemp("data")), *FREE_PORTS,
    )  # fmt: skip
    with serve(*arguments) as process:
        yield ready(process)
        assert process.end() == 0


def request(library: Any, model: str, name: int | str, place: int, value: int) -> dict[str, Any]:
    """Return what a client's call is asked with."""
    array = np.full((1, 1), value, np.int32)
    source = library.InferInput("INPUT", array.shape, "INT32")
    source.set_data_from_numpy(array)
    return {
        "model_name": model,
        "inputs": [source],
        "outputs": [library.InferRequestedOutput("OUTPUT")],
        "sequence_id": name,
        "sequence_start": place == 0,
        "sequence_end": place == len(VALUES),
    }


@pytest.mark.parametrize("wire", sorted(LIBRARIES))
def test_sequences_request_by_request(addresses: dict[str, str], wire: str) -> None:
    """All sequences side by side over one connection."""
    library = LIBRARIES[wire]
    found: list[list[int]] = [[] for _ in SEQUENCES]
    with library.InferenceServerClient(addresses[wire]) as client:
        for place in range(len(VALUES) + 1):
            for answers, (model, name, values, _) in zip(found, SEQUENCES, strict=True):
                result = client.infer(**request(library, model, name, place, values[place]))
                answers.append(int(result.as_numpy("OUTPUT")[0, 0]))
    assert found == [expected for *_, expected in SEQUENCES]


def test_sequences_on_one_stream(addresses: dict[str, str]) -> None:
    """Nothing is waited for: the server keeps the order of each sequence."""
    results: queue.Queue[Any] = queue.Queue()

    def callback(number: int, result: Any, error: Any) -> None:
        results.put(error or result)

    with grpcclient.InferenceServerClient(addresses["grpc"]) as client:
        client.start_stream(callback=partial(callback, 0))
        for number, (model, name, values, _) in enumerate(SEQUENCES):
            for place, value in enumerate(values):
                asked = request(grpcclient, model, name, place, value)
                client.async_stream_infer(request_id=f"{number}_{place}", **asked)
        found: list[list[int]] = [[] for _ in SEQUENCES]
        for _ in range(sum(len(values) for _, _, values, _ in SEQUENCES)):
            result = results.get(timeout=PATIENCE_S)
            assert not isinstance(result, InferenceServerException), result
            number, place = map(int, result.get_response().id.split("_"))
            assert len(found[number]) == place
            found[number].append(int(result.as_numpy("OUTPUT")[0, 0]))
    assert found == [expected for *_, expected in SEQUENCES]


async def test_sequences_on_one_stream_of_asyncio(addresses: dict[str, str]) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number, (model, name, values, _) in enumerate(SEQUENCES):
            for place, value in enumerate(values):
                asked = request(grpc_aio, model, name, place, value)
                yield {**asked, "request_id": str(number)}

    found: list[list[int]] = [[] for _ in SEQUENCES]
    async with grpc_aio.InferenceServerClient(addresses["grpc"]) as client:
        async for result, error in client.stream_infer(requests()):
            assert error is None
            found[int(result.get_response().id)].append(int(result.as_numpy("OUTPUT")[0, 0]))
    assert found == [expected for *_, expected in SEQUENCES]


@pytest.mark.parametrize("wire", sorted(LIBRARIES))
def test_a_worker_that_does_not_hold_a_sequence_says_so(
    addresses: dict[str, str], wire: str
) -> None:
    """New connections go to the worker that has fewer: some of these are another one's."""
    library = LIBRARIES[wire]
    refused = []
    with ExitStack() as stack:
        first, *others = [
            stack.enter_context(library.InferenceServerClient(addresses[wire], **OWN[wire]))
            for _ in range(5)
        ]
        first.infer(**request(library, "simple_dyna_sequence", 77, 0, 1))
        for client in others:
            try:
                client.infer(**request(library, "simple_dyna_sequence", 77, 1, 1))
            except InferenceServerException as error:
                refused.append(error)
        result = first.infer(**request(library, "simple_dyna_sequence", 77, len(VALUES), 1))
    assert int(result.as_numpy("OUTPUT")[0, 0]) == 78
    assert refused
    for error in refused:
        assert error.message().startswith(
            "inference request for sequence 77 to model 'simple_dyna_sequence' must specify the "
            "START flag on the first request of the sequence"
        )
        assert "over one connection" in error.message()
