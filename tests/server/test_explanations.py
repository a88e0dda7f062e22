"""Attributions over both wires: Triton's clients, REST, streams of requests, released models."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from tests.server.onnx_models import identity_model, info, mlp_model, model_bytes, put
from tests.server.serving import start_worker
from tests.trainer.boosters import FEATURES, booster_text, rows
from trainer.export import forest_to_onnx
from trainer.trees import read_forest, to_single_precision

pytestmark = pytest.mark.slow

TEXT = to_single_precision(booster_text())
LIBRARIES = {"grpc": grpc_client, "http": http_client}


def slow_model() -> bytes:
    """Twenty million multiplications a row."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Sin", ["a"], ["b"]),
        ],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []),
         info("a", TensorProto.FLOAT, ["N", 4])],
        [info("on", TensorProto.BOOL, []), info("b", TensorProto.FLOAT, ["N", 4])],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Loop", ["count", "true", "x"], ["y"], body=body)],
        "slow",
        [info("x", TensorProto.FLOAT, ["N", 4])],
        [info("y", TensorProto.FLOAT, ["N", 4])],
        [
            helper.make_tensor("count", TensorProto.INT64, [], [20_000]),
            helper.make_tensor("true", TensorProto.BOOL, [], [True]),
        ],
    )
    return model_bytes(graph)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    root = tmp_path_factory.mktemp("repository")
    put(root, "gbdt", forest_to_onnx(read_forest(TEXT), "gbdt").SerializeToString())
    put(root, "mlp", mlp_model())
    put(root, "text", identity_model())
    put(root, "slow", slow_model())
    put(root, "unbatched", identity_model(TensorProto.FLOAT, [4]))
    data = tmp_path_factory.mktemp("data")
    with start_worker(data, model_repository=str(root)) as process:
        yield process.event("ready")


def ask(ready: dict[str, Any], wire: str, model: str, matrix: Any, name: str = "features",
        **more: Any) -> Any:  # fmt: skip
    library = LIBRARIES[wire]
    client = library.InferenceServerClient(ready[wire])
    tensor = library.InferInput(name, list(matrix.shape), "FP32")
    tensor.set_data_from_numpy(matrix)
    try:
        return client.infer(model, [tensor], parameters={"explain": True}, **more)
    finally:
        client.close()


def parameters(result: Any, wire: str) -> dict[str, Any]:
    response = result.get_response()
    if wire == "http":
        return dict(response["parameters"])
    return {name: each.string_param for name, each in response.parameters.items()}


@pytest.mark.parametrize("wire", LIBRARIES)
@pytest.mark.parametrize("count", [1, 70])
def test_attributions_of_trees_are_lightgbms(ready, wire, count):
    matrix = rows(count, seed=3)
    result = ask(ready, wire, "gbdt", matrix)
    booster = lgb.Booster(model_str=TEXT)
    theirs = np.asarray(booster.predict(matrix, pred_contrib=True))
    assert np.abs(result.as_numpy("explanation") - theirs[:, :FEATURES]).max() < 1e-6
    assert np.abs(result.as_numpy("explanation_base") - theirs[:, FEATURES:]).max() < 1e-6
    assert np.abs(result.as_numpy("probability")[:, 0] - booster.predict(matrix)).max() < 1e-6
    assert result.as_numpy("explanation_error") is None
    assert parameters(result, wire) == {"explanation_method": "tree_shap"}


@pytest.mark.parametrize("wire", LIBRARIES)
def test_attributions_of_others_are_sampled_add_up_and_repeat(ready, wire):
    matrix = np.random.default_rng(1).normal(size=(3, 3)).astype(np.float32)
    first, again, other = (
        ask(ready, wire, "mlp", matrix, request_id=each) for each in ("a", "a", "b")
    )
    values, base = first.as_numpy("explanation"), first.as_numpy("explanation_base")
    total = values.sum(axis=1) + base[:, 0]
    assert np.abs(total - first.as_numpy("probability")[:, 0]).max() < 1e-6
    assert np.array_equal(values, again.as_numpy("explanation"))
    assert not np.array_equal(values, other.as_numpy("explanation"))
    assert (first.as_numpy("explanation_error") < 0.05).all()
    assert np.allclose(values, other.as_numpy("explanation"), atol=0.1)
    assert parameters(first, wire) == {"explanation_method": "permutation"}


@pytest.mark.parametrize("wire", LIBRARIES)
def test_named_outputs_come_with_the_attributions(ready, wire):
    wanted = [LIBRARIES[wire].InferRequestedOutput("probability")]
    result = ask(ready, wire, "gbdt", rows(2, seed=1), outputs=wanted)
    assert result.as_numpy("explanation").shape == (2, FEATURES)


