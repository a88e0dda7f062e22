"""Ensembles whose requests come together: each gets its own answer, and its own fault alone."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from headrace.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)
from server.execution.lots import Request
from tests.server.backends.serving import Served, asked_together, config, put_python
from tests.server.backends.test_ensemble import ensemble, put_ensemble, step
from tests.server.onnx_models import (
    endless_model,
    identity_model,
    info,
    mixing_model,
    mlp_model,
    model_bytes,
    put,
)

WAIT_S = 30.0
Array = np.ndarray[Any, Any]
TABLE = np.float32([[0.5], [-1.0], [2.0], [4.0]])
TWO_STEPS = (
    step("table", "index=I", "value=v"),
    step("mlp", "features=v", "probability=P"),
)
WORTH = ensemble("I:FP32:1", "P:FP32:1", *TWO_STEPS)


def table_model() -> bytes:
    """The value at each index, a float as doors learn it: one out of range fails while it runs."""
    graph = helper.make_graph(
        [helper.make_node("Cast", ["index"], ["place"], to=TensorProto.INT64),
         helper.make_node("Gather", ["table", "place"], ["value"])],
        "table",
        [info("index", TensorProto.FLOAT, ["N", 1])],
        [info("value", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(TABLE[:, 0], "table")],
    )  # fmt: skip
    return model_bytes(graph)


def expected(indexes: Array, seed: int = 1) -> Array:
    session = onnxruntime.InferenceSession(
        mlp_model(inputs=1, seed=seed), providers=["CPUExecutionProvider"]
    )
    found: Array = session.run(None, {"features": TABLE[indexes[:, 0].astype(int)]})[0]
    return found


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    put(tmp_path, "table", table_model())
    put(tmp_path, "mlp", mlp_model(inputs=1))
    put_ensemble(tmp_path, "worth", WORTH)
    with Served(tmp_path) as served:
        yield served


@pytest.fixture
def address(served: Served) -> Iterator[tuple[str, int]]:
    with served.over_http() as address:
        yield address


def together(address: tuple[str, int], many: list[list[int]]) -> list[Any]:
    """Ask for all of these indexes in one piece on one connection; return values or errors."""
    bodies = [
        json.dumps({"inputs": [{"name": "I", "datatype": "FP32", "shape": [len(each), 1],
                                "data": each}]}).encode()
        for each in many
    ]  # fmt: skip
    return [
        content["outputs"][0]["data"] if status == 200 else content["error"]
        for status, content in asked_together(address, "worth", bodies)
    ]


def taken(served: Served, model: str, *feeds: Array, timeout_s: float | None = None) -> Any:
    """Start a request as a lot, however its step may have changed since it came."""
    queue = served.repository.get(model).batcher
    deadline_ns = None if timeout_s is None else time.monotonic_ns() + int(timeout_s * 1e9)

    async def answer() -> Array:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        queue.take([Request(list(feeds), len(feeds[0]), deadline_ns, future)])
        outputs, _ = await future
        found: Array = outputs[0]
        return found

    return served.start(answer())


def statistics(served: Served, model: str) -> dict[str, Any]:
    (found,) = served.protocol.statistics(model, "")["model_stats"]
    return dict(found)


@pytest.mark.slow
def test_they_go_together_and_each_gets_its_own(served: Served, address: tuple[str, int]) -> None:
    together(address, [[0]])
    before = {name: statistics(served, name) for name in ("worth", "table", "mlp")}
    many = [[n % 4] for n in range(150)]  # more than a batch
    found = together(address, many)
    for each, values in zip(many, found, strict=True):
        assert values == pytest.approx(expected(np.array([each])).ravel().tolist())
    for name, was in before.items():
        now = statistics(served, name)
        executions = now["execution_count"] - was["execution_count"]
        assert (executions == 150) if name == "worth" else (executions <= 10)
        counts = [at["inference_stats"]["success"]["count"] for at in (was, now)]
        assert counts[1] - counts[0] == 150
        assert now["inference_count"] - was["inference_count"] == 150
        infer = now["inference_stats"]["compute_infer"]
        assert (infer["count"], infer["ns"] > 0) == (counts[1], True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_faults_and_shapes_are_of_their_requests_alone(
    served: Served, address: tuple[str, int], seed: int
) -> None:
    choice = random.Random(seed)
    for _ in range(5):
        many = [
            [choice.choice([0, 1, 2, 3, 3, 9]) if choice.random() < 0.2 else choice.randrange(4)
             for _ in range(choice.randrange(1, 4))]
            for _ in range(choice.randrange(1, 60))
        ]  # fmt: skip
        for each, found in zip(many, together(address, many), strict=True):
            if 9 in each:
                assert "the model failed on this input" in found
            else:
                right = expected(np.array(each)[:, None]).ravel().tolist()
                assert found == pytest.approx(right)
    assert served.repository.get("worth").waiting == 0


def test_it_runs_what_serves_now_and_says_where_it_fails(tmp_path: Path, served: Served) -> None:
    indexes = np.float32([[2], [0]])
    model = served.repository.get("worth")
    assert model.takes_lots()
    assert np.allclose(taken(served, "worth", indexes).result(WAIT_S), expected(indexes))
    put(tmp_path, "mlp", mlp_model(inputs=1, seed=2), 2)
    served.run(served.repository.load("mlp"))
    found = taken(served, "worth", indexes).result(WAIT_S)
    assert np.allclose(found, expected(indexes, seed=2))
    put(tmp_path, "mlp", mlp_model(inputs=4), 3)
    served.run(served.repository.load("mlp"))
    with pytest.raises(InvalidArgumentError, match="in ensemble 'worth', unexpected shape"):
        taken(served, "worth", indexes).result(WAIT_S)
    served.run(served.repository.unload("mlp"))
    with pytest.raises(UnavailableError, match="in ensemble 'worth'"):
        taken(served, "worth", indexes).result(WAIT_S)
    assert not model.takes_lots()
    assert statistics(served, "worth")["execution_count"] == 2
    assert (model.batcher.running, model.batcher.waiting) == (0, 0)


def test_a_step_that_became_one_of_another_kind(tmp_path: Path, served: Served) -> None:
    """What had come as a lot goes on request by request."""
    assert served.repository.get("worth").takes_lots()
    unbatched = config("features:FP32:-1,1", "probability:FP32:-1,1", backend="onnxruntime")
    put(tmp_path, "mlp", mlp_model(inputs=1), 2, config=unbatched)
    served.run(served.repository.load("mlp"))
    indexes = np.float32([[2], [0]])
    assert np.allclose(taken(served, "worth", indexes).result(WAIT_S), expected(indexes))
    assert not served.repository.get("worth").takes_lots()
    put(tmp_path, "mlp", mlp_model(inputs=4), 3, config=unbatched.replace("-1,1", "-1,4", 1))
    served.run(served.repository.load("mlp"))
    with pytest.raises(InvalidArgumentError, match="in ensemble 'worth', unexpected shape"):
        taken(served, "worth", indexes).result(WAIT_S)
    served.run(served.repository.unload("table"))
    with pytest.raises(UnavailableError, match="in ensemble 'worth'"):
        taken(served, "worth", indexes).result(WAIT_S)
    assert served.repository.get("worth").batcher.running == 0


def test_a_step_that_takes_smaller_batches_now(
    tmp_path: Path, served: Served, address: tuple[str, int]
) -> None:
    assert served.repository.get("worth").takes_lots()
    smaller = config("features:FP32:1", "probability:FP32:1", batch=4, backend="onnxruntime")
    put(tmp_path, "mlp", mlp_model(inputs=1), 2, config=smaller)
    served.run(served.repository.load("mlp"))
    together(address, [[0]])
    many = [[n % 4] for n in range(12)]
    for each, values in zip(many, together(address, many), strict=True):
        assert values == pytest.approx(expected(np.array(each)[:, None]).ravel().tolist())
    indexes = np.float32([[2], [0], [1], [3], [1]])
    assert not served.repository.get("worth").takes_lots()
    with pytest.raises(InvalidArgumentError, match="batch-size must be <= 4 for 'mlp'"):
        taken(served, "worth", indexes).result(WAIT_S)  # as it would be by itself
    assert np.allclose(taken(served, "worth", indexes[:2]).result(WAIT_S), expected(indexes[:2]))


def test_a_step_without_rows_runs_each_request_alone(tmp_path: Path, served: Served) -> None:
    put(tmp_path, "mixing", mixing_model(), config="max_batch_size: 8")
    put_ensemble(
        tmp_path, "sum_twice",
        ensemble("X:FP32:2", "S:FP32:2", step("mixing", "x=X", "sum=s"),
                 step("mixing", "x=s", "sum=S"), batch=8),
    )  # fmt: skip
    served.run(served.repository.load("mixing"))
    served.run(served.repository.load("sum_twice"))
    assert served.repository.get("sum_twice").takes_lots()
    rows = [np.full((1, 2), n, np.float32) for n in range(5)]
    answers = [taken(served, "sum_twice", row) for row in rows]
    assert [answer.result(WAIT_S).tolist() for answer in answers] == [row.tolist() for row in rows]


def test_text_goes_through_a_chain(tmp_path: Path, served: Served) -> None:
    put(tmp_path, "same", identity_model())
    steps = step("same", "TEXT=T", "SAME=between"), step("same", "TEXT=between", "SAME=OUT")
    put_ensemble(tmp_path, "twice", ensemble("T:STRING:-1", "OUT:STRING:-1", *steps))
    for name in ("same", "twice"):
        served.run(served.repository.load(name))
    assert served.repository.get("twice").takes_lots()
    text = np.array([["naïve".encode(), b""]], object)
    assert taken(served, "twice", text).result(WAIT_S).tolist() == text.tolist()


@pytest.mark.parametrize(
    "text",
    [
        ensemble("X:FP32:1", "P:FP32:1 Q:FP32:1", step("mlp", "features=X", "probability=P"),
                 step("mlp", "features=X", "probability=Q")),
        ensemble("X:FP32:1", "P:FP32:1", step("worth", "I=i", "P=P"),
                 step("index", "x=X", "i=i")),
        ensemble("X:FP32:-1,1", "P:FP32:-1,1", step("mlp", "features=X", "probability=P"),
                 batch=0),
    ],
)  # fmt: skip
def test_what_is_no_chain_of_graphs_takes_no_lots(
    tmp_path: Path, served: Served, text: str
) -> None:
    body = """
    def execute(self, requests):
        arrays = [pb_utils.get_input_tensor_by_name(each, "x").as_numpy() for each in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("i", array)])
                for array in arrays]
    """
    if "index" in text:
        put_python(tmp_path, "index", body, config("x:FP32:1", "i:FP32:1", batch=64))
        served.run(served.repository.load("index"))
    put_ensemble(tmp_path, "other", text)
    served.run(served.repository.load("other"))
    assert not served.repository.get("other").takes_lots()
    assert served.infer("other", X=np.ones((2, 1), np.float32))["P"].shape == (2, 1)


def endless_rows() -> bytes:
    """The endless model for rows of one value."""
    model = onnx.load_from_string(endless_model())
    for end in (*model.graph.input, *model.graph.output):
        end.type.tensor_type.shape.dim.add(dim_value=1)
    for node in model.graph.node:
        for attribute in node.attribute:
            for end in (*attribute.g.input[2:], *attribute.g.output[1:]):
                end.type.tensor_type.shape.dim.add(dim_value=1)
    return model.SerializeToString()


@pytest.mark.slow
def test_a_step_that_does_not_end_costs_nobody_more_than_his_time(
    tmp_path: Path, served: Served
) -> None:
    one_at_a_time = "max_batch_size: 64 instance_group { count: 1 kind: KIND_CPU }"
    put(tmp_path, "rounds", endless_rows(), config=one_at_a_time)
    put_ensemble(
        tmp_path, "late",
        ensemble("X:FP32:1", "P:FP32:1", step("rounds", "x=X", "y=y"),
                 step("mlp", "features=y", "probability=P")),
    )  # fmt: skip
    for name in ("rounds", "late"):
        served.run(served.repository.load(name))
    assert served.repository.get("late").takes_lots()
    one = np.ones((1, 1), np.float32)
    before = statistics(served, "mlp")["execution_count"]
    for _ in range(20):  # so that it runs in a thread
        served.repository.get("rounds").batcher.expect(1, 5_000_000)
    stopped = taken(served, "late", -one, timeout_s=0.8)
    waits = taken(served, "late", one, timeout_s=0.4)  # in the step's queue
    patient = taken(served, "late", one)
    for answer in (stopped, waits):
        with pytest.raises(DeadlineExceededError):
            answer.result(WAIT_S)
    assert patient.result(WAIT_S).shape == (1, 1)
    assert statistics(served, "mlp")["execution_count"] == before + 1
    failed = [statistics(served, name)["inference_stats"]["fail"]["count"]
              for name in ("rounds", "mlp")]  # fmt: skip
    assert failed == [2, 0]
    assert served.repository.get("late").batcher.running == 0


def test_a_lot_that_cannot_be_read_fails_alone(served: Served) -> None:
    assert served.repository.get("worth").takes_lots()
    indexes = np.float32([[1]])
    broken = taken(served, "worth", indexes, indexes)  # more feeds than inputs
    with pytest.raises(InternalError):
        broken.result(WAIT_S)
    assert np.allclose(taken(served, "worth", indexes).result(WAIT_S), expected(indexes))
