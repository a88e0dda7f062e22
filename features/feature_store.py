"""Online features in the process of the caller, without a server in between."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from features.batch import FeatureBatch
from features.loading import Definitions, load_definitions
from features.online.blocking import BlockingStore
from features.online.keys import CATALOG, parse_offset
from features.online.reader import POLL_BLIND_S, ServiceReader, too_late
from features.online.service_rows import ServiceRows, service_schema_ids
from features.online.store import OnlineStore
from features.online.tick_reader import TickReader
from features.online.timeouts import CALL_TIMEOUT_S
from features.service import CompiledService
from features.types import Table, row_count
from features.values import When, table_of_values, time_us
from headrace.errors import InvalidArgumentError

EntityRows = Sequence[Mapping[str, Any]] | Mapping[str, Any]


class FeatureStore:
    """Reads the services of a definitions file from the online store at a URL.

    `get_online_features` is safe to call from threads, one of which has its turn at a time;
    `get_online_features_async` belongs to the event loop that called it first.
    """

    def __init__(self, definitions: Definitions | Path | str, redis_url: str) -> None:
        """Load the definitions, which are Python and are run: give only a file that you trust.

        Raises NotFoundError, InvalidArgumentError. The store is connected by the first read.
        """
        if not isinstance(definitions, Definitions):
            definitions = load_definitions(Path(definitions))
        self.definitions = definitions
        self._url = redis_url
        self._blocking = BlockingStore(redis_url)
        self._rows: dict[str, ServiceRows] = {}
        self._online: OnlineStore | None = None
        self._readers: dict[str, TickReader] = {}

    def get_online_features(
        self,
        service: str,
        entity_rows: EntityRows,
        *,
        event_time: When | None = None,
        min_offset: str | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> FeatureBatch:
        """Return the features of every row as they are now, or were at `event_time`.

        entity_rows: a list of dicts, one a row, or columns by name (lists with None for null, or
        NumPy arrays): the join keys and request fields. min_offset: of a push; waits until it can
        be read.

        Raises NotFoundError (no such service), InvalidArgumentError (an input),
        UnavailableError (the store is gone, was reset, or lacks a view), DeadlineExceededError.
        """
        until_s = time.monotonic() + timeout_s
        rows = self._rows.get(service)
        if rows is None:
            rows = self._rows_of(self.definitions.service(service))
        inputs = table_of_rows(entity_rows, rows.service)
        times = _times(inputs, event_time)
        request = rows.check_inputs(inputs, len(times))
        if not rows.needs_store:
            return rows.service.start(len(times)).finish(request)
        keys = rows.keys_of_inputs(inputs)
        command = keys.command()
        wanted = None if min_offset is None else parse_offset(min_offset, "min_offset")
        while True:
            values = self._blocking.ask(command, "MGET", max(until_s - time.monotonic(), 0.0))
            known = rows.reached(values[0], wanted)
            if wanted is None or known >= wanted:
                return rows.batch(keys, values, times, request)
            if time.monotonic() >= until_s:
                raise too_late(wanted, known)
            time.sleep(POLL_BLIND_S)

    async def get_online_features_async(
        self,
        service: str,
        entity_rows: EntityRows,
        *,
        event_time: When | None = None,
        min_offset: str | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> FeatureBatch:
        """Do the same in an event loop, for as many callers at once as there are."""
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        reader = self._readers.get(service)
        if reader is None:
            reader = await self._reader_of(self.definitions.service(service))
        inputs = table_of_rows(entity_rows, reader.service)
        times = _times(inputs, event_time)
        return await reader.read(inputs, times, min_offset, deadline_ns, time.monotonic_ns)

    def close(self) -> None:
        """Close the connection of the blocking reads."""
        self._blocking.close()

    async def aclose(self) -> None:
        """Close both connections."""
        self.close()
        online, self._online = self._online, None
        self._readers.clear()
        if online is not None:
            await online.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _rows_of(self, service: CompiledService) -> ServiceRows:
        ids: dict[str, int] = {}
        if service.views:
            ids = service_schema_ids(service, self._blocking.execute("HGETALL", CATALOG))
        return self._rows.setdefault(service.name, ServiceRows(service, self._blocking, ids))

    async def _reader_of(self, service: CompiledService) -> TickReader:
        if self._online is None:
            self._online = OnlineStore(self._url)
        ids: dict[str, int] = {}
        if service.views:
            ids = service_schema_ids(service, await self._online.execute("HGETALL", CATALOG))
        reader = TickReader(ServiceReader(service, self._online, ids), self._online)
        return self._readers.setdefault(service.name, reader)


def table_of_rows(entity_rows: EntityRows, service: CompiledService) -> Table:
    """Return what a caller hands over as columns, with the types that the service declares.

    Raises InvalidArgumentError naming the row or the column.
    """
    where = f"inputs of service {service.name!r}"
    if not isinstance(entity_rows, Mapping):
        entity_rows = _columns(entity_rows, where)
    return table_of_values(entity_rows, service.input_types, where)


def _columns(rows: Sequence[Mapping[str, Any]], where: str) -> dict[str, list[Any]]:
    names = list(rows[0]) if rows else []
    for place, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            raise InvalidArgumentError(
                f"row {place} has other names than row 0",
                where=where,
                expected=", ".join(names),
                got=", ".join(row),
                mend="give every row the same names, with None where a value is not known",
            )
    return {name: [row[name] for row in rows] for name in names}


def _times(inputs: Table, event_time: When | None) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    now_us = time.time_ns() // 1000
    event_us = now_us if event_time is None else time_us(event_time, "event_time")
    return np.full(row_count(inputs, "entity_rows"), event_us, np.int64)
