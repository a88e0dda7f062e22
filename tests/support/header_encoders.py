"""How real gRPC clients write header blocks: HPACK encoders with the choices of each.

A client's choices (what is indexed, what is Huffman-coded) decide what a server has to do per call.
`tests/server/wire/recorded` holds blocks that the clients sent; these encoders write the same bytes
for the same fields, so that a benchmark can make as many as it needs, with fresh values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import ClassVar

from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable

Pair = tuple[bytes, bytes]

_STATIC = HeaderTable.STATIC_TABLE
_STATIC_INDEX = {pair: index for index, pair in reversed([*enumerate(_STATIC, 1)])}
_STATIC_NAMES = {name: index for index, (name, _) in reversed([*enumerate(_STATIC, 1)])}
_HUFFMAN = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


def integer(value: int, bits: int, flags: int) -> bytes:
    """RFC 7541 §5.1: an integer with a prefix of `bits` under `flags`."""
    mask = (1 << bits) - 1
    if value < mask:
        return bytes((flags | value,))
    encoded = [flags | mask]
    value -= mask
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))


def raw(text: bytes) -> bytes:
    """A string literal without Huffman."""
    return integer(len(text), 7, 0) + text


def coded(text: bytes) -> bytes:
    """A Huffman-coded string literal."""
    code = _HUFFMAN.encode(text)
    return integer(len(code), 7, 0x80) + code


def shorter(text: bytes) -> bytes:
    """A string literal, Huffman-coded where that is shorter."""
    code = _HUFFMAN.encode(text)
    return integer(len(code), 7, 0x80) + code if len(code) < len(text) else raw(text)


class HeaderEncoder:
    """The state of one connection: the dynamic table as the peer will have it."""

    def __init__(self) -> None:
        self.table_bytes_max = 4096
        self._entries: deque[Pair] = deque()  # the youngest first
        self._bytes = 0
        self._update = self._begin()

    def encode(self, fields: Sequence[Pair]) -> bytes:
        """Return the next block of the connection."""
        update, self._update = self._update, b""
        return update + b"".join(self._field(name, value) for name, value in fields)

    def index_nothing(self) -> None:
        """Do as the server asks: its SETTINGS_HEADER_TABLE_SIZE is 0 now."""
        self.table_bytes_max = 0
        self._make_room(0)
        self._update = integer(0, 5, 0x20)

    def _begin(self) -> bytes:
        return b""

    def _field(self, name: bytes, value: bytes) -> bytes:
        raise NotImplementedError

    def _make_room(self, size: int) -> None:
        while self._entries and self._bytes + size > self.table_bytes_max:
            old_name, old_value = self._entries.pop()
            self._bytes -= len(old_name) + len(old_value) + 32

    def _insert(self, name: bytes, value: bytes) -> None:
        size = len(name) + len(value) + 32
        self._make_room(size)
        self._entries.appendleft((name, value))
        self._bytes += size

    def _dynamic_index(self, name: bytes, value: bytes) -> int:
        try:
            return self._entries.index((name, value)) + len(_STATIC) + 1
        except ValueError:
            return 0

    def _name_index(self, name: bytes) -> int:
        static = _STATIC_NAMES.get(name, 0)
        names = (place for place, entry in enumerate(self._entries, 62) if entry[0] == name)
        return static or next(names, 0)


class GrpcCoreEncoder(HeaderEncoder):
    """grpcio (C core): what it knows is indexed, names always spelt out; metadata is not indexed.

    The core picks a timeout that it has sent before if that is near enough; it comes here as the
    value in the fields.
    """

    _INDEXED: ClassVar[frozenset[bytes]] = frozenset({
        b":path", b":authority", b"content-type", b"te", b"grpc-accept-encoding", b"grpc-encoding",
        b"grpc-timeout", b"user-agent",
    })  # fmt: skip

    def _field(self, name: bytes, value: bytes) -> bytes:
        index = _STATIC_INDEX.get((name, value)) or self._dynamic_index(name, value)
        if index:
            return integer(index, 7, 0x80)
        if name not in self._INDEXED or not self.table_bytes_max:
            return b"\x00" + raw(name) + raw(value)
        self._insert(name, value)
        return b"\x40" + raw(name) + raw(value)


class NghttpEncoder(HeaderEncoder):
    """nghttp2, as in Node's grpc-js: nearly all is indexed, names by index, Huffman if shorter.

    Node answers a server's SETTINGS_HEADER_TABLE_SIZE with an update, and never lets
    `authorization` be indexed.
    """

    _NOT_INDEXED: ClassVar[frozenset[bytes]] = frozenset({
        b":path", b"age", b"content-length", b"etag", b"if-modified-since", b"if-none-match",
        b"location", b"set-cookie",
    })  # fmt: skip

    def _begin(self) -> bytes:
        return integer(self.table_bytes_max, 5, 0x20)

    def _field(self, name: bytes, value: bytes) -> bytes:
        if name == b"authorization":
            return integer(self._name_index(name), 4, 0x10) + shorter(value)
        index = _STATIC_INDEX.get((name, value)) or self._dynamic_index(name, value)
        if index:
            return integer(index, 7, 0x80)
        name_index = self._name_index(name)
        size = len(name) + len(value) + 32
        inserted = name not in self._NOT_INDEXED and size <= self.table_bytes_max * 3 // 4
        if inserted:
            self._insert(name, value)
        start = integer(name_index, 6, 0x40) if inserted else integer(name_index, 4, 0)
        return start + (b"" if name_index else shorter(name)) + shorter(value)


class NettyEncoder(HeaderEncoder):
    """Netty, as in grpc-java: all is indexed, names by index; Huffman from 512 bytes only."""

    def _string(self, text: bytes) -> bytes:
        return shorter(text) if len(text) >= 512 else raw(text)

    def _field(self, name: bytes, value: bytes) -> bytes:
        index = self._dynamic_index(name, value) or _STATIC_INDEX.get((name, value), 0)
        if index:
            return integer(index, 7, 0x80)
        self._make_room(len(name) + len(value) + 32)
        name_index = self._name_index(name)
        if self.table_bytes_max:
            self._insert(name, value)
        start = integer(name_index, 6, 0x40) if self.table_bytes_max else integer(name_index, 4, 0)
        return start + (b"" if name_index else self._string(name)) + self._string(value)


ENCODERS: dict[str, type[HeaderEncoder]] = {
    "grpcio": GrpcCoreEncoder,
    "grpc-java": NettyEncoder,
    "grpc-js": NghttpEncoder,
}
