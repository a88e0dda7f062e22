"""Changes of the model repository, for all workers: who is asked passes it on, and waits for all.

A worker that gets a request to load or unload says so on its stdout; the supervisor gives the
command to every worker, one command after another, and hands the outcome back. What stands after
it is written down for workers that start later.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any, Protocol

from server.processes.child import Child
from server.processes.layout import replace_file

_LOG = logging.getLogger("headrace")
COMMAND, OUTCOME = "model_command", "model_outcome"  # lines on a worker's stdin
ASKED, DONE = "model_asked", "model_done"  # events on its stdout
# A model that takes longer to load than this has hung its worker, as far as others can tell.
_TIMEOUT_S = 1800.0

Command = dict[str, Any]  # op: load or unload; name; config; files: digests by VERSION/NAME


_ENDED = object()  # a worker that is gone: its successor does what stands
# Files that no standing command names are kept as long: a request that brought them may wait.
_FILES_KEPT_S = 3600.0


class Children(Protocol):
    """Who runs."""

    def taking(self) -> list[Child]:
        """Return the children that take lines; `ready` of one that is not ready yet is empty."""


class ModelCommands:
    """`standing` is the file with the last command that held for each model, `files` the folder
    of what came with them."""

    def __init__(self, children: Children, standing: Path, files: Path) -> None:
        self._children = children
        self._file = standing
        self._files = files
        self._standing: dict[str, Command] = {}
        self._one_at_a_time = asyncio.Lock()
        self._number = 0
        self._answers: dict[tuple[int, int], asyncio.Future[str | None]] = {}  # by number and pid
        self._tasks: set[asyncio.Task[None]] = set()
        # A start begins with what its settings say.
        standing.unlink(missing_ok=True)
        shutil.rmtree(files, ignore_errors=True)

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
            try:
                error = await self._everywhere(command)
            except Exception:  # noqa: BLE001 - whoever asked must hear of an end
                _LOG.exception("a command about model %s failed", command["name"])
                error = f"failed to {command['op']} '{command['name']}', the log has the cause"
        outcome = {OUTCOME: {"id": request_id, "error": error}}
        asker.send_line(json.dumps(outcome, separators=(",", ":")).encode())

    async def _everywhere(self, command: Command) -> str | None:
        self._number += 1
        number = self._number
        line = json.dumps({COMMAND: {**command, "number": number}}, separators=(",", ":")).encode()
        told = self._children.taking()
        # One that is not ready reads it then; it is not waited for.
        waited = [child for child in told if child.ready]
        for child in told:
            if child not in waited:
                child.send_line(line)
        outcomes = await asyncio.gather(*(self._ask(child, number, line) for child in waited))
        failed = [outcome for outcome in outcomes if isinstance(outcome, str)]
        if failed:
            if len(failed) < len(outcomes):
                _LOG.error("%d of %d workers failed: %s", len(failed), len(outcomes), failed[0])
            return failed[0]
        if None not in outcomes:  # nobody lives who did it: whoever does it may die of it
            return f"failed to {command['op']} '{command['name']}', the worker that tried it ended"
        self._standing[command["name"]] = command
        self._write()
        self._tidy()
        for child in self._children.taking():
            if child not in told:  # it was started meanwhile, by what stood before
                child.send_line(line)
        return None

    async def _ask(self, child: Child, number: int, line: bytes) -> object:
        """Return None when it did it, why it failed, or _ENDED."""
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
            return answer.result() if answer.done() else _ENDED
        finally:
            ended.cancel()
            del self._answers[key]

    def _tidy(self) -> None:
        """Remove files that no command names any more."""
        named = {digest for command in self._standing.values()
                 for digest in command.get("files", {}).values()}  # fmt: skip
        oldest_s = time.time() - _FILES_KEPT_S
        for path in self._files.iterdir() if self._files.is_dir() else ():
            if path.name not in named and path.stat().st_mtime < oldest_s:
                path.unlink(missing_ok=True)

    def _write(self) -> None:
        replace_file(self._file, json.dumps(list(self._standing.values())).encode())
