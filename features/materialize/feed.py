"""Appends rows of a location to the event log, together with the record that says so."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

from features.offline.history import History
from features.online.blocks import encode_payload
from features.online.event_log import BACKLOG_BYTES_MAX, ENTRY_BYTES, PUSH_BYTES_MAX
from features.online.keys import BACKLOG_BYTES, EVENTS, fed_key, fed_rows_key
from features.online.payload import check_batch
from features.online.resp import backoff_s
from features.online.scripts import FEED
from features.online.store import OnlineStore
from features.sources import Source
from headrace.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)

# What the ingester writes at a time.
EVENTS_PER_PUSH = 2048
_LOOK_AGAIN_S = 0.02


class Lately(NamedTuple):
    """Rows of a table that are pushed now, and from which created time on rows are remembered."""

    kept_from_us: int
    created_us: Sequence[int]
    members: Sequence[bytes]


class Feed:
    """The way of one source's rows into the log. Safe to cancel, or to kill, at any point.

    patience_s: for how long the store may be gone, and the ingester make no headway.
    """

    def __init__(
        self,
        store: OnlineStore,
        source: Source,
        *,
        patience_s: float,
        backlog_bytes_max: int = BACKLOG_BYTES_MAX,
    ) -> None:
        self._store = store
        self._source = source
        self._patience_s = patience_s
        self._backlog_bytes_max = backlog_bytes_max
        self._keys = [EVENTS, BACKLOG_BYTES, fed_key(source.name), fed_rows_key(source.name)]

    async def records(self) -> dict[str, bytes]:
        """Return what has been pushed, by the name of the record."""
        found: list[bytes] = await self._store.execute("HGETALL", fed_key(self._source.name))
        return {name.decode(): value for name, value in zip(found[::2], found[1::2], strict=True)}

    async def known(self, members: Sequence[bytes]) -> list[bool]:
        """Return which rows of a table were pushed lately."""
        if not members:
            return []
        reply = await self._store.execute("ZMSCORE", fed_rows_key(self._source.name), *members)
        return [score is not None for score in reply]

    def payload(self, rows: pa.Table) -> bytes | None:
        """Return rows as an entry of the log; None where there are too many for one.

        Raises InvalidArgumentError for one row that is too large, and for times that are none.
        """
        history = History(self._source, rows)
        checked = check_batch(history.batch(self._source.dtypes), {self._source.name: self._source})
        payload = encode_payload([checked])
        if len(payload) <= PUSH_BYTES_MAX:
            return payload
        if rows.num_rows > 1:
            return None
        raise InvalidArgumentError(
            "a row is too large for the event log",
            where=history.where,
            expected=f"at most {PUSH_BYTES_MAX} bytes",
            got=len(payload),
        )

    async def push(
        self,
        payload: bytes,
        record: str,
        before: bytes,
        after: bytes,
        lately: Lately | None = None,
    ) -> None:
        """Append an entry (none where it is empty) and change a record, both or neither.

        What is repeated after a reply that was lost changes nothing.
        Raises ResourceExhaustedError and UnavailableError when patience ends,
        FailedPreconditionError when somebody else changed the record.
        """
        arguments: list[str | bytes | int] = [
            self._backlog_bytes_max,
            len(payload) + ENTRY_BYTES,
            payload,
            record,
            before,
            after,
            "" if lately is None else lately.kept_from_us,
        ]
        if lately is not None:
            for created_us, member in zip(lately.created_us, lately.members, strict=True):
                arguments += [created_us, member]
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._patience_s
        least_waiting = failures = 0
        while True:
            try:
                reply: bytes | int | list[bytes] = await self._store.run(
                    FEED, self._keys, arguments
                )
            except UnavailableError:
                failures += 1
                if loop.time() > until_s:
                    raise
                await asyncio.sleep(backoff_s(failures))
                continue
            if isinstance(reply, bytes):
                return
            if isinstance(reply, list):
                # Ours it is when an earlier attempt, whose reply was lost, was done.
                if reply[0] == after:
                    return
                raise self._overtaken()
            if not least_waiting or reply < least_waiting:
                least_waiting, until_s = reply, loop.time() + self._patience_s
            elif loop.time() > until_s:
                raise self._stuck(reply)
            await asyncio.sleep(_LOOK_AGAIN_S)

    def _overtaken(self) -> FailedPreconditionError:
        return FailedPreconditionError(
            "another materialize feeds the same source",
            where=f"source {self._source.name!r}",
            mend="let it finish; nothing is pushed twice",
        )

    def _stuck(self, waiting: int) -> ResourceExhaustedError:
        return ResourceExhaustedError(
            "the ingester makes no headway",
            where=f"source {self._source.name!r}",
            expected=f"at most {self._backlog_bytes_max} bytes of events that wait",
            got=waiting,
            mend="see whether it runs, and start again: what is pushed stays",
        )
