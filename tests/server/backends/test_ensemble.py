"""Ensembles: what is refused when they are loaded, and how their steps run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.errors import (
    DeadlineExceededError,
    HeadraceError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)
from server.models.control import ModelControl
from server.models.dependents import in_order
from server.protocol.oip import InferenceProtocol
from tests.server.backends.serving import Served, config, put_python
from tests.server.onnx_models import add_model, identity_model, mlp_model, put
from tests.server.protocol.test_oip import NothingReleased


def step(model: str, inputs: str, outputs: str, version: int = -1) -> str:
    """One step; maps as `name=tensor name=tensor`."""
    maps = "".join(
        f' {kind} {{ key: "{key}" value: "{tensor}" }}'
        for kind, pairs in (("input_map", inputs), ("output_map", outputs))
        for key, tensor in (pair.split("=") for pair in pairs.split())
    )
    return f'step {{ model_name: "{model}" model_version: {version}{maps} }}'


def ensemble(inputs: str, outputs: str, *steps: str, batch: int = 64) -> str:
    """The configuration of an ensemble; tensors as `config` has them."""
    text = config(inputs, outputs, f"ensemble_scheduling {{ {' '.join(steps)} }}", batch=batch)
    return text.replace('backend: "python"', 'platform: "ensemble"')


def put_ensemble(root: Path, name: str, text: str, version: int = 1) -> None:
    (root / name / str(version)).mkdir(parents=True, exist_ok=True)
    (root / name / "config.pbtxt").write_text(text)


A_B, S_D = "A:INT32:4 B:INT32:4", "S:INT32:4 D:INT32:4"
FIRST = step("add", "INPUT0=A INPUT1=B", "OUTPUT0=sum OUTPUT1=difference")
SECOND = step("add", "INPUT0=sum INPUT1=difference", "OUTPUT0=S OUTPUT1=D")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[], Served]]:
    opened: list[Served] = []

    def start() -> Served:
        served = Served(tmp_path)
        opened.append(served)
        return served

    yield start
    for served in opened:
        served.__exit__()


def pair(value: int, rows: int = 1) -> dict[str, Any]:
    a = np.full((rows, 4), value, np.int32)
    return {"A": a, "B": a + 1}


def test_a_chain_of_steps(tmp_path: Path, serve: Callable[[], Served]) -> None:
    """It is named before what it runs, and loads behind it. A + B and A - B add up to 2 A."""
    put(tmp_path, "add", add_model())
    put_ensemble(tmp_path, "a_chain", ensemble(A_B, S_D, SECOND, FIRST))
    put_ensemble(
        tmp_path, "a_chain_of_chains",
        ensemble(A_B, "S:INT32:4", step("a_chain", "A=A B=B", "S=x D=y"),
                 step("a_chain", "A=x B=y", "S=S")),
    )  # fmt: skip
    served = serve()
    found = served.infer("a_chain", **pair(3, rows=2))
    assert {name: array.tolist() for name, array in found.items()} == {
        "S": [[6] * 4] * 2, "D": [[8] * 4] * 2,
    }  # fmt: skip
    assert served.infer("a_chain_of_chains", **pair(3))["S"].tolist() == [[12] * 4]
    assert served.protocol.metadata("a_chain", "")["platform"] == "ensemble"
    assert served.protocol.is_model_ready("a_chain_of_chains")
    with pytest.raises(InvalidArgumentError, match="unexpected shape for input 'A'"):
        served.infer("a_chain", A=np.zeros((1, 5), np.int32), B=np.zeros((1, 4), np.int32))


def test_the_same_step_of_many_requests_is_one_batch(
    tmp_path: Path, serve: Callable[[], Served]
) -> None:
    put(tmp_path, "add", add_model())
    put_ensemble(tmp_path, "chain", ensemble(A_B, S_D, FIRST, SECOND))
    served = serve()
    found = served.infers("chain", [pair(n, rows=1 + n % 3) for n in range(50)])
    for n, outputs in enumerate(found):
        assert outputs["S"].tolist() == [[2 * n] * 4] * (1 + n % 3)
    (of_step,) = served.protocol.statistics("add", "")["model_stats"]
    (of_all,) = served.protocol.statistics("chain", "")["model_stats"]
    assert of_step["inference_count"] == 2 * sum(1 + n % 3 for n in range(50))
    assert of_step["execution_count"] <= 10
    assert of_all["inference_stats"]["success"]["count"] == 50
    assert of_all["execution_count"] == 50
    assert of_all["inference_stats"]["compute_infer"]["ns"] > 0


def test_text_goes_through_graphs(tmp_path: Path, serve: Callable[[], Served]) -> None:
    put(tmp_path, "same", identity_model())
    steps = step("same", "TEXT=T", "SAME=between"), step("same", "TEXT=between", "SAME=OUT")
    put_ensemble(tmp_path, "twice", ensemble("T:STRING:-1", "OUT:STRING:-1", *steps))
    text = np.array([["naïve".encode(), b""]], object)
    assert serve().infer("twice", T=text)["OUT"].tolist() == text.tolist()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ensemble(A_B, S_D), "an ensemble has no step"),
        (ensemble(A_B, S_D, FIRST, step("nope", "x=sum", "y=S")), "depends on 'nope'"),
        (ensemble(A_B, S_D, step("add", "INPUT0=A INPUT1=B", "OUTPUT0=S OUTPUT1=D", 7)),
         "depends on 'add', which does not serve"),
        (ensemble(A_B, S_D, step("bad", "A=A", "S=S")), "runs itself"),
        (ensemble(A_B, S_D, step("add", "INPUT0=A", "OUTPUT0=S OUTPUT1=D")), "input 'INPUT1'"),
        (ensemble(A_B, S_D, step("add", "INPUT0=A INPUT1=B X=A", "OUTPUT0=S OUTPUT1=D")),
         "has no input 'X'"),
        (ensemble(A_B, S_D, step("add", "INPUT0=A INPUT1=B", "OUTPUT9=S")),
         "has no output 'OUTPUT9'"),
        (ensemble(A_B, S_D, step("add", "INPUT0=A INPUT1=B", "")), "maps no output"),
        (ensemble(A_B, S_D, step("add", "INPUT0=A INPUT1=", "OUTPUT0=S")), "mapped to nothing"),
        (ensemble(A_B, S_D, FIRST), "needs tensor 'S', which nothing makes"),
        (ensemble(A_B, S_D, step("add", "INPUT0=A INPUT1=other", "OUTPUT0=S OUTPUT1=D")),
         "needs tensor 'other', which nothing makes"),
        (ensemble(A_B, S_D, FIRST, FIRST), "is made twice"),
        (ensemble(A_B, S_D, step("add", "INPUT0=A INPUT1=B", "OUTPUT0=A OUTPUT1=D")),
         "tensor 'A' is made twice"),
        (ensemble(A_B, S_D, step("add", "INPUT0=A INPUT1=y", "OUTPUT0=S OUTPUT1=x"),
                  step("add", "INPUT0=x INPUT1=B", "OUTPUT0=D OUTPUT1=y")),
         "wait for each other"),
        (ensemble("A:FP32:4 B:INT32:4", S_D, FIRST, SECOND), "data_type of tensor 'A' differs"),
        (ensemble("A:INT32:5 B:INT32:4", S_D, FIRST, SECOND), "shape of tensor 'A' differs"),
        (ensemble(A_B, "S:INT32:4 D:INT32:4,1", FIRST, SECOND), "shape of tensor 'D' differs"),
        (ensemble(A_B, S_D, FIRST, SECOND, batch=9999), "takes smaller batches"),
        (ensemble(A_B, S_D, FIRST, SECOND, batch=0), "shape of tensor 'A' differs"),
        (ensemble(A_B, "", FIRST), "no output is configured"),
        (ensemble(A_B, S_D, FIRST, SECOND) + "model_transaction_policy { decoupled: true }",
         "cannot be decoupled"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_when_it_is_loaded(
    tmp_path: Path, serve: Callable[[], Served], text: str, reason: str
) -> None:
    put(tmp_path, "add", add_model())
    put_ensemble(tmp_path, "bad", text)
    served = serve()
    assert reason in served.reason("bad")
    assert [model.name for model in served.repository.models()] == ["add"]


def test_a_circle_of_ensembles_stops_nobody(tmp_path: Path, serve: Callable[[], Served]) -> None:
    put(tmp_path, "add", add_model())
    for name, other in (("one", "two"), ("two", "one")):
        put_ensemble(tmp_path, name, ensemble(A_B, S_D, step(other, "A=A B=B", "S=S D=D")))
    served = serve()
    assert "depends on" in served.reason("one")
    assert "depends on" in served.reason("two")
    assert [model.name for model in served.repository.models()] == ["add"]


def test_a_step_that_fails_or_is_swapped_or_gone(
    tmp_path: Path, serve: Callable[[], Served]
) -> None:
    put(tmp_path, "mlp", mlp_model(seed=1))
    put_ensemble(
        tmp_path, "score",
        ensemble("X:FP32:3", "P:FP32:1", step("mlp", "features=X", "probability=P")),
    )  # fmt: skip
    served = serve()
    row = np.ones((1, 3), np.float32)
    before = served.infer("score", X=row)["P"]
    assert before == served.infer("mlp", features=row)["probability"]
    put(tmp_path, "mlp", mlp_model(seed=2), 2)
    served.run(served.repository.load("mlp"))
    after = served.infer("score", X=row)["P"]
    assert after == served.infer("mlp", features=row)["probability"]
    assert after != before
    put(tmp_path, "mlp", mlp_model(inputs=4), 3)
    served.run(served.repository.load("mlp"))
    error = served.error("score", X=row)
    assert isinstance(error, InvalidArgumentError)
    assert error.message.startswith("in ensemble 'score', unexpected shape")
    served.run(served.repository.unload("mlp"))
    error = served.error("score", X=row)
    assert isinstance(error, UnavailableError)
    assert "in ensemble 'score'" in error.message
    assert not served.protocol.is_model_ready("score")


def explicit(served: Served) -> InferenceProtocol:
    control = ModelControl(served.repository, "explicit")
    return InferenceProtocol(served.repository, NothingReleased(), lambda: True, control)


def ready(served: Served) -> list[str]:
    return [model.name for model in served.repository.models()]


def test_an_ensemble_comes_with_its_steps_and_goes_with_them(
    tmp_path: Path,
) -> None:
    put(tmp_path, "add", add_model())
    put(tmp_path, "mlp", mlp_model())
    put_ensemble(tmp_path, "inner", ensemble(A_B, S_D, FIRST, SECOND))
    put_ensemble(tmp_path, "outer", ensemble(A_B, S_D, step("inner", "A=A B=B", "S=S D=D")))
    with Served(tmp_path, names=[]) as served:
        protocol = explicit(served)
        served.run(protocol.load("outer", {}))
        served.run(protocol.load("mlp", {}))
        assert ready(served) == ["add", "inner", "mlp", "outer"]
        served.run(protocol.unload("add", {"unload_dependents": True}))
        assert ready(served) == ["mlp"]
        served.run(protocol.load("outer", {}))
        served.run(protocol.unload("outer", {}))
        assert ready(served) == ["add", "inner", "mlp"]
        served.run(protocol.load("outer", {}))
        served.run(protocol.unload("outer", {"unload_dependents": True}))
        assert ready(served) == ["mlp"]
        served.run(protocol.load("inner", {}))
        served.run(protocol.unload("add", {"unload_dependents": False}))
        assert ready(served) == ["inner", "mlp"]
        with pytest.raises(InvalidArgumentError, match="Unrecognized unload parameter"):
            served.run(protocol.unload("add", {"unload_dependents": 1}))


def test_order_of_loading() -> None:
    steps = {"a": ["b", "c"], "b": ["c"], "x": ["y"], "y": ["x"], "self": ["self"]}
    order = in_order(["a", "c", "x", "self"], lambda name: steps.get(name, []))
    assert order == ["c", "b", "a", "y", "x", "self"]
    deep = {str(n): [str(n + 1)] for n in range(5_000)}
    assert in_order(["0"], lambda name: deep.get(name, []))[0] == "5000"


# Steps in processes: what runs beside what, and what does not run any more.

MEET = """
def execute(self, requests):
    mine, other = {names}
    folder = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    open(os.path.join(folder, mine), "w").close()
    while not os.path.exists(os.path.join(folder, other)):
        time.sleep(0.001)
    array = pb_utils.get_input_tensor_by_name(requests[0], "IN").as_numpy()
    return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", array)])]
