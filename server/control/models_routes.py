"""Admin API of models, versions, releases, blobs and runs: the registry by HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from headrace.errors import InvalidArgumentError
from server.control.plan_feed import PlanFeed
from server.control.requests import (
    Reason,
    RegisterBody,
    ReleaseBody,
    RollbackBody,
    body_as,
    query_text,
)
from server.wire.routes import Request, Response, Routes, json_response
from trainer.registry import ArtifactStore, Registry, ReleaseEntry

_MODEL = "/v1/models/(?P<model>[^/]+)"
_BLOB = "/v1/blobs/(?P<digest>sha256:[0-9a-f]{64})"
_EVENTS_MAX = 100_000
# A model file comes as one body. Larger ones belong into an artifact store of their own.
_BLOB_BYTES_MAX = 1 << 30
_WRITTEN_AT_ONCE_BYTES = 1 << 20  # a thread for every piece would cost more than its bytes
_ACTIONS = "submit|review|approve|reject|revoke"


class ModelsRoutes:
    """Handlers. The registry blocks on the disk, so that every call of it runs in a thread."""

    def __init__(self, registry: Registry, artifacts: ArtifactStore, feed: PlanFeed) -> None:
        self._registry = registry
        self._artifacts = artifacts
        self._feed = feed

    def add_to(self, routes: Routes) -> None:
        """Add the routes."""
        routes.add("GET", _BLOB, self.get_blob)
        routes.add("HEAD", _BLOB, self.head_blob)
        routes.add("PUT", _BLOB, self.put_blob, streams=True, body_bytes_max=_BLOB_BYTES_MAX)
        routes.add("GET", "/v1/models", self.models)
        routes.add("GET", f"{_MODEL}/versions", self.versions)
        routes.add("POST", f"{_MODEL}/versions", self.register)
        routes.add("GET", f"{_MODEL}/versions/(?P<version>[^/]+)", self.version)
        routes.add("POST", f"{_MODEL}/versions/(?P<version>[^/]+)/(?P<action>{_ACTIONS})", self.act)
        routes.add("GET", f"{_MODEL}/releases", self.releases)
        routes.add("POST", f"{_MODEL}/releases", self.release)
        routes.add("POST", f"{_MODEL}/rollback", self.rollback)
        routes.add("GET", "/v1/runs", self.runs)
        routes.add("POST", "/v1/runs", self.record_run)

    async def get_blob(self, request: Request) -> Response:
        """The bytes, verified."""
        data = await asyncio.to_thread(self._artifacts.read, request.params["digest"])
        return Response(200, data, "application/octet-stream")

    async def head_blob(self, request: Request) -> Response:
        """Whether it is here."""
        held = await asyncio.to_thread(self._artifacts.has, request.params["digest"])
        return Response(200 if held else 404)

    async def put_blob(self, request: Request) -> Response:
        """Store bytes that have this digest; twice is once."""
        digest = request.params["digest"]
        draft = await asyncio.to_thread(self._artifacts.draft)
        try:
            size = 0
            pieces: list[bytes] = []
            gathered = 0
            async for piece in request.stream:
                pieces.append(piece)
                gathered += len(piece)
                if gathered >= _WRITTEN_AT_ONCE_BYTES:
                    await asyncio.to_thread(draft.write, b"".join(pieces))
                    size += gathered
                    pieces, gathered = [], 0
            await asyncio.to_thread(draft.write, b"".join(pieces))
            await asyncio.to_thread(draft.commit, digest)
        finally:
            # Also where the client went away: a write may still be under way in its thread.
            await asyncio.to_thread(draft.close)
        return json_response({"digest": digest, "bytes": size + gathered})

    async def models(self, request: Request) -> Response:
        """Every model."""
        return json_response(await asyncio.to_thread(self._registry.models))

    async def versions(self, request: Request) -> Response:
        """A model's versions, newest first."""
        found = await asyncio.to_thread(self._registry.versions, request.params["model"])
        return json_response(sorted(found, key=lambda version: -version.number))

    async def version(self, request: Request) -> Response:
        """One version with its manifest and its trail."""
        return json_response(await asyncio.to_thread(self._read_version, **request.params))

    async def register(self, request: Request) -> Response:
        """A new draft out of uploaded blobs."""
        body = body_as(request, RegisterBody)
        model = request.params["model"]
        version = await asyncio.to_thread(
            self._registry.register_manifest, model, body.manifest, body.by, body.why
        )
        return json_response(version)

    async def act(self, request: Request) -> Response:
        """Move a version along its state machine."""
        body = body_as(request, Reason)
        params = request.params
        move = getattr(self._registry, params["action"])
        return json_response(
            await asyncio.to_thread(move, params["model"], params["version"], body.by, body.why)
        )

    async def releases(self, request: Request) -> Response:
        """A model's releases, oldest first; not found for a model nobody registered."""
        model = request.params["model"]
        await asyncio.to_thread(self._registry.versions, model)
        return json_response(await asyncio.to_thread(self._registry.history, model))

    async def release(self, request: Request) -> Response:
        """A new release; the answer comes after the plan feed has it."""
        body = body_as(request, ReleaseBody)
        if not body.entries:
            raise InvalidArgumentError("a release needs an entry", where="entries")
        made = await asyncio.to_thread(self._release, request.params["model"], body)
        await self._feed.refresh()
        return json_response(made)

    async def rollback(self, request: Request) -> Response:
        """A new release that points back."""
        body = body_as(request, RollbackBody)
        model = request.params["model"]
        made = await asyncio.to_thread(self._registry.rollback, model, body.to, body.by, body.why)
        await self._feed.refresh()
        return json_response(made)

    async def runs(self, request: Request) -> Response:
        """The newest pipeline runs."""
        return json_response(await asyncio.to_thread(self._registry.runs))

    async def record_run(self, request: Request) -> Response:
        """Keep a run's record; `?by=` says whose."""
        run = body_as(request, dict[str, Any])
        by = query_text(request, "by")
        return json_response(await asyncio.to_thread(self._registry.record_run, run, by))

    def _read_version(self, model: str, version: str) -> dict[str, Any]:
        found = self._registry.version(model, version)
        manifest = self._registry.manifest(model, found.digest)
        subject = f"{model}/{found.digest}"
        trail = [
            event for event in self._registry.events(limit=_EVENTS_MAX) if event.subject == subject
        ]
        return {
            **msgspec.to_builtins(found),
            "manifest": msgspec.to_builtins(manifest),
            "events": msgspec.to_builtins(trail),
        }

    def _release(self, model: str, body: ReleaseBody) -> object:
        sequence = body.expected_sequence
        if sequence is None:
            current = self._registry.current(model)
            sequence = current.sequence if current is not None else 0
        entries = [
            ReleaseEntry(entry.version, entry.role, entry.weight, entry.arm)
            for entry in body.entries
        ]
        return self._registry.release(
            model, entries, body.by, body.why, sequence, explain=body.explain
        )
