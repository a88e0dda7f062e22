"""The ingester: from the event log to the rows of every view, each event once.

It keeps nothing that the store does not have: every write is one script that changes the rows and
the checkpoint together, so that a kill at any point leaves whole steps only, and the next start
goes on after the last of them. Applying events is deterministic and does not depend on how many are
applied at once, so the rows come out the same to the bit however often that happens.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import hiredis

from features.definitions import StreamFeatureView
from features.ingest.apply import Applier, Changes
from features.ingest.cache import RowCache
from features.ingest.entries import Entry, Group, cut, decode, log_bytes, read_entries
from features.ingest.expiries import KEEP_TTL, Expiries
from features.ingest.fill import RUNS, Filler, FillMark
from features.loading import Definitions
from features.offline.archive import Archive
from features.online.keys import (
    BACKLOG_BYTES,
    CATALOG,
    CHECKPOINT,
    DEAD_LETTERS,
    EVENTS,
    FILLS,
    FIRST_SEQUENCE,
    LOG_START,
    PROGRESS_CHANNEL,
    START,
    Checkpoint,
    Offset,
    parse_offset,
)
from features.online.payload import pushed_sources
from features.online.resp import Connection, backoff_s, gone, open_connection
from features.online.scripts import FILL, TAKE_OVER, WRITE
from features.online.store import OnlineStore, refusal
from features.online.timeouts import CALL_TIMEOUT_S
from features.windows.engine import WindowEngine
from headrace.errors import (
    FailedPreconditionError,
    ResourceExhaustedError,
    UnavailableError,
)

logger = logging.getLogger(__name__)

# One write: enough to be efficient, small enough not to hold up the store or this event loop.
EVENTS_PER_WRITE = 2048
# The log's bound on what waits is what bounds them in bytes.
ENTRIES_PER_READ = 2048
BLOCK_MS = 1000
WRITE_TIMEOUT_S = 10.0
CACHE_BYTES_MAX = 256 << 20
# The newest dead letters, each with the start of its payload.
DEAD_LETTERS_MAX = 1000
DEAD_LETTER_BYTES_MAX = 64 << 10
REASON_CHARACTERS_MAX = 500


@dataclass
class IngestCounters:
    """What this ingester has seen since it started."""

    entries: int = 0
    events: int = 0
    rows_written: int = 0
    # Entries that could not be read or do not fit the definitions.
    dead_letters: int = 0
    # Events stamped too far ahead of their created time: quarantined by every view.
    future_stamped: int = 0
    # Per view: events that became known later than its windows reach, or than it allows.
    too_late: int = 0
    # Per entity that views of the source have: events with a null in its key.
    keyless: int = 0
    reconnects: int = 0
    # Events of history that views were filled with.
    filled: int = 0


class Compaction(NamedTuple):
    """What replaces the first `replaced_bytes` of a row that was only appended to since."""

    value: bytes
    replaced_bytes: int


class _Sent(NamedTuple):
    """A write whose reply is awaited: what it makes of the checkpoint, what then counts, the keys
    of its script, the rows that it sets, and the writes that were in doubt before it."""

    reply: asyncio.Future[Any]
    after: Checkpoint
    counts: dict[str, int]
    keys: list[bytes]
    rows: dict[bytes, bytes]
    in_doubt: dict[Checkpoint, dict[str, int]]


class Ingester:
    """Applies the event log to the rows of all stored views of the definitions.

    schema_ids: the registry's id by view name. epoch: of the lease under which it runs; an ingester
    with an older one is refused from then on. archive: where an `Archiver` keeps the events, which
    it then trims from the log; without, they leave the log when they are applied.
    """

    def __init__(
        self,
        definitions: Definitions,
        schema_ids: Mapping[str, int],
        store: OnlineStore,
        epoch: int,
        *,
        archive: Archive | None = None,
        cache_bytes_max: int = CACHE_BYTES_MAX,
    ) -> None:
        self.counters = IngestCounters()
        # None until it has taken over.
        self.checkpoint: Checkpoint | None = None
        self._definitions = definitions
        self._sources = pushed_sources(definitions)
        self._schema_ids = dict(schema_ids)
        self._store = store
        self._epoch = epoch
        self._archive = archive
        # Up to where the archive had the log when this took over, and the sequence that follows.
        self._archived: tuple[Offset, int] = (START, 0)
        self._cache = RowCache(cache_bytes_max)
        self._applier = Applier(definitions, schema_ids)
        self._failures = 0
        # What the next write does to rows that have grown long. It may be forgotten: they are
        # reported again when they have grown by as much.
        self._compactions: dict[bytes, Compaction] = {}
        self._expiries = Expiries()
        # Writes whose reply never came, by the checkpoint that each makes, with what it counts. One
        # of them may have been done, or (from a connection that is closed by now) may yet be.
        self._in_doubt: dict[Checkpoint, dict[str, int]] = {}
        self._sent: _Sent | None = None
        # By view's name: how far its fill is, and of those that somebody has asked for the reader.
        self._marks: dict[str, FillMark] = {}
        self._fillers: dict[str, Filler] = {}
        self._asked: set[str] = set()
        self._emptied: set[str] = set()
        # What is known of the archive, which only grows: sources in it, the sequence behind it.
        self._with_history: set[str] = set()
        self._history_end = 0

    async def run(self, taken_over: asyncio.Event | None = None) -> None:
        """Ingest until cancelled, which is safe at any point.

        `taken_over` is set once the store knows the views: from then on reads find them.

        While the store is gone it tries again, with backoff. Raises FailedPreconditionError when it
        may not go on: a newer ingester has taken over, or the store was reset.
        """
        while True:
            try:
                await self._take_over()
                if taken_over is not None:
                    taken_over.set()
                await asyncio.to_thread(self._warm_up)
                await self._follow()
            except (UnavailableError, ResourceExhaustedError) as error:
                self._failures += 1
                self.counters.reconnects += 1
                logger.warning("ingestion waits for the store: %s", error)
            # Whether the last write went through is unknown: what is kept here may be behind.
            self._cache.clear()
            self._expiries.clear()
            self._compactions = {}
            await asyncio.sleep(backoff_s(self._failures))

    def _warm_up(self) -> None:
        for view in self._definitions.views.values():
            if isinstance(view, StreamFeatureView):
                WindowEngine(view).warm_up_insert()
                return  # all views share the compiled code

    async def _take_over(self) -> None:
        """Put our epoch into the checkpoint and go on from there; set up a store that has none."""
        known = self.checkpoint
        archived, least = None, 0
        with_history: set[str] = set()
        if self._archive is not None:
            with_history = {n for n in self._sources if self._has_history(n)}
            archived = await asyncio.to_thread(self._archive.end)
            least = await asyncio.to_thread(self._archive.next_sequence)
        catalog: list[str | bytes | int] = []
        views = self._definitions.stored_views
        for name, schema_id in self._schema_ids.items():
            source = views[name].source
            history = "0"
            if source.name in with_history:
                # What lies at a location is pushed again to a store that is new.
                history = "1" if source.history is None else "2"
            catalog += [views[name].hash, schema_id, history]
        archived_id = "" if archived is None else archived.store_id
        archives = "0" if self._archive is None else "1"
        new_id = os.urandom(8).hex()
        may_set_up = "1" if known is None else "0"
        reply = await self._store.run(
            TAKE_OVER,
            [CHECKPOINT, CATALOG, LOG_START, FILLS, FIRST_SEQUENCE],
            [self._epoch, new_id, may_set_up, least, archived_id, archives, *catalog],
        )
        self.checkpoint = self._check_owner(reply)
        if archived is not None and archived.store_id == self.checkpoint.store_id:
            self._archived = (parse_offset(archived.offset, "archive"), archived.sequence)
        self._settle(self.checkpoint)
        await self._find_fills()

    def _settle(self, found: Checkpoint) -> bool:
        """Return whether a write in doubt has made this checkpoint; then it counts, now."""
        counts = self._in_doubt.get(found)
        if counts is None:
            return False
        self._in_doubt = {}
        self._count(counts)
        return True

    def _check_owner(self, reply: bytes | None) -> Checkpoint:
        """Return the checkpoint that stands in the store if it is ours; raise whose it is."""
        found = None if reply is None else Checkpoint.decode(reply)
        known = self.checkpoint
        if found is None or (known is not None and found.store_id != known.store_id):
            raise FailedPreconditionError(
                "the store was reset while this ingester ran: what it held is gone",
                where="online store",
                mend="fill it again, and start the ingester and the workers again",
            )
        if found.epoch > self._epoch:
            raise FailedPreconditionError(
                "a newer ingester has taken over",
                where="online store",
                expected=f"epoch {self._epoch}",
                got=found.epoch,
                mend="only one ingester may run; this one has to stop",
            )
        return found

    async def _follow(self) -> None:
        """Apply entry after entry, reading one batch ahead on a connection of its own."""
        assert self.checkpoint is not None
        connection = await open_connection(self._store.address, on_lost=lambda _: None)
        reading = _read(connection, self.checkpoint.offset)
        try:
            while True:
                if self._has_to_fill or not reading.done():
                    self._compact(await self._finish())
                if self._has_to_fill and await self._fill() and not reading.done():
                    continue
                entries = _entries(await reading)
                after = entries[-1].place if entries else self._reached.offset
                reading = _read(connection, after)
                if not entries:
                    # Who writes nothing would not learn otherwise that somebody else does.
                    self._check_owner(await self._store.execute("GET", CHECKPOINT))
                for part in self._parts(entries):
                    await self._apply(decode(part, self._sources))
                self._failures = 0
        finally:
            if self._sent is not None:
                self._sent.reply.cancel()
                self._sent = None
            if not reading.cancel() and not reading.cancelled():
                reading.exception()  # lost while we were busy: the next life finds out by itself
            connection.close()
            await connection.wait_closed()

    @property
    def _reached(self) -> Checkpoint:
        """The checkpoint that the store has, or will have when what was sent is done."""
        reached = self.checkpoint if self._sent is None else self._sent.after
        assert reached is not None
        return reached

    def _parts(self, entries: list[Entry]) -> Iterator[list[Entry]]:
        """Cut entries into what one write takes; none goes beyond where the archive ended."""
        end, _ = self._archived
        known = next((i for i, entry in enumerate(entries) if entry.place > end), len(entries))
        for part in (entries[:known], entries[known:]):
            if part:
                yield from cut(part, EVENTS_PER_WRITE)

    async def _apply(self, group: Group) -> None:
        """Work out what a group changes while the write before it is in the store; then send it."""
        before = self._reached
        sequence = before.sequence
        archived_offset, archived_sequence = self._archived
        if group.offset > archived_offset:
            # A store may have lost what the archive has: entries that are still in the log get
            # their sequence again, but none that came later gets one that was given already.
            sequence = max(sequence, archived_sequence)
        self._applier.take_counts()  # those of an attempt that came to nothing
        plan = self._applier.plan([(b, sequence + places) for b, places in group.arrived])
        changes = self._applier.apply(plan, await self._current(plan.keys))
        after = before._replace(offset=group.offset, sequence=sequence + group.events)
        counts = self._applier.take_counts() | {
            "entries": group.entries,
            "events": group.events,
            "dead_letters": len(group.dead),
            "rows_written": sum(len(change.keys) for change in changes),
        }
        long = await self._finish()
        replaced = set(self._compactions)
        self._send(group, changes, before, after, counts)
        # What this write replaces is not what the reply to the one before it said.
        self._compact({key: row for key, row in long.items() if key not in replaced})

    async def _current(self, keys: list[bytes]) -> dict[bytes, bytes | None]:
        """Return rows as they will be when what was sent is done; from the cache where it has them.

        What was sent changes no other row than its own, wherever the store is with it.
        """
        sent = {} if self._sent is None else self._sent.rows
        current = {key: self._cache.get(key) or sent.get(key) for key in keys}
        wanted = [key for key, value in current.items() if value is None]
        if wanted:
            current.update(zip(wanted, await self._store.get_many(wanted), strict=True))
        return current

    def _send(
        self,
        group: Group,
        changes: list[Changes],
        before: Checkpoint,
        after: Checkpoint,
        counts: dict[str, int],
    ) -> None:
        """Send what makes these changes."""
        written = self._expiries.split(changes, asyncio.get_running_loop().time())
        keys, arguments = self._write(group, written, before, after)
        rows: dict[bytes, bytes] = {}
        for change in changes:
            if not change.compact_step:
                rows.update(zip(change.keys, change.values, strict=True))
        reply = asyncio.ensure_future(
            self._store.run(WRITE, keys, arguments, timeout_s=WRITE_TIMEOUT_S)
        )
        self._sent = _Sent(reply, after, counts, keys, rows, self._in_doubt)
        self._in_doubt = self._in_doubt | {after: counts}
        self._expiries.put(written)
        self._cache.put_all(rows.keys(), rows.values())

    async def _finish(self) -> dict[bytes, bytes]:
        """Wait until what was sent is done. Return the rows that have grown long by it."""
        sent, self._sent = self._sent, None
        if sent is None:
            return {}
        reply: Any = await sent.reply
        self._in_doubt = sent.in_doubt
        if not isinstance(reply, list):
            if self._settle(self._check_owner(reply)):
                raise gone("an earlier write was done only now")
            raise FailedPreconditionError(
                "another ingester writes under the same epoch",
                where="online store",
                mend="only one ingester may run; this one has to stop",
            )
        self._in_doubt = {}
        self.checkpoint = sent.after
        self._count(sent.counts)
        return self._long(reply, sent.keys)

    def _long(self, reply: list[Any], keys: list[bytes]) -> dict[bytes, bytes]:
        """Return the rows of a script's reply."""
        return {keys[place - 1]: row for place, row in zip(reply[::2], reply[1::2], strict=True)}

    def _compact(self, long: dict[bytes, bytes]) -> None:
        """Let the next write replace long rows by what is better kept."""
        for key, value in self._applier.compacted(long).items():
            self._compactions[key] = Compaction(value, len(long[key]))

    def _write(
        self,
        group: Group,
        changes: list[Changes],
        before: Checkpoint,
        after: Checkpoint,
    ) -> tuple[list[bytes], list[str | bytes | int]]:
        """Return keys and arguments of the script that makes these changes."""
        keys = [CHECKPOINT, EVENTS, BACKLOG_BYTES, DEAD_LETTERS, LOG_START]
        # Who archives trims: then only what is dead leaves the log now.
        start, gone_bytes = f"{after.offset}:{after.sequence}", group.size_bytes
        if self._archive is not None:
            start, gone_bytes = "", log_bytes(letter.entry for letter in group.dead)
        arguments: list[str | bytes | int] = [
            before.encode(),
            after.encode(),
            str(after.offset),
            start,
            gone_bytes,
            PROGRESS_CHANNEL,
            DEAD_LETTERS_MAX,
            len(group.dead),
        ]
        for (offset, payload), reason in group.dead:
            cut_reason = reason[:REASON_CHARACTERS_MAX]
            arguments += [offset, cut_reason, (payload or b"")[:DEAD_LETTER_BYTES_MAX]]
            logger.warning("event log entry %s is a dead letter: %s", offset.decode(), cut_reason)
        self._change_rows(changes, keys, arguments)
        return keys, arguments

    def _change_rows(
        self,
        changes: list[Changes],
        keys: list[bytes],
        arguments: list[str | bytes | int],
    ) -> None:
        """Add the rows to a script's keys and arguments."""
        # Compactions first: they replace what was there before this write appends to it.
        compactions, self._compactions = self._compactions, {}
        for key, compaction in compactions.items():
            arguments += [1, KEEP_TTL, -compaction.replaced_bytes, compaction.value]
            keys.append(key)
        for change in changes:
            arguments += [len(change.keys), change.ttl_ms, change.compact_step, *change.values]
            keys += change.keys

    # Filling views from history

    @property
    def fills(self) -> dict[str, FillMark]:
        """The views that are not filled yet, by name, and how far each is."""
        return dict(self._marks)

    @property
    def _has_to_fill(self) -> bool:
        return bool(self._asked or self._emptied) or any(
            mark.state == RUNS or not self._has_past(name) for name, mark in self._marks.items()
        )

    def fill(self, views: Sequence[str], *, empty: bool = False) -> None:
        """Fill views from history, beside the stream; `empty`: serve them without it.

        It begins within `BLOCK_MS`. Raises FailedPreconditionError for a view that does not wait.
        """
        for name in views:
            if name not in self._marks:
                raise FailedPreconditionError(
                    f"view {name!r} does not wait for a backfill",
                    where="ingester",
                    expected=", ".join(self._marks) or "no view waits",
                )
        (self._emptied if empty else self._asked).update(views)

    async def _find_fills(self) -> None:
        """Learn which views are to be filled, and how far each is."""
        reply = await self._store.execute("HGETALL", FILLS)
        found = dict(zip(reply[::2], reply[1::2], strict=True))
        self._fillers = {}
        self._marks = {}
        for name, view in self._definitions.stored_views.items():
            value = found.get(view.hash.encode())
            if value is not None:
                self._marks[name] = FillMark.decode(value)

    async def _fill(self) -> bool:
        """Write one part of what is to be filled; say whether there was any."""
        for name in sorted(self._emptied & self._marks.keys()):
            await self._write_fill(name, [], None)
        self._emptied.clear()
        for name in sorted(self._asked & self._marks.keys()):
            # First of all: who has asked need not ask again after a kill.
            await self._write_fill(name, [], self._marks[name]._replace(state=RUNS))
        self._asked.clear()
        for name, mark in self._marks.items():
            if not await self._is_archived(mark.cut):
                continue
            if mark.state == RUNS:
                await self._fill_step(name)
                return True
            if not self._has_past(name):
                # What was in the log is history by now, and was of other sources.
                await self._write_fill(name, [], None)
                return True
        return False

    def _has_past(self, name: str) -> bool:
        return self._has_history(self._definitions.stored_views[name].source.name)

    def _has_history(self, source_name: str) -> bool:
        """Whether there is any history of a source: once there is, the disk is not asked again."""
        if self._archive is None:
            return True
        if source_name not in self._with_history and self._archive.has_events(source_name):
            self._with_history.add(source_name)
        return source_name in self._with_history

    async def _fill_step(self, name: str) -> None:
        assert self._archive is not None
        if name not in self._fillers:
            view = self._definitions.stored_views[name]
            self._fillers[name] = Filler(view, self._marks[name], self._archive.root)
        filler = self._fillers[name]
        step = await asyncio.to_thread(filler.next_step)
        if step is None:
            await self._write_fill(name, [], None)
            return
        changes = filler.applier.apply(step.plan, await self._current(step.plan.keys))
        await self._write_fill(name, changes, step.mark)
        self.counters.filled += step.events

    async def _is_archived(self, sequence: int) -> bool:
        """Whether all events below a sequence are history by now."""
        assert self._archive is not None
        if self._history_end < sequence:
            self._history_end = await asyncio.to_thread(self._archive.next_sequence)
        return self._history_end >= sequence

    async def _write_fill(self, name: str, changes: list[Changes], mark: FillMark | None) -> None:
        """Change rows and move the mark of a view in one step; None: it is filled."""
        before = self._marks[name]
        checkpoint = self.checkpoint
        assert checkpoint is not None
        keys = [CHECKPOINT, FILLS, CATALOG]
        arguments: list[str | bytes | int] = [
            checkpoint.encode(),
            self._definitions.views[name].hash,
            before.encode(),
            b"" if mark is None else mark.encode(),
            before.schema_id,
        ]
        self._change_rows(changes, keys, arguments)
        reply = await self._store.run(FILL, keys, arguments, timeout_s=WRITE_TIMEOUT_S)
        if not isinstance(reply, list):
            if reply != 0:
                self._check_owner(reply)
            raise gone("an earlier write was done only now")
        for change in changes:
            if not change.compact_step:
                self._cache.put_all(change.keys, change.values)
        self._compact(self._long(reply, keys))
        if mark is None:
            del self._marks[name]
            self._fillers.pop(name, None)
        else:
            self._marks[name] = mark

    def _count(self, counts: Mapping[str, int]) -> None:
        for name, count in counts.items():
            setattr(self.counters, name, getattr(self.counters, name) + count)


def _read(connection: Connection, after: Offset) -> asyncio.Future[Any]:
    """Ask for the entries after an offset; waits for the first up to `BLOCK_MS`."""
    count = ("COUNT", ENTRIES_PER_READ, "BLOCK", BLOCK_MS)
    command = ("XREAD", *count, "STREAMS", EVENTS, str(after))
    return connection.call(command, BLOCK_MS / 1000 + CALL_TIMEOUT_S)


def _entries(reply: Any) -> list[Entry]:
    """Return the entries of an XREAD reply. Raises what a refusal means."""
    if isinstance(reply, hiredis.ReplyError):
        raise refusal("XREAD", reply)
    return [] if reply is None else read_entries(reply[0][1])
