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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import hiredis

from features.definitions import StreamFeatureView
from features.ingest.apply import Applier, Changes, Decoded
from features.ingest.cache import RowCache
from features.ingest.expiries import KEEP_TTL, Expiries
from features.loading import Definitions
from features.online.event_log import ENTRY_BYTES
from features.online.keys import (
    BACKLOG_BYTES,
    CATALOG,
    CHECKPOINT,
    DEAD_LETTERS,
    EVENTS,
    PAYLOAD_FIELD,
    PROGRESS_CHANNEL,
    Checkpoint,
    Offset,
    parse_offset,
)
from features.online.payload import decode_payload, pushed_sources
from features.online.resp import Connection, backoff_s, gone, open_connection
from features.online.scripts import TAKE_OVER, WRITE
from features.online.store import OnlineStore, refusal
from features.online.timeouts import CALL_TIMEOUT_S
from features.windows.engine import WindowEngine
from headrace.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)

logger = logging.getLogger(__name__)

# One write: enough to be efficient, small enough not to hold up the store or this event loop.
EVENTS_PER_WRITE = 2048
ENTRIES_PER_READ = 512
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


class Compaction(NamedTuple):
    """What replaces the first `replaced_bytes` of a row that was only appended to since."""

    key: bytes
    value: bytes
    replaced_bytes: int


class Entry(NamedTuple):
    """One entry of the event log as read."""

    offset: Offset
    payload: bytes | None


