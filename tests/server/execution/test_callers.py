from __future__ import annotations

import asyncio

from server.execution.callers import Callers


async def test_an_engine_without_callers_ends_at_once() -> None:
    await Callers().gone()


async def test_the_last_caller_who_leaves_ends_the_wait() -> None:
    callers = Callers()
    for _ in range(2):
        callers.come()
    waiting = asyncio.create_task(callers.gone())
    await asyncio.sleep(0)
    callers.leave()
    await asyncio.sleep(0)
    assert (waiting.done(), len(callers)) == (False, 1)
    callers.leave()
    await waiting


async def test_who_comes_before_the_wait_is_over_is_waited_for() -> None:
    callers = Callers()
    callers.come()
    waiting = asyncio.create_task(callers.gone())
    await asyncio.sleep(0)
    callers.leave()
    callers.come()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    callers.leave()
    await waiting
