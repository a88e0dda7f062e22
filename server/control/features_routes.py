"""Admin API of the feature definitions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from headrace.errors import FailedPreconditionError
from server.control.ingest_role import IngestRole, stored_schema_ids
from server.control.requests import BackfillBody, body_as, query_text
from server.wire.routes import Request, Response, Routes, json_response
from trainer.bundle import DEFINITIONS
from trainer.registry import Registry

if TYPE_CHECKING:
    from features.loading import Definitions


class FeaturesRoutes:
    """Applies definitions: checked, recorded, then given to the ingester.

    A definitions file is Python that runs here: who may apply one may do what control may do.
    """

    def __init__(self, registry: Registry, ingester: IngestRole | None) -> None:
        self._registry = registry
        self._ingester = ingester
        self._applying = asyncio.Lock()

    def add_to(self, routes: Routes) -> None:
        """Add the routes."""
        routes.add("GET", "/v1/features/definitions", self.show)
        routes.add("POST", "/v1/features/definitions", self.apply)
        routes.add("GET", "/v1/features/backfill", self.backfills)
        routes.add("POST", "/v1/features/backfill", self.backfill)

    async def start(self) -> None:
        """Go on with the definitions that the registry holds."""
        recorded = await asyncio.to_thread(self._registry.definitions)
        if recorded is not None:
            definitions = await asyncio.to_thread(_load, recorded.source)
            await self._ingest(definitions, recorded.ids)

    async def apply(self, request: Request) -> Response:
        """Apply the body (Python source); `?by=` says who."""
        by = query_text(request, "by")
        definitions = await asyncio.to_thread(_load, request.body)
        hashes = [(name, view.hash) for name, view in definitions.views.items()]
        hashes += [(name, service.hash) for name, service in definitions.services.items()]
        # In turn: what the registry holds last must be what the ingester runs.
        async with self._applying:
            await asyncio.to_thread(self._check_released, definitions)
            ids = await asyncio.to_thread(
                self._registry.apply_definitions, request.body, hashes, by
            )
            await self._ingest(definitions, ids)
        if self._ingester is not None:
            await self._ingester.taken_over()
        return json_response({**_describe(definitions, ids), "backfill": self._fills()})

    async def backfills(self, request: Request) -> Response:
        """The views that wait for their history, or are being filled, and how far each is."""
        return json_response(self._fills())

    async def backfill(self, request: Request) -> Response:
        """Fill views from history, none named: all that wait; or serve them without it."""
        body = body_as(request, BackfillBody)
        if self._ingester is None:
            raise FailedPreconditionError(
                "the ingester does not run here",
                where="control",
                mend="`headrace ingest` fills new views by itself",
            )
        self._ingester.fill(body.views, empty=body.empty)
        return json_response(self._fills())

    def _fills(self) -> dict[str, dict[str, Any]]:
        return {} if self._ingester is None else self._ingester.fills()

    def _check_released(self, definitions: Definitions) -> None:
        """Refuse definitions that would leave a released version without its features.

        The ingester follows one set of definitions: the rows of a view that is not among them would
        stand still, and be served as if they were fresh.
        """
        kept = {view.hash for view in definitions.stored_views.values()}
        for model, released in self._registry.plan()["models"].items():
            for arm in released["arms"]:
                manifest = self._registry.manifest(model, arm["version"])
                wanted = manifest.feature_service
                if wanted is None:
                    continue
                digest = next(f.sha256 for f in manifest.files if f.path == DEFINITIONS)
                service = _load(self._registry.artifacts.read(digest)).service(wanted.name)
                for entry in service.views:
                    if entry.view.hash not in kept:
                        raise FailedPreconditionError(
                            f"view '{entry.view.name}' has changed or is gone, and a released "
                            f"version of model '{model}' needs it ({arm['version'][:19]})",
                            where="definitions",
                            mend="keep the view as it was, and give the changed one a new name",
                        )

    async def show(self, request: Request) -> Response:
        """What was applied last; 204 before that."""
        recorded = await asyncio.to_thread(self._registry.definitions)
        if recorded is None:
            return Response(204)
        definitions = await asyncio.to_thread(_load, recorded.source)
        described = _describe(definitions, recorded.ids)
        return json_response({**described, "source": recorded.source.decode()})

    async def _ingest(self, definitions: Definitions, ids: dict[str, int]) -> None:
        if self._ingester is not None:
            await self._ingester.apply(definitions, stored_schema_ids(definitions, ids))


def _load(source: bytes) -> Definitions:
    from features.loading import definitions_from_source

    return definitions_from_source(source)


def _describe(definitions: Definitions, ids: dict[str, int]) -> dict[str, Any]:
    views = {
        name: {
            "kind": type(view).__name__,
            "schema_id": ids.get(view.hash),
            "hash": view.hash,
            "features": {each: dtype.name for each, dtype in view.feature_dtypes.items()},
        }
        for name, view in definitions.views.items()
    }
    services = {}
    for name in definitions.services:
        service = definitions.service(name)
        services[name] = {
            "version": service.version,
            "schema_id": ids.get(service.hash),
            "hash": service.hash,
            "columns": service.columns,
        }
    return {"digest": definitions.digest, "views": views, "services": services, "ids": ids}
