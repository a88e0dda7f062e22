"""Requests that a door brings to a Python model together: as one, and as if each had come alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.backends.serving import Served, asked_together, config, put_python

pytestmark = pytest.mark.slow

# OUT is twice IN; IDS what the request said of itself. -1 is an error, -2 has no output, -3 has a
# shape of its own, -4 a parameter, -5 raises, -6 is of another type, -7 comes by a sender, -8
# ends the process.
KINDS = """
def execute(self, requests):
    self.most = max(getattr(self, "most", 0), len(requests))
    return [self.respond(request) for request in requests]

def respond(self, request):
    array = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
    assert request.requested_output_names() in (["OUT", "MOST"], ["OUT"], ["MOST"])
    assert request.request_id() in ("", "named")
    value = array[0, 0]
    most = pb_utils.Tensor("MOST", np.full((len(array), 1), self.most, np.int64))
    out, parameters = array * 2, {}
    if value == -1:
        return pb_utils.InferenceResponse(error=pb_utils.TritonError("minus one", 3))
    if value == -2:
        return pb_utils.InferenceResponse([most])
    if value == -3:
        out = np.concatenate([out, out], axis=1)
    if value == -4:
        parameters = {"four": 4}
    if value == -5:
        raise ValueError("five")
    if value == -6:
        out = out.astype(np.float64)
    response = pb_utils.InferenceResponse([pb_utils.Tensor("OUT", out), most], None, parameters)
    if value == -8:
        os._exit(8)
    if value == -7:
        request.get_response_sender().send(response, 1)
        return None
    return response
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    more = "dynamic_batching {}"
    put_python(tmp_path, "kinds", KINDS, config("IN:FP32:-1", "OUT:FP32:-1 MOST:INT64:1", more,
                                                batch=64))  # fmt: skip
    with Served(tmp_path) as served:
        yield served


@pytest.fixture
def address(served: Served) -> Iterator[tuple[str, int]]:
    with served.over_http() as address:
        yield address


def body(value: float, **more: Any) -> bytes:
    tensor = {"name": "IN", "datatype": "FP32", "shape": [1, 2], "data": [value, value]}
    return json.dumps({"inputs": [tensor], **more}).encode()


def asked(address: tuple[str, int], *bodies: bytes) -> list[tuple[int, Any]]:
    return asked_together(address, "kinds", bodies)


def out(answer: tuple[int, Any]) -> Any:
    """The first value of OUT, or the error."""
    status, found = answer
    if status != 200:
        return status, found["error"]
    return found["outputs"][0]["data"][0]


def executions(served: Served) -> int:
    (found,) = served.protocol.statistics("kinds", "")["model_stats"]
    return int(found["execution_count"])


def test_they_run_together_and_each_gets_its_own(served: Served, address: tuple[str, int]) -> None:
    assert out(*asked(address, body(1))) == 2
    before = executions(served)
    found = asked(address, *(body(value) for value in range(10, 42)))
    assert [out(answer) for answer in found] == [2 * value for value in range(10, 42)]
    assert executions(served) - before <= 3
    assert found[-1][1]["outputs"][1]["data"][0] >= 10  # so many it saw at once
    (statistics,) = served.protocol.statistics("kinds", "")["model_stats"]
    assert statistics["inference_stats"]["success"]["count"] == 33


def test_errors_and_shapes_are_of_their_requests_alone(
    served: Served, address: tuple[str, int]
) -> None:
    asked(address, body(1))
    values = (10, 11, -1, 12, -3, 13)
    found = asked(address, *map(body, values))
    assert [out(answer) for answer in found] == [20, 22, (400, "minus one"), 24, -6, 26]
    shapes = [answer["outputs"][0]["shape"] for status, answer in found if status == 200]
    assert shapes == [[1, 2], [1, 2], [1, 2], [1, 4], [1, 2]]
    assert served.repository.get("kinds").takes_lots()
    for status, answer in asked(address, body(10), body(-5), body(11)):
        assert status == 500
        assert "ValueError: five" in answer["error"]


@pytest.mark.parametrize("value", [-2, -6])
def test_outputs_that_are_not_as_they_used_to_be(
    served: Served, address: tuple[str, int], value: int
) -> None:
    """Whoever came with others is to try again; from then on each comes alone."""
    asked(address, body(1))
    found = asked(address, body(10), body(value), body(11))
    assert (out(found[0]), out(found[2])) == (20, 22)
    assert out(found[1])[0] == 503
    assert not served.repository.get("kinds").takes_lots()
    found = asked(address, body(10), body(value), body(11))
    assert [status for status, _ in found] == [200] * 3
    outputs = found[1][1]["outputs"]
    if value == -2:
        assert [output["name"] for output in outputs] == ["MOST"]
    else:
        assert (outputs[0]["datatype"], outputs[0]["data"][0]) == ("FP64", -12)


@pytest.mark.parametrize("value", [-4, -7])
def test_models_that_say_more_than_tensors_get_their_requests_alone(
    served: Served, address: tuple[str, int], value: int
) -> None:
    (status, found), = asked(address, body(value))  # fmt: skip
    assert status == 200
    assert found.get("parameters", {}) == ({"four": 4} if value == -4 else {})
    assert not served.repository.get("kinds").takes_lots()
    found = asked(address, body(value), body(10))
    assert [out(answer) for answer in found] == [2 * value, 20]


def test_what_tells_the_model_more_than_tensors_comes_alone(
    served: Served, address: tuple[str, int]
) -> None:
    for more in ({"id": "named"}, {"outputs": [{"name": "OUT"}]}, {"outputs": [{"name": "MOST"}]}):
        for _ in range(2):
            found = asked(address, body(1, **more), body(2, **more))
            assert [status for status, _ in found] == [200, 200]
            assert all(len(answer["outputs"]) == (1 if "outputs" in more else 2)
                       for _, answer in found)  # fmt: skip


def test_a_process_that_ends_fails_all_that_came_together(
    served: Served, address: tuple[str, int]
) -> None:
    asked(address, body(1))
    found = asked(address, body(10), body(-8), body(11))
    assert [status for status, _ in found] == [503] * 3
    assert "exit code 8" in found[0][1]["error"]
    assert out(*asked(address, body(10))) == 20
