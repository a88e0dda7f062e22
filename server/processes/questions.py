"""Questions of the supervisor to its workers: one line on stdin, the answer as an event."""

from __future__ import annotations

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
from server.processes.answers import Answers
from server.processes.child import Child, line_of

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
        self._answers = Answers()

    async def ask(self, child: Child, what: str, timeout_s: float, **arguments: Any) -> Any:
        """Return a worker's answer. Raises UnavailableError when it ends or does not answer in
        time, and what it says that went wrong."""
        self._number += 1
        line = line_of({ASK: {"number": self._number, "what": what, **arguments}})
        event = await self._answers.ask(child, self._number, line, timeout_s)
        if (error := event["error"]) is not None:
            raise _ERRORS.get(error["code"], InternalError)(error["text"])
        return event["value"]

    def hear(self, child: Child, event: dict[str, Any]) -> None:
        """Take an event of a worker; one that is none of ours is passed over."""
        if event.get("event") == ANSWER:
            self._answers.hear(child, event["number"], event)
