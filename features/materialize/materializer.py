"""Feeds the online store from histories that a team has: what has arrived since the last time.

New is what has not been pushed, whatever its event time, so late rows are never missed. Of files
that is: those that were not there, and rows at the end of those that have grown. Of a table: rows
by their created time, a stretch of which is looked at again for rows that were committed late;
those that are there already are told by what they hold, and by how often.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.checks import unknown
from features.loading import Definitions
from features.locations import Files, SqlTable
from features.materialize.feed import EVENTS_PER_PUSH, Feed, Lately
from features.materialize.fingerprint import Hashes, row_hashes, sum_of
from features.materialize.records import (
    FileRecord,
    TableRecord,
    decode_file,
    decode_table,
    encode,
    file_version,
)
from features.offline.files import HistoryFile, list_files
from features.offline.reach import EVERYTHING, Reach
from features.offline.source_rows import file_rows, in_one_form, wanted_columns
from features.offline.sql import read_table
from features.online.event_log import BACKLOG_BYTES_MAX
from features.online.store import OnlineStore
from features.sources import EventSource, Source, TableSource
from headrace.errors import FailedPreconditionError, InvalidArgumentError
from headrace.times import DAY_US

Progress = Callable[[str, float], None]

LOOKBACK_US = DAY_US
PATIENCE_S = 60.0
# The record of a table; a file's is called by its path.
_TABLE = "table"


class Materialized(NamedTuple):
    """What one run did for a source: rows that it read, and those that it pushed."""

    source: str
    rows: int
    pushed: int


class Materializer:
    """Pushes what is new at the locations of sources into the event log, each row once.

    project: the folder that locations are relative to. Killed at any point, the next run goes on
    where this one was: what is pushed is recorded in the same step of the store.
    """

    def __init__(
        self,
        store: OnlineStore,
        definitions: Definitions,
        project: Path,
        *,
        lookback_us: int = LOOKBACK_US,
        patience_s: float = PATIENCE_S,
        backlog_bytes_max: int = BACKLOG_BYTES_MAX,
    ) -> None:
        self._store = store
        self._project = project
        self._lookback_us = lookback_us
        self._patience_s = patience_s
        self._backlog_bytes_max = backlog_bytes_max
        self.sources: dict[str, Source] = {
            name: source
            for name, source in definitions.sources.items()
            if isinstance(source, EventSource | TableSource) and source.history is not None
        }

    async def run(
        self, source_name: str, now_us: int, progress: Progress | None = None
    ) -> Materialized:
        """Push what is new of one source; rows that are created after `now_us` wait.

        Raises InvalidArgumentError for a source without a location and for rows that do not fit it,
        FailedPreconditionError for a file whose pushed rows were changed, and as `Feed.push` does.
        """
        source = self.sources.get(source_name)
        if source is None or source.history is None:
            raise unknown(
                "source with a history of its own", source_name, self.sources, "definitions"
            )
        feed = Feed(
            self._store,
            source,
            patience_s=self._patience_s,
            backlog_bytes_max=self._backlog_bytes_max,
        )
        tell: Progress = (lambda _, __: None) if progress is None else progress
        if isinstance(source.history, SqlTable):
            return await _TableRun(feed, source, self._project, tell, source.history).run(
                now_us, self._lookback_us
            )
        return await _FilesRun(feed, source, self._project, tell, source.history).run()


@dataclass
class _Run:
    """One run over what lies at a location."""

    feed: Feed
    source: Source
    project: Path
    tell: Progress


@dataclass
class _FilesRun(_Run):
    """One run over the files of a source: rows that were read, and those that were pushed."""

    location: Files
    rows: int = 0
    pushed: int = 0

    async def run(self) -> Materialized:
        """Push what is new of every file."""
        files = list_files(self.location, self.project)
        records = await self.feed.records()
        for number, file in enumerate(files):
            self.tell(f"{self.source.name}: {file.name}", number / len(files))
            await self._file(file, records.get(file.name))
        self.tell(self.source.name, 1.0)
        return Materialized(self.source.name, self.rows, self.pushed)

    async def _file(self, file: HistoryFile, stored: bytes | None) -> None:
        before = decode_file(stored)
        # Before it is read: what is appended meanwhile makes another version of it.
        version = file_version(file.path)
        if before.version == version:
            return
        now, last = FileRecord(), stored or b""
        names = list(self.source.dtypes)
        tables = file_rows(self.source, self.location, file, names, EVERYTHING)
        while (table := await _next(tables)) is not None:
            hashes = row_hashes(table)
            known = min(max(before.rows - now.rows, 0), table.num_rows)
            now = _after(now, hashes[:known])
            if known and now.rows == before.rows and now.rows_sum != before.rows_sum:
                raise self._rewritten(file, before)
            rest, hashes = table.slice(known), hashes[known:]
            self.rows += table.num_rows
            for first, end, payload in _cut(self.feed, rest):
                now = _after(now, hashes[first:end])
                encoded = encode(now)
                await self.feed.push(payload, file.name, last, encoded)
                last = encoded
                self.pushed += end - first
        if now.rows < before.rows:
            raise self._rewritten(file, before)
        await self.feed.push(
            b"", file.name, last, encode(FileRecord(now.rows, now.rows_sum, version))
        )

    def _rewritten(self, file: HistoryFile, before: FileRecord) -> FailedPreconditionError:
        return FailedPreconditionError(
            f"file {file.name!r} was changed where it had been pushed already",
            where=f"source {self.source.name!r}",
            expected=f"the same first {before.rows} rows, and the same fields of the source",
            mend="restore it, and put corrections into new files with a later created time",
        )


@dataclass
class _TableRun(_Run):
    """One run over the table of a source."""

    location: SqlTable

    async def run(self, now_us: int, lookback_us: int) -> Materialized:
        """Push the rows created by `now_us` that are not pushed yet, in that order."""
        last = (await self.feed.records()).get(_TABLE, b"")
        now = decode_table(last or None)
        # Of rows before `kept_from_us` it is not known any more which were pushed.
        from_us = max(now.created_us - lookback_us, now.kept_from_us)
        rows, already = 0, now.rows
        occurrences = _Occurrences()
        tables = self._tables(Reach(from_us, now_us))
        while (table := await _next(tables)) is not None:
            rows += table.num_rows
            hashes = row_hashes(table)
            created = np.asarray(table["created_time"])
            members = occurrences.members(hashes, created)
            known = await self.feed.known(members)
            new = np.flatnonzero(~np.array(known, np.bool_))
            fresh = table.take(new)
            for first, end, payload in _cut(self.feed, fresh):
                part = new[first:end]
                created_us = max(int(created[part[-1]]), now.created_us)
                kept_us = max(created_us - lookback_us, now.kept_from_us)
                now = TableRecord(
                    created_us,
                    kept_us,
                    now.rows + len(part),
                    sum_of(hashes[part], now.rows, now.rows_sum),
                )
                lately = Lately(
                    kept_us, created[part].tolist(), [members[row] for row in part.tolist()]
                )
                encoded = encode(now)
                await self.feed.push(payload, _TABLE, last, encoded, lately)
                last = encoded
            self.tell(f"{self.source.name}: {now.rows - already} rows", 0.0)
        self.tell(self.source.name, 1.0)
        return Materialized(self.source.name, rows, now.rows - already)

    def _tables(self, created: Reach) -> Iterator[pa.Table]:
        """Yield the rows that were created within `created`, in that order."""
        column = self.location.created_time
        if column is None:
            raise InvalidArgumentError(
                "a table without a created time cannot tell what is new",
                where=f"source {self.source.name!r}",
                mend="say created_time='…' in its SqlTable, or give files",
            )
        names = list(self.source.dtypes)
        wanted = wanted_columns(self.source, self.location, names)
        for raw in read_table(self.location, self.project, wanted, created, by=column):
            if raw[column].null_count:
                raise InvalidArgumentError(
                    f"column {column!r} holds a null",
                    where=f"source {self.source.name!r}",
                    expected="a created time in every row, or what is new cannot be told",
                )
            table = in_one_form(raw, self.source, self.location, names)
            times = np.asarray(table["created_time"])
            inside = (times >= created.low_us) & (times <= created.high_us)
            kept = table.filter(pa.array(inside))
            if kept.num_rows:
                yield kept


class _Occurrences:
    """Numbers rows that hold the same: they are created at one time, and come together."""

    def __init__(self) -> None:
        self._created_us: int | None = None
        self._counts: dict[bytes, int] = {}

    def members(self, hashes: Hashes, created_us: NDArray[np.int64]) -> list[bytes]:
        """Return what tells each row from every other, given them in order of created time."""
        found = []
        data = hashes.tobytes()
        for row, at_us in enumerate(created_us.tolist()):
            if at_us != self._created_us:
                self._created_us = at_us
                self._counts = {}
            key = data[16 * row : 16 * row + 16]
            count = self._counts[key] = self._counts.get(key, 0) + 1
            found.append(key + count.to_bytes(4, "little"))
        return found


def _after(record: FileRecord, hashes: Hashes) -> FileRecord:
    return FileRecord(record.rows + len(hashes), sum_of(hashes, record.rows, record.rows_sum), None)


def _cut(feed: Feed, rows: pa.Table) -> Iterator[tuple[int, int, bytes]]:
    """Yield ranges of rows with their payload, as large as one entry of the log may be."""
    first = 0
    while first < rows.num_rows:
        end = min(first + EVENTS_PER_PUSH, rows.num_rows)
        payload = feed.payload(rows.slice(first, end - first))
        while payload is None:
            end = first + (end - first) // 2
            payload = feed.payload(rows.slice(first, end - first))
        yield first, end, payload
        first = end


async def _next(tables: Iterator[pa.Table]) -> pa.Table | None:
    """Read on beside the event loop."""
    return await asyncio.to_thread(next, tables, None)
