"""The threads of long runs, and when the loop rests for them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from server.execution.threads import RunThreads

MS = 1_000_000


@pytest.fixture
def threads() -> Iterator[RunThreads]:
    with RunThreads(2, 1) as threads:
        yield threads


async def test_what_it_does_comes_back(threads: RunThreads) -> None:
    loop = asyncio.get_running_loop()
    assert await threads.start(loop, lambda: 42, 1e6) == 42
    with pytest.raises(ZeroDivisionError):
        await threads.start(loop, lambda: 1 // 0, 1e6)
    assert not threads.crowded()


async def test_whoever_left_is_not_woken_and_the_thread_is_free_again(threads: RunThreads) -> None:
    loop = asyncio.get_running_loop()
    gate = threading.Event()
    left = threads.start(loop, gate.wait, 1e6)
    left.cancel()
    assert threads.crowded()  # it runs on
    gate.set()
    while threads.crowded():  # noqa: ASYNC110 - there is nothing else to wait for
        await asyncio.sleep(0)
    assert left.cancelled()
    assert await threads.start(loop, lambda: 42, 1e6) == 42


async def test_the_loop_rests_while_a_run_needs_its_core(threads: RunThreads) -> None:
    gate = threading.Event()
    assert threads.rest_ns() == 0
    run = threads.start(asyncio.get_running_loop(), gate.wait, 4 * MS)
    assert threads.crowded()
    assert threads.rest_ns() == 4 * MS
    threads.loop_works()  # others were answered in the loop: they must not wait
    assert threads.rest_ns() == 0
    assert threads.rest_ns() == 4 * MS
    long = threads.start(asyncio.get_running_loop(), gate.wait, 1e12)
    gate.set()
    await run
    assert threads.rest_ns() <= 5 * MS
    await long
    await asyncio.sleep(0)  # it may have ended together with the other one
    assert threads.rest_ns() == 0


async def test_it_does_not_rest_while_there_are_cores_for_both() -> None:
    gate = threading.Event()
    with RunThreads(2, 2) as threads:
        run = threads.start(asyncio.get_running_loop(), gate.wait, 4 * MS)
        assert not threads.crowded()
        assert threads.rest_ns() == 0
        gate.set()
        await run


async def test_a_rest_ends_with_the_run(threads: RunThreads) -> None:
    loop = asyncio.get_running_loop()
    began_s = time.monotonic()
    run = threads.start(loop, lambda: None, 4 * MS)
    threads.rest(60e9)  # whether the run has ended before, or ends meanwhile
    assert time.monotonic() - began_s < 30
    await run
    threads.rest(1.0)  # nothing runs: a moment


async def test_processes_are_left_the_core_but_end_no_rest(threads: RunThreads) -> None:
    assert not threads.crowded()
    threads.processes = 1
    assert threads.crowded()  # so it does not spin
    assert threads.rest_ns() == 0  # and does not sleep through their answer


async def test_between_a_run_and_the_next_the_cores_are_taken_all_the_same() -> None:
    loop = asyncio.get_running_loop()
    with RunThreads(1, 1) as threads:
        seen: list[bool] = []
        over = loop.create_future()

        def look() -> None:  # in every round of the loop, as a tick would
            if not over.done():
                seen.append(threads.crowded())
                loop.call_soon(look)

        def go_on(_: object) -> None:
            threads.start(loop, int, 1e6).add_done_callback(over.set_result)

        threads.start(loop, int, 1e6).add_done_callback(go_on)
        loop.call_soon(look)
        await over
    assert seen
    assert all(seen)
