"""What an event loop does, seen from another thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from server.loop_trace import LoopTrace, trace

LOOKS = st.lists(st.tuples(st.integers(1, 5), st.sampled_from([None, "a", "b", "c"])), max_size=50)


@given(LOOKS)
def test_looks_at_one_callback_are_one_hold(looks: list[tuple[int, str | None]]) -> None:
    found = LoopTrace(1_000_000)
    expected: list[list[Any]] = []  # [callback, first, last]
    now_ns, before = 0, None
    for pause, callback in looks:
        now_ns += pause * 1_000_000
        found.look(now_ns, callback, (callback,) if callback else ())
        if callback is not None and callback == before:
            expected[-1][2] = now_ns
        elif callback is not None:
            expected.append([callback, now_ns, now_ns])
        before = callback
    result = found.result()
    busy = [callback for _, callback in looks if callback is not None]
    assert result["busy"] == pytest.approx(len(busy) / max(len(looks), 1))
    shares = {each["stack"][0]: each["share"] * len(looks) for each in result["stacks"]}
    assert shares == pytest.approx({name: busy.count(name) for name in set(busy)})
    longest = sorted((last - first + 1_000_000 for _, first, last in expected), reverse=True)[:10]
    assert [each["ms"] for each in result["longest"]] == [ns / 1e6 for ns in longest]


def test_stacks_do_not_pile_up() -> None:
    found = LoopTrace(1)
    for number in range(5_000):
        found.look(number, object(), (str(number),))
    assert len(found._stacks) <= 1000
    assert len(found.result()["longest"]) == 10


def _block(release: threading.Event) -> None:
    release.wait(10.0)


@pytest.mark.slow
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_callback_that_blocks_is_seen(run: Callable[[Any], None]) -> None:
    release, started = threading.Event(), threading.Event()
    ids: list[int] = []

    async def main() -> None:
        ids.append(threading.get_ident())
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0.2)
        started.set()
        loop.call_soon(_block, release)
        await asyncio.sleep(0)
        await asyncio.sleep(0.2)

    thread = threading.Thread(target=run, args=(main(),))
    thread.start()
    try:
        assert started.wait(10.0)
        found = trace(ids[0], 0.5)
    finally:
        release.set()
        thread.join()
    assert found["longest"][0]["stack"][0].startswith(f"{__name__}._block:")
    assert found["longest"][0]["ms"] > 100
    assert found["busy"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_loop_that_waits_is_not_busy(run: Callable[[Any], None]) -> None:
    ids: list[int] = []
    ready, done = threading.Event(), threading.Event()

    async def main() -> None:
        ids.append(threading.get_ident())
        ready.set()
        await asyncio.to_thread(done.wait, 10.0)

    thread = threading.Thread(target=run, args=(main(),))
    thread.start()
    try:
        assert ready.wait(10.0)
        found = trace(ids[0], 0.3)
    finally:
        done.set()
        thread.join()
    assert found["busy"] < 0.5
