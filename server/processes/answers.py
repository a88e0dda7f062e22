"""Answers of children: a line goes to stdin, and what comes of it is an event on stdout, later."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Any

from headrace.errors import UnavailableError
from server.processes.child import Child


class ChildEndedError(UnavailableError):
    """A child that ended before it answered."""


class Answers:
    """Waits for answers, and hands them out by what their line was called."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[Hashable, int], asyncio.Future[Any]] = {}

    async def ask(self, child: Child, name: Hashable, line: bytes, timeout_s: float) -> Any:
        """Send a line and return the answer to it.

        Raises ChildEndedError, and UnavailableError when there is none in time.
        """
        key = (name, child.pid)
        self._waiting[key] = answer = asyncio.get_running_loop().create_future()
        ended = asyncio.create_task(child.wait())
        child.send_line(line)
        try:
            done, _ = await asyncio.wait(
                {answer, ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            ended.cancel()
            del self._waiting[key]
        if answer in done:
            return answer.result()
        if done:
            raise ChildEndedError(f"{child.spec.role} has ended")
        raise UnavailableError(f"{child.spec.role} has not answered within {timeout_s:g} s")

    def hear(self, child: Child, name: Hashable, answer: Any) -> None:
        """Take an answer; one that nobody waits for any more is passed over."""
        waiting = self._waiting.get((name, child.pid))
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)
