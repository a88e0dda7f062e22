"""What a worker answers to operators, whose questions its supervisor hands on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from headrace.errors import InternalError, InvalidArgumentError, NotFoundError
from server.config import mask_url
from server.models.dependents import in_order
from server.models.loading import is_model_name
from server.models.repository import ModelRepository
from server.models.urls import is_url
from server.observing import Observing
from server.protocol.oip import InferenceProtocol


class OperatorAnswers:
    """`repositories` are the places of `repository` as the settings name them."""

    def __init__(
        self,
        protocol: InferenceProtocol,
        observing: Observing,
        repository: ModelRepository | None,
        repositories: Sequence[str],
    ) -> None:
        self._protocol = protocol
        self._observing = observing
        self._repository = repository
        self._repositories = repositories

    def table(self) -> dict[str, Callable[[dict[str, Any]], Awaitable[Any]]]:
        """Return what answers each question."""
        return {
            "index": self._index,
            "load": self._load,
            "unload": self._unload,
            "logging": self._logging,
        }

    async def _index(self, _: dict[str, Any]) -> Any:
        return self._protocol.index(ready_only=False)

    async def _load(self, question: dict[str, Any]) -> None:
        name = question["name"]
        try:
            await self._protocol.load(name, {})
        except InternalError:
            # Triton's words, which its clients look for, name no folder: an operator needs it.
            await asyncio.to_thread(self._check_there, name)
            raise

    async def _unload(self, question: dict[str, Any]) -> None:
        await self._protocol.unload(question["name"], {})

    async def _logging(self, _: dict[str, Any]) -> Any:
        return self._observing.log_settings()

    def _check_there(self, name: str) -> None:
        """Raise NotFoundError for a model, or one that it runs, that has no folder."""
        if not is_model_name(name):
            raise InvalidArgumentError(
                "no name of a model", expected="the name of a folder", got=repr(name[:64])
            )
        if self._repository is None:
            return
        for each in in_order([name], self._repository.steps):
            if self._repository.places(each):
                continue
            looked_for = " or ".join(f"{_shown(place)}/{each}" for place in self._repositories)
            user = "" if each == name else f", which '{name}' runs,"
            raise NotFoundError(
                f"model '{each}'{user} is not in the model repository",
                expected=f"the folder {looked_for}",
                mend="put the model there, or check its name",
            )


def _shown(repository: str) -> str:
    """Return a repository as an operator knows it: by its whole path."""
    if is_url(repository):
        return mask_url(repository).rstrip("/")
    return str(Path(repository).absolute())
