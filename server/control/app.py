"""Control, put together: registry, plan feed, roles and the admin API on one HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from headrace import __version__
from server.control.features_routes import FeaturesRoutes
from server.control.ingest_role import IngestRole
from server.control.models_routes import ModelsRoutes
from server.control.monitor_role import MonitorRole
from server.control.monitor_routes import MonitorRoutes
from server.control.plan_feed import PlanFeed
from server.control.requests import query_number
from server.wire.http1.server import HttpServer
from server.wire.routes import Request, Response, Routes, json_response
from trainer.registry import ArtifactStore, Registry

_LOG = logging.getLogger("headrace")

_EXPIRE_INTERVAL_S = 60.0
_RESTART_BASE_S = 1.0
_RESTART_CAP_S = 60.0


class BackgroundTask:
    """Work that never ends by itself: when it fails it is begun again, later each time."""

    def __init__(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self.name = name
        self._work = work
        self._state = "running"
        self._failures = 0
        self._error: str | None = None
        self._task = asyncio.create_task(self._run(), name=name)

    def status(self) -> dict[str, object]:
        """Return {"state": running or restarting, "failures", "error": the last one}, for health.

        An error's message may hold what users sent, so that only its kind is told.
        """
        return {"state": self._state, "failures": self._failures, "error": self._error}

    async def stop(self) -> None:
        """Call it off and wait for its end."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        wait_s = _RESTART_BASE_S
        while True:
            begin_s = loop.time()
            self._state = "running"
            try:
                await self._work()
            except Exception as error:  # noqa: BLE001 - the task boundary: the admin API serves on
                self._failures += 1
                self._error = type(error).__name__
                self._state = "restarting"
                if loop.time() - begin_s >= _RESTART_CAP_S:
                    wait_s = _RESTART_BASE_S  # it did work: this is a new trouble
                _LOG.exception(
                    "the task %r of control failed; begun again in %g s", self.name, wait_s
                )
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _RESTART_CAP_S)


class Control:
    """One control on one data folder. Use as: `start`, wait, `stop`."""

    def __init__(self, data_dir: Path, redis_url: str | None, *, ingester: bool = True) -> None:
        self._artifacts = ArtifactStore(data_dir / "artifacts")
        self._registry = Registry(
            f"sqlite:///{data_dir / 'registry.db'}", self._artifacts, _clock_us
        )
        self._feed = PlanFeed(self._registry.plan)
        self._ingester = None
        if redis_url and ingester:
            self._ingester = IngestRole(redis_url, data_dir / "offline")
        self._monitor = MonitorRole(data_dir, lambda: self._feed.plan)
        self._features = FeaturesRoutes(self._registry, self._ingester)
        routes = Routes()
        routes.add("GET", "/v1/health", self._health)
        routes.add("GET", "/v1/plan", self._plan)
        ModelsRoutes(self._registry, self._artifacts, self._feed).add_to(routes)
        MonitorRoutes(data_dir, self._monitor, self._registry).add_to(routes)
        self._features.add_to(routes)
        self._server = HttpServer(routes)
        self._tasks: list[BackgroundTask] = []

    async def start(self, host: str, port: int) -> int:
        """Begin to serve and return the port. Raises OSError when it is taken."""
        await self._feed.refresh()
        await self._features.start()
        self._tasks = [
            BackgroundTask("monitor", self._monitor.follow),
            BackgroundTask("expiry", self._expire),
        ]
        # The supervisor holds the port: it must be shared with its socket, which never listens.
        return await self._server.start(host, port, reuse_port=True)

    async def stop(self, grace_s: float) -> None:
        """Answer who waits, finish what is under way, end the roles."""
        self._feed.close()
        await self._server.drain(grace_s)
        for task in self._tasks:
            await task.stop()
        if self._ingester is not None:
            await self._ingester.stop()
        await self._monitor.stop()
        self._registry.close()

    async def _health(self, request: Request) -> Response:
        return json_response(
            {
                "status": "ok",
                "version": __version__,
                "plan": self._feed.plan["plan"],
                "ingester": None if self._ingester is None else self._ingester.status(),
                "monitor": self._monitor.status(),
                "tasks": {task.name: task.status() for task in self._tasks},
            }
        )

    async def _plan(self, request: Request) -> Response:
        after = int(query_number(request, "after", 0))
        plan = await self._feed.wait(after, query_number(request, "wait_s", 0.0))
        return Response(204) if plan is None else json_response(plan)

    async def _expire(self) -> None:
        while True:
            for version in await asyncio.to_thread(self._registry.expire_due):
                _LOG.warning("approval of %s %s expired", version.model, version.digest)
            await asyncio.sleep(_EXPIRE_INTERVAL_S)


def _clock_us() -> int:
    return time.time_ns() // 1000
