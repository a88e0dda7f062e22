"""The released models: what the release plan says, loaded and swapped in atomically.

A newer plan is loaded in the background. Each model of it replaces its predecessor at once when all
its versions are loaded and checked; a model whose new version fails keeps its last good entry, and
the others go on.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from headrace.errors import FailedPreconditionError, HeadraceError, NotFoundError, UnavailableError
from router import Arm, ModelPlan, ReleasePlan, Router, Routing, parse_plan, supersedes
from server.execution.threads import RunThreads
from server.models.versions import Version, VersionLoader
from server.wire.handlers import as_headrace_error

_LOG = logging.getLogger(__name__)
_RETRY_S = 2.0


@dataclass(frozen=True)
class ReleasedModel:
    """One model as it is served now: immutable, replaced whole."""

    name: str
    number: int  # of the plan
    plan: ModelPlan
    router: Router
    versions: dict[str, Version]

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms, in the plan's order."""
        return self.router.arms

    @property
    def live(self) -> Version:
        """The version of the live arm."""
        return self.versions[self.arms[self.router.live].version]

    def version(self, arm_index: int) -> Version:
        """Return the version of an arm."""
        return self.versions[self.arms[arm_index].version]

    def force(self, version: str, rows: int) -> Routing:
        """Return the routing of a pinned version: propensity 1, as nothing was drawn.

        Raises NotFoundError when the plan has no arm with this version.
        """
        for index, arm in enumerate(self.arms):
            if arm.version == version:
                pmf = tuple(float(place == index) for place in range(len(self.arms)))
                return Routing(np.full(rows, index, np.uint8), np.ones(rows), pmf, ())
        raise NotFoundError(
            f"model '{self.name}' has no version {version} in release plan {self.number}",
            expected=", ".join(sorted(self.versions)),
        )


class ReleasedModels:
    """What the last good plan serves."""

    def __init__(self, loader: VersionLoader | None, executor: RunThreads) -> None:
        self._loader = loader
        self._executor = executor
        self._models: dict[str, ReleasedModel] = {}
        self._plan: ReleasePlan | None = None
        self._applying = asyncio.Lock()
        self._retry: asyncio.Task[None] | None = None

    @property
    def number(self) -> int:
        """The number of the newest plan that was taken; 0 before the first."""
        return 0 if self._plan is None else self._plan.plan

    def names(self) -> list[str]:
        """Return the models that are served under a plan."""
        return list(self._models)

    def find(self, name: str) -> ReleasedModel | None:
        """Return a model, None when it is under no plan."""
        return self._models.get(name)

    def get(self, name: str) -> ReleasedModel:
        """Return a model. Raises NotFoundError when it is under no plan."""
        model = self._models.get(name)
        if model is None:
            raise NotFoundError(f"model '{name}' is under no release plan")
        return model

    def versions(self) -> list[Version]:
        """Return every version that is served, the live ones first."""
        models = list(self._models.values())
        return [
            *(model.live for model in models),
            *(version for model in models for version in model.versions.values()),
        ]

    async def apply(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Take a plan and return the event that says what came of it; never raises.

        Where something was not reachable, it is tried again until it is or a newer plan comes.
        """
        async with self._applying:
            try:
                offered = parse_plan(msgspec.json.encode(plan))
                if not supersedes(self._plan, offered):
                    return _event(offered.plan, {})
            except HeadraceError as error:
                _LOG.error("a release plan is refused: %s", error.message)
                return {"event": "plan", "plan": 0, "applied": False, "error": error.message}
            self._plan = offered
            if self._retry is not None:
                self._retry.cancel()
                self._retry = None
            problems = await self._take(offered)
            if any(isinstance(error, UnavailableError) for error in problems.values()):
                self._retry = asyncio.get_running_loop().create_task(self._take_again(offered))
            return _event(offered.plan, problems)

    async def close(self) -> None:
        """Stop trying."""
        if self._retry is not None:
            self._retry.cancel()

    async def _take_again(self, plan: ReleasePlan) -> None:
        problems: dict[str, HeadraceError] = {"": UnavailableError("")}
        while any(isinstance(error, UnavailableError) for error in problems.values()):
            await asyncio.sleep(_RETRY_S)
            problems = await self._take(plan)
        _LOG.info("release plan %d: nothing is left to try again", plan.plan)

    async def _take(self, plan: ReleasePlan) -> dict[str, HeadraceError]:
        """Serve what can be served of the plan; return the errors of the models that cannot."""
        problems: dict[str, HeadraceError] = {}
        models: dict[str, ReleasedModel] = {}
        for name, wanted in plan.models.items():
            served = self._models.get(name)
            if served is not None and served.number == plan.plan:
                models[name] = served
                continue
            try:
                versions = await self._versions(name, wanted, served)
                models[name] = ReleasedModel(
                    name, plan.plan, wanted, Router(wanted, plan.plan), versions
                )
            except Exception as error:  # noqa: BLE001 - one model's fault must not stop the others
                problem = as_headrace_error(error, f"model '{name}'")
                _LOG.error("model %s keeps its last good version: %s", name, problem.message)
                if problem.__cause__ is not None:
                    _LOG.error("model %s: %s", name, problem.__cause__)
                problems[name] = problem
                if served is not None:
                    models[name] = served
        self._models = models  # one assignment: a request sees the old plan or the new one
        return problems

    async def _versions(
        self, name: str, plan: ModelPlan, served: ReleasedModel | None
    ) -> dict[str, Version]:
        versions: dict[str, Version] = {}
        loop = asyncio.get_running_loop()
        for arm in plan.arms:
            known = served.versions.get(arm.version) if served is not None else None
            if known is not None:
                versions[arm.version] = known
            elif arm.version not in versions:
                if self._loader is None:
                    raise FailedPreconditionError(
                        "there is a release plan, but no registry to load its versions from"
                    )
                versions[arm.version] = await loop.run_in_executor(
                    self._executor, self._loader.load, name, arm.version
                )
        return versions


def _event(number: int, problems: dict[str, HeadraceError]) -> dict[str, Any]:
    error = "; ".join(f"{name}: {problem.message}" for name, problem in problems.items())
    event: dict[str, Any] = {"event": "plan", "plan": number, "applied": not problems}
    return {**event, "error": error} if error else event