class Ingester:
    """Applies the event log to the rows of all stored views of the definitions.

    schema_ids: the registry's id by view name. epoch: of the lease under which it runs; an ingester
    with an older one is refused from then on.
    """

    def __init__(
        self,
        definitions: Definitions,
        schema_ids: Mapping[str, int],
        store: OnlineStore,
        epoch: int,
        *,
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
        self._cache = RowCache(cache_bytes_max)
        self._applier = Applier(definitions, schema_ids)
        self._failures = 0
        # What the next write does to rows that have grown long. It may be forgotten: they are
        # reported again when they have grown by as much.
        self._compactions: list[Compaction] = []
        self._expiries = Expiries()
        # Writes whose reply never came, by the checkpoint that each makes, with what it counts. One
        # of them may have been done, or (from a connection that is closed by now) may yet be.
        self._in_doubt: dict[Checkpoint, dict[str, int]] = {}

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
            self._compactions = []
            await asyncio.sleep(backoff_s(self._failures))

    def _warm_up(self) -> None:
        for view in self._definitions.views.values():
            if isinstance(view, StreamFeatureView):
                WindowEngine(view).warm_up_insert()
                return  # all views share the compiled code

    async def _take_over(self) -> None:
        """Put our epoch into the checkpoint and go on from there; set up a store that has none."""
        known = self.checkpoint
        catalog: list[str | bytes | int] = []
        for name, schema_id in self._schema_ids.items():
            catalog += [self._definitions.views[name].hash, schema_id]
        reply = await self._store.run(
            TAKE_OVER,
            [CHECKPOINT, CATALOG],
            [self._epoch, os.urandom(8).hex(), "1" if known is None else "0", *catalog],
        )
        self.checkpoint = self._check_owner(reply)
        self._settle(self.checkpoint)

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
                entries = _entries(await reading)
                after = entries[-1].offset if entries else self.checkpoint.offset
                reading = _read(connection, after)
                for group in self._groups(entries):
                    await self._apply(group)
                self._failures = 0
        finally:
            if not reading.cancel() and not reading.cancelled():
                reading.exception()  # lost while we were busy: the next life finds out by itself
            connection.close()
            await connection.wait_closed()

    def _groups(self, entries: list[Entry]) -> Iterator[list[Decoded]]:
        """Decode entries, and cut them into what one write takes."""
        group: list[Decoded] = []
        events = 0
        for entry in entries:
            decoded = self._decode(entry)
            group.append(decoded)
            events += decoded.events
            if events >= EVENTS_PER_WRITE:
                yield group
                group, events = [], 0
        if group:
            yield group

    def _decode(self, entry: Entry) -> Decoded:
        payload = entry.payload
        if payload is None:
            return Decoded(entry.offset, b"", 0, [], f"no field {PAYLOAD_FIELD.decode()!r}")
        size_bytes = len(payload) + ENTRY_BYTES
        try:
            batches = decode_payload(payload, self._sources)
        except InvalidArgumentError as error:
            return Decoded(entry.offset, payload, size_bytes, [], error.message)
        return Decoded(entry.offset, payload, size_bytes, batches, None)

    async def _apply(self, entries: list[Decoded]) -> None:
        """Apply some entries: read the rows that must be, change rows, write all in one step."""
        before = self.checkpoint
        assert before is not None
        self._applier.take_counts()  # those of an attempt that came to nothing
        plan = self._applier.plan(entries, before.sequence)
        changes = self._applier.apply(plan, await self._current(plan.keys))
        after = before._replace(offset=entries[-1].offset, sequence=before.sequence + plan.events)
        counts = self._applier.take_counts() | {
            "entries": len(entries),
            "events": plan.events,
            "dead_letters": sum(entry.reason is not None for entry in entries),
            "rows_written": sum(len(group.keys) for group in changes),
        }
        written = self._expiries.split(changes, asyncio.get_running_loop().time())
        keys, arguments = self._write(entries, written, before, after)
        earlier = self._in_doubt
        self._in_doubt = earlier | {after: counts}
        reply: Any = await self._store.run(WRITE, keys, arguments, timeout_s=WRITE_TIMEOUT_S)
        self._in_doubt = earlier
        if not isinstance(reply, list):
            if self._settle(self._check_owner(reply)):
                raise gone("an earlier write was done only now")
            raise FailedPreconditionError(
                "another ingester writes under the same epoch",
                where="online store",
                mend="only one ingester may run; this one has to stop",
            )
        self._in_doubt = {}
        self.checkpoint = after
        self._expiries.put(written)
        for group in changes:
            if not group.compact_step:
                self._cache.put_all(group.keys, group.values)
        rows = {keys[place - 1]: row for place, row in zip(reply[::2], reply[1::2], strict=True)}
        self._compactions = [
            Compaction(key, value, len(rows[key]))
            for key, value in self._applier.compacted(rows).items()
        ]
        self._count(counts)

    async def _current(self, keys: list[bytes]) -> dict[bytes, bytes | None]:
        """Return rows as they are, from the cache where it has them."""
        current = {key: self._cache.get(key) for key in keys}
        wanted = [key for key, value in current.items() if value is None]
        if wanted:
            current.update(zip(wanted, await self._store.get_many(wanted), strict=True))
        return current

    def _write(
        self,
        entries: list[Decoded],
        changes: list[Changes],
        before: Checkpoint,
        after: Checkpoint,
    ) -> tuple[list[bytes], list[str | bytes | int]]:
        """Return keys and arguments of the script that makes these changes."""
        keys = [CHECKPOINT, EVENTS, BACKLOG_BYTES, DEAD_LETTERS]
        arguments: list[str | bytes | int] = [
            before.encode(),
            after.encode(),
            str(after.offset),
            str(after.offset.next),
            sum(entry.size_bytes for entry in entries),
            PROGRESS_CHANNEL,
            DEAD_LETTERS_MAX,
        ]
        dead = [(entry, entry.reason) for entry in entries if entry.reason is not None]
        arguments.append(len(dead))
        for entry, reason in dead:
            cut = reason[:REASON_CHARACTERS_MAX]
            arguments += [str(entry.offset), cut, entry.payload[:DEAD_LETTER_BYTES_MAX]]
            logger.warning("event log entry %s is a dead letter: %s", entry.offset, cut)
        # Compactions first: they replace what was there before this write appends to it.
        compactions, self._compactions = self._compactions, []
        for compaction in compactions:
            arguments += [1, KEEP_TTL, -compaction.replaced_bytes, compaction.value]
            keys.append(compaction.key)
        for group in changes:
            arguments += [len(group.keys), group.ttl_ms, group.compact_step, *group.values]
            keys += group.keys
        return keys, arguments

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
    if reply is None:
        return []
    entries = []
    for offset, fields in reply[0][1]:
        pairs = dict(zip(fields[::2], fields[1::2], strict=True))
        entries.append(Entry(parse_offset(offset.decode(), "event log"), pairs.get(PAYLOAD_FIELD)))
    return entries
