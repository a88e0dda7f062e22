"""HPACK (RFC 7541): header blocks to heads, and fields to blocks without state.

The decoder walks the server's tree of known field sequences while it reads: a field that was seen
in its place costs one step. A block that differs from an earlier one in literal values alone is
recognised as that, without being read.

Replies are encoded as literals without indexing: no table of the peer's, no state, so that whole
header blocks can be constants.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from server.wire.http2.headers import (
    Field,
    Head,
    HeadTable,
    Name,
    Node,
    Pair,
    Problem,
    head_of,
    trailers_problem,
)
from server.wire.http2.literals import (
    HpackError,
    encode_integer,
    read_huffman,
    read_integer,
    read_string,
)
from server.wire.http2.scan import match
from server.wire.http2.static_table import STATIC_INDEX, STATIC_NAMES, STATIC_TABLE
from server.wire.http2.templates import TEMPLATES_MAX, Slot, Template, is_template

__all__ = ["Decoder", "HeaderBombError", "HpackError", "encode_fields"]

# A list over its limits is decoded on for the table's sake (refusing it costs the client one
# stream), but not without end: HTTP/2 Bomb, CVE-2026-49975 and CVE-2026-47774.
_HARD_BYTES_FACTOR: Final = 4
_HARD_FIELDS_FACTOR: Final = 8

_CACHE_HEADS_MAX: Final = 32
_CACHED_BLOCK_BYTES_MAX: Final = 512
_REMEMBERED_BYTES_MAX: Final = 1024
_LATELY: Final = 16  # texts
_RESIZES_MAX: Final = 8  # in a block; RFC 7541 §4.2 needs two

# First bytes (RFC 7541 §6).
_INDEX: Final = 0x80
_LONG_INDEX: Final = 0xFF
_INSERTED: Final = 0x40
_RESIZE: Final = 0x20
_RESIZE_BITS: Final = 0xE0

_NO_SUCH_PLACE: Final = "a truncated block or an index beyond the table"
_DYNAMIC: Final = len(STATIC_TABLE) + 1  # the index of the youngest entry


class HeaderBombError(HpackError):
    """A list far beyond its limits: its connection ends with ENHANCE_YOUR_CALM."""


class Decoder:
    """The decoding state of one connection.

    `table_bytes_max` is the SETTINGS_HEADER_TABLE_SIZE that we advertise; `list_bytes_max` counts
    name + value + 32 of each field (RFC 9113 §6.5.2).

    `cache` holds heads by their blocks while these mean the same: look there before `decode`. Only
    well-formed heads with a `sink` are in it. `templates`, the youngest first, are of blocks since
    which nothing has changed the table, and of such heads as well; `code` is theirs together.
    """

    __slots__ = (
        "_bytes", "_bytes_max", "_fields_max", "_heads", "_lately", "_list_bytes_max", "_slots",
        "_table", "_table_bytes_max", "_unchanged", "cache", "changes_in_a_row", "code",
        "templates",
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
        # By index: the static entries, then the dynamic ones, the youngest first. 0 is no index,
        # and its entry is not used.
        self._table = heads.static_entries.copy()
        self._bytes = 0  # of the dynamic entries
        self._bytes_max = table_bytes_max
        self.cache: dict[bytes, Head] = {}
        self.templates: list[Template] = []
        self.code = b""
        self._lately: set[int] = set()
        # Of the block at hand: did it leave the dynamic table as it was; its slots.
        self._unchanged = True
        self._slots: list[Slot] = []
        # How many of the last heads, without one that did not, changed the table.
        self.changes_in_a_row = 0

    def decode(self, block: bytes) -> Head:
        """Decode the block of a request's head. What is wrong with the request is in the head.

        Raises HpackError where the connection cannot go on.
        """
        head = self._by_template(block) or self._by_fields(block)
        if not self._unchanged:
            self.changes_in_a_row += 1
            return head
        self.changes_in_a_row = 0
        if (
            head.problem is None
            and head.sink is not None
            and len(block) <= _CACHED_BLOCK_BYTES_MAX
            and self._comes_again(block)
        ):
            if len(self.cache) >= _CACHE_HEADS_MAX:
                self.cache.clear()
            head.read_values()
            self.cache[block] = head
            self._learn(Template(block, (), head, (), 0))
        return head

    def learn_anew(self, template: Template, block: bytes) -> None:
        """Learn the template from a block that it recognised: other strings are to be expected."""
        self._forget(template)
        self._by_fields(block)

    def _forget(self, template: Template) -> None:
        self._keep([each for each in self.templates if each is not template])

    def decode_trailers(
        self, block: bytes
    ) -> tuple[tuple[tuple[bytes, bytes], ...], Problem | None]:
        """Decode the block of a request's trailers: (fields, what is wrong with them).

        Raises HpackError where the connection cannot go on.
        """
        self._unchanged = True
        kept: list[Field] = []
        size = count = 0
        for field in self._read_all(block, 0):
            size += field.size
            count += 1
            self._check_bomb(size, count)
            if size <= self._list_bytes_max and count <= self._fields_max:
                kept.append(field)
        if len(kept) < count:
            return (), Problem(self._reason(count), too_large=True)
        problem = trailers_problem(kept)
        fields = () if problem else tuple((field.name.text, field.value) for field in kept)
        return fields, problem

    # -- heads -----------------------------------------------------------------------------------

    def _by_template(self, block: bytes) -> Head | None:
        """Decode a block that a template recognises.

        As the dynamic table is the same, what it has in common with the template says the same.
        """
        found = match(block, self.code) if self.code else None
        if found is None:
            return None
        number, timeout_ns, changed = found
        template = self.templates[number]
        template.matched += 1
        if changed and template.worth_replacing:
            self._forget(template)
            return None
        self._unchanged = True
        return template.head_of(block, timeout_ns)

    def _by_fields(self, block: bytes) -> Head:
        """Decode a block field by field."""
        self._unchanged = True
        self._slots = []
        heads = self._heads
        table = self._table
        values: list[bytes] = []
        size = len(block)
        try:
            at = self._resize(block) if block and _RESIZE <= block[0] < _INSERTED else 0
            node = heads.root
            while at < size:
                byte = block[at]
                if _INDEX < byte < _LONG_INDEX:
                    field = table[byte - _INDEX]
                    at += 1
                else:
                    field, at = self._read(block, at, values)
                key = field.key
                after = node.get(key)
                if after is None:
                    if node.depth >= self._fields_max:
                        return self._refuse(block, at, node, values, field.size)
                    after = heads.grow(node, key)
                node = after
                if key.value is None:
                    values.append(field.value)
        except IndexError:
            raise HpackError(_NO_SUCH_PLACE) from None
        if node.bytes + sum(map(len, values)) > self._list_bytes_max or (
            node.depth > self._fields_max  # of a shape that another limit let grow
        ):
            return self._refuse(block, at, node, values, 0)
        head = node.prototype or heads.prototype(node)
        if values:
            head = head_of(head.shape, values)
            slots = self._slots
            if self._unchanged and slots and is_template(block, slots, head):
                values_bytes_max = self._list_bytes_max - node.bytes
                self._learn(Template(block, slots, head, values, values_bytes_max))
        return head

    def _learn(self, template: Template) -> None:
        others = [each for each in self.templates if not each.is_like(template)]
        self._keep([template, *others[: TEMPLATES_MAX - 1]])

    def _keep(self, templates: list[Template]) -> None:
        self.templates = templates
        self.code = b"".join([template.code for template in templates])

    def _comes_again(self, text: bytes) -> bool:
        """Whether this came lately: then it is worth remembering.

        Only hashes are kept. Who makes two texts collide gets the second one remembered at once.
        """
        mark = hash(text)
        if mark in self._lately:
            return True
        if len(self._lately) >= _LATELY:
            self._lately.clear()
        self._lately.add(mark)
        return False

    # -- lists over the limits -------------------------------------------------------------------

    def _refuse(self, block: bytes, at: int, node: Node, values: list[bytes], size: int) -> Head:
        """Decode the rest for the table's sake (CVE-2023-32731), without keeping it.

        `size` is that of a field before `at` that is in neither `node` nor `values`.
        """
        count = node.depth + bool(size)
        size += node.bytes + sum(map(len, values))
        self._check_bomb(size, count)
        for field in self._read_all(block, at):
            size += field.size
            count += 1
            self._check_bomb(size, count)
        return self._heads.too_large(node, values, self._reason(count))

    def _check_bomb(self, size: int, count: int) -> None:
        if (
            size > self._list_bytes_max * _HARD_BYTES_FACTOR
            or count > self._fields_max * _HARD_FIELDS_FACTOR
        ):
            raise HeaderBombError("a header list far beyond its limits")

    def _reason(self, count: int) -> str:
        if count > self._fields_max:
            return f"more than {self._fields_max} header fields"
        return f"more than {self._list_bytes_max} bytes of header fields"

    # -- fields ----------------------------------------------------------------------------------

    def _read_all(self, block: bytes, at: int) -> Iterator[Field]:
        """Read fields up to the end of the block."""
        try:
            if at == 0:
                at = self._resize(block)
            while at < len(block):
                field, at = self._read(block, at, None)
                yield field
        except IndexError:
            raise HpackError(_NO_SUCH_PLACE) from None

    def _read(self, block: bytes, at: int, before: list[bytes] | None) -> tuple[Field, int]:
        """Read one field (RFC 7541 §6): (field, where the next one begins).

        `before` are the varying values so far of a head; with them slots are noted. Raises
        IndexError where the block or the table ends before the field.
        """
        byte = block[at]
        if byte >= _INDEX:
            index, at = read_integer(block, at, 0x7F)
            if not index:
                raise HpackError("the index 0")
            return self._table[index], at
        if _RESIZE <= byte < _INSERTED:
            raise HpackError("a table size update after a field")
        mask = 0x3F if byte >= _INSERTED else 0x0F
        index = byte & mask
        if index:
            at += 1
            if index == mask:
                index, at = read_integer(block, at - 1, mask)
            name = self._table[index].name
        else:
            name, at = self._read_name(block, at + 1)
        start = at + 1
        length = block[at] & 0x7F
        if length == 0x7F:
            length, start = read_integer(block, at, 0x7F)
        end = start + length
        field = None if name.is_fresh else name.values.get(block[at:end])
        if field is None:
            if end > len(block):
                raise IndexError
            value = block[start:end]
            field = Field(name, value if block[at] < 0x80 else read_huffman(value))
            if not name.is_fresh:
                self._remember(field, block[at:end])
        if byte >= _INSERTED:
            self._insert(field)
        elif before is not None and not name.is_constant:
            self._slots.append(Slot(len(before), at, end, name.is_fresh))
        return field, end

    def _read_name(self, block: bytes, at: int) -> tuple[Name, int]:
        """Read a name that is spelt out: (name, where its value begins)."""
        # A literal says its own length: what is equal to a known one is whole. Those longer than
        # their first byte can say are read anew.
        end = at + 1 + (block[at] & 0x7F)
        name = self._heads.names_by_literal.get(block[at:end])
        if name is not None:
            return name, end
        text, end = read_string(block, at)
        return self._heads.name(text, block[at:end]), end

    def _remember(self, field: Field, literal: bytes) -> None:
        """Spare the next one who sends this value the reading, if that is to be expected."""
        if len(literal) <= _REMEMBERED_BYTES_MAX and (
            field.name.is_constant or self._comes_again(literal)
        ):
            self._heads.remember_value(field, literal)

    # -- the dynamic table -----------------------------------------------------------------------

    def _change(self) -> None:
        """The table changes: from now on blocks that were seen may mean something else."""
        self._unchanged = False
        self._keep([])
        self.cache.clear()

    def _insert(self, field: Field) -> None:
        """Add an entry, and evict the oldest to make room (RFC 7541 §4.4)."""
        if field.size > self._bytes_max and not self._bytes:
            return  # it finds no room: the table stays as empty as it was
        if self._unchanged:
            self._change()
        table = self._table
        table.insert(_DYNAMIC, field)
        size = self._bytes + field.size
        while size > self._bytes_max:
            size -= table.pop().size
        self._bytes = size

    def _evict(self) -> None:
        """Evict the oldest entries until the others fit; one larger than the table goes, too."""
        table = self._table
        size = self._bytes
        while size > self._bytes_max:
            size -= table.pop().size
        self._bytes = size

    def _resize(self, block: bytes) -> int:
        """Follow the table size updates that a block begins with; return where they end."""
        at = count = 0
        while at < len(block) and block[at] & _RESIZE_BITS == _RESIZE:
            self._change()
            bytes_max, at = read_integer(block, at, 0x1F)
            count += 1
            if bytes_max > self._table_bytes_max:  # CVE-2023-33953
                raise HpackError("a table size above the advertised one")
            if count > _RESIZES_MAX:
                raise HpackError("too many table size updates")
            self._bytes_max = bytes_max
            self._evict()
        return at


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
