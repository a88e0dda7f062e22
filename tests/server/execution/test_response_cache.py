"""The response cache: what it keeps, what it forgets, and who shares a run."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import DeadlineExceededError, InternalError
from server.execution.lots import Timing
from server.execution.response_cache import CachedRuns, ResponseCache, digest

Array = np.ndarray[Any, Any]
ENTRY = 512
TIMING = Timing(1, 2, 3, 4)


def answer(size: int, fill: int = 0) -> list[Array]:
    return [np.full(size, fill, np.uint8)]


@given(st.lists(st.tuples(st.integers(0, 7), st.booleans(), st.integers(0, 900)), max_size=60))
def test_it_is_a_least_recently_used_table(steps: list[tuple[int, bool, int]]) -> None:
    cache, model = ResponseCache(3_000), OrderedDict[int, int]()
    for name, asks, size in steps:
        key = (1, bytes([name]))
        if asks:
            found = cache.get(key)
            assert (found is not None) == (name in model)
            if name in model:
                model.move_to_end(name)
            continue
        cache.put(key, answer(size))
        if name not in model:
            while sum(model.values()) + ENTRY + size > 3_000:
                model.popitem(last=False)
            model[name] = ENTRY + size
        assert cache.bytes == sum(model.values())
        assert len(cache) == len(model)


def test_what_does_not_fit_at_all_drives_nothing_out() -> None:
    cache = ResponseCache(1_000)
    cache.put((1, b"a"), answer(10))
    cache.put((1, b"b"), answer(1_000))
    assert cache.get((1, b"a")) is not None
    assert cache.get((1, b"b")) is None


def test_answers_are_copies_that_nobody_changes() -> None:
    cache = ResponseCache(10_000)
    batch = np.arange(100, dtype=np.uint8)
    cache.put((1, b"a"), [batch[10:20]])
    batch[:] = 0
    (kept,) = cache.get((1, b"a")) or ()
    assert kept.tolist() == list(range(10, 20))
    assert kept.base is None
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 1


def test_a_model_that_is_gone_leaves_nothing() -> None:
    cache = ResponseCache(10_000)
    cache.put((1, b"a"), answer(10))
    cache.put((2, b"a"), [np.array(["text"], object)])
    assert cache.bytes == 2 * ENTRY + 10 + 64 + 4
    cache.keep({2})
    assert (len(cache), cache.bytes) == (1, ENTRY + 64 + 4)
    cache.keep(())
    assert (len(cache), cache.bytes) == (0, 0)


def test_other_content_has_another_digest() -> None:
    feeds: list[list[Array]] = [
        [np.zeros((2, 3), np.float32)], [np.zeros((3, 2), np.float32)],
        [np.zeros((2, 3), np.float32), np.zeros(0, np.float32)], [np.ones((2, 3), np.float32)],
        [np.array(["ab", "c"], object)], [np.array(["a", "bc"], object)],
        [np.array(["abc"], object)], [np.array(["ab"], object), np.array(["c"], object)],
    ]  # fmt: skip
    assert len({digest(each) for each in feeds}) == len(feeds)
    strided = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]
    assert digest([strided]) == digest([strided.copy()])


class Model:
    """Runs that end when the test says so."""

    def __init__(self) -> None:
        self.runs: list[asyncio.Future[tuple[list[Array], Timing]]] = []
        self.began = asyncio.Event()

    async def run(
        self, feeds: list[Array], rows: int, deadline_ns: int | None, priority: int, timeout_ns: int
    ) -> tuple[list[Array], Timing]:
        assert deadline_ns is None  # one who shares it may have more time
        future = asyncio.get_running_loop().create_future()
        self.runs.append(future)
        self.began.set()
        result: tuple[list[Array], Timing] = await future
        return result


FEEDS: list[Array] = [np.ones(3, np.float32)]


async def started(runs: CachedRuns, model: Model, count: int) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(runs.run(FEEDS, 1, None, 0)) for _ in range(count)]
    await model.began.wait()
    return tasks


async def test_identical_requests_share_a_run_and_later_ones_take_none() -> None:
    model, cache = Model(), ResponseCache(10_000)
    runs = CachedRuns(cache, 1, model.run)
    tasks = await started(runs, model, 5)
    model.runs[0].set_result((answer(4, 7), TIMING))
    answers = await asyncio.gather(*tasks)
    assert len(model.runs) == 1
    assert [each.timing for each in answers] == [TIMING, None, None, None, None]
    later = await runs.run(FEEDS, 1, None, 0)
    assert later.timing is None
    assert later.arrays[0].tolist() == [7] * 4
    assert len(model.runs) == 1
    # Of another version nothing is known.
    model.began.clear()
    (other,) = await started(CachedRuns(cache, 2, model.run), model, 1)
    model.runs[1].set_result((answer(4, 8), TIMING))
    assert (await other).arrays[0].tolist() == [8] * 4


async def test_a_failed_run_fails_all_who_wait_and_is_not_kept() -> None:
    model, cache = Model(), ResponseCache(10_000)
    runs = CachedRuns(cache, 1, model.run)
    tasks = await started(runs, model, 3)
    model.runs[0].set_exception(InternalError("broken"))
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, InternalError)
    assert len(cache) == 0
    model.began.clear()
    (again,) = await started(runs, model, 1)
    model.runs[1].set_result((answer(1), TIMING))
    assert (await again).timing == TIMING


async def test_whoever_asked_first_may_leave() -> None:
    model = Model()
    runs = CachedRuns(ResponseCache(10_000), 1, model.run)
    first, second = await started(runs, model, 2)
    first.cancel()
    await asyncio.wait({first})
    model.runs[0].set_result((answer(1, 3), TIMING))
    assert (await second).arrays[0].tolist() == [3]


async def test_a_run_that_nobody_waits_for_is_called_off() -> None:
    model = Model()
    runs = CachedRuns(ResponseCache(10_000), 1, model.run)
    tasks = await started(runs, model, 2)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    model.began.clear()
    (again,) = await started(runs, model, 1)
    assert model.runs[0].cancelled()
    model.runs[1].set_result((answer(1, 4), TIMING))
    assert (await again).arrays[0].tolist() == [4]


async def test_each_waits_as_long_as_its_own_deadline() -> None:
    model = Model()
    runs = CachedRuns(ResponseCache(10_000), 1, model.run)
    (patient,) = await started(runs, model, 1)
    with pytest.raises(DeadlineExceededError):
        await runs.run(FEEDS, 1, time.monotonic_ns() + 1_000_000, 0)
    model.runs[0].set_result((answer(1, 5), TIMING))
    assert (await patient).arrays[0].tolist() == [5]


async def test_large_inputs_are_hashed_outside_of_the_loop() -> None:
    model = Model()
    runs = CachedRuns(ResponseCache(10_000), 1, model.run)
    large: list[Array] = [np.zeros(1 << 21, np.uint8)]
    for count in (1, 1):
        task = asyncio.create_task(runs.run(large, 1, None, 0))
        if not model.runs:
            await model.began.wait()
            model.runs[0].set_result((answer(1, 6), TIMING))
        assert (await task).arrays[0].tolist() == [6]
        assert len(model.runs) == count
