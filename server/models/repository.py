"""Triton's model repository: which models serve, which do not and why, and how that changes.

A model that cannot be loaded is listed with its reason and never stops the others. One that is
loaded again serves on as it was until all of its new versions are ready; if one of them is not, it
goes on as it was. What was replaced lives as long as a request that has it.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import (
    FailedPreconditionError,
    HeadraceError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from server.backends.contract import Host
from server.execution.threads import RunThreads
from server.models.budget import MemoryBudget, share_of_machine
from server.models.dependents import in_order, steps_in, steps_of
from server.models.loaded import CalledModel, ServedModel
from server.models.loading import (
    CONFIG_FILE,
    VERSION_DIGITS_MAX,
    Loading,
    Overrides,
    is_model_name,
    load_model,
    model_folders,
    not_polled,
)
from server.models.memory import Reclaimer

if TYPE_CHECKING:
    from server.protocol.oip import Released

_LOG = logging.getLogger(__name__)
READY, UNAVAILABLE, LOADING, UNLOADING = "READY", "UNAVAILABLE", "LOADING", "UNLOADING"
UNLOADED = "unloaded"  # Triton's word


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of the repository index. State: READY, LOADING, UNLOADING (requests still have it)
    or UNAVAILABLE (then `reason` says why); empty like the version for a model that was never
    loaded."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


@dataclass(slots=True)
class _Model:
    """One name: what serves, and what does not. `failures` 0 is about the model as a whole.

    `leaving` are versions that serve no more, as long as requests have them. `loading` are the
    versions of a load that is under way, 0 before they are known.
    """

    versions: dict[int, ServedModel] = field(default_factory=dict)
    failures: dict[int, HeadraceError] = field(default_factory=dict)
    unloaded: set[int] = field(default_factory=set)
    leaving: dict[int, weakref.ref[ServedModel]] = field(default_factory=dict)
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    loading: frozenset[int] = frozenset()

    @property
    def is_ready(self) -> bool:
        """Whether all of it serves that should."""
        if self.versions:  # what is wrong with it as a whole came later, and changed nothing
            return self.failures.keys() <= {0, *self.versions}
        return not self.failures and not self.loading


class Prepared:
    """A change of a model that is ready to be made: one of `take` and `drop` must follow.

    Until then nothing else changes the model.
    """

    def __init__(
        self, model: _Model, take: Callable[[], None], note: Callable[[HeadraceError], None]
    ) -> None:
        self._model = model
        self._take = take
        self._note = note

    def take(self) -> None:
        """Make the change, all at once."""
        take, self._take = self._take, _made  # nothing here keeps what was loaded
        self._note = _noted
        try:
            take()
        finally:
            self._model.changing.release()

    def drop(self, error: HeadraceError) -> None:
        """Leave all as it is, and keep why for the index."""
        note, self._note = self._note, _noted
        self._take = _made
        try:
            note(error)
        finally:
            self._model.changing.release()


def _made() -> None:
    raise AssertionError("a change is made once")


def _noted(_: HeadraceError) -> None:
    raise AssertionError("a change is made once")


class ModelRepository:
    """The models of some folders; a name may be in one of them only.

    `on_change` is called after each change of what serves. `released` is for models that ask
    others: set it before they are loaded.
    """

    def __init__(
        self, root: Path | Sequence[Path], executor: RunThreads, budget: MemoryBudget | None = None
    ) -> None:
        self.roots = [root] if isinstance(root, Path) else list(root)
        self.budget = budget or MemoryBudget(share_of_machine(1))
        self._executor = executor
        self._models: dict[str, _Model] = {}
        self._reclaimer = Reclaimer(executor)
        self._ending: set[asyncio.Task[None]] = set()  # models that nobody new gets
        self.on_change: list[Callable[[], None]] = []
        self.released: Released | None = None

    # What serves.

    def get(self, name: str, version: str = "") -> ServedModel:
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
    def _latest(name: str, model: _Model) -> ServedModel:
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

    def failing(self) -> dict[str, HeadraceError]:
        """Return the models of which something could not be loaded, and why."""
        return {
            name: min(model.failures.items())[1]
            for name, model in sorted(self._models.items())
            if model.failures
        }

    def all_ready(self) -> bool:
        """Return whether all serves that should: nothing failed, and nothing is still loading."""
        return all(model.is_ready for model in self._models.values())

    def models(self) -> list[ServedModel]:
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
        others = (model.failures.keys() | model.unloaded | model.loading) - model.versions.keys()
        for number in sorted(others):
            state, reason = UNAVAILABLE, UNLOADED
            if number in model.loading:
                state, reason = LOADING, ""
            elif number in reasons:
                reason = reasons[number]
            elif number in model.leaving and model.leaving[number]() is not None:
                state, reason = UNLOADING, ""
            entries.append(IndexEntry(name, str(number) if number else "", state, reason))
        return entries

    def steps(self, name: str) -> list[str]:
        """Return the models that an ensemble of the folder runs. Reads its configuration."""
        places = self.places(name) if is_model_name(name) else []
        return steps_in(places[0]) if len(places) == 1 else []

    def running(self, name: str) -> list[str]:
        """Return the ensembles that serve and have a model among their steps."""
        users = {m.name for m in self.models() if name in steps_of(m.config)}
        return sorted(users)

    def with_dependents(self, name: str) -> list[str]:
        """Return what goes with a model: first those that run it, last those that only it ran."""
        above = [name]
        for each in above:
            above += [user for user in self.running(each) if user not in above]
        found = list(reversed(above))
        served = {model.name: model for model in self.models()}
        below = [name]
        for each in below:
            for step in steps_of(served[each].config) if each in served else ():
                if step not in found and set(self.running(step)) <= {*found, *below}:
                    below.append(step)
                    found.append(step)
        return found

    # What changes.

    async def load_all(self, names: Iterable[str] | None = None) -> None:
        """Load the named models, or all. Raises NotFoundError when a folder itself is not there.

        What cannot be loaded is in the index with its reason; what can serves.
        """
        for root in self.roots:
            if not root.is_dir():
                raise NotFoundError("the model repository is not a folder", got=str(root))
        folders = set(self._folders())
        wanted = list(sorted(folders) if names is None else names)
        for name in in_order(wanted, self.steps):
            if name not in folders and name not in wanted:
                continue  # a step that there is not: its ensemble says so
            model = self._models.setdefault(name, _Model())
            async with model.changing:
                loading = await self._prepare(name, model, None)
                self._take(model, loading)
        if names is None and not self.models():
            for root in self.roots:
                if not any(root.glob("*/[1-9]*/*.onnx")):
                    _warn_of_emptiness(root)

    async def load(self, name: str, overrides: Overrides | None = None) -> None:
        """Load a model, again if it serves: then it is replaced at once by all that is new.

        Raises InternalError, in Triton's words, when a version is not ready; then nothing changes
        for those who ask, and the index has the reason.
        """
        (await self.prepare(name, overrides)).take()

    async def unload(self, name: str) -> None:
        """Let a model serve no more; requests that have it are still answered."""
        if name in self._models:
            (await self.prepare_unload(name)).take()

    async def prepare(self, name: str, overrides: Overrides | None = None) -> Prepared:
        """Load a model beside what serves. Raises as `load`."""
        if not is_model_name(name) or not (
            self.places(name) or (overrides is not None and overrides.files)
        ):
            raise not_polled(name)
        model = await self._change(name)
        try:
            loading = await self._prepare(name, model, overrides)
            if loading.failures:
                self._refuse(name, model, loading, lasting=overrides is None)
        except BaseException:
            model.changing.release()
            raise
        return Prepared(
            model, partial(self._take, model, loading), partial(self._drop, model, loading)
        )

    async def prepare_unload(self, name: str) -> Prepared:
        """Be ready to let a model serve no more."""
        model = await self._change(name)
        return Prepared(model, partial(self._unload, name, model), partial(self._note, model))

    def places(self, name: str) -> list[Path]:
        """Return the folders of this name."""
        return [root / name for root in self.roots if (root / name).is_dir()]

    async def _change(self, name: str) -> _Model:
        """Return a model that nobody else changes until its lock is released."""
        while True:
            model = self._models.setdefault(name, _Model())
            await model.changing.acquire()
            if self._models.get(name) is model:
                return model
            model.changing.release()  # forgotten meanwhile: nothing of it was left

    def _refuse(self, name: str, model: _Model, loading: Loading, *, lasting: bool) -> None:
        self._retire(loading.versions.values())
        if lasting:  # else: what a request got wrong says nothing about the folder
            model.failures = loading.failures
            self._changed()
        elif not (model.versions or model.failures or model.unloaded):
            self._models.pop(name, None)
        number, error = min(loading.failures.items())
        what = f"version {number}" if number else "failed to poll from model repository"
        raise InternalError(
            f"failed to load '{name}', {what}: {error.message}",
            mend="what served before serves on" if model.versions else error.mend,
        )

    def _drop(self, model: _Model, loading: Loading, error: HeadraceError) -> None:
        self._retire(loading.versions.values())
        self._note(model, error)

    def _note(self, model: _Model, error: HeadraceError) -> None:
        model.failures = {0: error}
        self._changed()

    def _unload(self, name: str, model: _Model) -> None:
        self._retire(model.versions.values())
        self._leave(model, set(model.versions))
        model.versions = {}
        model.failures = {}
        if not model.unloaded:  # nothing of it ever served
            self._models.pop(name, None)
        self._changed()

    def _leave(self, model: _Model, numbers: set[int]) -> None:
        """These serve no more."""
        model.unloaded |= numbers
        model.leaving = {
            number: left for number, left in model.leaving.items() if left() is not None
        } | {number: weakref.ref(model.versions[number]) for number in numbers}

    async def _prepare(self, name: str, model: _Model, overrides: Overrides | None) -> Loading:
        model.loading = frozenset({0})

        def chosen(numbers: list[int]) -> None:
            model.loading = frozenset(numbers)

        loop = asyncio.get_running_loop()
        host = Host(loop, self._executor, self.get, self.released)

        try:
            loading = await loop.run_in_executor(
                self._executor, self._load, name, overrides, host, chosen
            )
        finally:
            model.loading = frozenset()
        for error in loading.failures.values():
            _LOG.error("failed to load model %s: %s", name, error.message)
            if error.__cause__ is not None:
                _LOG.error("model %s: %s", name, error.__cause__)
        return loading

    def _load(
        self,
        name: str,
        overrides: Overrides | None,
        host: Host,
        chosen: Callable[[list[int]], None],
    ) -> Loading:
        places = self.places(name)
        if len(places) > 1:
            return Loading({}, {0: FailedPreconditionError(
                "the model is in more than one repository", mend="keep it in one of them"
            )})  # fmt: skip
        folder = places[0] if places else self.roots[0] / name
        return load_model(folder, overrides, host, self.budget, chosen)

    def _take(self, model: _Model, loading: Loading) -> None:
        self._retire(model.versions.values())
        self._leave(model, model.versions.keys() - loading.versions.keys())
        model.unloaded -= loading.versions.keys()
        model.versions = loading.versions
        model.failures = loading.failures
        self._changed()

    async def close(self) -> None:
        """Serve nothing more, and end all processes of models."""
        for model in self._models.values():
            self._retire(model.versions.values())
            model.versions = {}
        self._changed()
        await asyncio.gather(*self._ending)

    def _retire(self, models: Collection[ServedModel]) -> None:
        self._reclaimer.watch(models)
        for model in models:
            if isinstance(model, CalledModel):
                ending = asyncio.create_task(model.closed())
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)

    def _changed(self) -> None:
        for callback in self.on_change:
            callback()

    def _folders(self) -> list[str]:
        return sorted({folder.name for root in self.roots for folder in model_folders(root)})


def _warn_of_emptiness(root: Path) -> None:
    if (root / CONFIG_FILE).is_file() or any(root.glob("[1-9]*/*.onnx")):
        _LOG.warning("%s looks like one model; give its parent", root)
    else:
        _LOG.warning("no model is served: %s holds no NAME/1/model.onnx", root)
