"""Serves a feature service from the online store: one MGET a call, one query a view."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from features.batch import FeatureBatch
from features.online.keys import START, Offset, parse_offset
from features.online.service_rows import KnownStore, ServiceRows
from features.online.timeouts import CALL_TIMEOUT_S, CONNECT_TIMEOUT_S
from features.service import CompiledService
from features.types import Table
from headrace.errors import DeadlineExceededError

if TYPE_CHECKING:
    from features.online.progress import Progress
    from features.online.row_keys import RowKeys

# How often the store is asked while a call waits: seldom where the ingester's messages come anyway.
POLL_LIVE_S = 0.05
POLL_BLIND_S = 0.002
STORE_BOUND_NS = int((CALL_TIMEOUT_S + CONNECT_TIMEOUT_S) * 1e9)

Now = Callable[[], int]


class RowStore(KnownStore, Protocol):
    """Where rows are: the online store, or a snapshot of it."""

    @property
    def progress(self) -> Progress:
        """How far the ingester is, for those who wait for it."""

    async def get_rows(self, keys: RowKeys) -> list[bytes | None]:
        """Return the checkpoint and the rows as of one moment, None where there is none."""


class ServiceReader(ServiceRows):
    """Reads the features of one service. One per (service, store); safe for concurrent calls.

    schema_ids: the registry's id by view name. Raises FailedPreconditionError when one is missing.
    """

    def __init__(
        self, service: CompiledService, store: RowStore, schema_ids: Mapping[str, int]
    ) -> None:
        super().__init__(service, store, schema_ids)
        self._store: RowStore = store

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
        request = self.check_inputs(inputs, len(event_time_us))
        if not self.needs_store:
            return self.service.start(len(event_time_us)).finish(request)
        keys = self.keys_of_inputs(inputs)
        values = await self._values(keys, min_offset, deadline_ns, now_ns)
        return self.batch(keys, values, event_time_us, request)

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
                raise too_late(wanted, known)
            values = await self._get_rows(keys, left_ns, wanted, known)
            known = self.reached(values[0], wanted)
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
            raise too_late(wanted, known) from None


def too_late(wanted: Offset | None, known: Offset | None) -> DeadlineExceededError:
    """Return the error of a read that took too long: of a store, or of an ingester that is not as
    far as `wanted`, but `known`."""
    if wanted is None:
        return DeadlineExceededError("the features were not read in time", where="online store")
    return DeadlineExceededError(
        "the ingester has not passed min_offset in time",
        where="online store",
        expected=f"offset {wanted}",
        got="no checkpoint yet" if known in {None, START} else f"checkpoint {known}",
        mend="allow more time, or see whether the ingester runs",
    )
