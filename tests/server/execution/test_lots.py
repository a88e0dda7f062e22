"""The lot of one request: it wakes its caller once, and nobody who left."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from headrace.errors import DeadlineExceededError, InternalError
from server.execution.lots import Request, Timing

TIMING = Timing(1, 2, 3, 4)


def make(deadline_ns: int | None = None) -> tuple[Request, asyncio.Future[Any]]:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    return Request([np.zeros((2, 3)), np.zeros(2)], 2, deadline_ns, future), future


async def test_it_is_one_request_of_its_rows() -> None:
    request, future = make()
    assert (request.count, request.rows, request.shape) == (1, 2, ((3,), ()))
    assert request.feeds() is request.arrays
    assert request.keep_live(10**18, 10**18, ask=True) == 1
    request.answer([np.ones(2)], TIMING)
    outputs, timing = await future
    assert outputs[0].tolist() == [1, 1]
    assert timing is TIMING
    with pytest.raises(AssertionError):
        request.cut(1)


async def test_it_ends_at_its_deadline() -> None:
    request, future = make(deadline_ns=100)
    assert request.keep_live(99, 99, ask=False) == 1
    assert request.keep_live(100, 100, ask=False) == 0
    with pytest.raises(DeadlineExceededError):
        await future


async def test_it_fails_with_what_the_run_said() -> None:
    request, future = make()
    request.fail(InternalError("no"))
    with pytest.raises(InternalError):
        await future


async def test_a_caller_that_left_is_not_woken() -> None:
    request, future = make()
    future.cancel()
    assert request.keep_live(0, 0, ask=False) == 0
    request.answer([], TIMING)
    request.fail(InternalError("no"))
    assert future.cancelled()
