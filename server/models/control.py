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
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Literal

from headrace.errors import HeadraceError, UnavailableError
from server.models.dependents import in_order
from server.models.loading import Overrides, model_folders
from server.models.repository import ModelRepository, Prepared
from server.models.retries import Retries
from server.models.sources import Source

_LOG = logging.getLogger(__name__)
Mode = Literal["none", "poll", "explicit"]
_DEPTH_MAX = 3
EVERY = "*"  # of the names to load at the start
# Path below the model's folder, time of the last change, bytes: of each file.
Fingerprint = tuple[tuple[str, int, int], ...]
# Of the folders of one name, in each of the repositories.
Seen = tuple[Fingerprint | None, ...]


class ModelControl:
    """Changes a repository as its mode allows. `at_start` are the models of mode `explicit`.

    `sources` are repositories that lie elsewhere. What changed in a folder is made known by
    `announce`: alone, a model is loaded again here and now.
    """

    def __init__(
        self,
        repository: ModelRepository,
        mode: Mode = "none",
        *,
        at_start: Sequence[str] = (),
        poll_s: float = 15.0,
        sources: Sequence[Source] = (),
    ) -> None:
        self.repository = repository
        self.announce: Callable[[str], Awaitable[None]] = self.refresh
        self._mode = mode
        self._at_start = at_start
        self._poll_s = poll_s
        self._sources = sources
        self._following: asyncio.Task[None] | None = None
        self._seen: dict[str, Seen] = {}
        self._retries = Retries()

    async def start(self) -> None:
        """Load what is to serve from the start.

        Raises NotFoundError without a folder, UnavailableError for a source that cannot be read
        and has never been.
        """
        for source in self._sources:
            await asyncio.to_thread(source.start, self._wanted_at_start())
        if self._mode == "explicit":
            everything = EVERY in self._at_start
            await self.repository.load_all(None if everything else self._at_start)
            return
        if self._mode == "poll":
            self._seen = await asyncio.to_thread(self._look)
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
        await self.fetch(name, overrides)
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

    async def fetch(self, name: str, overrides: Overrides | None) -> None:
        """Bring a model that lies elsewhere here, unless a request brings it.

        Raises UnavailableError.
        """
        if overrides is None or not overrides.files:
            for source in self._sources:
                await asyncio.to_thread(source.sync, {name})

    def _wanted_at_start(self) -> set[str] | None:
        """Return the models to bring here first; None for all."""
        if self._mode != "explicit" or EVERY in self._at_start:
            return None
        return set(self._at_start)

    async def refresh(self, name: str) -> None:
        """Let serve what the folder has of a model now. Raises what `prepare_refresh` raises."""
        prepared = await self.prepare_refresh(name)
        if prepared is not None:
            prepared.take()

    async def prepare_refresh(self, name: str) -> Prepared | None:
        """Load what the folder has of a model now; None when that serves already.

        Raises what `ModelRepository.prepare` raises.
        """
        now = await asyncio.to_thread(self._look_at, name)
        if self._seen.get(name) == now and name not in self.repository.failing():
            return None
        if any(place is not None for place in now):
            self._seen[name] = now
            return await self.repository.prepare(name)
        self._seen.pop(name, None)
        return await self.repository.prepare_unload(name)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self.poll()
            except OSError as error:  # the folder itself: a mount that is gone comes back
                _LOG.error("the model repository cannot be read: %s", error)
            except HeadraceError as error:
                _LOG.error("the model repository cannot be read: %s", error.message)
            except Exception:  # noqa: BLE001 - it is to be followed as long as we run
                _LOG.exception("following the model repository failed")

    async def poll(self) -> None:
        """Look at the folder once; load what changed, unload what is gone.

        What could not be loaded is tried again, ever more seldom: one of several workers may have
        lacked the memory for a moment.
        """
        for source in self._sources:
            await asyncio.to_thread(source.sync, None, self._poll_s / 2)
        now = await asyncio.to_thread(self._look)
        changed = {
            name for name in self._seen.keys() | now if self._seen.get(name) != now.get(name)
        }
        due = self._retries.due(self.repository.failing().keys() & now.keys())
        names = await asyncio.to_thread(in_order, sorted(changed | due), self.repository.steps)
        for name in (name for name in names if name in changed | due):
            _LOG.info("model %s %s", name, "changed in the repository" if name in changed
                      else "is tried again")  # fmt: skip
            with contextlib.suppress(HeadraceError):  # logged, and in the index
                await self.announce(name)

    def _look(self) -> dict[str, Seen]:
        found = [fingerprints(root) for root in self.repository.roots]
        names = {name for of in found for name in of}
        return {name: tuple(of.get(name) for of in found) for name in names}

    def _look_at(self, name: str) -> Seen:
        places = [root / name for root in self.repository.roots]
        return tuple(fingerprint(place) if place.is_dir() else None for place in places)


def fingerprints(root: Path) -> dict[str, Fingerprint]:
    """Return what tells that a model changed, by its name. Raises OSError for the folder itself."""
    return {folder.name: fingerprint(folder) for folder in model_folders(root)}


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
