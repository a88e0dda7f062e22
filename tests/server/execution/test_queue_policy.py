"""`dynamic_batching`: sizes, delays, queues and priorities, as a configuration asks for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from headrace.errors import HeadraceError, ResourceExhaustedError, UnavailableError
from server.execution import waiting
from server.execution.batcher import Batcher
from server.execution.lots import NEVER_NS, Timing
from server.execution.queue_policy import LevelPolicy, QueuePolicy, policy_of
from server.execution.statistics import Statistics
from server.execution.threads import RunThreads

Array = np.ndarray[Any, Any]
SECOND_NS = 10**9
LONG_NS = 1_000 * SECOND_NS


def of(text: str) -> QueuePolicy | None:
    return policy_of(text_format.Parse(text, model_config_pb2.ModelConfig()))


@pytest.mark.parametrize(
    "text", ["", "dynamic_batching { }", "dynamic_batching { preserve_ordering: true }"]
)
def test_what_is_done_anyway_needs_no_policy(text: str) -> None:
    assert of(text) is None


def test_a_configuration() -> None:
    policy = of("""dynamic_batching {
        preferred_batch_size: [8, 4] max_queue_delay_microseconds: 100
        priority_levels: 3 default_priority_level: 2
        default_queue_policy { max_queue_size: 5 default_timeout_microseconds: 7 }
        priority_queue_policy { key: 1 value { timeout_action: DELAY max_queue_size: 9 } }
    }""")
    assert policy == QueuePolicy(
        100_000, (4, 8), 3, 2, LevelPolicy(5, 7_000), {1: LevelPolicy(9, 0, delays=True)}
    )
    assert [policy.level(priority) for priority in (0, 1, 2, 3, 4)] == [2, 1, 2, 3, 2]
    assert policy.of(1).requests_max == 9
    assert policy.of(0).requests_max == policy.of(3).requests_max == 5
    assert not policy.of(1).overrides
    policy = of("dynamic_batching { default_queue_policy { allow_timeout_override: true } }")
    assert policy == QueuePolicy(default=LevelPolicy(overrides=True))


@given(st.integers(0, 40), st.integers(1, 32), st.lists(st.integers(1, 40), max_size=3))
def test_what_runs_at_once(rows: int, rows_max: int, preferred: list[int]) -> None:
    size = QueuePolicy(1, tuple(sorted(preferred))).size(rows, rows_max)
    if rows >= rows_max:
        assert size == rows_max
    elif any(each <= rows for each in preferred):
        assert size == max(each for each in preferred if each <= rows)
    else:
        assert size is None


class Model:
    """Notes the first value of each row that it runs; a run waits for the gate, if there is one."""

    def __init__(self) -> None:
        self.runs: list[list[int]] = []
        self.gate: threading.Event | None = None
        self.entered = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def run(self, feeds: list[Array]) -> list[Array]:
        self.runs.append(feeds[0][:, 0].astype(int).tolist())
        self._loop.call_soon_threadsafe(self.entered.set)
        if self.gate is not None:
            assert self.gate.wait(10)
        return [feeds[0] * 2]


@pytest.fixture
def executor() -> Iterator[RunThreads]:
    with RunThreads(1, 1) as executor:
        yield executor


def make(executor: RunThreads, policy: QueuePolicy, rows_max: int = 16) -> tuple[Model, Batcher]:
    model = Model()
    batcher = Batcher(model.run, rows_max, Statistics(), executor, name="m", policy=policy)
    return model, batcher


def ask(batcher: Batcher, *values: int, priority: int = 0) -> asyncio.Task[Any]:
    feeds = [np.array(values, np.float32).reshape(-1, 1)]
    return asyncio.create_task(_ask(batcher, feeds, priority))


async def _ask(batcher: Batcher, feeds: list[Array], priority: int) -> list[int]:
    outputs, _ = await batcher.submit(feeds, len(feeds[0]), None, priority)
    answer: list[int] = outputs[0].reshape(-1).astype(int).tolist()
    return answer


@pytest.fixture
async def busy(executor: RunThreads) -> AsyncIterator[Any]:
    """Makes a batcher whose model is in a long run, and lets it go on."""
    held: list[Model] = []

    async def make_busy(policy: QueuePolicy) -> tuple[Model, Batcher]:
        model, batcher = make(executor, policy)
        batcher.expect(1, 10 * SECOND_NS)  # it leaves the loop
        model.gate = threading.Event()
        held.append(model)
        ask(batcher, 99, priority=2)
        await asyncio.wait_for(model.entered.wait(), 10)
        return model, batcher

    yield make_busy
    for model in held:
        assert model.gate is not None
        model.gate.set()


async def test_a_preferred_size_is_awaited(executor: RunThreads) -> None:
    model, batcher = make(executor, QueuePolicy(LONG_NS, (4,)))
    first = [ask(batcher, value) for value in range(3)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert model.runs == []
    last = ask(batcher, 3)
    assert await asyncio.gather(*first, last) == [[0], [2], [4], [6]]
    assert model.runs == [[0, 1, 2, 3]]


async def test_the_largest_preferred_size_that_fits_and_the_rest_waits(
    executor: RunThreads,
) -> None:
    model, batcher = make(executor, QueuePolicy(LONG_NS, (2, 4)))
    tasks = [ask(batcher, value) for value in range(7)]
    done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    while len(done) < 6:
        more, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        done |= more
    assert model.runs == [[0, 1, 2, 3], [4, 5]]
    tasks.append(ask(batcher, 7))
    assert await asyncio.gather(*tasks[6:]) == [[12], [14]]


async def test_a_delay_that_is_over(executor: RunThreads) -> None:
    model, batcher = make(executor, QueuePolicy(1_000_000, (8,)))
    assert await asyncio.gather(ask(batcher, 1), ask(batcher, 2)) == [[2], [4]]
    assert [value for run in model.runs for value in run] == [1, 2]


async def test_a_full_batch_waits_for_nothing(executor: RunThreads) -> None:
    model, batcher = make(executor, QueuePolicy(LONG_NS), rows_max=4)
    assert await asyncio.gather(ask(batcher, 1, 2), ask(batcher, 3, 4)) == [[2, 4], [6, 8]]
    assert model.runs == [[1, 2, 3, 4]]


async def test_a_model_without_batches_waits_for_nothing(executor: RunThreads) -> None:
    _, batcher = make(executor, QueuePolicy(LONG_NS), rows_max=0)
    assert await ask(batcher, 1) == [2]


async def test_who_is_more_urgent_runs_first(busy: Any) -> None:
    model, batcher = await busy(QueuePolicy(0, (1,), levels=3, default_level=2))
    tasks = [
        ask(batcher, value, priority=priority)
        for value, priority in ((1, 3), (2, 0), (3, 1), (4, 7), (5, 1), (6, 2))
    ]
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(*tasks)
    assert model.runs == [[99], [3], [5], [2], [4], [6], [1]]


async def test_a_queue_that_is_full_refuses(busy: Any) -> None:
    policy = QueuePolicy(
        levels=2, default_level=1, default=LevelPolicy(2), of_levels={2: LevelPolicy(1)}
    )
    model, batcher = await busy(policy)
    tasks = [ask(batcher, value, priority=priority) for value, priority in
             ((1, 1), (2, 2), (3, 1), (4, 1), (5, 2))]  # fmt: skip
    await asyncio.sleep(0)
    model.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[:3] == [[2], [4], [6]]
    for answer in answers[3:]:
        assert isinstance(answer, UnavailableError)
        assert answer.message == "Exceeds maximum queue size"


async def test_while_nothing_runs_nothing_is_refused(executor: RunThreads) -> None:
    _, batcher = make(executor, QueuePolicy(default=LevelPolicy(1)))
    assert await asyncio.gather(*(ask(batcher, value) for value in range(3))) == [[0], [2], [4]]


@pytest.mark.parametrize("delays", [False, True])
async def test_who_waited_too_long(busy: Any, delays: bool) -> None:
    policy = QueuePolicy(
        0, (1,), levels=2, default_level=1, of_levels={1: LevelPolicy(0, 1, delays=delays)}
    )
    model, batcher = await busy(policy)
    tasks = [ask(batcher, 1, priority=1), ask(batcher, 2, priority=2)]
    await asyncio.sleep(0)
    model.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[1] == [4]
    if delays:
        assert answers[0] == [2]
        assert model.runs == [[99], [2], [1]]
    else:
        assert isinstance(answers[0], UnavailableError)
        assert answers[0].message == "Request timeout expired"


@pytest.mark.parametrize(
    ("default_ns", "own_ns", "may", "waits_ns"),
    [(0, 0, True, 0), (0, 5, True, 5), (9, 5, True, 5), (9, 20, True, 9), (9, 0, True, 9),
     (0, 5, False, 0), (9, 5, False, 9)],
)  # fmt: skip
def test_a_request_may_ask_to_wait_less_where_it_may(
    default_ns: int, own_ns: int, may: bool, waits_ns: int
) -> None:
    assert LevelPolicy(timeout_ns=default_ns, overrides=may).waits_ns(own_ns) == waits_ns


async def test_who_waited_longer_than_it_wanted(busy: Any) -> None:
    model, batcher = await busy(QueuePolicy(0, (1,), default=LevelPolicy(overrides=True)))
    feeds = [np.array([[1]], np.float32)]
    hurried = asyncio.create_task(batcher.submit(feeds, 1, None, 0, 1))
    patient = asyncio.create_task(batcher.submit(feeds, 1, None, 0, LONG_NS))
    await asyncio.sleep(0)
    model.gate.set()
    with pytest.raises(UnavailableError, match="Request timeout expired"):
        await hurried
    outputs, _ = await patient
    assert outputs[0].tolist() == [[2]]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=20),
    st.lists(st.integers(1, 8), max_size=2), st.integers(1, 9),
)  # fmt: skip
def test_everyone_is_answered_with_their_own_rows(
    requests: list[tuple[int, int]], preferred: list[int], rows_max: int
) -> None:
    async def run(executor: RunThreads) -> None:
        policy = QueuePolicy(1_000, tuple(sorted(preferred)), levels=2, default_level=1)
        _, batcher = make(executor, policy, rows_max)
        tasks = [
            ask(batcher, *range(10 * index, 10 * index + rows), priority=priority)
            for index, (rows, priority) in enumerate(requests)
        ]
        for index, (rows, _) in enumerate(requests):
            expected = [2 * value for value in range(10 * index, 10 * index + rows)]
            assert await asyncio.wait_for(tasks[index], 10) == expected
        assert batcher.waiting == 0

    with RunThreads(1, 1) as executor:
        asyncio.run(run(executor))


async def test_requests_without_rows_are_answered(executor: RunThreads) -> None:
    """Found by a review: they waited for ever, and the loop span."""
    _, batcher = make(executor, QueuePolicy(1_000, (4,)))
    assert await asyncio.wait_for(asyncio.gather(ask(batcher), ask(batcher)), 10) == [[], []]


async def test_no_shape_goes_before_another_for_ever(busy: Any) -> None:
    model, batcher = await busy(QueuePolicy(0, (1,)))
    wide = [np.array([[7, 7]], np.float32)]
    tasks = [ask(batcher, 1), asyncio.create_task(_ask(batcher, wide, 0)), ask(batcher, 2)]
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(*tasks)
    assert model.runs == [[99], [1], [7], [2]]


class Several:
    """A lot of requests of one row each, as a door takes them from one tick."""

    rows = 1
    arrived_ns = 0
    priority = 0
    timeout_ns = 0
    shape = ((1,),)
    first_deadline_ns = NEVER_NS
    last_deadline_ns = None

    def __init__(self, count: int, failed: list[tuple[int, HeadraceError]]) -> None:
        self.count = count
        self._failed = failed

    def keep_live(self, now_ns: int, answered_ns: float, *, ask: bool) -> int:
        return self.count

    def cut(self, count: int) -> Several:
        assert 0 < count < self.count
        self.count -= count
        return Several(count, self._failed)

    def feeds(self) -> list[Array]:
        return [np.zeros((self.count, 1), np.float32)]

    def answer(self, outputs: list[Array], timing: Timing) -> None: ...

    def fail(self, error: HeadraceError) -> None:
        self._failed.append((self.count, error))


async def test_a_lot_that_its_level_cuts_must_still_fit_into_the_queue(
    busy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "WAITING_MAX", 4)
    _, batcher = await busy(QueuePolicy(default=LevelPolicy(requests_max=6)))
    failed: list[tuple[int, HeadraceError]] = []
    batcher.take([Several(8, failed)])
    assert [(count, type(error)) for count, error in failed] == [
        (2, UnavailableError),
        (2, ResourceExhaustedError),
    ]