def test_json_carries_them(ready):
    body = {
        "inputs": [{"name": "features", "shape": [1, 8], "datatype": "FP32", "data": [0.5] * 8}],
        "parameters": {"explain": True},
    }
    request = urllib.request.Request(
        f"http://{ready['http']}/v2/models/gbdt/infer", json.dumps(body).encode(), method="POST"
    )
    with urllib.request.urlopen(request, timeout=20) as reply:
        answer = json.loads(reply.read())
    by_name = {each["name"]: each for each in answer["outputs"]}
    assert by_name["explanation"]["shape"] == [1, 8]
    score = by_name["explanation_base"]["data"][0] + sum(by_name["explanation"]["data"])
    assert 1 / (1 + np.exp(-score)) == pytest.approx(by_name["probability"]["data"][0], abs=1e-6)
    assert answer["parameters"] == {"explanation_method": "tree_shap"}


def test_without_the_parameter_nothing_is_added(ready):
    client = grpc_client.InferenceServerClient(ready["grpc"])
    tensor = grpc_client.InferInput("features", [1, 8], "FP32")
    tensor.set_data_from_numpy(rows(1, seed=1))
    for asked in ({}, {"explain": False}):
        response = client.infer("gbdt", [tensor], parameters=asked).get_response()
        assert [output.name for output in response.outputs] == ["probability"]
        assert not response.parameters
    client.close()


def test_what_is_no_yes_or_no_is_refused(ready):
    client = grpc_client.InferenceServerClient(ready["grpc"])
    tensor = grpc_client.InferInput("features", [1, 8], "FP32")
    tensor.set_data_from_numpy(rows(1, seed=1))
    with pytest.raises(InferenceServerException, match="'explain' is not a boolean"):
        client.infer("gbdt", [tensor], parameters={"explain": "yes"})
    client.close()


@pytest.mark.parametrize("wire", LIBRARIES)
def test_models_that_cannot_be_explained_say_so(ready, wire):
    with pytest.raises(InferenceServerException, match="cannot be explained"):
        ask(ready, wire, "unbatched", np.zeros(4, np.float32), "TEXT")
    library = LIBRARIES[wire]
    client = library.InferenceServerClient(ready[wire])
    tensor = library.InferInput("TEXT", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([["a"]], object))
    with pytest.raises(InferenceServerException, match="cannot be explained"):
        client.infer("text", [tensor], parameters={"explain": True})
    client.close()


def test_too_many_rows_to_sample_are_refused(ready):
    with pytest.raises(InferenceServerException, match="too many rows"):
        ask(ready, "grpc", "mlp", np.zeros((65, 3), np.float32))


def test_a_deadline_ends_a_long_explanation_and_others_are_answered_meanwhile(ready):
    ended: list[Exception] = []

    def explain() -> None:
        try:
            ask(ready, "grpc", "slow", np.ones((16, 4), np.float32), "x", client_timeout=1.0)
        except InferenceServerException as error:
            ended.append(error)

    thread = threading.Thread(target=explain)
    thread.start()
    latencies = []
    while thread.is_alive():
        start = time.monotonic()
        ask(ready, "grpc", "gbdt", rows(1, seed=1))
        latencies.append(time.monotonic() - start)
    thread.join()
    assert "DEADLINE" in str(ended[0]).upper()
    assert len(latencies) > 3
    # What comes next is explained: nothing of the first is still to be done.
    found = ask(ready, "grpc", "slow", np.ones((1, 4), np.float32), "x", client_timeout=30.0)
    assert found.as_numpy("explanation").shape == (1, 4, 4)


def test_many_at_once_get_their_own(ready):
    matrix = rows(40, seed=8)
    theirs = np.asarray(lgb.Booster(model_str=TEXT).predict(matrix, pred_contrib=True))

    def one(row: int) -> float:
        found = ask(ready, "grpc", "gbdt", matrix[row : row + 1]).as_numpy("explanation")
        return float(np.abs(found[0] - theirs[row, :FEATURES]).max())

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(one, range(len(matrix)))) < 1e-6


def test_nothing_of_it_is_in_the_models_statistics(ready):
    def count() -> int:
        client = grpc_client.InferenceServerClient(ready["grpc"])
        statistics = client.get_inference_statistics("gbdt")
        client.close()
        return int(statistics.model_stats[0].execution_count)

    before = count()
    ask(ready, "grpc", "gbdt", rows(1, seed=1))
    assert count() == before + 1
