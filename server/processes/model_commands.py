"""Changes of the model repository, for all workers: who is asked passes it on, and waits for all.

A worker that gets a request to load or unload says so on its stdout; the supervisor gives the
command to every worker, one command after another, and hands the outcome back. What stands after
it is written down for workers that start later.
"""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any, Protocol

from server.processes.child import Child

_LOG = logging.getLogger("headrace")
COMMAND, OUTCOME = "model_command", "model_outcome"  # lines on a worker's stdin
ASKED, DONE = "model_asked", "model_done"  # events on its stdout
# A model that takes longer to load than this has hung its worker, as far as others can tell.
_TIMEOUT_S = 1800.0

Command = dict[str, Any]  # op: load or unload; name; config; files: digests by VERSION/NAME


class Children(Protocol):
    """Who runs."""

    def ready(self) -> list[Child]:
        """Return the children that are ready and take lines."""


class ModelCommands:
    """`standing` is the file with the last command that held for each model."""

    def __init__(self, children: Children, standing: Path) -> None:
        self._children = children
        self._file = standing
        self._standing: dict[str, Command] = {}
        self._one_at_a_time = asyncio.Lock()
        self._number = 0
        self._answers: dict[tuple[int, int], asyncio.Future[str | None]] = {}  # by number and pid
        self._tasks: set[asyncio.Task[None]] = set()
        standing.unlink(missing_ok=True)  # a start begins with what its settings say

    def hear(self, child: Child, event: dict[str, Any]) -> None:
        """Take an event of a worker; one that is none of ours is passed over."""
        if event.get("event") == ASKED:
            task = asyncio.create_task(self._run(child, event["id"], event["command"]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif event.get("event") == DONE:
            answer = self._answers.get((event["number"], child.pid))
            if answer is not None and not answer.done():
                answer.set_result(event["error"])

    async def _run(self, asker: Child, request_id: int, command: Command) -> None:
        async with self._one_at_a_time:
            error = await self._everywhere(command)
        outcome = {OUTCOME: {"id": request_id, "error": error}}
        asker.send_line(json.dumps(outcome, separators=(",", ":")).encode())

    async def _everywhere(self, command: Command) -> str | None:
        self._number += 1
        number = self._number
        line = json.dumps({COMMAND: {**command, "number": number}}, separators=(",", ":")).encode()
        asked = self._children.ready()
        errors = await asyncio.gather(*(self._ask(child, number, line) for child in asked))
        failed = [error for error in errors if error is not None]
        if failed and len(failed) < len(errors):
            _LOG.error("%d of %d workers failed: %s", len(failed), len(errors), failed[0])
        if failed:
            return failed[0]
        self._standing[command["name"]] = command
        self._write()
        for child in self._children.ready():
            if child not in asked:  # it started meanwhile, by what stood before
                child.send_line(line)
        return None

    async def _ask(self, child: Child, number: int, line: bytes) -> str | None:
        """Return why it failed; None of one that ended: its successor does what stands."""
        key = (number, child.pid)
        self._answers[key] = answer = asyncio.get_running_loop().create_future()
        ended = asyncio.create_task(child.wait())
        child.send_line(line)
        try:
            done, _ = await asyncio.wait(
                {answer, ended}, timeout=_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                return f"{child.spec.role} has not answered within {_TIMEOUT_S:g} s"
            return answer.result() if answer.done() else None
        finally:
            ended.cancel()
            del self._answers[key]

    def _write(self) -> None:
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(list(self._standing.values())))
        temporary.replace(self._file)
