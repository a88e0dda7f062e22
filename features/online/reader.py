"""Serves a feature service from the online store: one MGET a call, one query a view."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from features.batch import FeatureBatch
from features.definitions import StreamFeatureView
from features.online.keys import START, Checkpoint, Offset, parse_offset, row_suffix
from features.online.timeouts import CALL_TIMEOUT_S, CONNECT_TIMEOUT_S
from features.row import NO_TTL, RowCodec, last_known
from features.service import Assembly, CompiledService, ServiceView
from features.types import Table, row_count
from headrace.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)

if TYPE_CHECKING:
    from features.online.progress import Progress
    from features.online.row_keys import EntityRows, KeyParts, RowKeys
    from features.windows.engine import WindowEngine

# How often the store is asked while a call waits: seldom where the ingester's messages come anyway.
POLL_LIVE_S = 0.05
POLL_BLIND_S = 0.002
STORE_BOUND_NS = int((CALL_TIMEOUT_S + CONNECT_TIMEOUT_S) * 1e9)

Now = Callable[[], int]


class RowStore(Protocol):
    """Where rows are: the online store, or a snapshot of it."""

    store_id: str | None  # of the store that was read from, once one was

    @property
    def progress(self) -> Progress:
        """How far the ingester is, for those who wait for it."""

    async def get_rows(self, keys: RowKeys) -> list[bytes | None]:
        """Return the checkpoint and the rows as of one moment, None where there is none."""


@dataclass
class _Lookup:
    """Where the rows of one view are, and how to read them."""

    view: ServiceView
    suffix: bytes
    engine: WindowEngine | None
    codec: RowCodec | None
    ttl_us: int | None


class ServiceReader:
    """Reads the features of one service. One per (service, store); safe for concurrent calls.

    schema_ids: the registry's id by view name. Raises FailedPreconditionError when one is missing.
    """

    def __init__(
        self, service: CompiledService, store: RowStore, schema_ids: Mapping[str, int]
    ) -> None:
        self.service = service
        self._store = store
        self._store_start = b"?"  # how the checkpoint of the store that was read from begins
        # Every join key once: the columns of `KeyParts`.
        self.join_keys = list(dict.fromkeys(k for e in service.entities for k in e.join_keys))
        self._lookups: list[list[_Lookup]] = []
        self._rows: list[EntityRows] = []
        for entity in service.entities:
            # Compiled code is loaded where there are rows to read.
            from features.online.row_keys import EntityRows

            views = [view for view in service.views if view.view.entity is entity]
            lookups = [_lookup(view, schema_ids) for view in views]
            columns = [self.join_keys.index(name) for name in entity.join_keys]
            self._lookups.append(lookups)
            self._rows.append(EntityRows.of(columns, [lookup.suffix for lookup in lookups]))

    async def read(
        self,
        inputs: Table,
        event_time_us: NDArray[np.int64],
        min_offset: str | None,
        deadline_ns: int,
        now_ns: Now,
    ) -> FeatureBatch:
        """Return the features of every row at its event time.

        inputs: the entities' join keys and the request fields, one element a row;
        event_time_us: int64[rows], UTC microseconds; min_offset: wait until the ingester has
        passed it; deadline_ns: by the clock `now_ns` (monotonic).

        Raises InvalidArgumentError (an input or `min_offset` does not fit), DeadlineExceededError
        (names the offset and how far the ingester is), UnavailableError (the store is gone, or was
        reset), InternalError (a stored row cannot be read).
        """
        request = self.service.check_request(inputs)
        rows = len(event_time_us)
        given = row_count(inputs, f"service {self.service.name!r}")
        if given != rows:
            raise InvalidArgumentError(
                "event_time is not one a row",
                where=f"service {self.service.name!r}",
                expected=f"{given} times",
                got=rows,
            )
        if not self._lookups:  # all is in the request, and no store is needed
            return self.service.start(rows).finish(request)
        from features.online.row_keys import key_parts

        keys = self.keys_of(key_parts(self.service.entities, inputs))
        values = await self._values(keys, min_offset, deadline_ns, now_ns)
        return self._batch(keys, values, event_time_us, request)

    def keys_of(self, parts: KeyParts) -> RowKeys:
        """Return the keys of the rows that are needed; `parts` has a column per join key."""
        from features.online.row_keys import row_keys

        return row_keys(parts, self._rows)

    def batch(
        self,
        keys: RowKeys,
        values: list[bytes | None],
        event_time_us: NDArray[np.int64],
        request: Table,
    ) -> FeatureBatch:
        """Return the features of what was read; request: see `CompiledService.check_request`.

        Raises UnavailableError (the store was reset), InternalError (a row cannot be read).
        """
        checkpoint = values[0]
        if checkpoint is None or not checkpoint.startswith(self._store_start):
            self._check(checkpoint)
            self._store_start = f"{self._store.store_id}:".encode()
        return self._batch(keys, values, event_time_us, request)

    def _batch(
        self,
        keys: RowKeys,
        values: list[bytes | None],
        event_time_us: NDArray[np.int64],
        request: Table,
    ) -> FeatureBatch:
        assembly = self.service.start(len(event_time_us))
        at = 1
        for lookups, places, count in zip(self._lookups, keys.places, keys.counts, strict=True):
            for lookup in lookups:
                _fill(assembly, lookup, values[at : at + count], places, event_time_us)
                at += count
        return assembly.finish(request)

    async def _values(
        self, keys: RowKeys, min_offset: str | None, deadline_ns: int, now_ns: Now
    ) -> list[bytes | None]:
        """Return the values as of one moment that is not before `min_offset`."""
        wanted = parse_offset(min_offset, "min_offset") if min_offset else None
        known: Offset | None = None
        while True:
            if wanted is not None:
                progress = self._store.progress
                progress.start()
                known = progress.latest if known is None else known
                if known is not None and known < wanted:
                    # It is behind for sure: reading the rows now would be for nothing.
                    poll_s = POLL_LIVE_S if progress.live else POLL_BLIND_S
                    left_s = (deadline_ns - now_ns()) / 1e9
                    await progress.wait(wanted, min(poll_s, max(left_s, 0.0)))
            left_ns = deadline_ns - now_ns()
            if left_ns <= 0:
                raise _too_late(wanted, known)
            values = await self._get_rows(keys, left_ns, wanted, known)
            if values[0] is None and wanted is not None and self._store.store_id is None:
                # Whoever pushed may be quicker than the first ingester's start: that is a wait.
                known = START
                continue
            known = self._check(values[0])
            if wanted is None or known >= wanted:
                return values

    async def _get_rows(
        self, keys: RowKeys, left_ns: int, wanted: Offset | None, known: Offset | None
    ) -> list[bytes | None]:
        if left_ns > STORE_BOUND_NS:  # the store's own timeouts come first
            return await self._store.get_rows(keys)
        try:
            async with asyncio.timeout(left_ns / 1e9):
                return await self._store.get_rows(keys)
        except TimeoutError:
            raise _too_late(wanted, known) from None

    def _check(self, value: bytes | None) -> Offset:
        """Return how far the ingester was; refuse a store that is not the one it was."""
        if value is None:
            raise UnavailableError(
                "the store holds no features: it was reset, or no ingester has run yet",
                where="online store",
                mend="start the ingester, and fill the store again",
            )
        checkpoint = Checkpoint.decode(value)
        store = self._store
        if store.store_id is None:
            store.store_id = checkpoint.store_id
        elif store.store_id != checkpoint.store_id:
            raise UnavailableError(
                "the store was reset: what it held is gone, and missing must not be served as 0",
                where="online store",
                mend="fill it again, then restart this worker",
            )
        return checkpoint.offset


def _too_late(wanted: Offset | None, known: Offset | None) -> DeadlineExceededError:
    if wanted is None:
        return DeadlineExceededError("the features were not read in time", where="online store")
    return DeadlineExceededError(
        "the ingester has not passed min_offset in time",
        where="online store",
        expected=f"offset {wanted}",
        got="no checkpoint yet" if known in {None, START} else f"checkpoint {known}",
        mend="allow more time, or see whether the ingester runs",
    )


def _lookup(service_view: ServiceView, schema_ids: Mapping[str, int]) -> _Lookup:
    view = service_view.view
    schema_id = schema_ids.get(view.name)
    if schema_id is None:
        raise FailedPreconditionError(
            f"view {view.name!r} has no schema id",
            where="feature reader",
            mend="apply the definitions first",
        )
    suffix = row_suffix(view.name, schema_id)
    if isinstance(view, StreamFeatureView):
        # Its compiled code is loaded where there are windows.
        from features.windows.engine import WindowEngine

        return _Lookup(service_view, suffix, WindowEngine(view, schema_id), None, None)
    import features.last_known  # noqa: F401 - compiled, or loaded, before the first read

    return _Lookup(service_view, suffix, None, RowCodec.of_view(view, schema_id), view.ttl_us)


def _fill(
    assembly: Assembly,
    lookup: _Lookup,
    values: list[bytes | None],
    index: NDArray[np.int64],
    event_time_us: NDArray[np.int64],
) -> None:
    """Put one view's features into the assembly; index: each row's place in `values`, or -1."""
    if lookup.engine is not None:
        lookup.engine.query_into(
            values, event_time_us, assembly.words, assembly.status, lookup.view.targets, index
        )
        return
    assert lookup.codec is not None
    if not lookup.view.texts and _read_piles(assembly, lookup, values, index, event_time_us):
        return
    places = index.tolist()
    stored = [None if place < 0 else values[place] for place in places]
    rows, status = last_known(stored, event_time_us.tolist(), lookup.ttl_us)
    assembly.put_rows(lookup.view, lookup.codec.unpack(rows), status)


def _read_piles(
    assembly: Assembly,
    lookup: _Lookup,
    values: list[bytes | None],
    index: NDArray[np.int64],
    event_time_us: NDArray[np.int64],
) -> bool:
    """Put a last-known view's features into the assembly; False when a pile cannot be read."""
    from features.last_known import joined_piles, read_piles

    assert lookup.codec is not None
    joined, lengths = joined_piles(values)
    ttl_us = NO_TTL if lookup.ttl_us is None else lookup.ttl_us
    bad = read_piles(
        joined, lengths, index, event_time_us, ttl_us, lookup.codec.schema_id, lookup.view.targets,
        assembly.words, assembly.status,
    )  # fmt: skip
    return int(bad) < 0
