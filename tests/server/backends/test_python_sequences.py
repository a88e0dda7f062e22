"""Python models with sequences: slots, instances, controls, and processes that end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from headrace.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from tests.server.backends.serving import Served, config, outputs, put_python
from tests.server.sequence_models import control

pytestmark = pytest.mark.slow
LONG = "max_sequence_idle_microseconds: 60000000\n"
ACCUMULATE = """
    def initialize(self, args):
        self.totals = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            value = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
            start = pb_utils.get_input_tensor_by_name(request, "START").as_numpy()
            name = pb_utils.get_input_tensor_by_name(request, "CORRID").as_numpy()
            assert request.correlation_id() == name.item()
            assert bool(request.flags() & 1) == bool(start.item())
            assert "sequence_id" not in json.loads(request.parameters())
            total = value + (0 if start.item() else self.totals[name.item()])
            self.totals[name.item()] = total
            if request.flags() & 2:
                del self.totals[name.item()]
            pid = pb_utils.Tensor("PID", np.full_like(value, os.getpid()))
            responses.append(
                pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", total), pid])
            )
        return responses
"""
# As Triton's own test model: what it keeps is by the place of a request in its batch.
BY_SLOT = """
    def initialize(self, args):
        self.totals = np.zeros(4, np.int64)

    def execute(self, requests):
        responses = []
        for slot, request in enumerate(requests):
            value = pb_utils.get_input_tensor_by_name(request, "INPUT").as_numpy()
            start = pb_utils.get_input_tensor_by_name(request, "START").as_numpy().item()
            ready = pb_utils.get_input_tensor_by_name(request, "READY").as_numpy().item()
            if ready:
                self.totals[slot] = value.item() + (0 if start else self.totals[slot])
            responses.append(pb_utils.InferenceResponse([
                pb_utils.Tensor("OUTPUT", np.full_like(value, self.totals[slot])),
                pb_utils.Tensor("SLOT", np.full_like(value, slot)),
            ]))
        return responses
"""
ASKING = """
    def execute(self, requests):
        answers = []
        for request in requests:
            asked = pb_utils.InferenceRequest(
                model_name="oldest", requested_output_names=["OUTPUT"], inputs=request.inputs(),
                correlation_id=request.correlation_id(), flags=request.flags(),
            )
            answer = asked.exec()
            if answer.has_error():
                raise pb_utils.TritonModelException(answer.error().message())
            answers.append(pb_utils.InferenceResponse(answer.output_tensors()))
        return answers
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("sequences")
    oldest = (
        f"sequence_batching {{ {LONG} oldest {{ max_candidate_sequences: 2 }}\n"
        + control("START", body="bool_false_true: [ false, true ]")
        + control("CORRID", body="data_type: TYPE_UINT64")
        + "}\ninstance_group { count: 2 kind: KIND_CPU }"
    )
    put_python(root, "oldest", ACCUMULATE, config(
        "INPUT:INT64:1", "OUTPUT:INT64:1 PID:INT64:1", oldest, batch=4))  # fmt: skip
    direct = (
        f"sequence_batching {{ {LONG}"
        + control("START", body="fp32_false_true: [ 0, 1 ]")
        + control("READY")
        + "}"
    )
    put_python(root, "direct", BY_SLOT, config(
        "INPUT:INT64:1", "OUTPUT:INT64:1 SLOT:INT64:1", direct, batch=4))  # fmt: skip
    put_python(root, "asking", ASKING, config("INPUT:INT64:1", "OUTPUT:INT64:1", batch=4))
    with Served(root) as served:
        yield served


async def ask(served: Served, model: str, name: int, value: int, **flags: bool) -> dict[str, int]:
    given = {"sequence_id": name, **{f"sequence_{flag}": on for flag, on in flags.items()}}
    answer = await served.answer(model, {"INPUT": np.array([[value]], np.int64)}, parameters=given)
    return {name: int(array[0, 0]) for name, array in outputs(answer).items()}


def test_a_sequence_stays_with_its_instance(served: Served) -> None:
    async def many() -> list[list[dict[str, int]]]:
        async def one(name: int) -> list[dict[str, int]]:
            return [
                await ask(served, "oldest", name, value, start=value == 1, end=value == 4)
                for value in (1, 2, 3, 4)
            ]

        return await asyncio.gather(*(one(name) for name in range(1, 13)))

    found = served.run(many())
    for answers in found:
        assert [answer["OUTPUT"] for answer in answers] == [1, 3, 6, 10]
        assert len({answer["PID"] for answer in answers}) == 1
    assert len({answers[0]["PID"] for answers in found}) == 2


def test_a_sequence_keeps_its_slot(served: Served) -> None:
    async def rounds() -> list[list[dict[str, int]]]:
        names = range(1, 5)
        first = await asyncio.gather(
            *(ask(served, "direct", name, name, start=True) for name in names)
        )
        second = await asyncio.gather(*(ask(served, "direct", name, 10) for name in (4, 2)))
        last = await asyncio.gather(
            *(ask(served, "direct", name, 100, end=True) for name in (3, 1, 4, 2))
        )
        return [first, second, last]

    first, second, last = served.run(rounds())
    assert [(answer["SLOT"], answer["OUTPUT"]) for answer in first] == [
        (0, 1), (1, 2), (2, 3), (3, 4)
    ]  # fmt: skip
    assert [(answer["SLOT"], answer["OUTPUT"]) for answer in second] == [(3, 14), (1, 12)]
    assert [answer["OUTPUT"] for answer in last] == [103, 101, 114, 112]


def test_a_model_asks_another_one_with_sequences(served: Served) -> None:
    assert served.run(ask(served, "asking", 50, 5, start=True))["OUTPUT"] == 5
    assert served.run(ask(served, "asking", 50, 6, end=True))["OUTPUT"] == 11


def test_a_process_that_ends_takes_its_sequences_with_it(served: Served) -> None:
    """The others go on, and no new process is told of what it does not know."""
    first = served.run(ask(served, "oldest", 1, 1, start=True))
    second = served.run(ask(served, "oldest", 2, 1, start=True))
    assert first["PID"] != second["PID"]
    os.kill(first["PID"], signal.SIGKILL)
    assert served.run(ask(served, "oldest", 2, 1))["OUTPUT"] == 2
    with pytest.raises((FailedPreconditionError, UnavailableError)) as caught:
        served.run(ask(served, "oldest", 1, 1))
    # It was sent to the process, or its end was known before.
    assert "the process" in caught.value.message
    if isinstance(caught.value, FailedPreconditionError):
        assert "start the sequence again" in caught.value.message
    with pytest.raises(InvalidArgumentError, match="START flag"):
        served.run(ask(served, "oldest", 1, 1))
    assert served.run(ask(served, "oldest", 1, 7, start=True, end=True))["OUTPUT"] == 7
    assert served.run(ask(served, "oldest", 2, 1, end=True))["OUTPUT"] == 3


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ("sequence_batching {} model_transaction_policy { decoupled: true }", "cannot have"),
        ("batch_input { }", "batch_input is of graphs"),
        ("sequence_batching { state { input_name: 'A' output_name: 'B' } }", "is of graphs"),
    ],
)
def test_what_a_python_model_cannot_have(tmp_path: Path, more: str, text: str) -> None:
    put_python(tmp_path, "m", ACCUMULATE, config("INPUT:INT64:1", "OUTPUT:INT64:1", more, batch=4))
    with Served(tmp_path) as served:
        assert text in served.reason("m")
