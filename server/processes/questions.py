"""Questions of the supervisor to its workers: one line on stdin, the answer as an event."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from headrace.errors import (
    FailedPreconditionError,
    HeadraceError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    UnimplementedError,
)
from server.processes.child import Child

ASK, ANSWER = "question", "answer"  # a line on a worker's stdin, and an event on its stdout
TRACE = "trace"
_ERRORS: dict[str, type[HeadraceError]] = {
    each.code: each
    for each in (
        FailedPreconditionError, InvalidArgumentError, NotFoundError, ResourceExhaustedError,
        UnavailableError, UnimplementedError,
    )
}  # fmt: skip


class Questions:
    """Asks, and hands the answers out by number."""

    def __init__(self) -> None:
        self._number = 0
        self._waiting: dict[tuple[int, int], asyncio.Future[Any]] = {}

    async def ask(self, child: Child, what: str, timeout_s: float, **arguments: Any) -> Any:
        """Return a worker's answer. Raises UnavailableError when it ends or does not answer in
        time, and what it says that went wrong."""
        self._number += 1
        key = (self._number, child.pid)
        self._waiting[key] = answer = asyncio.get_running_loop().create_future()
        ended = asyncio.create_task(child.wait())
        question = {"number": self._number, "what": what, **arguments}
        child.send_line(json.dumps({ASK: question}, separators=(",", ":")).encode())
        try:
            done, _ = await asyncio.wait(
                {answer, ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            ended.cancel()
            del self._waiting[key]
        if answer in done:
            event = answer.result()
            if (error := event["error"]) is not None:
                raise _ERRORS.get(error["code"], InternalError)(error["text"])
            return event["value"]
        why = "has ended" if done else f"has not answered within {timeout_s:g} s"
        raise UnavailableError(f"{child.spec.role} {why}")

    def hear(self, child: Child, event: dict[str, Any]) -> None:
        """Take an event of a worker; one that is none of ours is passed over."""
        if event.get("event") == ANSWER:
            waiting = self._waiting.get((event["number"], child.pid))
            if waiting is not None and not waiting.done():
                waiting.set_result(event)
