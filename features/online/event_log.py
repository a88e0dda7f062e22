"""The event log: what is pushed, in order, until the ingester has applied it."""

from __future__ import annotations

from collections.abc import Sequence

from features.loading import Definitions
from features.online.blocks import encode_payload
from features.online.keys import BACKLOG_BYTES, EVENTS
from features.online.payload import EventBatch, check_batch, pushed_sources
from features.online.scripts import PUSH
from features.online.store import OnlineStore
from headrace.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
)

# One push is one entry: applied and written as a whole, so it may not be large.
PUSH_EVENTS_MAX = 10_000
PUSH_BYTES_MAX = 4 << 20
# What may wait for the ingester, in all. It also bounds what the ingester reads in one go.
BACKLOG_BYTES_MAX = 64 << 20
# What an entry costs the store beside its payload.
ENTRY_BYTES = 128


class EventLog:
    """Pushes events into the store's log, checked against the definitions' sources."""

    def __init__(
        self,
        store: OnlineStore,
        definitions: Definitions,
        *,
        backlog_bytes_max: int = BACKLOG_BYTES_MAX,
    ) -> None:
        self._store = store
        self._sources = pushed_sources(definitions)
        self._backlog_bytes_max = backlog_bytes_max

    async def push(self, batches: Sequence[EventBatch]) -> str:
        """Append the batches, all or none, and return the offset for a later `min_offset`.

        Raises FailedPreconditionError (a source that is fed from where its history lies),
        InvalidArgumentError (nothing to push, too much in one call, or a batch that does not
        fit its source: named with field and row), ResourceExhaustedError (the ingester is too far
        behind), UnavailableError (the store is gone: whether it has the events is then unknown).
        """
        checked = [check_batch(batch, self._sources) for batch in batches]
        for batch in checked:
            if self._sources[batch.source].history is not None:
                raise FailedPreconditionError(
                    "the source is fed from where its history lies",
                    where=f"push to source {batch.source!r}",
                    mend=f"run `headrace features materialize {batch.source}`",
                )
        events = sum(map(len, checked))
        if not 0 < events <= PUSH_EVENTS_MAX:
            raise InvalidArgumentError(
                "not a number of events for one push",
                where="push",
                expected=f"1 to {PUSH_EVENTS_MAX}",
                got=events,
                mend="split it" if events else None,
            )
        payload = encode_payload(checked)
        if len(payload) > PUSH_BYTES_MAX:
            raise InvalidArgumentError(
                "the events are too large for one push",
                where="push",
                expected=f"at most {PUSH_BYTES_MAX} bytes",
                got=len(payload),
                mend="split it",
            )
        entry: bytes | int = await self._store.run(
            PUSH,
            [EVENTS, BACKLOG_BYTES],
            [self._backlog_bytes_max, len(payload) + ENTRY_BYTES, payload],
        )
        if isinstance(entry, int):
            raise ResourceExhaustedError(
                "the ingester is too far behind",
                where="push",
                expected=f"at most {self._backlog_bytes_max} bytes of events that wait",
                got=entry,
                mend="push more slowly, or see whether the ingester runs and its disk has room",
            )
        return entry.decode()
