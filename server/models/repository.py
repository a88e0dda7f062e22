"""Triton's model repository: which models serve, which do not and why, and how that changes.

A model that cannot be loaded is listed with its reason and never stops the others. One that is
loaded again serves on as it was until all of its new versions are ready; if one of them is not, it
goes on as it was. What was replaced lives as long as a request that has it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from headrace.errors import (
    HeadraceError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from server.models.budget import MemoryBudget, share_of_machine
from server.models.loaded import LoadedModel
from server.models.loading import (
    CONFIG_FILE,
    VERSION_DIGITS_MAX,
    Loading,
    Overrides,
    is_model_name,
    load_model,
    not_polled,
)
from server.models.memory import Reclaimer

_LOG = logging.getLogger(__name__)
READY, UNAVAILABLE, LOADING = "READY", "UNAVAILABLE", "LOADING"
UNLOADED = "unloaded"  # Triton's word


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of the repository index. State: READY, LOADING or UNAVAILABLE (then `reason` says
    why); empty like the version for a model that was never loaded."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


@dataclass(slots=True)
class _Model:
    """One name: what serves, and what does not. `failures` 0 is about the model as a whole."""

    versions: dict[int, LoadedModel] = field(default_factory=dict)
    failures: dict[int, HeadraceError] = field(default_factory=dict)
    unloaded: set[int] = field(default_factory=set)
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    loading: bool = False


class ModelRepository:
    """The models of one folder. `on_change` is called after each change of what serves."""

    def __init__(self, root: Path, executor: Executor, budget: MemoryBudget | None = None) -> None:
        self.root = root
        self.budget = budget or MemoryBudget(share_of_machine(1))
        self._executor = executor
        self._models: dict[str, _Model] = {}
        self._reclaimer = Reclaimer(executor)
        self.on_change: list[Callable[[], None]] = []

    # What serves.

    def get(self, name: str, version: str = "") -> LoadedModel:
        """Return the model, its latest loaded version where none is named.

        Raises NotFoundError or UnavailableError, in Triton's words.
        """
        model = self._models.get(name)
        if model is None or not (model.versions or model.failures or model.unloaded):
            raise NotFoundError(f"Request for unknown model: '{name}' is not found")
        if not version:
            return self._latest(name, model)
        if not version.isascii() or not version.isdigit() or len(version) > VERSION_DIGITS_MAX:
            raise InvalidArgumentError(
                f"failed to get model version from specified version string '{version}'",
                expected="an integral value > 0",
            )
        number = int(version)
        if number in model.versions:
            return model.versions[number]
        if number in model.failures or number in model.unloaded:
            error = model.failures.get(number)
            raise UnavailableError(
                f"Request for unknown model: '{name}' version {number} is not at ready state",
                mend=None if error is None else error.message,
            )
        raise NotFoundError(f"Request for unknown model: '{name}' version {number} is not found")

    @staticmethod
    def _latest(name: str, model: _Model) -> LoadedModel:
        if model.versions:
            return model.versions[max(model.versions)]
        mend = None
        if model.failures:
            number, error = max(model.failures.items())
            mend = f"version {number} could not be loaded: {error.message}"
        raise NotFoundError(
            f"Request for unknown model: '{name}' has no available versions", mend=mend
        )

    def knows(self, name: str) -> bool:
        """Return whether anything of this name serves, or did, or failed to."""
        return name in self._models

    def models(self) -> list[LoadedModel]:
        """Return every loaded version, by name and number."""
        return [
            model.versions[number]
            for _, model in sorted(self._models.items())
            for number in sorted(model.versions)
        ]

    def versions(self, name: str) -> list[str]:
        """Return the loaded versions of a model, ascending."""
        model = self._models.get(name)
        return [] if model is None else [str(number) for number in sorted(model.versions)]

    def index(self) -> list[IndexEntry]:
        """Return one entry per version, loaded or not, and one per model that never was."""
        entries = []
        try:
            folders = self._folders()
        except OSError:  # a mount that is gone: what serves is known without it
            folders = []
        for name in sorted({*self._models, *folders}):
            found = self._entries(name, self._models.get(name, _Model()))
            entries += found or [IndexEntry(name)]
        return entries

    @staticmethod
    def _entries(name: str, model: _Model) -> list[IndexEntry]:
        # With a reason: it could not be loaded again, and serves on as it was.
        reasons = {number: error.message for number, error in model.failures.items()}
        entries = [
            IndexEntry(name, str(number), READY, reasons.get(number, ""))
            for number in sorted(model.versions)
        ]
        for number, error in sorted(model.failures.items()):
            if number in model.versions:
                continue
            version = str(number) if number else ""
            entries.append(IndexEntry(name, version, UNAVAILABLE, error.message))
        entries += [
            IndexEntry(name, str(number), UNAVAILABLE, UNLOADED)
            for number in sorted(model.unloaded - model.failures.keys())
        ]
        if model.loading and not entries:
            entries.append(IndexEntry(name, "", LOADING))
        return entries

    # What changes.

    async def load_all(self, names: Iterable[str] | None = None) -> None:
        """Load the named models, or all. Raises NotFoundError when the folder itself is not there.

        What cannot be loaded is in the index with its reason; what can serves.
        """
        if not self.root.is_dir():
            raise NotFoundError("the model repository is not a folder", got=str(self.root))
        for name in self._folders() if names is None else names:
            model = self._models.setdefault(name, _Model())
            async with model.changing:
                loading = await self._prepare(name, model, None)
                self._take(model, loading)
        if names is None and not self.models() and not any(self.root.glob("*/[1-9]*/*.onnx")):
            self._warn_of_emptiness()

    async def load(self, name: str, overrides: Overrides | None = None) -> None:
        """Load a model, again if it serves: then it is replaced at once by all that is new.

        Raises InternalError, in Triton's words, when a version is not ready; then nothing changes
        for those who ask, and the index has the reason.
        """
        if not is_model_name(name) or not (
            (self.root / name).is_dir() or (overrides is not None and overrides.files)
        ):
            raise not_polled(name)
        model = self._models.setdefault(name, _Model())
        async with model.changing:
            loading = await self._prepare(name, model, overrides)
            if not loading.failures:
                self._take(model, loading)
                return
            if overrides is None:  # what a request got wrong says nothing about the folder
                model.failures = loading.failures
            elif not (model.versions or model.failures or model.unloaded):
                self._models.pop(name, None)
            number, error = min(loading.failures.items())
            what = f"version {number}" if number else "failed to poll from model repository"
            raise InternalError(
                f"failed to load '{name}', {what}: {error.message}",
                mend="what served before serves on" if model.versions else error.mend,
            )

    async def unload(self, name: str) -> None:
        """Let a model serve no more; requests that have it are still answered."""
        model = self._models.get(name)
        if model is None:
            return
        async with model.changing:
            model.unloaded |= model.versions.keys()
            self._reclaimer.watch(model.versions.values())
            model.versions = {}
            model.failures = {}
            self._changed()

    async def _prepare(self, name: str, model: _Model, overrides: Overrides | None) -> Loading:
        model.loading = True
        try:
            loading = await asyncio.get_running_loop().run_in_executor(
                self._executor, load_model, self.root / name, overrides, self._executor, self.budget
            )
        finally:
            model.loading = False
        for error in loading.failures.values():
            _LOG.error("failed to load model %s: %s", name, error.message)
            if error.__cause__ is not None:
                _LOG.error("model %s: %s", name, error.__cause__)
        return loading

    def _take(self, model: _Model, loading: Loading) -> None:
        self._reclaimer.watch(model.versions.values())
        replaced = model.versions.keys() - loading.versions.keys()
        model.unloaded = (model.unloaded | replaced) - loading.versions.keys()
        model.versions = loading.versions
        model.failures = loading.failures
        self._changed()

    def _changed(self) -> None:
        for callback in self.on_change:
            callback()

    def _folders(self) -> list[str]:
        return sorted(
            entry.name for entry in self.root.iterdir()
            if entry.is_dir() and is_model_name(entry.name)
        )  # fmt: skip

    def _warn_of_emptiness(self) -> None:
        if (self.root / CONFIG_FILE).is_file() or any(self.root.glob("[1-9]*/*.onnx")):
            _LOG.warning("%s looks like one model; give its parent", self.root)
        else:
            _LOG.warning("no model is served: %s holds no NAME/1/model.onnx", self.root)
