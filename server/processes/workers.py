"""The workers of one machine: how they are made, and how they are replaced one after another."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from headrace.errors import UnavailableError
from server.config import Settings
from server.models.urls import is_url
from server.processes.child import ARGUMENT_BYTES_MAX, Child, ChildSpec, python_command
from server.processes.cores import available_cores
from server.processes.layout import DataDir
from server.processes.live_settings import LiveSettings
from server.processes.model_commands import ModelCommands
from server.processes.nursery import Nursery
from server.processes.plans import Plan
from server.processes.ports import HeldPort
from server.processes.questions import Questions
from server.processes.supervisor import Supervisor

_LOG = logging.getLogger("headrace")

_MODULE = "server.worker"

_FETCH_TIMEOUT_S = 3600.0  # where models come from elsewhere first
# What a worker is told, of settings in which it may differ from the worker that it replaces.
ConfigOf = Callable[[Settings], dict[str, Any]]


class Workers:
    """Starts and replaces `settings.workers` workers; `config_of` says what each is told.

    They share the sockets of `ports`, which have the names of settings. `windows`: they may have to
    answer windows, and find their kernels loaded. In `data` it is written down
    which models requests have loaded.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        config_of: ConfigOf,
        environment: dict[str, str],
        ports: dict[str, HeldPort],
        data: DataDir,
        *,
        windows: bool,
    ) -> None:
        self._supervisor = supervisor
        self._config_of = config_of
        self._environment = environment
        self._ports = ports
        self._models = ModelCommands(supervisor, data.models, data.model_files)
        self.live = LiveSettings(supervisor)
        self.questions = Questions()
        self._windows = windows
        self._nurseries: list[str] = []  # roles: more than one after a reload that failed half-way
        self._nurseries_made = 0
        self._starts: Counter[int] = Counter()
        self._one_at_a_time = asyncio.Lock()
        self._specs_now: list[ChildSpec] = []  # of those that run

    async def start(self, settings: Settings) -> None:
        """Start all of them. Raises UnavailableError, and StopRequested on a signal."""
        nursery = await self._open_nursery(settings)
        self._specs_now = self._specs(settings, nursery)
        await self._supervisor.start(self._specs_now)

    async def reload(self, settings: Settings) -> None:
        """Replace each worker by a new one: code, models and settings are read again.

        The next one is ready before the last one drains, so that no call finds nobody. Raises
        UnavailableError when a new one does not start: those that are not replaced yet serve on.
        """
        async with self._one_at_a_time:
            older = self._nurseries.copy()
            # A new nursery, too: a fork of the old one would run the old code.
            nursery = await self._open_nursery(settings)
            for number, spec in enumerate(self._specs(settings, nursery)):
                await self._replace(number, spec)
                self._specs_now[number] = spec
            for role in older:
                await self._supervisor.end(role)
                self._nurseries.remove(role)

    async def replace(self, number: int) -> None:
        """Replace one worker by a new one of the same settings. Raises UnavailableError."""
        async with self._one_at_a_time:
            await self._replace(number, self._specs_now[number])

    async def _replace(self, number: int, spec: ChildSpec) -> None:
        try:
            await self._supervisor.replace(spec)
        except UnavailableError:
            self._starts[number] += 1  # the older one runs on, and is to keep its place
            raise

    async def _open_nursery(self, settings: Settings) -> Nursery | None:
        if not settings.nursery:
            return None
        self._nurseries_made += 1
        number = self._nurseries_made
        role = "nursery" if number == 1 else f"nursery-{number}"
        nursery = Nursery()
        try:
            await self._supervisor.start([nursery.spec(role, _MODULE, windows=self._windows)])
        except UnavailableError as error:
            raise UnavailableError(error.message, mend="its own lines above say why") from None
        self._nurseries.append(role)
        return nursery

    def _specs(self, settings: Settings, nursery: Nursery | None) -> list[ChildSpec]:
        count = settings.workers
        cores = max(available_cores() // count, 1)
        common = self._config_of(settings) | {"slots": 2 * count, "cores": cores}
        return [self._spec(number, common, nursery) for number in range(count)]

    def _spec(self, number: int, common: dict[str, Any], nursery: Nursery | None) -> ChildSpec:
        def config(plan: Plan | None) -> dict[str, Any]:
            # Two places each: one that replaces another must not sit on its place.
            slot = 2 * number + self._starts[number] % 2
            self._starts[number] += 1
            config = {"worker": number, "slot": slot, **common, "plan": plan}
            config["changed"] = self.live.changed
            if len(json.dumps(config)) > ARGUMENT_BYTES_MAX:
                config["plan"] = None  # too long for an argument: it follows on stdin
            return config

        def arguments(plan: Plan | None) -> list[str]:
            return [json.dumps(config(plan), separators=(",", ":"))]

        def command(plan: Plan | None) -> list[str]:
            return python_command(_MODULE, config(plan))

        fetches = any(map(is_url, common["model_repository"]))
        return ChildSpec(
            f"worker-{number}",
            command if nursery is None else arguments,
            takes_plans=True,
            ready_timeout_s=_FETCH_TIMEOUT_S if fetches else ChildSpec.ready_timeout_s,
            environment=self._environment,
            fork=None if nursery is None else nursery.fork,
            sockets=[(name, sock) for name, port in self._ports.items() for sock in port.sockets],
            hear=self._hear,
        )

    def _hear(self, child: Child, event: dict[str, Any]) -> None:
        self._models.hear(child, event)
        self.live.hear(child, event)
        self.questions.hear(child, event)
