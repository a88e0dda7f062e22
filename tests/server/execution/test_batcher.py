"""Batches: what joins, what never joins, and what one request's fault costs the others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import DeadlineExceededError, InternalError, ResourceExhaustedError
from server.execution import waiting
from server.execution.batcher import Batcher
from server.execution.statistics import Statistics
from server.execution.threads import RunThreads

Array = np.ndarray[Any, Any]


class Model:
    """Doubles its input, notes each run, and fails where a row holds -13."""

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.gate: threading.Event | None = None
        self.entered = threading.Event()
        self.threads: list[int] = []

    def run(self, feeds: list[Array]) -> list[Array]:
        self.runs.append(len(feeds[0]))
        self.threads.append(threading.get_ident())
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(10)
        if (feeds[0] == -13).any():
            raise ValueError("13")
        return [feeds[0] * 2]


@pytest.fixture
def threads() -> Iterator[RunThreads]:
    with RunThreads(2, 1) as threads:
        yield threads


def make(model: Model, threads: RunThreads, rows_max: int = 8) -> tuple[Batcher, Statistics]:
    statistics = Statistics()
    return Batcher(model.run, rows_max, statistics, threads, name="m"), statistics


def rows(*values: float) -> list[Array]:
    return [np.array(values, np.float32).reshape(-1, 1)]


async def submit(batcher: Batcher, feeds: list[Array], deadline_ns: int | None = None) -> Any:
    outputs, _ = await batcher.submit(feeds, len(feeds[0]), deadline_ns)
    return outputs[0].reshape(-1).tolist()


async def test_what_one_tick_brings_is_one_run(threads: RunThreads) -> None:
    model = Model()
    batcher, statistics = make(model, threads)
    answers = await asyncio.gather(
        submit(batcher, rows(1)), submit(batcher, rows(2, 3)), submit(batcher, rows(4))
    )
    assert answers == [[2], [4, 6], [8]]
    assert model.runs == [4]
    assert statistics.execution_count == 1
    assert statistics.batches[4].compute_infer.count == 1


async def test_a_batch_never_exceeds_its_limit(threads: RunThreads) -> None:
    model = Model()
    batcher, _ = make(model, threads, rows_max=4)
    await asyncio.gather(*(submit(batcher, rows(n, n, n)) for n in range(3)))
    assert model.runs == [3, 3, 3]


async def test_a_model_without_a_batch_dimension_never_joins(threads: RunThreads) -> None:
    model = Model()
    batcher, _ = make(model, threads, rows_max=0)
    await asyncio.gather(submit(batcher, rows(1)), submit(batcher, rows(2)))
    assert model.runs == [1, 1]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=20))
def test_everyone_gets_their_own_rows(shapes: list[tuple[int, int]]) -> None:
    async def run() -> None:
        batcher, _ = make(Model(), threads, rows_max=7)
        feeds = [
            np.full((count, width), index, np.float32)
            for index, (count, width) in enumerate(shapes)
        ]
        answers = await asyncio.gather(*(batcher.submit([feed], len(feed), None) for feed in feeds))
        for feed, (outputs, _) in zip(feeds, answers, strict=True):
            assert np.array_equal(outputs[0], feed * 2)

    with RunThreads(1, 1) as threads:
        asyncio.run(run())


async def test_a_bad_request_costs_nobody_else_the_answer(
    threads: RunThreads, caplog: pytest.LogCaptureFixture
) -> None:
    batcher, _ = make(Model(), threads)
    answers = await asyncio.gather(
        submit(batcher, rows(1)), submit(batcher, rows(-13)), submit(batcher, rows(3)),
        return_exceptions=True,
    )  # fmt: skip
    assert answers[0] == [2]
    assert isinstance(answers[1], InternalError)
    assert "13" not in answers[1].message
    assert answers[2] == [6]


async def test_a_model_that_mixes_rows_is_run_alone_from_then_on(
    threads: RunThreads,
) -> None:
    def mixing(feeds: list[Array]) -> list[Array]:
        return [feeds[0].sum(axis=0, keepdims=True)]

    statistics = Statistics()
    batcher = Batcher(mixing, 8, statistics, threads, name="m")
    for _ in range(2):
        answers = await asyncio.gather(submit(batcher, rows(1)), submit(batcher, rows(2, 3)))
        assert answers == [[1], [5]]
    assert statistics.execution_count == 4


async def test_a_deadline_that_passed_in_the_queue_is_not_worked_for(
    threads: RunThreads,
) -> None:
    model = Model()
    batcher, _ = make(model, threads)
    answers = await asyncio.gather(
        submit(batcher, rows(1), time.monotonic_ns() - 1),
        submit(batcher, rows(2), time.monotonic_ns() + 10**12),
        return_exceptions=True,
    )
    assert isinstance(answers[0], DeadlineExceededError)
    assert answers[1] == [4]
    assert model.runs == [1]


async def test_a_caller_that_left_is_not_worked_for(threads: RunThreads) -> None:
    model = Model()
    batcher, _ = make(model, threads)
    task = asyncio.create_task(submit(batcher, rows(1)))
    other = asyncio.create_task(submit(batcher, rows(2)))
    await asyncio.sleep(0)
    task.cancel()
    assert await other == [4]
    assert model.runs == [1]
    assert batcher.waiting == 0


async def test_a_long_run_leaves_the_loop_and_what_arrives_meanwhile_joins(
    threads: RunThreads,
) -> None:
    model = Model()
    batcher, _ = make(model, threads, rows_max=8)
    batcher.expect(1, 50_000_000)
    model.gate = threading.Event()
    first = asyncio.create_task(submit(batcher, rows(1)))
    await asyncio.to_thread(model.entered.wait)
    rest = [asyncio.create_task(submit(batcher, rows(n))) for n in range(2, 6)]
    await asyncio.sleep(0)
    assert batcher.waiting == 4
    model.gate.set()
    assert await first == [2]
    assert await asyncio.gather(*rest) == [[4], [6], [8], [10]]
    assert model.runs == [1, 4]
    assert threading.get_ident() not in model.threads


async def test_a_quick_model_comes_back_into_the_loop(threads: RunThreads) -> None:
    model = Model()
    batcher, _ = make(model, threads)
    batcher.expect(1, 3_000_000)
    for number in range(40):
        await submit(batcher, rows(number + 20))
    assert model.threads[0] != threading.get_ident()
    assert model.threads[-1] == threading.get_ident()


async def test_a_full_queue_says_so(threads: RunThreads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "WAITING_MAX", 3)
    batcher, _ = make(Model(), threads)
    answers = await asyncio.gather(
        *(submit(batcher, rows(n)) for n in range(5)), return_exceptions=True
    )
    assert answers[:3] == [[0], [2], [4]]
    assert all(isinstance(answer, ResourceExhaustedError) for answer in answers[3:])
    assert await submit(batcher, rows(9)) == [18]


async def test_what_cannot_be_answered_in_time_is_refused_at_once(threads: RunThreads) -> None:
    model = Model()
    batcher, _ = make(model, threads, rows_max=4)
    for rows_known in (1, 4):
        for _ in range(60):
            batcher.expect(rows_known, 100_000_000)
    model.gate = threading.Event()
    first = asyncio.create_task(submit(batcher, rows(1)))
    await asyncio.to_thread(model.entered.wait)
    now_ns = time.monotonic_ns()
    soon = asyncio.create_task(submit(batcher, rows(2), now_ns + 200_000_000))
    later = asyncio.create_task(submit(batcher, rows(3), now_ns + 10**12))
    patient = asyncio.create_task(submit(batcher, rows(4)))
    done, _ = await asyncio.wait([soon, later, patient], return_when=asyncio.FIRST_COMPLETED)
    assert done == {soon}
    with pytest.raises(ResourceExhaustedError, match="before the caller's deadline"):
        await soon
    model.gate.set()
    assert [await first, await later, await patient] == [[2], [6], [8]]


async def test_an_idle_model_is_always_tried(threads: RunThreads) -> None:
    """Else a forecast that was once too long would never be mended."""
    model = Model()
    batcher, _ = make(model, threads, rows_max=4)
    for _ in range(60):
        batcher.expect(1, 10**11)
    answers = [
        await submit(batcher, rows(value), time.monotonic_ns() + 5 * 10**9) for value in (1, 2)
    ]
    assert answers == [[2], [4]]


async def test_several_runs_go_on_at_the_same_time(threads: RunThreads) -> None:
    model = Model()
    both = threading.Barrier(2, timeout=10)
    statistics = Statistics()

    def run(feeds: list[Array]) -> list[Array]:
        both.wait()
        return model.run(feeds)

    batcher = Batcher(run, 1, statistics, threads, name="m", runs_max=2)
    batcher.expect(1, 50_000_000)
    assert await asyncio.gather(*(submit(batcher, rows(n)) for n in range(4))) == [
        [0], [2], [4], [6]
    ]  # fmt: skip
    assert statistics.execution_count == 4
    assert batcher.running == 0


async def test_others_have_their_turn_between_many_short_batches(threads: RunThreads) -> None:
    model = Model()
    batcher, _ = make(model, threads, rows_max=1)
    for _ in range(60):
        batcher.expect(1, 900_000)
    turns: list[int] = []

    def note() -> None:
        turns.append(len(model.runs))
        if len(model.runs) < 12:
            asyncio.get_running_loop().call_soon(note)

    tasks = [asyncio.create_task(submit(batcher, rows(n))) for n in range(12)]
    await asyncio.sleep(0)
    note()
    assert await asyncio.gather(*tasks) == [[2 * n] for n in range(12)]
    assert len(set(turns)) > 2  # not all at once


async def test_a_long_queue_is_answered_in_its_order(threads: RunThreads) -> None:
    model = Model()
    batcher, _ = make(model, threads, rows_max=2)
    for rows_known in (1, 2):
        batcher.expect(rows_known, 50_000_000)
    order: list[float] = []

    async def ask(value: int) -> None:
        order.extend(await submit(batcher, rows(value)))

    await asyncio.gather(*(ask(value) for value in range(50)))
    assert order == [2 * value for value in range(50)]
    assert batcher.waiting == 0


async def test_behind_many_whose_callers_left_somebody_still_waits(threads: RunThreads) -> None:
    model = Model()
    batcher, _ = make(model, threads, rows_max=1)
    batcher.expect(1, 50_000_000)
    model.gate = threading.Event()
    first = asyncio.create_task(submit(batcher, rows(1)))
    await asyncio.to_thread(model.entered.wait)
    left = [asyncio.create_task(submit(batcher, rows(n))) for n in range(40)]
    last = asyncio.create_task(submit(batcher, rows(7)))
    await asyncio.sleep(0)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    model.gate.set()
    assert await first == [2]
    assert await asyncio.wait_for(last, 10) == [14]
    assert model.runs == [1, 1]
