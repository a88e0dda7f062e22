"""HPACK (RFC 7541): header blocks to heads, and fields to blocks without state.

The decoder walks the table's tree of shapes while it reads: a field that was seen in this place
costs one step. Static and dynamic entries are one list, addressed by the byte on the wire, and the
run of indexed fields that a block begins with is recognised whole: from one call to the next its
indices only move by what was inserted between.

Replies are encoded as literals without indexing: no table of the peer's, no state, so that whole
header blocks can be constants.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final

from server.wire.http2.headers import (
    Field,
    Head,
    HeadTable,
    Name,
    Node,
    Pair,
    Problem,
    trailers_problem,
)
from server.wire.http2.literals import (
    HpackError,
    encode_integer,
    read_huffman,
    read_integer,
    read_string,
)
from server.wire.http2.static_table import STATIC_INDEX, STATIC_NAMES

__all__ = ["Decoder", "HeaderBombError", "HpackError", "encode_fields"]

# A list over its limits is decoded on for the table's sake (refusing it costs the client one
# stream), but not without end: HTTP/2 Bomb, CVE-2026-49975 and CVE-2026-47774.
_HARD_BYTES_FACTOR: Final = 4
_HARD_FIELDS_FACTOR: Final = 8

_CACHE_HEADS_MAX: Final = 64
_CACHED_BLOCK_BYTES_MAX: Final = 512
_REMEMBERED_BYTES_MAX: Final = 1024
_RUN_BYTES_MIN: Final = 4  # a shorter run is read faster than recognised
_RESIZES_MAX: Final = 8  # in a block; RFC 7541 §4.2 needs two

# First bytes (RFC 7541 §6).
_INDEX: Final = 0x80
_INSERTED: Final = 0x40
_RESIZE: Final = 0x20

# The list is addressed by the byte of an indexed field, 0x80 + index. Where that is no entry it
# holds _NOTHING: below 0x80 (literals), at 0x80, where the table ends, at 0xFF (a longer index).
_DYNAMIC: Final = _INDEX + len(STATIC_INDEX) + 1
_LONG: Final = 0xFF
_PLACES: Final = _LONG - _DYNAMIC
_NO_NAME: Final = Name(b"")
_NOTHING: Final = Field(_NO_NAME, b"")

# For the first byte of a literal: where the list holds the entry that gives its name, or 0. With
# a longer index, the place that its next byte counts from.
_NAME_PLACE: Final = bytes(
    _INDEX + (byte & 0x3F)
    if _INSERTED < byte < 0x7F
    else _INDEX + (byte & 0x0F)
    if byte < _RESIZE and byte & 0x0F not in {0, 0x0F}
    else 0
    for byte in range(_INDEX)
)
_LONG_NAME_PLACE: Final = {0x7F: _INDEX + 0x3F, 0x0F: _INDEX + 0x0F, 0x1F: _INDEX + 0x0F}
_LITERAL_NAME: Final = frozenset({_INSERTED, 0x00, 0x10})
# After n insertions the index byte of an entry has grown by n.
_MOVED: Final = tuple(
    bytes(min(byte + moves, _LONG) if byte >= _DYNAMIC else byte for byte in range(256))
    for moves in range(_PLACES + 1)
)

_OVER: Final = b"\0"
_new = object.__new__


class HeaderBombError(HpackError):
    """A list far beyond its limits: its connection ends with ENHANCE_YOUR_CALM."""


class Decoder:
    """The decoding state of one connection.

    `table_bytes_max` is the SETTINGS_HEADER_TABLE_SIZE that we advertise; `list_bytes_max` counts
    name + value + 32 of each field (RFC 9113 §6.5.2).

    `cache` holds heads by their blocks while these mean the same: look there before `decode`.
    `unchanged` says whether the last block left the dynamic table as it was.
    """

    __slots__ = (
        "_bytes", "_bytes_max", "_count", "_fields_max", "_heads", "_list_bytes_max", "_moves",
        "_old", "_run", "_run_end", "_run_root", "_table", "_table_bytes_max", "_twin", "cache",
        "unchanged",
    )  # fmt: skip

    def __init__(
        self,
        heads: HeadTable,
        *,
        table_bytes_max: int = 4096,
        list_bytes_max: int = 16_384,
        fields_max: int = 128,
    ) -> None:
        self._heads = heads
        self._table_bytes_max = table_bytes_max
        self._list_bytes_max = list_bytes_max
        self._fields_max = fields_max
        # The static list serves all until their first insertion: an idle connection needs no more.
        self._table: list[Field] = _static_list(heads)
        self._old: deque[Field] | None = None  # entries beyond the places, the youngest first
        self._count = 0
        self._bytes = 0
        self._bytes_max = table_bytes_max
        self.cache: dict[bytes, Head] = {}
        self.unchanged = True
        # The last block with one fresh value that left the table alone: what is before and after
        # the value, the block's length, its prototype, the varying values, which of them it is.
        self._twin: tuple[bytes, bytes, int, Head, list[bytes], int] | None = None
        # The run of indexed fields that the last blocks began with, what was inserted since, the
        # root it started from; and its highest byte, where it ends, its varying values, their size.
        self._run = b""
        self._moves = 0
        self._run_root: Node | None = None
        self._run_end: tuple[int, Node, list[bytes], int] = (0, heads.root, [], 0)

    def decode(self, block: bytes) -> Head:  # noqa: C901, PLR0912, PLR0915 - no calls in a hot loop
        """Decode the block of a request's head. What is wrong with the request is in the head.

        Raises HpackError where the connection cannot go on.
        """
        heads = self._heads
        twin = self._twin
        if twin is not None:
            before, after, length, head, values, place = twin
            if len(block) == length and block.startswith(before) and block.endswith(after):
                value = block[len(before) : length - len(after)]
                if not (
                    0 in value or 10 in value or 13 in value or value.strip(b" \t") is not value
                ):
                    self.unchanged = True
                    values = values.copy()
                    values[place] = value
                    return heads.head_with(head, values)
        table = self._table
        node = heads.root
        values = []
        spent = 0  # bytes of the fields whose values vary
        over = fresh = 0
        self.unchanged = repeats = True
        fields: Any = iter(block)
        run = self._run
        if run:
            if self._moves or self._run_root is not node:
                run = self._moved_run(node)
            if run and block.startswith(run):
                fields.__setstate__(len(run))
                _, node, run_values, spent = self._run_end
                if run_values:
                    values = run_values.copy()
            else:
                run = b""
        try:
            for byte in fields:
                field = table[byte]
                step = node.get(field)
                if step is not None:
                    node = step
                    continue
                if field is not _NOTHING:
                    key: Any = field.key
                    value = field.value
                    size = field.size
                else:
                    # The iterator knows the place of the next byte.
                    first = len(block) - fields.__length_hint__() - 1
                    if byte == _LONG and block[first + 1] < 0x80 and self._old is not None:
                        field = self._old[block[first + 1]]
                        fields.__setstate__(first + 2)
                        step = node.get(field)
                        if step is not None:
                            node = step
                            continue
                    if not run:
                        run = _OVER  # it ended here
                        if first >= _RUN_BYTES_MIN:
                            self._remember_run(block[:first], node, values, spent)
                    if place := _NAME_PLACE[byte] if byte < _INDEX else 0:
                        at = first + 1
                        name = table[place].name
                    elif byte in _LITERAL_NAME:
                        at = first + 2 + (block[first + 1] & 0x7F)
                        name = heads.literal_names.get(block[first + 1 : at], _NO_NAME)
                    elif byte in _LONG_NAME_PLACE:
                        at = first + 2
                        place = _LONG_NAME_PLACE[byte] + block[first + 1]
                        name = table[place].name if place < _LONG else _NO_NAME
                    else:
                        name = _NO_NAME
                    if name is _NO_NAME:
                        end = at = first
                    elif (mark := block[at]) & 0x7F == 0x7F:
                        length, start = read_integer(block, at, 0x7F)
                        end = start + length
                    else:
                        start = at + 1
                        end = start + (mark & 0x7F)
                    if name.fresh:
                        value = block[start:end]
                        if end > len(block):
                            raise IndexError
                        if mark >= 0x80:
                            value = read_huffman(value)
                        key = name
                        if (
                            0 in value
                            or 10 in value
                            or 13 in value
                            or value.strip(b" \t") is not value
                        ):
                            key = name.illegal
                        size = name.size + len(value)
                        if byte >= _INSERTED:
                            field = _new(Field)
                            field.name = name
                            field.value = value
                            field.size = size
                            field.key = key
                            self._insert(field)
                            table = self._table
                        repeats = False
                        fresh += 1
                        fresh_at = start
                        fresh_end = end
                        fresh_place = len(values)
                        plain = mark < 0x80
                    else:
                        known = name.values.get(block[at:end])
                        if known is not None:
                            if byte >= _INSERTED:
                                self._insert(known)
                                table = self._table
                        elif byte & 0xE0 == _RESIZE:
                            if node.depth:
                                raise HpackError("a table size update after a field")
                            fields.__setstate__(self._resize(block, first))
                            table = self._table
                            continue
                        else:
                            known, end = self._read(block, first)
                            table = self._table
                            repeats = repeats and byte >= _INDEX
                        key = known.key
                        value = known.value
                        size = known.size
                    fields.__setstate__(end)
                step = node.get(key)
                if key.__class__ is not Field:
                    spent += size
                    if spent > self._list_bytes_max:
                        over = spent
                        break
                if step is None:
                    if node.depth >= self._fields_max or node.bytes > self._list_bytes_max:
                        over = spent + size
                        break
                    step = heads.grow(node, key)
                if key.__class__ is not Field:
                    values.append(value)
                node = step
        except IndexError:
            raise HpackError("a truncated block") from None
        if over:
            return self._refuse(block, fields, node, values, over)
        if spent + node.bytes > self._list_bytes_max or node.depth > self._fields_max:
            return heads.too_large(node, values, self._reason(node.depth))
        head = node.prototype or heads.prototype(node)
        if values:
            if fresh == 1 and plain and self.unchanged and head.problem is None:
                before, after = block[:fresh_at], block[fresh_end:]
                self._twin = (before, after, len(block), head, values, fresh_place)
            head = heads.head_with(head, values)
        if repeats and self.unchanged and len(block) <= _CACHED_BLOCK_BYTES_MAX:
            if len(self.cache) >= _CACHE_HEADS_MAX:
                self.cache.clear()
            self.cache[block] = head
        return head

    def decode_trailers(
        self, block: bytes
    ) -> tuple[tuple[tuple[bytes, bytes], ...], Problem | None]:
        """Decode the block of a request's trailers: (fields, what is wrong with them).

        Raises HpackError where the connection cannot go on.
        """
        self.unchanged = True
        kept: list[Field] = []
        spent = count = 0
        for field in self._read_all(block, 0):
            spent += field.size
            count += 1
            self._check_bomb(spent, count)
            if spent <= self._list_bytes_max and count <= self._fields_max:
                kept.append(field)
        if len(kept) < count:
            return (), Problem(self._reason(count), too_large=True)
        problem = trailers_problem(kept)
        fields = () if problem else tuple((field.name.text, field.value) for field in kept)
        return fields, problem

    def _refuse(
        self, block: bytes, fields: Any, node: Node, values: list[bytes], spent: int
    ) -> Head:
        """Decode the rest without keeping it (wire.md B2-12, B2-13, B2-14)."""
        spent += node.bytes
        count = node.depth + 1
        for field in self._read_all(block, len(block) - fields.__length_hint__()):
            spent += field.size
            count += 1
            self._check_bomb(spent, count)
        return self._heads.too_large(node, values, self._reason(count))

    def _check_bomb(self, spent: int, count: int) -> None:
        if (
            spent > self._list_bytes_max * _HARD_BYTES_FACTOR
            or count > self._fields_max * _HARD_FIELDS_FACTOR
        ):
            raise HeaderBombError("a header list far beyond its limits")

    def _reason(self, count: int) -> str:
        if count > self._fields_max:
            return f"more than {self._fields_max} header fields"
        return f"more than {self._list_bytes_max} bytes of header fields"

    # -- reading what the loop above does not know ---------------------------------------------

    def _read_all(self, block: bytes, at: int) -> Iterator[Field]:
        """Read fields up to the end of the block."""
        begins = at == 0
        try:
            while at < len(block):
                if block[at] & 0xE0 == _RESIZE:
                    if not begins:
                        raise HpackError("a table size update after a field")
                    at = self._resize(block, at)
                else:
                    field, at = self._read(block, at)
                    yield field
                begins = False
        except IndexError:
            raise HpackError("a truncated block") from None

    def _read(self, block: bytes, at: int) -> tuple[Field, int]:
        """Read one field, and remember it: (field, where the next one begins).

        Raises IndexError where the block ends before it.
        """
        byte = block[at]
        if byte >= _INDEX:
            index, at = read_integer(block, at, 0x7F)
            return self._entry(index), at
        heads = self._heads
        if byte in _LITERAL_NAME:
            literal_at = at + 1
            text, at, _ = read_string(block, literal_at)
            name = heads.name(text)
            if at - literal_at <= 0x7F:
                heads.literal_names[block[literal_at:at]] = name
        else:
            index, at = read_integer(block, at, 0x3F if byte >= _INSERTED else 0x0F)
            name = self._entry(index).name
        value_at = at
        value, at, literal = read_string(block, value_at)
        field = name.values.get(literal)
        if field is None:
            field = Field(name, value)
            if not name.fresh and len(literal) <= _REMEMBERED_BYTES_MAX:
                heads.remember_value(literal, field)
        if byte >= _INSERTED:
            self._insert(field)
        return field, at

    def _entry(self, index: int) -> Field:
        """Return the entry of an index (RFC 7541 §2.3.3)."""
        place = _INDEX + index
        old = self._old
        if index and place < _LONG:
            field = self._table[place]
        elif old is not None and 0 <= place - _LONG < len(old):
            field = old[place - _LONG]
        else:
            field = _NOTHING
        if field is _NOTHING:
            raise HpackError("an index beyond the table")
        return field

    # -- the run that blocks begin with ---------------------------------------------------------

    def _remember_run(self, run: bytes, node: Node, values: list[bytes], spent: int) -> None:
        """Keep what this block began with, if it is a run; nothing was inserted yet."""
        if min(run) >= _INDEX and _LONG not in run:
            self._run = run
            self._moves = 0
            self._run_root = self._heads.root
            self._run_end = (max(*run, _DYNAMIC), node, values.copy(), spent)

    def _moved_run(self, root: Node) -> bytes:
        """Return the run as the next block would write it; forget it where that is not possible.

        At the table's end its entries were evicted, and at 0xFF an index has another encoding.
        """
        moves = self._moves
        if self._run_root is not root or self._run_end[0] + moves >= min(
            _DYNAMIC + self._count, _LONG
        ):
            self._run = b""
            return b""
        return self._run.translate(_MOVED[moves])

    # -- the dynamic table ------------------------------------------------------------------------

    def _insert(self, field: Field) -> None:
        """Add an entry, and evict the oldest to make room (RFC 7541 §4.4)."""
        table = self._table
        if self.unchanged:
            self._change()
            table = self._table
        self._moves += 1
        size = self._bytes + field.size
        if size > self._bytes_max:
            self._evict(self._bytes_max - field.size)
            size = self._bytes + field.size
            if size > self._bytes_max:  # larger than the whole table: it empties it
                return
        count = self._count
        if count < _PLACES:
            table.insert(_DYNAMIC, table.pop(_DYNAMIC + count))
            table[_DYNAMIC] = field
        else:
            if self._old is None:
                self._old = deque()
            self._old.appendleft(table.pop(_LONG - 1))
            table.insert(_DYNAMIC, field)
        self._count = count + 1
        self._bytes = size

    def _change(self) -> None:
        """Get ready for a first change of the table by this block."""
        self.unchanged = False
        self._twin = None
        self.cache.clear()
        if self._table is self._heads.entries:
            self._table = self._table.copy()

    def _evict(self, bytes_max: int) -> None:
        """Evict the oldest entries until the others fit."""
        size = self._bytes
        count = self._count
        table = self._table
        while count and size > bytes_max:
            count -= 1
            if count >= _PLACES:
                assert self._old is not None
                size -= self._old.pop().size
            else:
                place = _DYNAMIC + count
                size -= table[place].size
                table[place] = _NOTHING
        self._count = count
        self._bytes = size

    def _resize(self, block: bytes, at: int) -> int:
        """Follow the table size updates that a block begins with; return where they end."""
        self._change()
        for _ in range(_RESIZES_MAX):
            bytes_max, at = read_integer(block, at, 0x1F)
            if bytes_max > self._table_bytes_max:  # wire.md B2-15
                raise HpackError("a table size above the advertised one")
            self._bytes_max = bytes_max
            self._evict(bytes_max)
            if at == len(block) or block[at] & 0xE0 != _RESIZE:
                return at
        raise HpackError("too many table size updates")


def _static_list(heads: HeadTable) -> list[Field]:
    """Return the list of the static entries: one for all connections of a server."""
    if not heads.entries:
        entries = [_NOTHING] * (_LONG + 1)
        for (name, value), index in STATIC_INDEX.items():
            entries[_INDEX + index] = Field(heads.name(name), value)
        heads.entries = entries
        heads.static_names = tuple(heads.names.values())
    return heads.entries


def encode_fields(fields: Iterable[Pair]) -> bytes:
    """Encode a header list for any peer: static entries, else literals without indexing.

    No block depends on another, nor on the peer's SETTINGS_HEADER_TABLE_SIZE.
    """
    pieces = []
    for name, value in fields:
        index = STATIC_INDEX.get((name, value))
        if index is not None:
            pieces.append(bytes((_INDEX | index,)))
            continue
        index = STATIC_NAMES.get(name)
        if index is not None:
            pieces.append(encode_integer(index, 0x0F, 0))
        else:
            pieces += (b"\0", encode_integer(len(name), 0x7F, 0), name)
        pieces += (encode_integer(len(value), 0x7F, 0), value)
    return b"".join(pieces)
