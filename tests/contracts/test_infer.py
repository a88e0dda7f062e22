"""ModelInfer on a model under a release plan: one answer and one refusal, by gRPC and by REST."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException

from tests.server.test_predict import World
from tests.support.rides import DEFINITIONS

pytestmark = pytest.mark.slow

WIDTH = len(DEFINITIONS.service("tips").columns)
ROW = np.full((1, WIDTH), 0.5, np.float32)
NAN = np.where(np.arange(WIDTH) % 2, np.float32(np.nan), ROW)
# Case: model, input's name, values, datatype, version; status by gRPC and REST, and what is named.
BAD: dict[str, tuple[str, str, Any, str, str, str, str, str]] = {
    "unknown model": ("nope", "features", ROW, "FP32", "", "NOT_FOUND", "404", "'nope'"),
    "wrong dtype": ("tips", "features", ROW.astype(np.float64), "FP64", "", "INVALID_ARGUMENT",
                    "400", "'features'"),
    "wrong shape": ("tips", "features", ROW[:, 1:], "FP32", "", "INVALID_ARGUMENT", "400",
                    "'features'"),
    "no batch": ("tips", "features", ROW[0], "FP32", "", "INVALID_ARGUMENT", "400", "'features'"),
    "unknown version": ("tips", "features", ROW, "FP32", "sha256:" + "0" * 64, "NOT_FOUND", "404",
                        "'tips'"),
    "missing input": ("tips", "feature", ROW, "FP32", "", "INVALID_ARGUMENT", "400", "'feature'"),
}  # fmt: skip


@pytest.fixture(scope="module")
def clients(world: World) -> Iterator[dict[str, tuple[Any, Any]]]:
    with ExitStack() as stack:
        yield {
            name: (library, stack.enter_context(library.InferenceServerClient(address)))
            for name, library, address in (
                ("grpc", grpc_client, world.grpc), ("rest", http_client, world.http)
            )
        }  # fmt: skip


def infer(
    wire: tuple[Any, Any], model: str, name: str, values: Any, datatype: str, version: str = ""
) -> Any:
    library, client = wire
    tensor = library.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return client.infer(model, [tensor], model_version=version, request_id="r1")


@pytest.mark.parametrize("values", [ROW, NAN], ids=["values", "NaN"])
def test_both_answer_the_same_bits(clients: dict[str, tuple[Any, Any]], values: Any) -> None:
    grpc, rest = (infer(wire, "tips", "features", values, "FP32") for wire in clients.values())
    found = grpc.as_numpy("probability")
    assert np.isfinite(found).all()
    assert found.tobytes() == rest.as_numpy("probability").tobytes()
    answer = grpc.get_response()
    assert answer.model_version == rest.get_response()["model_version"]
    assert set(answer.parameters) == set(rest.get_response()["parameters"]) == {"prediction_id"}


def test_a_version_can_be_pinned_by_its_digest(
    clients: dict[str, tuple[Any, Any]], world: World
) -> None:
    for version in world.versions[:2]:
        grpc, rest = (
            infer(wire, "tips", "features", ROW, "FP32", version) for wire in clients.values()
        )
        assert grpc.get_response().model_version == version
        assert rest.get_response()["model_version"] == version


@pytest.mark.parametrize("case", BAD)
def test_both_refuse_the_same_and_go_on(clients: dict[str, tuple[Any, Any]], case: str) -> None:
    model, name, values, datatype, version, code, status, text = BAD[case]
    said = []
    for wire in clients.values():
        with pytest.raises(InferenceServerException) as caught:
            infer(wire, model, name, values, datatype, version)
        said.append(caught.value)
        assert text in caught.value.message()
        infer(wire, "tips", "features", ROW, "FP32")
    assert [each.status() for each in said] == [f"StatusCode.{code}", status]
    assert said[0].message() == said[1].message()
