"""What the online store's keys are called, and what stands in the two that everything hangs on.

`hr:checkpoint` holds who owns the store, up to where the ingester has applied the event log, and
how many events that were. It is written in the same script as the rows, and read in the same MGET:
a reader therefore knows exactly what the rows beside it have seen. It is the epoch key, too: a
store that has lost it was emptied, and what is missing there must never be served as 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from headrace.errors import InternalError, InvalidArgumentError

CHECKPOINT = b"hr:checkpoint"
EVENTS = b"hr:events"
BACKLOG_BYTES = b"hr:events:bytes"
DEAD_LETTERS = b"hr:dead"
# `<offset>:<sequence>`: the log holds all that came after this entry (without the dead letters),
# and the next event has this sequence.
LOG_START = b"hr:events:start"
CATALOG = b"hr:catalog"
# Views that are not in the catalog yet, as their history is not in their rows: see `ingest.fill`.
FILLS = b"hr:fills"
PROGRESS_CHANNEL = b"hr:progress"
_FED = b"hr:fed:"
_FED_ROWS = b"hr:fed:rows:"

# The one field of an entry of the event log.
PAYLOAD_FIELD = b"b"

_OFFSET = re.compile(r"(\d{1,20})-(\d{1,20})")


class Offset(NamedTuple):
    """A place in the event log, as the store numbers its entries; they compare as they follow."""

    milliseconds: int
    number: int

    def __str__(self) -> str:
        return f"{self.milliseconds}-{self.number}"

    @property
    def next(self) -> Offset:
        """The smallest offset after this one."""
        return Offset(self.milliseconds, self.number + 1)


START = Offset(0, 0)


def schema_ids_of(catalog: Sequence[bytes], hashes: Iterable[str]) -> dict[str, int]:
    """Return the schema ids of those of the views, by hash, that are in `catalog`: the reply to its
    HGETALL."""
    found = dict(zip(catalog[::2], catalog[1::2], strict=True))
    return {each: int(found[each.encode()]) for each in hashes if each.encode() in found}


def parse_offset(text: str, where: str) -> Offset:
    """Return the offset that `Push` gave out as `text`.

    Raises InvalidArgumentError naming `where` when it cannot be one.
    """
    match = _OFFSET.fullmatch(text)
    if match is None:
        raise InvalidArgumentError(
            "not an offset of the event log",
            where=where,
            expected="what Push returned, such as '1718000000000-0'",
            got=repr(text[:64]),
        )
    return Offset(int(match[1]), int(match[2]))


def fed_key(source: str) -> bytes:
    """Return the key of what has been pushed of a source's location: a hash, a record a file."""
    return _FED + source.encode()


def fed_rows_key(source: str) -> bytes:
    """Return the key of the rows of a table that were pushed lately: by their created time."""
    return _FED_ROWS + source.encode()


class Checkpoint(NamedTuple):
    """The value of `hr:checkpoint`."""

    # Drawn when the store was first set up: another one means that the store lost its content.
    store_id: str
    # The lease under which the last write was made; an ingester with an older one is refused.
    epoch: int
    # Everything up to and including this entry is in the rows.
    offset: Offset
    # Events applied so far: the next event's sequence. A replay gives each event the same one.
    sequence: int

    def encode(self) -> bytes:
        """Return the stored form."""
        return f"{self.store_id}:{self.epoch}:{self.offset}:{self.sequence}".encode()

    @classmethod
    def decode(cls, value: bytes) -> Checkpoint:
        """Read the stored form. Raises InternalError when it is none."""
        try:
            store_id, epoch, offset, sequence = value.decode().split(":")
            milliseconds, number = offset.split("-")
            return cls(store_id, int(epoch), Offset(int(milliseconds), int(number)), int(sequence))
        except ValueError as error:
            raise InternalError(
                "the checkpoint cannot be read",
                where="online store",
                mend="the key hr:checkpoint was written by something else than an ingester",
            ) from error


def parse_log_start(value: bytes) -> tuple[Offset, int]:
    """Read the value of `LOG_START`: where the log begins, and the sequence of its first event."""
    offset, _, sequence = value.decode().rpartition(":")
    return parse_offset(offset, "online store"), int(sequence)


def row_suffix(view: str, schema_id: int) -> bytes:
    """Return what follows the entity in the key of a view's row: `}:<view>:<schema id>`."""
    return f"}}:{view}:{schema_id}".encode()


# The entity is the hash tag: all rows of an entity live in one slot.
ROW_PREFIX = b"hr:{"


def row_key(entity_key: bytes, suffix: bytes) -> bytes:
    """Return the key of one row: `hr:{<entity key>}:<view>:<schema id>`.

    `entity_key` is length-prefixed, so that whatever bytes an id holds, no two keys meet.
    """
    return ROW_PREFIX + entity_key + suffix
