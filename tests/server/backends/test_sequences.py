"""Graphs with sequences behind the protocol: order, state, controls, and what breaks a sequence."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from headrace.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    HeadraceError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)
from tests.server import sequence_models as models
from tests.server.backends.serving import Served, outputs
from tests.server.onnx_models import put
from tests.server.sequence_models import batching, control, state, tensors

LONG = "max_sequence_idle_microseconds: 60000000\n"
INT64 = tensors("TYPE_INT64")
ZERO = state(initial="dims: [ 1 ] zero_data: true")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("sequences")
    models.write(root)
    oldest = LONG + "oldest { max_candidate_sequences: 3 }\n"
    put(root, "oldest", models.folding(), config=batching(oldest + ZERO, batch=4) + INT64)
    put(root, "direct", models.folding(), config=batching(LONG + ZERO, batch=4) + INT64)
    put(
        root,
        "alone",
        models.folding(batch=False),
        config=batching(LONG + ZERO, batch=0) + INT64 + "instance_group { count: 2 }",
    )
    patient = LONG + "direct { minimum_slot_utilization: 1 max_queue_delay_microseconds: 50000 }\n"
    put(root, "patient", models.folding(), config=batching(patient + ZERO, batch=2) + INT64)
    put(
        root,
        "seen",
        models.folding(),
        config=batching(LONG + ZERO)
        + INT64
        + 'output { name: "NEXT" data_type: TYPE_INT64 dims: [ 1 ] }',
    )
    put(root, "brief", models.folding(), config=batching(
        "max_sequence_idle_microseconds: 30000\n" + ZERO, batch=1) + INT64)  # fmt: skip
    put(root, "single", models.folding(), config=batching(LONG + ZERO, batch=1) + INT64)
    put(root, "failing", models.failing(), config=batching(LONG + ZERO) + INT64)
    growing = LONG + state("TYPE_FP32", "-1", "dims: [ 0 ] zero_data: true")
    for name, strategy in (
        ("growing", "oldest { max_candidate_sequences: 9 }\n"),
        ("growing_direct", ""),
    ):
        put(
            root,
            name,
            models.joining(),
            config=batching(growing + strategy) + tensors("TYPE_FP32", "-1"),
        )
    put(root, "from_file", models.folding(), config=batching(
        LONG + state(initial='dims: [ 1 ] data_file: "five"')) + INT64)  # fmt: skip
    (root / "from_file" / "initial_state").mkdir()
    (root / "from_file" / "initial_state" / "five").write_bytes(np.int64(5).tobytes())
    with Served(root) as served:
        yield served


def parameters(name: int | str, *, start: bool = False, end: bool = False) -> dict[str, Any]:
    return {"sequence_id": name, "sequence_start": start, "sequence_end": end}


async def ask(
    served: Served, model: str, name: int | str, value: Any, **flags: Any
) -> dict[str, Any]:
    timeout_s = flags.pop("timeout_s", None)
    array = value if isinstance(value, np.ndarray) else np.array([[value]], np.int64)
    answer = await served.answer(
        model,
        {"INPUT": array},
        parameters=parameters(name, **flags),
        timeout_s=timeout_s,
    )
    return outputs(answer)


def say(served: Served, model: str, name: int | str, value: Any, **flags: Any) -> Any:
    return served.run(ask(served, model, name, value, **flags))["OUTPUT"].reshape(-1).tolist()


def folded(values: list[int], first: int = 0) -> list[int]:
    found, total = [], first
    for value in values:
        total = total * 3 + value
        found.append(total)
    return found


@pytest.mark.parametrize("model", ["oldest", "direct", "patient", "seen", "brief"])
def test_a_sequence_carries_its_state(served: Served, model: str) -> None:
    found = [say(served, model, 7, value, start=value == 1, end=value == 3) for value in (1, 2, 3)]
    assert found == [[1], [5], [18]]


def test_a_model_without_a_batch_dimension_has_a_slot_per_instance(served: Served) -> None:
    one, two = np.array([1], np.int64), np.array([2], np.int64)
    assert say(served, "alone", "a", one, start=True) == [1]
    assert say(served, "alone", "b", two, start=True) == [2]
    assert say(served, "alone", "a", one, end=True) == [4]
    assert say(served, "alone", "b", two, end=True) == [8]


@pytest.mark.parametrize("model", ["oldest", "direct"])
def test_of_many_interleaved_sequences_no_state_is_another_ones(served: Served, model: str) -> None:
    """40 sequences at once for 3 or 4 slots; each sends its requests without waiting."""
    random = Random(5)
    plans = [[random.randrange(100) for _ in range(random.randint(1, 8))] for _ in range(40)]

    async def all_of_them() -> list[list[Any]]:
        asked: dict[int, list[asyncio.Task[dict[str, Any]]]] = {name: [] for name in range(40)}
        left = [name for name, plan in enumerate(plans) for _ in plan]
        random.shuffle(left)
        for name in left:
            at, plan = len(asked[name]), plans[name]
            flags = {"start": at == 0, "end": at == len(plan) - 1}
            asked[name].append(
                asyncio.ensure_future(ask(served, model, name + 1, plan[at], **flags))
            )
            if random.random() < 0.2:
                await asyncio.sleep(0)
        return [await asyncio.gather(*tasks) for tasks in asked.values()]

    for plan, answers in zip(plans, served.run(all_of_them()), strict=True):
        assert [int(answer["OUTPUT"][0, 0]) for answer in answers] == folded(plan)
    engine = served.repository.get(model)._engine  # type: ignore[attr-defined]
    assert (engine.open, engine.waiting) == (0, 0)


def test_requests_of_several_sequences_run_as_one_batch(served: Served) -> None:
    counted = served.repository.get("direct").statistics
    before = counted.execution_count

    async def together() -> None:
        await asyncio.gather(*(ask(served, "direct", name, 1, start=True) for name in "abc"))
        await asyncio.gather(*(ask(served, "direct", name, 1, end=True) for name in "ac"))
        await ask(served, "direct", "b", 1, end=True)

    served.run(together())
    assert counted.execution_count - before == 3
    assert 3 in counted.batches  # a and c, and the slot between them


def test_the_direct_strategy_waits_for_company(served: Served) -> None:
    counted = served.repository.get("patient").statistics
    before = counted.execution_count

    async def one_after_another() -> None:
        first = asyncio.ensure_future(ask(served, "patient", 1, 1, start=True, end=True))
        await asyncio.sleep(0.001)
        await asyncio.gather(first, ask(served, "patient", 2, 1, start=True, end=True))

    served.run(one_after_another())
    assert counted.execution_count - before == 1
    assert say(served, "patient", 3, 1, start=True, end=True) == [1]  # alone, after its wait


@pytest.mark.parametrize("model", ["growing", "growing_direct"])
def test_states_of_different_sizes_run_apart(served: Served, model: str) -> None:
    def values(*numbers: float) -> Any:
        return np.array([numbers], np.float32)

    async def both() -> list[Any]:
        first = await asyncio.gather(
            ask(served, model, 1, values(1), start=True),
            ask(served, model, 2, values(7, 8), start=True),
        )
        second = await asyncio.gather(
            ask(served, model, 1, values(2), end=True), ask(served, model, 2, values(9), end=True)
        )
        return [answer["OUTPUT"].tolist() for answer in (*first, *second)]

    assert served.run(both()) == [[[1]], [[7, 8]], [[1, 2]], [[7, 8, 9]]]


def test_a_first_state_comes_from_a_file(served: Served) -> None:
    assert say(served, "from_file", 1, 2, start=True) == [17]
    assert say(served, "from_file", 1, 2, end=True) == [53]


def test_a_state_can_be_one_of_the_outputs(served: Served) -> None:
    answer = served.run(ask(served, "seen", 1, 4, start=True, end=True))
    assert {name: int(array[0, 0]) for name, array in answer.items()} == {"OUTPUT": 4, "NEXT": 4}
    hidden = served.run(ask(served, "oldest", 1, 4, start=True, end=True))
    assert list(hidden) == ["OUTPUT"]


def test_controls_and_names_reach_the_model(served: Served) -> None:
    def of(model: str, name: int | str, value: int, **flags: bool) -> Any:
        return say(served, model, name, np.array([[value]], np.int32), **flags)

    assert of("simple_dyna_sequence", 1000, 5, start=True) == [6]
    assert of("simple_dyna_sequence", 1000, 5) == [5]
    assert of("simple_dyna_sequence", 1000, 5, end=True) == [1005]
    assert of("simple_string_dyna_sequence", "12", 5, start=True) == [5]
    assert of("simple_string_dyna_sequence", "12", 5, end=True) == [22]


def test_a_name_is_an_unsigned_number_whatever_carries_it(served: Served) -> None:
    assert say(served, "direct", -1, 1, start=True) == [1]
    assert say(served, "direct", (1 << 64) - 1, 1, end=True) == [4]


def failure(served: Served, model: str, name: Any, value: Any = 1, **flags: Any) -> HeadraceError:
    with pytest.raises(HeadraceError) as caught:
        say(served, model, name, value, **flags)
    return caught.value


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "must specify a non-zero or non-empty correlation ID"),
        ({"sequence_id": "", "sequence_start": True}, "must specify a non-zero or non-empty"),
        (
            parameters(99),
            ("inference request for sequence 99 to model 'direct' must specify the START flag on "
            "the first request of the sequence"),
        ),
        ({"sequence_id": 1 << 64, "sequence_start": True}, "does not fit 64 bits"),
        ({"sequence_id": -1 - (1 << 63), "sequence_start": True}, "does not fit 64 bits"),
        ({"sequence_id": "é" * 65, "sequence_start": True}, "is too long"),
        ({"sequence_id": 1.5}, "invalid value type for 'sequence_id' parameter"),
        ({"sequence_id": True}, "invalid value type for 'sequence_id' parameter"),
        ({"sequence_id": 1, "sequence_start": 1}, "invalid value type for 'sequence_start'"),
    ],
)  # fmt: skip
def test_what_is_no_request_of_a_sequence_is_refused(
    served: Served, given: dict[str, Any], text: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        served.run(served.answer("direct", {"INPUT": np.array([[1]], np.int64)}, parameters=given))
    assert text in caught.value.message


def test_rows_of_a_request_cannot_be_of_several_sequences(served: Served) -> None:
    error = failure(served, "direct", 1, np.ones((2, 1), np.int64), start=True)
    assert error.message.startswith(
        "inference request to model 'direct' must specify batch-size 1 due to requirements of "
        "sequence batcher"
    )


def test_a_name_of_another_type_is_refused(served: Served) -> None:
    one = np.array([[1]], np.int32)
    error = failure(served, "simple_dyna_sequence", "a", one, start=True)
    assert (
        "control 'CORRID' data-type is 'BYTES', but model 'simple_dyna_sequence'" in error.message
    )
    error = failure(served, "simple_string_dyna_sequence", 1, one, start=True)
    assert "data-type is 'UINT64'" in error.message


def test_a_request_that_fails_leaves_the_state_as_it_was(served: Served) -> None:
    assert say(served, "failing", 1, 3, start=True) == [3]
    assert isinstance(failure(served, "failing", 1, 99), InternalError)
    assert say(served, "failing", 1, 2, end=True) == [5]


def test_one_bad_request_costs_no_other_sequence_anything(served: Served) -> None:
    async def together() -> list[Any]:
        return await asyncio.gather(
            *(ask(served, "failing", name, value, start=True, end=True)
              for name, value in (("a", 1), ("b", 99), ("c", 2))),
            return_exceptions=True,
        )  # fmt: skip

    first, second, third = served.run(together())
    assert (first["OUTPUT"].item(), third["OUTPUT"].item()) == (1, 2)
    assert isinstance(second, InternalError)


def test_a_sequence_that_nobody_continues_is_over(served: Served) -> None:
    assert say(served, "brief", 1, 1, start=True) == [1]
    # It holds the one slot: the next sequence gets it when the first is over.
    assert say(served, "brief", 2, 1, start=True, end=True) == [1]
    assert "must specify the START flag" in failure(served, "brief", 1).message


def test_a_deadline_before_the_run_ends_the_sequence(served: Served) -> None:
    async def late() -> list[Any]:
        await ask(served, "brief", 1, 1, start=True)
        waiting = asyncio.ensure_future(
            ask(served, "brief", 2, 1, start=True, timeout_s=0.001)
        )  # behind the only slot
        behind = asyncio.ensure_future(ask(served, "brief", 2, 1))
        return await asyncio.gather(waiting, behind, return_exceptions=True)

    first, second = served.run(late())
    assert isinstance(first, DeadlineExceededError)
    assert isinstance(second, FailedPreconditionError)
    assert "start the sequence again" in second.message
    assert "must specify the START flag" in failure(served, "brief", 2).message


def test_a_timeout_bounds_the_wait_for_a_slot(served: Served) -> None:
    one = {"INPUT": np.array([[1]], np.int64)}
    brief = {**parameters(2, start=True), "timeout": 1000}
    assert say(served, "single", 1, 1, start=True) == [1]
    with pytest.raises(UnavailableError, match="timeout of the corresponding sequence"):
        served.run(served.answer("single", one, parameters=brief))
    assert say(served, "single", 1, 1, end=True) == [4]
    patient = {**parameters(2, start=True, end=True), "timeout": 60_000_000}
    assert outputs(served.run(served.answer("single", one, parameters=patient)))["OUTPUT"] == 1


def test_who_leaves_ends_what_waits_but_not_what_runs(served: Served) -> None:
    async def leave() -> Any:
        first = asyncio.ensure_future(ask(served, "direct", 1, 1, start=True))
        second = asyncio.ensure_future(ask(served, "direct", 1, 1))
        third = asyncio.ensure_future(ask(served, "direct", 1, 1))
        await asyncio.sleep(0)
        second.cancel()
        return await asyncio.gather(first, second, third, return_exceptions=True)

    first, second, third = served.run(leave())
    assert first["OUTPUT"].item() == 1
    assert isinstance(second, asyncio.CancelledError)
    assert isinstance(third, FailedPreconditionError)


def test_a_version_that_is_replaced_answers_who_waits_and_the_rest_starts_again(
    tmp_path: Path,
) -> None:
    config = batching(LONG + ZERO) + INT64
    put(tmp_path, "m", models.folding(), config=config)
    with Served(tmp_path) as served:
        assert say(served, "m", 1, 1, start=True) == [1]
        served.run(served.repository.load("m"))
        error = failure(served, "m", 1)
        assert "must specify the START flag" in error.message
        assert "over one connection" in error.message
        assert say(served, "m", 1, 2, start=True) == [2]
        served.run(served.repository.unload("m"))


def test_a_warm_up_is_a_sequence_of_its_own(tmp_path: Path) -> None:
    warmup = (
        'model_warmup { name: "one" batch_size: 1 inputs { key: "INPUT" value '
        "{ data_type: TYPE_INT64 dims: [ 1 ] zero_data: true } } }"
    )
    flags = control("START") + control("END") + control("READY")
    text = control("CORRID", body="data_type: TYPE_STRING") + state("TYPE_INT32")
    put(tmp_path, "number", models.folding(), config=batching(LONG + ZERO) + INT64 + warmup)
    put(
        tmp_path,
        "text",
        models.simple_string_dyna_sequence(),
        config=batching(LONG + flags + text) + tensors() + warmup.replace("INT64", "INT32"),
    )
    with Served(tmp_path) as served:
        for name in ("number", "text"):
            assert served.repository.get(name).statistics.execution_count == 1
        assert say(served, "number", 1, 3, start=True) == [3]


def test_sequences_are_steps_of_ensembles(tmp_path: Path) -> None:
    put(tmp_path, "m", models.folding(), config=batching(LONG + ZERO) + INT64)
    folder = tmp_path / "both" / "1"
    folder.mkdir(parents=True)
    (tmp_path / "both" / "config.pbtxt").write_text(
        "platform: 'ensemble'\nmax_batch_size: 8\n" + INT64 + "ensemble_scheduling { step { "
        "model_name: 'm' model_version: -1 input_map { key: 'INPUT' value: 'INPUT' } "
        "output_map { key: 'OUTPUT' value: 'OUTPUT' } } }"
    )
    with Served(tmp_path) as served:
        assert say(served, "both", 1, 1, start=True) == [1]
        assert say(served, "both", 1, 1, end=True) == [4]
        assert failure(served, "both", 1).message.startswith(
            "in ensemble 'both', inference request"
        )


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("iterative_sequence: true " + ZERO, "iterative_sequence is not supported"),
        (ZERO + "} response_cache { enable: true", "cannot be cached"),
        ("direct { minimum_slot_utilization: 2 } " + ZERO, "minimum_slot_utilization"),
        ("oldest { preferred_batch_size: 99 } " + ZERO, "preferred_batch_size"),
        (control("START", body=""), "does not say what is false"),
        (control("START", body="int32_false_true: [ 0 ]"), "does not say what is false"),
        (control("", "START"), "has no name"),
        (control("START") + control("OTHER", "START"), "multiple CONTROL_SEQUENCE_START"),
        (control("START") + control("START", "END"), "of several control kinds"),
        (control("NONE", "START"), "the graph has no input 'NONE'"),
        (control("CORRID", body="data_type: TYPE_UINT64"), "the graph has no input 'CORRID'"),
        (ZERO + control("INPUT", "CORRID", "data_type: TYPE_STRING"), "differs"),
        (ZERO + ZERO, "none of its own"),
        (state(dims="2"), "differ from the graph's"),
        (state(initial="dims: [ 2 ] zero_data: true"), "are not of its state"),
        (state(initial="dims: [ -1 ] zero_data: true"), "are not of its state"),
        (state(initial="dims: [ 1 ]"), "has no data"),
        (state(initial="dims: [ 1 ] data_file: 'none'"), "initial_state/none is not there"),
        (state(initial="dims: [ 1 ] data_file: '../config.pbtxt'"), "is not there"),
        (state("TYPE_INT32"), "data_type of input 'STATE' differs"),
        ("", "an input of the graph is not listed"),
    ],
)  # fmt: skip
def test_a_configuration_that_makes_no_sequences_says_why(
    tmp_path: Path, body: str, text: str
) -> None:
    put(tmp_path, "m", models.folding(), config=batching(body) + INT64)
    with Served(tmp_path) as served:
        assert text in served.reason("m")
