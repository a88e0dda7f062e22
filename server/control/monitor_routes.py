"""Admin API of the monitor: incidents, day reports, runs on demand."""

from __future__ import annotations

import asyncio
from pathlib import Path

from monitor.incidents import IncidentStore
from monitor.job import last_result
from server.control.monitor_role import MonitorRole
from server.control.requests import MonitorBody, body_as, query_text
from server.wire.routes import Request, Response, Routes, json_response
from trainer.registry import Registry


class MonitorRoutes:
    """Reads what the monitor's process has written; runs it when asked."""

    def __init__(self, data_dir: Path, role: MonitorRole, registry: Registry) -> None:
        self._data_dir = data_dir
        self._role = role
        self._registry = registry

    def add_to(self, routes: Routes) -> None:
        """Add the routes."""
        routes.add("GET", "/v1/incidents", self.incidents)
        routes.add("GET", "/v1/monitor/days", self.days)
        routes.add("POST", "/v1/monitor/run", self.run)

    async def incidents(self, request: Request) -> Response:
        """Incidents of all models, or of `?model=`; not found for a model nobody registered."""
        store = IncidentStore(self._data_dir / "monitor")
        model = request.query.get("model")
        if model is not None:
            await asyncio.to_thread(self._registry.versions, model)
        return json_response(await asyncio.to_thread(store.list, model))

    async def days(self, request: Request) -> Response:
        """Day reports of `?model=`, oldest first; not found for a model nobody registered."""
        model = query_text(request, "model")
        await asyncio.to_thread(self._registry.versions, model)
        result = await asyncio.to_thread(last_result, self._data_dir, model)
        return json_response([] if result is None else result.days)

    async def run(self, request: Request) -> Response:
        """Run through a day and return the result."""
        body = body_as(request, MonitorBody)
        return json_response(await self._role.run(body.model, body.through))
