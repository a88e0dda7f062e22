"""A worker's way to the features: readers per service, events in, definitions as they are applied.

Definitions come with the bundles of the served versions and, where there is a control, from what
was applied last: events can be pushed before anything was released.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from features import CompiledService, Definitions, FeatureBatch, Table, definitions_from_source
from features.online.event_log import EventLog
from features.online.keys import CATALOG
from features.online.payload import EventBatch
from features.online.reader import ServiceReader
from features.online.service_rows import service_schema_ids
from features.online.store import OnlineStore
from features.online.tick_reader import TickReader
from features.sources import RequestSource, Source
from headrace.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from server.control.client import ControlClient
from server.models.versions import Version

logger = logging.getLogger(__name__)

_CONTROL_TIMEOUT_S = 5.0
_REFRESH_S = 1.0  # how often at most control is asked for newer definitions


def _unknown_sources(names: Sequence[str]) -> InvalidArgumentError:
    return InvalidArgumentError(
        "no definitions that are known here hold these sources",
        where="push",
        got=", ".join(sorted(set(names))) or "no batches",
        mend="apply the definitions, and check the names",
    )


class FeatureAccess:
    """Reads and pushes through one store. `redis_url` None: there is no store."""

    def __init__(
        self,
        redis_url: str | None,
        control_url: str | None,
        versions: Callable[[], list[Version]],
        executor: Executor,
    ) -> None:
        self._store = OnlineStore(redis_url) if redis_url is not None else None
        self._control = (
            ControlClient(control_url, _CONTROL_TIMEOUT_S) if control_url is not None else None
        )
        self._versions = versions
        self._executor = executor
        self._readers: dict[str, TickReader] = {}
        self._applied: Definitions | None = None
        self._applied_ids: dict[str, int] = {}
        self._asked_s = -_REFRESH_S
        self._asking = asyncio.Lock()
        self._refreshing: asyncio.Task[bool] | None = None

    async def close(self) -> None:
        """Close the connection to the store."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        if self._store is not None:
            await self._store.close()

    async def read(
        self,
        service: CompiledService,
        inputs: Table,
        event_time_us: npt.NDArray[np.int64],
        min_offset: str | None,
        deadline_ns: int,
    ) -> FeatureBatch:
        """Return the rows' features as of their event times.

        Raises InvalidArgumentError (a join key or request field), UnavailableError (the store is
        gone), DeadlineExceededError (`min_offset` was not reached), FailedPreconditionError.
        """
        reader = self._readers.get(service.hash)
        if reader is None:
            reader = await self._make_reader(service)
        return await reader.read(inputs, event_time_us, min_offset, deadline_ns, time.monotonic_ns)

    async def push(self, batches: Sequence[EventBatch]) -> str:
        """Append events and return their offset. Raises what `EventLog.push` raises."""
        store = self._needed_store()
        names = [batch.source for batch in batches]
        for asked in (False, True):
            definitions = self._definitions_of(names)
            if definitions is None and not await self._refresh():
                raise _unknown_sources(names)
            if definitions is None:
                continue
            try:
                return await EventLog(store, definitions).push(batches)
            except InvalidArgumentError:
                if asked or not await self._refresh_if_possible():
                    raise
        raise _unknown_sources(names)

    async def service(self, name: str) -> tuple[CompiledService, int]:
        """Return a service and its schema id: a served one, else the one that was applied last.

        Raises NotFoundError.
        """
        served = self._served(name)
        if served is not None:
            return served
        if self._applied is None or name not in self._applied.services:
            await self._refresh()
        else:
            self._refresh_soon()
        if self._applied is None:
            raise NotFoundError(f"feature service '{name}' is not known here")
        service = self._applied.service(name)
        return service, self._applied_ids.get(service.hash, 0)

    def _served(self, name: str) -> tuple[CompiledService, int] | None:
        for version in self._versions():
            if version.service is not None and version.service.name == name:
                return version.service, version.schema_id
        return None

    def reader_of(self, name: str) -> TickReader | None:
        """Return what reads a service; None where it was not read yet: `service` finds out."""
        served = self._served(name)
        if served is not None:
            return self._readers.get(served[0].hash)
        if self._applied is None or name not in self._applied.services:
            return None
        self._refresh_soon()
        return self._readers.get(self._applied.service(name).hash)

    async def source(self, name: str) -> Source | None:
        """Return one source, asking control where it is not known; None when nobody knows it."""
        definitions = self._definitions_of([name])
        if definitions is None and await self._refresh():
            definitions = self._definitions_of([name])
        found = None if definitions is None else definitions.sources[name]
        return None if isinstance(found, RequestSource) else found

    def _definitions_of(self, names: Sequence[str]) -> Definitions | None:
        """Return definitions that hold all these sources: those applied last come first."""
        served = [version.definitions for version in self._versions()]
        for definitions in (self._applied, *served):
            if definitions is not None and all(name in definitions.sources for name in names):
                return definitions
        return None

    def _needed_store(self) -> OnlineStore:
        if self._store is None:
            raise FailedPreconditionError(
                "this server runs without a feature store", mend="start it with --redis"
            )
        return self._store

    async def _make_reader(self, service: CompiledService) -> TickReader:
        store = self._needed_store()
        catalog = await store.execute("HGETALL", CATALOG)
        schema_ids = service_schema_ids(service, catalog)
        reader = TickReader(ServiceReader(service, store, schema_ids), store)
        return self._readers.setdefault(service.hash, reader)

    def _refresh_soon(self) -> None:
        """See whether what was applied has changed, as rows of an older definition are not fed any
        more; whoever asks need not wait for that.
        """
        if self._refreshing is None and time.monotonic() - self._asked_s >= _REFRESH_S:
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh_if_possible())
            self._refreshing.add_done_callback(self._refreshed)

    def _refreshed(self, task: asyncio.Task[bool]) -> None:
        self._refreshing = None
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("what was applied last cannot be read: %s", error)

    async def _refresh_if_possible(self) -> bool:
        """Do the same, but go on with what is known while control is gone."""
        try:
            return await self._refresh()
        except UnavailableError:
            return False

    async def _refresh(self) -> bool:
        """Ask control for the definitions that were applied last; say whether they are newer."""
        control = self._control
        if control is None:
            return False
        before = self._applied
        async with self._asking:
            if self._applied is not before:  # another call has just done it
                return True
            if time.monotonic() - self._asked_s < _REFRESH_S:
                return False
            loop = asyncio.get_running_loop()
            try:
                answer = await loop.run_in_executor(self._executor, control.definitions)
            finally:  # while control is gone, not every call may wait for it
                self._asked_s = time.monotonic()
            if answer is None or (before is not None and answer["digest"] == before.digest):
                return False
            source = answer["source"].encode()
            self._applied = await loop.run_in_executor(
                self._executor, definitions_from_source, source
            )
            self._applied_ids = dict(answer.get("ids", {}))
        return True
