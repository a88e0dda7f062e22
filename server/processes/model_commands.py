"""Changes of the model repository, for all workers: who is asked passes it on, and waits for all.

A worker that gets a request to load or unload, or sees a change in the folder, says so on its
stdout; the supervisor gives the command to every worker, one command after another, and hands the
outcome back. First all of them prepare; when all are ready they take the change, and when one is
not, all drop it: workers never differ. What requests asked for and stands after it is written down
for workers that start later.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any, Protocol

from headrace.errors import UnavailableError
from server.processes.answers import Answers, ChildEndedError
from server.processes.child import Child, line_of
from server.processes.layout import replace_file

_LOG = logging.getLogger("headrace")
COMMAND, OUTCOME = "model_command", "model_outcome"  # lines on a worker's stdin
ASKED, DONE = "model_asked", "model_done"  # events on its stdout
# A model that takes longer to load than this has hung its worker, as far as others can tell.
_TIMEOUT_S = 1800.0

# op: load, unload or refresh (as the folder is); name; config; files: digests by VERSION/NAME
Command = dict[str, Any]
REFRESH = "refresh"
PREPARE, TAKE, DROP, DO = "prepare", "take", "drop", "do"  # steps; `do` is for one alone


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
        self._answers = Answers()  # by number and step
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
            self._answers.hear(child, (event["number"], event["step"]), event["error"])

    async def _run(self, asker: Child, request_id: int, command: Command) -> None:
        async with self._one_at_a_time:
            try:
                error = await self._everywhere(command)
            except Exception:  # noqa: BLE001 - whoever asked must hear of an end
                _LOG.exception("a command about model %s failed", command["name"])
                error = f"failed to {command['op']} '{command['name']}', the log has the cause"
        asker.send_line(line_of({OUTCOME: {"id": request_id, "error": error}}))

    async def _everywhere(self, command: Command) -> str | None:
        self._number += 1
        command = {**command, "number": self._number}
        # One that is not ready is not waited for: it gets what came of it.
        waited = [child for child in self._children.taking() if child.ready]
        outcomes = await self._ask_all(waited, command, PREPARE)
        error = self._problem(command, outcomes) or self._keep(command)
        if error is not None:
            for child in waited:
                child.send_line(_line(command | {"error": error}, DROP))
            return error
        await self._ask_all(waited, command, TAKE)
        for child in self._children.taking():
            if child not in waited:  # it was started by what stood before
                child.send_line(_line(command, DO))
        return None

    @staticmethod
    def _problem(command: Command, outcomes: list[object]) -> str | None:
        """Return why not all that live are ready."""
        failed = [outcome for outcome in outcomes if isinstance(outcome, str)]
        if failed:
            if len(failed) < len(outcomes):
                _LOG.error("%d of %d workers failed: %s", len(failed), len(outcomes), failed[0])
            return failed[0]
        if None in outcomes:
            return None
        # Nobody lives who tried it: whoever does it may die of it.
        return f"failed to {command['op']} '{command['name']}', the worker that tried it ended"

    def _keep(self, command: Command) -> str | None:
        """Write down what stands; return why that failed."""
        if command["op"] == REFRESH:  # the folder says it
            return None
        kept = {key: value for key, value in command.items() if key != "number"}
        standing = {**self._standing, command["name"]: kept}
        try:
            replace_file(self._file, json.dumps(list(standing.values())).encode())
            self._standing = standing
            self._tidy()
        except OSError:
            _LOG.exception("a command about model %s cannot be kept", command["name"])
            return f"failed to {command['op']} '{command['name']}', the log has the cause"
        return None

    async def _ask_all(self, children: list[Child], command: Command, step: str) -> list[object]:
        return list(await asyncio.gather(*(self._ask(child, command, step) for child in children)))

    async def _ask(self, child: Child, command: Command, step: str) -> object:
        """Return None when it did it, why it failed, or _ENDED."""
        name = (command["number"], step)
        try:
            return await self._answers.ask(child, name, _line(command, step), _TIMEOUT_S)
        except ChildEndedError:
            return _ENDED
        except UnavailableError as error:
            return error.message

    def _tidy(self) -> None:
        """Remove files that no command names any more."""
        named = {digest for command in self._standing.values()
                 for digest in command.get("files", {}).values()}  # fmt: skip
        oldest_s = time.time() - _FILES_KEPT_S
        for path in self._files.iterdir() if self._files.is_dir() else ():
            if path.name not in named and path.stat().st_mtime < oldest_s:
                path.unlink(missing_ok=True)


def _line(command: Command, step: str) -> bytes:
    return line_of({COMMAND: {**command, "step": step}})
