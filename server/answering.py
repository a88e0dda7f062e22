"""A worker's answers to its supervisor's questions (`processes.questions`).

A trace is begun by the thread that reads the question: an event loop that is blocked is just what
it is to show.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from headrace.errors import HeadraceError
from server import loop_trace
from server.processes.questions import ANSWER, ASK, TRACE
from server.wire.handlers import as_headrace_error


class Answering:
    """`answers` are asked on the event loop, whose thread is `thread_id`."""

    def __init__(
        self,
        say: Callable[[dict[str, Any]], None],
        answers: Mapping[str, Callable[[dict[str, Any]], Awaitable[Any]]],
        thread_id: int,
    ) -> None:
        self._say = say
        self._answers = answers
        self._thread_id = thread_id
        self._tracing = threading.Lock()

    def take_at_once(self, line: bytes) -> bool:
        """Begin a trace, if that is what a line of stdin asks for."""
        try:
            question = msgspec.json.decode(line, type=dict[str, dict[str, Any]]).get(ASK)
        except msgspec.DecodeError:
            return False
        if question is None or question["what"] != TRACE:
            return False
        threading.Thread(target=self._trace, args=(question,), daemon=True).start()
        return True

    async def answer(self, question: dict[str, Any]) -> None:
        """Answer any other question."""
        value, error = None, None
        try:
            value = await self._answers[question["what"]](question)
        except Exception as problem:  # noqa: BLE001 - who asked waits for an answer
            error = as_headrace_error(problem, f"question '{question['what']}'")
        self._reply(question, value, error)

    def _trace(self, question: dict[str, Any]) -> None:
        with self._tracing:  # two at a time would see each other
            self._reply(question, loop_trace.trace(self._thread_id, question["seconds"]), None)

    def _reply(self, question: dict[str, Any], value: Any, error: HeadraceError | None) -> None:
        told = None if error is None else {"code": error.code, "text": error.message}
        self._say({"event": ANSWER, "number": question["number"], "value": value, "error": told})
