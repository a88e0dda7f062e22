"""Blocks that differ from an earlier one in literal values alone, recognised without being read.

Who does not index metadata (grpcio, and others once they are asked to index nothing) sends the same
block again but for a traceparent or a token. A `Template` is such a block with slots in the place
of these strings; one without slots is a block that comes again as it is. Its `code` is what the
compiled reader of `scan` compares blocks with.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Final, NamedTuple

from server.wire.http2.headers import NO_TIMEOUT, Head, Shape
from server.wire.http2.literals import read_integer, read_string

TEMPLATES_MAX: Final = 8  # of a connection
BLOCK_BYTES_MAX: Final = 4096
TIMEOUT_MAX_NS: Final = 1 << 57  # what is longer is read elsewhere
_SLOTS_MAX: Final = 8
# A string that came once more is compared before it is read. To note another one costs more than
# some readings: it has to be worth it.
_WORTH_LEARNING: Final = 64  # requests

# As `scan` reads them: bytes of all code, most bytes of values, announced body bytes, the timeout
# in nanoseconds where no slot is of it, slots …
_START: Final = struct.Struct("<HHqqB")
# … for each slot: bytes of the piece before it, whether it is the timeout, bytes of the string that
# is expected in it, bytes of that string's value; then the piece and the string …
_SLOT: Final = struct.Struct("<HBHH")
# … and at last the piece behind all slots, its bytes before it.
_END: Final = struct.Struct("<H")
_VALUES_BYTES_MAX: Final = 0xFFFF


class Slot(NamedTuple):
    """A string of a block that the next one may have otherwise: of a value that varies."""

    place: int  # among the varying values of the head
    start: int
    end: int
    fresh: bool  # new in every call


class Template:
    """A block that left the dynamic table alone, and what it said.

    `head` is that of the block itself. `matched` counts the requests that were recognised.
    """

    __slots__ = (
        "_places", "_values", "code", "constant", "head", "matched", "pieces", "shape", "sink",
    )  # fmt: skip

    def __init__(
        self,
        block: bytes,
        slots: Sequence[Slot],
        head: Head,
        values: Sequence[bytes],
        values_bytes_max: int,
    ) -> None:
        self.head = head
        self.shape: Shape = head.shape
        self.sink = self.shape.sink
        self.matched = 0
        self.constant = not slots
        self.pieces: list[bytes] = []
        self._values = list(values)
        # (the varying value's place, bytes before its string since the last one)
        self._places: list[tuple[int, int]] = []
        parts: list[bytes] = []
        at = 0
        kept_bytes = sum(map(len, values))
        timeout_at = self.shape.timeout_at
        varies = any(slot.place == timeout_at for slot in slots)
        timeout_ns = head.timeout_ns if slots and not varies else NO_TIMEOUT
        for slot in slots:
            value = values[slot.place]
            kept_bytes -= len(value)
            expected = b"" if slot.fresh else block[slot.start : slot.end]
            piece = block[at : slot.start]
            start = _SLOT.pack(len(piece), slot.place == timeout_at, len(expected), len(value))
            parts += (start, piece, expected)
            self.pieces.append(piece)
            self._places.append((slot.place, len(piece)))
            at = slot.end
        self.pieces.append(block[at:])
        parts += (_END.pack(len(block) - at), block[at:])
        # What is constant among the varying values — those that stand in the table — counts, too.
        room = min(max(values_bytes_max - kept_bytes, 0), _VALUES_BYTES_MAX)
        body = b"".join(parts)
        self.code: bytes = (
            _START.pack(
                _START.size + len(body), room, self.shape.content_length, timeout_ns, len(slots)
            )
            + body
        )

    def values(self, block: bytes) -> list[bytes]:
        """Return the varying values of a block that this template recognised."""
        values = self._values.copy()
        at = 0
        for place, gap in self._places:
            values[place], at = read_string(block, at + gap)
        return values

    def value(self, block: bytes, place: int) -> bytes:
        """Return one varying value of such a block; those before it are passed over unread."""
        at = 0
        for each, gap in self._places:
            at += gap
            if each == place:
                return read_string(block, at)[0]
            length, start = read_integer(block, at, 0x7F)
            at = start + length
        return self._values[place]

    def literal(self, block: bytes, place: int) -> bytes | None:
        """Return how a block that this template recognised spells a value; None where the value is
        of the table, and the same in all such blocks."""
        at = 0
        for each, gap in self._places:
            at += gap
            length, start = read_integer(block, at, 0x7F)
            if each == place:
                return block[at : start + length]
            at = start + length
        return None

    def head_of(self, block: bytes, timeout_ns: int) -> Head:
        """Return the head of a block that this template recognised."""
        return self.head if self.constant else Head(self.shape, timeout_ns, (self, block))

    def heads_of(
        self, data: bytes, starts: Sequence[int], stops: Sequence[int], timeouts_ns: Sequence[int]
    ) -> Iterator[Head]:
        """Return the heads of blocks that this template, which has slots, recognised."""
        blocks = [data[start:stop] for start, stop in zip(starts, stops, strict=True)]
        return map(Head, repeat(self.shape), timeouts_ns, zip(repeat(self), blocks))

    @property
    def worth_replacing(self) -> bool:
        """Whether it has served long enough, once a string that it expects did not come."""
        return self.matched >= _WORTH_LEARNING

    def is_like(self, other: Template) -> bool:
        """Whether the other one recognises the same blocks."""
        return self.pieces == other.pieces and self.shape is other.shape


def is_template(block: bytes, slots: Sequence[Slot], head: Head) -> bool:
    """Return whether a template can be made of a block. The block must leave the table alone."""
    return (
        head.sink is not None
        and head.problem is None
        and len(block) <= BLOCK_BYTES_MAX
        and len(slots) <= _SLOTS_MAX
        and head.timeout_ns <= TIMEOUT_MAX_NS
    )
