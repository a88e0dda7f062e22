"""Who decides which models serve: the folder at the start, the folder all the time, or requests.

The modes are Triton's: `none` loads everything once, `poll` follows the folder, `explicit` does as
it is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from headrace.errors import HeadraceError, UnavailableError
from server.models.loading import Overrides, is_model_name
from server.models.repository import ModelRepository

_LOG = logging.getLogger(__name__)
Mode = Literal["none", "poll", "explicit"]
_DEPTH_MAX = 3
EVERY = "*"  # of the names to load at the start
# Path below the model's folder, time of the last change, bytes: of each file.
Fingerprint = tuple[tuple[str, int, int], ...]


class ModelControl:
    """Changes a repository as its mode allows. `at_start` are the models of mode `explicit`."""

    def __init__(
        self,
        repository: ModelRepository,
        mode: Mode = "none",
        *,
        at_start: Sequence[str] = (),
        poll_s: float = 15.0,
    ) -> None:
        self.repository = repository
        self._mode = mode
        self._at_start = at_start
        self._poll_s = poll_s
        self._following: asyncio.Task[None] | None = None
        self._seen: dict[str, Fingerprint] = {}

    async def start(self) -> None:
        """Load what is to serve from the start. Raises NotFoundError without a folder."""
        if self._mode == "explicit":
            everything = EVERY in self._at_start
            await self.repository.load_all(None if everything else self._at_start)
            return
        if self._mode == "poll":
            self._seen = await asyncio.to_thread(fingerprints, self.repository.root)
        await self.repository.load_all()
        if self._mode == "poll":
            self._following = asyncio.create_task(self._follow(), name="model repository")

    async def stop(self) -> None:
        """Follow the folder no more."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)

    async def load(self, name: str, overrides: Overrides | None = None) -> None:
        """Load a model, again if it serves. Raises UnavailableError where requests decide nothing,
        else what `ModelRepository.load` raises."""
        self.check_explicit()
        await self.repository.load(name, overrides)

    async def unload(self, name: str) -> None:
        """Let a model serve no more. Raises UnavailableError where requests decide nothing."""
        self.check_explicit()
        await self.repository.unload(name)

    def check_explicit(self) -> None:
        """Raise UnavailableError where requests decide nothing."""
        if self._mode != "explicit":
            raise UnavailableError(
                "explicit model load / unload is not allowed if polling is enabled",
                mend="start with --model-control-mode explicit",
            )

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self.poll()
            except OSError as error:  # the folder itself: a mount that is gone comes back
                _LOG.error("the model repository cannot be read: %s", error)
            except Exception:  # noqa: BLE001 - it is to be followed as long as we run
                _LOG.exception("following the model repository failed")

    async def poll(self) -> None:
        """Look at the folder once; load what changed, unload what is gone."""
        now = await asyncio.to_thread(fingerprints, self.repository.root)
        for name in self._seen.keys() - now.keys():
            _LOG.info("model %s is gone from the repository", name)
            await self.repository.unload(name)
        for name, fingerprint in sorted(now.items()):
            if self._seen.get(name) == fingerprint:
                continue
            _LOG.info("model %s changed in the repository", name)
            try:
                await self.repository.load(name)
            except HeadraceError:
                continue  # logged, and in the index
        self._seen = now


def fingerprints(root: Path) -> dict[str, Fingerprint]:
    """Return what tells that a model changed, by its name. Raises OSError for the folder itself."""
    return {
        entry.name: fingerprint(entry)
        for entry in root.iterdir()
        if entry.is_dir() and is_model_name(entry.name)
    }


def fingerprint(folder: Path) -> Fingerprint:
    """Return name, time of change and size of every file; what goes away meanwhile is left out."""
    found = []
    # Versions may be links: so volumes and stores of artifacts are laid out.
    for place, folders, names in os.walk(folder, followlinks=True):
        if len(Path(place).relative_to(folder).parts) >= _DEPTH_MAX:
            folders.clear()
        for name in names:
            path = Path(place, name)
            with contextlib.suppress(OSError):
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    entry = (str(path.relative_to(folder)), status.st_mtime_ns, status.st_size)
                    found.append(entry)
    return tuple(sorted(found))
