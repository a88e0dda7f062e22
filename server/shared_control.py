"""The control of a worker among others: what it is asked to load, all of them load.

The supervisor passes commands on (`processes.model_commands`). Files that came with a request are
put beside the command, named by their digest.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headrace.digest import digest_bytes
from headrace.errors import (
    FailedPreconditionError,
    HeadraceError,
    InternalError,
    ResourceExhaustedError,
    UnavailableError,
)
from server.asking import Asking
from server.models.control import ModelControl
from server.models.loading import Overrides, check_overrides, is_model_name, not_polled
from server.models.repository import Prepared
from server.processes.layout import is_full, replace_file
from server.processes.model_commands import ASKED, DONE, DROP, PREPARE, REFRESH, TAKE, Command

_LOG = logging.getLogger(__name__)


class SharedControl:
    """Asks by `say` (an event for the supervisor); `take_command` and `take_outcome` are told."""

    def __init__(
        self,
        local: ModelControl,
        say: Callable[[dict[str, Any]], None],
        standing: Path,
        files: Path,
    ) -> None:
        self._local = local
        self._say = say
        self._asking = Asking(say)
        self._standing = standing
        self._files = files
        self._prepared: dict[int, Prepared] = {}  # changes that all are to take at once
        self._alone = False
        local.announce = self.refresh

    async def start(self) -> None:
        """Load what is to serve from the start, then do what was asked since."""
        await self._local.start()
        try:
            standing: list[Command] = json.loads(self._standing.read_text())
        except FileNotFoundError:
            return
        for command in standing:
            if (error := await self._do(command)) is not None:
                _LOG.error("what other workers have loaded: %s", error)

    async def load(self, name: str, overrides: Overrides | None = None) -> None:
        """Load a model in all workers. Raises as `ModelControl.load`."""
        self._local.check_explicit()
        _check_name(name)
        await self._local.fetch(name, overrides)
        command: Command = {"op": "load", "name": name}
        if overrides is not None:
            try:
                check_overrides(overrides)
            except HeadraceError as error:
                raise not_polled(name, error.message) from None
            files = await self._keep_files(name, overrides.files)
            command |= {"config": overrides.config, "files": files}
        await self._ask(command)

    async def unload(self, name: str) -> None:
        """Let a model serve no more in any worker. Raises as `ModelControl.unload`."""
        self._local.check_explicit()
        if self._local.repository.knows(name):
            await self._ask({"op": "unload", "name": name})

    async def refresh(self, name: str) -> None:
        """Let all workers serve what the folder has of a model now. Raises as `load`."""
        if self._alone:
            await self._local.refresh(name)
        else:
            await self._ask({"op": REFRESH, "name": name})

    async def take_command(self, command: Command) -> None:
        """Do a step of what one of the workers was asked, and say what came of it."""
        step, number = command["step"], command["number"]
        error: str | None = f"failed to {command['op']} '{command['name']}'"
        try:
            if step == PREPARE:
                error = await self._prepare(command)
            elif step == TAKE:
                self._take(number)
                error = None
            elif step == DROP:
                self._drop(number, command["error"])
                error = None
            else:
                error = await self._do(command)
        finally:  # whatever came of it: the others wait
            self._say({"event": DONE, "number": number, "step": step, "error": error})

    def take_outcome(self, outcome: dict[str, Any]) -> None:
        """Hear what came of a command in all workers."""
        self._asking.hear(outcome)

    def leave_alone(self) -> None:
        """The supervisor is gone: nobody can change all workers any more."""
        self._alone = True
        self._asking.leave_alone(_alone())
        for number in list(self._prepared):
            self._drop(number, "the supervisor is gone")

    async def _ask(self, command: Command) -> None:
        if self._alone:
            raise _alone()
        error = await self._asking.ask({"event": ASKED, "command": command})
        if error is not None:
            raise InternalError(error)

    async def _do(self, command: Command) -> str | None:
        error = await self._prepare(command)
        if error is None:
            self._take(command.get("number", 0))
        return error

    async def _prepare(self, command: Command) -> str | None:
        """Be ready for a change; return why that failed."""
        try:
            prepared = await self._prepared_of(command)
        except HeadraceError as error:
            return error.message
        except OSError as error:
            _LOG.error("the files of model %s: %s", command["name"], error)
            return f"failed to load '{command['name']}', its files cannot be read"
        if prepared is not None:
            self._prepared[command.get("number", 0)] = prepared
        return None

    async def _prepared_of(self, command: Command) -> Prepared | None:
        name = command["name"]
        if command["op"] == REFRESH:
            return await self._local.prepare_refresh(name)
        self._local.check_explicit()
        if command["op"] == "unload":
            return await self._local.repository.prepare_unload(name)
        overrides = await asyncio.to_thread(self._overrides, command)
        return await self._local.repository.prepare(name, overrides)

    def _take(self, number: int) -> None:
        prepared = self._prepared.pop(number, None)
        if prepared is not None:  # else nothing was to be changed
            prepared.take()

    def _drop(self, number: int, why: str) -> None:
        prepared = self._prepared.pop(number, None)
        if prepared is not None:
            prepared.drop(FailedPreconditionError(f"another worker could not load it: {why}"))

    def _overrides(self, command: Command) -> Overrides | None:
        if "files" not in command:
            return None
        files = {
            path: (self._files / digest).read_bytes() for path, digest in command["files"].items()
        }
        return Overrides(command["config"], files)

    async def _keep_files(self, name: str, files: Mapping[str, bytes]) -> dict[str, str]:
        try:
            return await asyncio.to_thread(self._keep_all, files)
        except OSError as error:
            _LOG.error("the files of model %s cannot be kept: %s", name, error)
            raise ResourceExhaustedError(
                f"failed to load '{name}', its files cannot be kept",
                got="a disk that is full" if is_full(error) else None,
                mend="the server's log has the cause",
            ) from None

    def _keep_all(self, files: Mapping[str, bytes]) -> dict[str, str]:
        return {path: self._keep(data) for path, data in files.items()}

    def _keep(self, data: bytes) -> str:
        name = digest_bytes(data).replace(":", "-")
        path = self._files / name
        if not path.is_file():
            self._files.mkdir(mode=0o700, exist_ok=True)
            replace_file(path, data)
        return name


def _check_name(name: str) -> None:
    if not is_model_name(name):
        raise not_polled(name)


def _alone() -> UnavailableError:
    return UnavailableError(
        "models cannot be changed: the supervisor is gone", mend="start headrace serve again"
    )