"""
SLOW = """
def execute(self, requests):
    time.sleep(0.3)
    array = pb_utils.get_input_tensor_by_name(requests[0], "IN").as_numpy()
    if array[0] < 0:
        raise ValueError("below nothing")
    return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", array)])]
"""
MULTIPLE = "model_transaction_policy { decoupled: true }"


@pytest.mark.slow
def test_branches_run_beside_each_other(tmp_path: Path, serve: Callable[[], Served]) -> None:
    for mine, other in (("left", "right"), ("right", "left")):
        body = MEET.replace("{names}", repr((mine + ".there", other + ".there")))
        put_python(tmp_path, mine, body, config("IN:FP32:1", "OUT:FP32:1"))
    put_ensemble(
        tmp_path, "both",
        ensemble("X:FP32:1", "L:FP32:1 R:FP32:1", step("left", "IN=X", "OUT=L"),
                 step("right", "IN=X", "OUT=R"), batch=0),
    )  # fmt: skip
    found = serve().infer("both", X=np.ones(1, np.float32))
    assert (found["L"].tolist(), found["R"].tolist()) == ([1.0], [1.0])


@pytest.mark.slow
def test_deadline_and_leaving_between_steps(tmp_path: Path, serve: Callable[[], Served]) -> None:
    for name in ("first", "second"):
        put_python(tmp_path, name, SLOW, config("IN:FP32:1", "OUT:FP32:1"))
    put_ensemble(
        tmp_path, "slow",
        ensemble("X:FP32:1", "Y:FP32:1", step("first", "IN=X", "OUT=m"),
                 step("second", "IN=m", "OUT=Y"), batch=0),
    )  # fmt: skip
    put_python(
        tmp_path, "many", "def execute(self, requests):\n    return None",
        config("IN:FP32:1", "OUT:FP32:1", MULTIPLE),
    )  # fmt: skip
    put_ensemble(
        tmp_path,
        "of_many",
        ensemble("X:FP32:1", "Y:FP32:1", step("many", "IN=X", "OUT=Y"), batch=0),
    )
    served = serve()
    assert "is decoupled" in served.reason("of_many")
    row = {"X": np.ones(1, np.float32)}

    def ran(name: str) -> int:
        (found,) = served.protocol.statistics(name, "")["model_stats"]
        return int(found["execution_count"])

    with pytest.raises(DeadlineExceededError):
        served.run(served.answer("slow", row, timeout_s=0.1))
    leaving = served.start(served.answer("slow", row))
    time.sleep(0.05)
    leaving.cancel()
    assert "below nothing" in served.error("slow", X=-row["X"]).message
    assert ran("second") == 0
    assert served.infer("slow", **row)["Y"].tolist() == [1.0]
    assert (ran("second"), ran("slow")) == (1, 1)
    with pytest.raises(HeadraceError):
        served.run(served.answer("slow", row, timeout_s=0.4))
    assert isinstance(served.error("slow", X=-row["X"]), InternalError)


@pytest.mark.slow
def test_a_branch_that_fails_ends_the_other(tmp_path: Path, serve: Callable[[], Served]) -> None:
    put_python(tmp_path, "left", SLOW, config("IN:FP32:1", "OUT:FP32:1"))
    put_python(
        tmp_path, "right", "def execute(self, requests):\n    raise ValueError('at once')",
        config("IN:FP32:1", "OUT:FP32:1"),
    )  # fmt: skip
    put_ensemble(
        tmp_path, "both",
        ensemble("X:FP32:1", "L:FP32:1 R:FP32:1", step("left", "IN=X", "OUT=L"),
                 step("right", "IN=X", "OUT=R"), batch=0),
    )  # fmt: skip
    served = serve()
    assert "at once" in served.error("both", X=np.ones(1, np.float32)).message
    assert served.infer("left", IN=np.ones(1, np.float32))["OUT"].tolist() == [1.0]
