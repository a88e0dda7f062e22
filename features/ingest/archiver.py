"""The archiver: what the ingester has applied becomes history, then leaves the event log.

It reads the log by itself, behind the checkpoint, and gives each event the sequence that the
ingester gave it: both count the events of the same entries (what is dead has left the log). Where
it goes on is said by the archive on disk alone, so that a kill at any point leaves nothing out and
nothing twice. The ingester never waits for it; when it stands still the log grows until pushes are
refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from features.arrow import Arrow, arrow_of_column
from features.ingest.entries import Entry, log_bytes, read_entries
from features.offline.archive import Archive, ArchiveEnd
from features.online.blocks import DTYPES, Arrived, decode_payloads, kind_of
from features.online.event_log import BACKLOG_BYTES_MAX
from features.online.keys import (
    BACKLOG_BYTES,
    CHECKPOINT,
    EVENTS,
    LOG_START,
    Checkpoint,
    Offset,
    parse_log_start,
    parse_offset,
)
from features.online.resp import backoff_s
from features.online.scripts import ARCHIVED
from features.online.store import OnlineStore
from headrace.errors import (
    FailedPreconditionError,
    InternalError,
    ResourceExhaustedError,
    UnavailableError,
)

logger = logging.getLogger(__name__)

# Applied events are history after so long, or when so much of the log is theirs: an eighth of what
# may wait (`BACKLOG_BYTES_MAX`), so that pushes do not notice.
INTERVAL_S = 5.0
BATCH_BYTES = 8 << 20
POLL_S = 0.25
ENTRIES_PER_READ = 2048


@dataclass
class ArchiveCounters:
    """What this archiver has done since it started; `failures`: attempts that came to nothing."""

    events: int = 0
    entries: int = 0
    merged_files: int = 0
    failures: int = 0


class Archiver:
    """Archives the log of the ingester that runs under `epoch`, until a newer one has taken over.

    interval_s: how long applied events may wait to become history.
    """

    def __init__(
        self, store: OnlineStore, archive: Archive, epoch: int, *, interval_s: float = INTERVAL_S
    ) -> None:
        self.counters = ArchiveCounters()
        self._store = store
        self._archive = archive
        self._epoch = epoch
        self._interval_s = interval_s

    async def run(self) -> None:
        """Archive until cancelled, which is safe at any point.

        While the store or the disk fails it tries again, with backoff. Raises
        FailedPreconditionError when a newer ingester has taken over, or when the archive is not
        one of this store; InternalError when the log and the checkpoint do not agree.
        """
        failures = 0
        while True:
            try:
                lock = await asyncio.to_thread(self._archive.lock)
                if lock is not None:
                    with lock:
                        await self._follow()
                await self._checkpoint()  # who waits for the lock must hear of a newer one, too
                await asyncio.sleep(POLL_S)
                failures = 0
            except (UnavailableError, ResourceExhaustedError, OSError) as error:
                failures += 1
                self.counters.failures += 1
                logger.warning("the archive waits: %s", error)
                await asyncio.sleep(backoff_s(failures))

    async def _follow(self) -> None:
        """Archive what is applied, again and again; return when the store is not ours."""
        checkpoint = await self._checkpoint()
        if checkpoint is None:
            return
        loop = asyncio.get_running_loop()
        start, end = await self._begin(checkpoint)
        idle_s = loop.time()
        while checkpoint is not None:
            reached = parse_offset(end.offset, "archive")
            if start < reached <= checkpoint.offset:
                # Archived before a kill or a lost reply, but still in the log.
                await self._trim(end, log_bytes(await self._entries(str(start), end.offset)))
                start = reached
            if checkpoint.offset <= reached:
                idle_s = loop.time()
            elif await self._is_large() or loop.time() - idle_s >= self._interval_s:
                end = await self._step(end, checkpoint)
                start = parse_offset(end.offset, "archive")
                idle_s = loop.time()
            if not reached < start < checkpoint.offset:  # else the step was full
                await asyncio.sleep(POLL_S)
            checkpoint = await self._checkpoint()

    async def _is_large(self) -> bool:
        return int(await self._store.execute("GET", BACKLOG_BYTES) or 0) >= BATCH_BYTES

    async def _checkpoint(self) -> Checkpoint | None:
        """Return the checkpoint; None until our ingester has taken over."""
        value = await self._store.execute("GET", CHECKPOINT)
        if value is None:
            return None
        checkpoint = Checkpoint.decode(value)
        if checkpoint.epoch > self._epoch:
            raise FailedPreconditionError(
                "a newer ingester has taken over",
                where="archive",
                expected=f"epoch {self._epoch}",
                got=checkpoint.epoch,
            )
        return checkpoint if checkpoint.epoch == self._epoch else None

    async def _begin(self, checkpoint: Checkpoint) -> tuple[Offset, ArchiveEnd]:
        """Return where the log begins, and from where to archive: where the archive ends."""
        start, sequence = parse_log_start(await self._store.execute("GET", LOG_START))
        end = await asyncio.to_thread(self._archive.end)
        if end is not None and end.store_id == checkpoint.store_id:
            if parse_offset(end.offset, "archive") >= start:
                return start, end
            logger.error(
                "the history lacks the events %d to %d: they have left the event log",
                end.sequence,
                sequence - 1,
            )
        elif sequence < await asyncio.to_thread(self._archive.next_sequence):
            raise FailedPreconditionError(
                "the history is that of another store, and ahead of this one",
                where="archive",
                expected=f"history up to sequence {sequence}",
                mend="give the ingester a data directory of its own",
            )
        return start, ArchiveEnd(checkpoint.store_id, str(start), sequence)

    async def _step(self, end: ArchiveEnd, checkpoint: Checkpoint) -> ArchiveEnd:
        """Archive some entries after `end`, none after the checkpoint; return the new end."""
        entries = await self._entries(end.offset, str(checkpoint.offset), BATCH_BYTES)
        tables, events = await asyncio.to_thread(_tables, entries, end.sequence)
        new = end._replace(sequence=end.sequence + events)
        if log_bytes(entries) >= BATCH_BYTES:
            new = new._replace(offset=entries[-1].offset.decode())
        elif new.sequence == checkpoint.sequence:
            new = new._replace(offset=str(checkpoint.offset))
        else:
            raise InternalError(
                "the event log does not hold what was applied",
                where="archive",
                expected=f"sequence {checkpoint.sequence} at {checkpoint.offset}",
                got=new.sequence,
                mend="did somebody else write to or trim hr:events?",
            )
        await asyncio.to_thread(self._archive.append, tables, new)
        await self._trim(new, log_bytes(entries))
        self.counters.events += events
        self.counters.entries += len(entries)
        self.counters.merged_files += await asyncio.to_thread(self._archive.merge, time.time())
        return new

    async def _entries(
        self, after: str, until: str, bytes_max: int = BACKLOG_BYTES_MAX
    ) -> list[Entry]:
        """Return the entries after one offset up to another; no more when they are that large."""
        entries: list[Entry] = []
        size_bytes = 0
        while size_bytes < bytes_max:
            found = await self._store.execute(
                "XRANGE", EVENTS, f"({after}", until, "COUNT", ENTRIES_PER_READ
            )
            more = read_entries(found)
            entries += more
            size_bytes += log_bytes(more)
            if len(more) < ENTRIES_PER_READ:
                break
            after = more[-1].offset.decode()
        return entries

    async def _trim(self, end: ArchiveEnd, size_bytes: int) -> None:
        reply = await self._store.run(
            ARCHIVED,
            [CHECKPOINT, EVENTS, BACKLOG_BYTES, LOG_START],
            [
                f"{end.store_id}:{self._epoch}:",
                end.offset,
                size_bytes,
                f"{end.offset}:{end.sequence}",
            ],
        )
        if reply != 1:
            await self._checkpoint()
            raise UnavailableError("the store was reset", where="archive")


def _tables(entries: Sequence[Entry], sequence: int) -> tuple[dict[str, pa.Table], int]:
    """Return the events of entries as tables by source, and how many they are."""
    arrived = decode_payloads([entry.payload or b"" for entry in entries]) if entries else []
    by_source: dict[str, list[pa.Table]] = {}
    for one in arrived:
        by_source.setdefault(one.batch.source, []).append(_table(one, sequence))
    tables = {}
    for source, parts in by_source.items():
        table = parts[0]
        if len(parts) > 1:
            table = pa.concat_tables(parts, promote_options="permissive").sort_by("sequence")
        tables[source] = table
    return tables, sum(len(one.places) for one in arrived)


def _table(arrived: Arrived, sequence: int) -> pa.Table:
    batch, places = arrived
    columns: dict[str, Arrow] = {
        name: arrow_of_column(column, DTYPES[kind_of(column.values)])
        for name, column in batch.columns.items()
    }
    assert batch.created_times_us is not None
    columns["event_time"] = pa.array(batch.event_times_us)
    columns["created_time"] = pa.array(batch.created_times_us)
    columns["sequence"] = pa.array(places + sequence)
    return pa.table(columns)
