"""Runs that do not end, and arenas that give back what a large run took."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from headrace.errors import InternalError, ResourceExhaustedError
from server.execution.batcher import Batcher
from server.execution.session import Session
from server.execution.statistics import Statistics
from server.execution.threads import RunThreads
from server.execution.watchdog import RunStoppedError, Watchdog
from tests.server.onnx_models import endless_model, filling_model, mlp_model
from tests.support.memory import anonymous_bytes

ENDLESS = np.array([-1.0], np.float32)
SHORT = np.array([3.0], np.float32)


@pytest.fixture
def executor() -> Iterator[RunThreads]:
    with RunThreads(2, 1) as executor:
        yield executor


def endless(run_max_s: float, loop_max_s: float = 0.2) -> tuple[Session, Watchdog]:
    watchdog = Watchdog(run_max_s, loop_max_s)
    return Session(endless_model(), Path(), watched_by=watchdog), watchdog


def test_a_run_that_does_not_end_is_ended_and_the_next_one_is_not() -> None:
    session, watchdog = endless(0.2)
    for _ in range(2):
        with pytest.raises(RunStoppedError, match=r"did not end in time .*at most 0.2 s"):
            session.run([ENDLESS])
        assert session.run([SHORT])[0].tolist() == [3.0]
    assert watchdog.runs == {}


def test_each_run_has_its_own_time() -> None:
    """Several threads run one session; only the run that is late is ended."""
    session, watchdog = endless(3600.0)
    failed = threading.Event()

    def run() -> None:
        with pytest.raises(RunStoppedError):
            session.run([ENDLESS])
        failed.set()

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    while len(watchdog.runs) < 2:
        time.sleep(0.001)
    first, second = watchdog.runs.values()
    watchdog.look(first[0] + 3_600_000_000_001)
    assert failed.wait(20)
    watchdog.look(second[0] + 7_200_000_000_000)
    for thread in threads:
        thread.join()
    assert watchdog.runs == {}


async def test_a_run_that_holds_up_the_loop_goes_on_in_a_thread(
    executor: RunThreads,
) -> None:
    """The first run of a model looks short and is not: the others wait for half a second, not for
    as long as a run may take; its request gets its time."""
    session, watchdog = endless(1.0)
    watchdog.guard_loop()
    threads: list[int] = []

    def run(feeds: list[np.ndarray]) -> list[np.ndarray]:
        threads.append(threading.get_ident())
        return session.run(feeds)

    batcher = Batcher(run, 16, Statistics(), executor, name="endless")
    batcher.expect(1, 1_000)
    with pytest.raises(RunStoppedError, match="at most 1 s"):
        await batcher.submit([ENDLESS], 1, None)
    assert (await batcher.submit([SHORT], 1, None))[0][0].tolist() == [3.0]
    here = threading.get_ident()
    assert [thread == here for thread in threads] == [True, False, False]


async def test_all_of_a_batch_that_does_not_end_hear_so_once(executor: RunThreads) -> None:
    session, _ = endless(0.3)
    batcher = Batcher(session.run, 16, Statistics(), executor, name="endless")
    batcher.expect(1, 10**10)  # in a thread
    began = time.monotonic()
    answers = await asyncio.gather(
        *(batcher.submit([ENDLESS], 1, None) for _ in range(8)), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [RunStoppedError] * 8
    assert time.monotonic() - began < 8 * 0.3
    assert (await batcher.submit([SHORT], 1, None))[0][0].tolist() == [3.0]


async def test_rows_of_a_batch_that_failed_run_alone_and_one_that_does_not_end_costs_no_other(
    executor: RunThreads,
) -> None:
    session, _ = endless(0.3)

    def run(feeds: list[np.ndarray]) -> list[np.ndarray]:
        if len(feeds[0]) > 1:
            raise InternalError("one of these is bad")
        return session.run(feeds)

    batcher = Batcher(run, 16, Statistics(), executor, name="endless")
    batcher.expect(1, 10**10)
    answers = await asyncio.gather(
        *(batcher.submit([row], 1, None) for row in (SHORT, ENDLESS, SHORT)),
        return_exceptions=True,
    )
    assert isinstance(answers[1], RunStoppedError)
    assert [answers[at][0][0].tolist() for at in (0, 2)] == [[3.0], [3.0]]  # type: ignore[index]


async def test_a_run_ends_when_nobody_waits_for_it_any_more(executor: RunThreads) -> None:
    session = Session(endless_model(), Path())  # of the process's own watchdog: 30 s
    batcher = Batcher(session.run, 16, Statistics(), executor, name="endless")
    batcher.expect(1, 5_000_000)  # in a thread
    began_ns = time.monotonic_ns()
    answers = await asyncio.gather(
        *(
            batcher.submit([ENDLESS], 1, began_ns + wait_ms * 1_000_000)
            for wait_ms in (300, 500, 400)
        ),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [RunStoppedError] * 3
    assert "deadline passed while the model ran" in str(answers[0])
    assert 0.5e9 < time.monotonic_ns() - began_ns < 20e9
    assert (await batcher.submit([SHORT], 1, None))[0][0].tolist() == [3.0]


async def test_a_caller_without_a_deadline_keeps_the_run_for_all(
    executor: RunThreads,
) -> None:
    session, _ = endless(0.6)
    batcher = Batcher(session.run, 16, Statistics(), executor, name="endless")
    batcher.expect(1, 5_000_000)
    soon_ns = time.monotonic_ns() + 200_000_000
    answers = await asyncio.gather(
        *(batcher.submit([ENDLESS], 1, deadline) for deadline in (soon_ns, None)),
        return_exceptions=True,
    )
    assert all("at most 0.6 s" in str(answer) for answer in answers)


def test_a_model_without_memory_is_told_so() -> None:
    session = Session(filling_model(), Path())
    with pytest.raises(ResourceExhaustedError, match="not enough memory"):
        session.run([np.array([1 << 50], np.int64)])
    assert session.run([np.array([3], np.int64)])[0].tolist() == [0.0] * 3


def test_what_a_large_run_took_is_given_back() -> None:
    watchdog = Watchdog()
    session = Session(mlp_model(8), Path(), watched_by=watchdog)
    row = np.ones((1, 8), np.float32)
    session.run([row])
    before = anonymous_bytes(os.getpid())
    large = np.ones((2_000_000, 8), np.float32)
    session.run([large])
    del large
    kept = anonymous_bytes(os.getpid()) - before
    assert kept > 50 << 20
    watchdog.shrink()
    session.run([row])
    assert anonymous_bytes(os.getpid()) - before < kept // 4
