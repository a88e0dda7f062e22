"""Entries of the event log, decoded many at once; one that cannot be is a dead letter by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from features.online.blocks import Arrived, count_events, decode_payloads
from features.online.event_log import ENTRY_BYTES
from features.online.keys import PAYLOAD_FIELD, Offset, parse_offset
from features.online.payload import check_batch
from features.sources import Source
from headrace.errors import InvalidArgumentError

_WHERE = "event log entry"


class Entry(NamedTuple):
    """One entry as read: the store's own words for where it is, and what it holds."""

    offset: bytes
    payload: bytes | None

    @property
    def place(self) -> Offset:
        """Where it is in the log."""
        return parse_offset(self.offset.decode(), "event log")


class DeadLetter(NamedTuple):
    """An entry that could not be decoded or does not fit the definitions, and why."""

    entry: Entry
    reason: str


@dataclass
class Group:
    """Entries that are applied by one write.

    offset: of the last of them; size_bytes: what they take of the log; arrived: their events, with
    places in the order of the log; events: how many.
    """

    offset: Offset
    entries: int
    size_bytes: int
    arrived: list[Arrived] = field(default_factory=list)
    events: int = 0
    dead: list[DeadLetter] = field(default_factory=list)


def log_bytes(entries: Iterable[Entry]) -> int:
    """Return what entries take of the log, as `EventLog` has counted it."""
    payloads = [entry.payload for entry in entries if entry.payload is not None]
    return sum(map(len, payloads)) + len(payloads) * ENTRY_BYTES


def read_entries(found: Sequence[Any]) -> list[Entry]:
    """Return entries from how the store tells of them: an id, and names and values in turn."""
    return [
        Entry(offset, fields[1] if fields[::2] == [PAYLOAD_FIELD] else _payload(fields))
        for offset, fields in found
    ]


def _payload(fields: list[bytes]) -> bytes | None:
    return dict(zip(fields[::2], fields[1::2], strict=True)).get(PAYLOAD_FIELD)


def cut(entries: list[Entry], events_max: int) -> Iterator[list[Entry]]:
    """Yield the entries in lists, each ended by the entry that reaches `events_max` events."""
    counts = count_events([entry.payload or b"" for entry in entries]).tolist()
    start = events = 0
    for end, count in enumerate(counts, start=1):
        events += count
        if events >= events_max or end == len(counts):
            yield entries[start:end]
            start, events = end, 0


def decode(entries: list[Entry], sources: Mapping[str, Source]) -> Group:
    """Decode entries and check their events against the sources."""
    group = Group(entries[-1].place, len(entries), log_bytes(entries))
    _decode_into(group, entries, sources)
    return group


def _decode_into(group: Group, entries: list[Entry], sources: Mapping[str, Source]) -> None:
    try:
        arrived = [
            Arrived(check_batch(batch, sources), places + group.events)
            for batch, places in decode_payloads([_present(entry) for entry in entries])
        ]
    except InvalidArgumentError as error:
        if len(entries) == 1:
            group.dead.append(DeadLetter(entries[0], error.message))
            return
        # One of them is to blame: the halves find it, and what is wrong with it.
        half = len(entries) // 2
        _decode_into(group, entries[:half], sources)
        _decode_into(group, entries[half:], sources)
        return
    group.arrived += arrived
    group.events += sum(len(batch) for batch, _ in arrived)


def _present(entry: Entry) -> bytes:
    if entry.payload is None:
        raise InvalidArgumentError(f"no field {PAYLOAD_FIELD.decode()!r}", where=_WHERE)
    return entry.payload
