"""Models that list resources, behind a server that counts them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from server.execution.rate_limiter import RateLimiter
from server.models.repository import ModelRepository
from tests.server.backends.serving import Served, config, put_python
from tests.server.onnx_models import add_model, put
from tests.server.test_serve import FREE_PORTS, INFER, call, ready, serve

# It answers when it began and ended: clocks of one machine are one.
SPAN = """
    def execute(self, requests):
        began = time.monotonic()
        while time.monotonic() - began < 0.02:
            pass
        span = pb_utils.Tensor("SPAN", np.array([began, time.monotonic(), os.getpid()]))
        return [pb_utils.InferenceResponse([span]) for _ in requests]
"""


class Limited(Served):
    """A server whose workers have two of `memory`."""

    def _made(self, root: Path) -> ModelRepository:
        self._executor.rate_limiter = RateLimiter({"memory": 2})
        return super()._made(root)


def needing(count: int, *, everywhere: bool = False) -> str:
    return (
        'instance_group { rate_limiter { resources { name: "Memory" '
        f"global: {str(everywhere).lower()} count: {count} }} priority: 1 }} }}"
    )


def test_python_models_wait_for_each_other(tmp_path: Path) -> None:
    for name in ("one", "other"):
        put_python(tmp_path, name, SPAN, config("IN:FP32:1", "SPAN:FP64:3", needing(2)))
    with Limited(tmp_path) as served:
        many = [
            served.start(served.answer(name, {"IN": np.zeros(1, np.float32)}))
            for _ in range(5)
            for name in ("one", "other")
        ]
        spans = sorted(tuple(each.result(30).outputs[0].array) for each in many)
    assert len(spans) == 10
    assert all(ended <= began for (_, ended, _), (began, _, _) in pairwise(spans))


def spans_of(address: str, count: int) -> list[tuple[float, float, float]]:
    """When runs of `count` requests began and ended, and in which process; all at once."""
    tensor = {"name": "IN", "datatype": "FP32", "shape": [1], "data": [0.0]}

    def ask(_: int) -> tuple[float, float, float]:
        status, answer = call(address, "POST", "/v2/models/one/infer", {"inputs": [tensor]})
        assert status == 200, answer
        began, ended, process = answer["outputs"][0]["data"]
        return began, ended, process

    with ThreadPoolExecutor(count) as threads:
        return sorted(threads.map(ask, range(count)))


@pytest.mark.slow
def test_workers_count_a_global_resource_together(tmp_path: Path) -> None:
    model = config("IN:FP32:1", "SPAN:FP64:3", needing(1, everywhere=True))
    put_python(tmp_path / "models", "one", SPAN, model)
    with serve(
        "--model-repository", str(tmp_path / "models"), "--rate-limit", "execution_count",
        "--workers", "2", *FREE_PORTS, "--data-dir", str(tmp_path / "data"),
    ) as process:  # fmt: skip
        address = ready(process)["http"]
        spans = spans_of(address, 16)
        assert len({process for _, _, process in spans}) == 2, "both workers had some"
        assert all(ended <= began for (_, ended, _), (began, _, _) in pairwise(spans))
        assert process.end() == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["execution_count", "off"])
def test_the_flags(tmp_path: Path, mode: str) -> None:
    put(tmp_path / "models", "add", add_model(), config=needing(2))
    put(tmp_path / "models", "greedy", add_model(), config=needing(3))
    with serve(
        "--model-repository", str(tmp_path / "models"), "--rate-limit", mode,
        "--rate-limit-resource", "memory:2", *FREE_PORTS, "--data-dir", str(tmp_path / "data"),
    ) as process:  # fmt: skip
        address = ready(process)["http"]
        assert call(address, "POST", "/v2/models/add/infer", INFER)[0] == 200
        _, entries = call(address, "POST", "/v2/repository/index", {})
        assert process.end() == 0
    reasons = {entry["name"]: entry.get("reason", "") for entry in entries}
    assert reasons["add"] == ""
    assert ('Resource count for "memory" is limited to 2' in reasons["greedy"]) == (mode != "off")
