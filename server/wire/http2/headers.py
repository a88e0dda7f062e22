"""What a header block says: `Head`, its validation (RFC 9113 §8), and the table that shares heads.

Calls of one client differ in few values. So fields are interned, and `HeadTable` keeps a tree of
the sequences seen: everything that a sequence alone decides (is it well-formed, where does it go)
is worked out once, at its `Node`. All sharing is by content and nothing shared is ever changed, so
that no connection can alter what another one reads (CVE-2024-7246).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from server.wire.http2.static_table import STATIC_TABLE

FIELD_OVERHEAD_BYTES: Final = 32  # RFC 7541 §4.1, RFC 9113 §6.5.2: counted for every field

# Fields that are alike in all calls of a client, or decide where a call goes: part of a shape. So
# is every pseudo-header. The values of all other fields stay with their request.
CONSTANT_NAMES = frozenset({
    b"accept", b"accept-encoding", b"content-length", b"content-type", b"grpc-accept-encoding",
    b"grpc-encoding", b"host", b"te", b"user-agent",
})  # fmt: skip
# New in every call: not worth remembering.
FRESH_NAMES = frozenset({
    b"traceparent", b"tracestate", b"grpc-trace-bin", b"x-request-id", b"grpc-timeout",
})  # fmt: skip

# RFC 9113 §8.2.2: fields of HTTP/1.1 connections, the tools of request smuggling.
_CONNECTION_NAMES = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade",
})  # fmt: skip
_PSEUDO_NAMES = frozenset({b":method", b":scheme", b":authority", b":path", b":protocol"})
_NAME_BYTES = bytes(byte for byte in range(0x21, 0x7F) if not 0x41 <= byte <= 0x5A)
_NAME_BYTES_MAX = 127  # of names that are remembered
_LENGTH_DIGITS_MAX = 18  # so that a content-length fits 64 bits

NO_TIMEOUT: Final = -1
BAD_TIMEOUT: Final = -2
_UNIT_NS = {
    b"n": 1,
    b"u": 1_000,
    b"m": 1_000_000,
    b"S": 1_000_000_000,
    b"M": 60 * 1_000_000_000,
    b"H": 3600 * 1_000_000_000,
}

Pair = tuple[bytes, bytes]


class Problem(NamedTuple):
    """Why a header list is refused. It concerns its stream alone.

    `too_large` is over our limits (answered); else malformed (reset with PROTOCOL_ERROR).
    """

    reason: str
    too_large: bool = False


class Spelling(Protocol):
    """How blocks say the values that vary, so that these are read when somebody asks."""

    def values(self, block: bytes) -> list[bytes]:
        """Return them, in order."""

    def value(self, block: bytes, place: int) -> bytes:
        """Return one of them."""

    def literal(self, block: bytes, place: int) -> bytes | None:
        """Return how a block spells one of them, None where it does not itself."""


class Head:
    """The head of a request. One of constant fields only is shared by all connections.

    `timeout_ns` is −1 without grpc-timeout and −2 where that is malformed.
    """

    __slots__ = ("_values", "shape", "timeout_ns")

    def __init__(
        self, shape: Shape, timeout_ns: int, values: list[bytes] | tuple[Spelling, bytes]
    ) -> None:
        self.shape = shape
        self.timeout_ns = timeout_ns
        self._values = values

    @property
    def problem(self) -> Problem | None:
        """What is wrong with it, if anything."""
        return self.shape.problem

    @property
    def content_length(self) -> int:
        """What it announces of its body, in bytes; −1 where it does not."""
        return self.shape.content_length

    @property
    def route(self) -> Any:
        """What the table's `resolve` found out; None of a malformed head."""
        return self.shape.route

    @property
    def sink(self) -> Any:
        """Where whole requests go. None: its start does not wait for its body."""
        # Whose timeout is malformed is answered at once, as all that is refused.
        return None if self.timeout_ns == BAD_TIMEOUT else self.shape.sink

    @property
    def method(self) -> bytes:
        """The value of `:method`; as the other pseudo-headers, empty when absent."""
        return self.shape.method

    @property
    def scheme(self) -> bytes:
        """The value of `:scheme`."""
        return self.shape.scheme

    @property
    def path(self) -> bytes:
        """The value of `:path`."""
        return self.shape.path

    @property
    def authority(self) -> bytes:
        """The value of `:authority`, or of `host` where that stands for it."""
        return self.shape.authority

    def read_values(self) -> list[bytes]:
        """Read the values that vary, unless they are read already; return them. Before a head is
        shared: it is not to be changed after."""
        if isinstance(self._values, tuple):
            spelling, block = self._values
            self._values = spelling.values(block)
        return self._values

    def literal(self, place: int) -> bytes | None:
        """Return how a block spells one of the values that vary, None where it is read already.

        The same literal means the same value, and costs less to find than to read.
        """
        values = self._values
        return values[0].literal(values[1], place) if isinstance(values, tuple) else None

    @property
    def traceparent(self) -> bytes:
        """Of W3C trace context, as it came; empty without, or where it came twice.

        It is asked for on the hot path: the other values stay as they are.
        """
        at = self.shape.trace_at
        if at < 0:
            return b""
        if isinstance(self._values, tuple):
            spelling, block = self._values
            return spelling.value(block, at)
        return self._values[at]

    @property
    def tracestate(self) -> str:
        """Beside it; what came in several fields is one list."""
        values = [value for name, value in self.fields if name == b"tracestate"]
        return b",".join(values).decode("latin-1")

    @property
    def fields(self) -> tuple[Pair, ...]:
        """The regular fields in order."""
        read = self.read_values()
        if not read:
            return self.shape.constants
        values = iter(read)
        return tuple(
            (name, next(values) if value is None else value) for name, value in self.shape.template
        )


class Key:
    """Stands for a field in a sequence: a constant field, or any value of a name (None).

    `illegal` is said of the value that varies; that of a constant is there to be seen. Keys, names
    and nodes refer to each other in one direction: what is forgotten is freed at once.
    """

    __slots__ = ("illegal", "name", "size", "value")

    def __init__(self, name: bytes, value: bytes | None = None, *, illegal: bool = False) -> None:
        self.name = name
        self.value = value
        self.illegal = illegal
        self.size = len(name) + len(value or b"") + FIELD_OVERHEAD_BYTES


class Name:
    """An interned field name."""

    __slots__ = ("illegal", "is_constant", "is_fresh", "key", "size", "text", "values")

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.size = len(text) + FIELD_OVERHEAD_BYTES
        self.is_constant = text in CONSTANT_NAMES or text.startswith(b":")
        self.is_fresh = text in FRESH_NAMES or len(text) > _NAME_BYTES_MAX
        # Of fields whose values vary: legal ones, and others.
        self.key = Key(text)
        self.illegal = Key(text, illegal=True)
        # Fields of this name by the literal of their value (RFC 7541 §5.2): bounded by the table.
        self.values: dict[bytes, Field] = {}


class Field:
    """An interned or fresh field: an entry of HPACK's tables.

    `size` counts the overhead of RFC 7541 §4.1, in bytes.
    """

    __slots__ = ("key", "name", "size", "value")

    def __init__(self, name: Name, value: bytes) -> None:
        self.name = name
        self.value = value
        self.size = name.size + len(value)
        if name.is_constant:
            self.key = Key(name.text, value)
        else:
            self.key = name.key if is_legal(value) else name.illegal


def is_legal(value: bytes) -> bool:
    """Whether a field may have this value (RFC 9113 §8.2.1)."""
    return 0 not in value and 13 not in value and 10 not in value and value.strip(b" \t") is value


class Shape:
    """What a sequence of fields decides: everything but the values that vary.

    `constants` are the regular fields whose values do not vary. `route` and `sink` are filled in by
    the table's `resolve`; a malformed one has None in both.
    `timeout_at` tells which of the varying values is the timeout: −1 none of them, −2 several;
    `trace_at` the same of traceparent.
    """

    __slots__ = (
        "authority", "constants", "content_length", "method", "path", "problem", "route", "scheme",
        "sink", "template", "timeout_at", "trace_at",
    )  # fmt: skip

    def __init__(self, keys: Sequence[Key], problem: Problem | None) -> None:
        self.problem = problem
        self.route: Any = None
        self.sink: Any = None
        pairs = [(key.name, key.value) for key in keys]
        pseudo = {name: value or b"" for name, value in pairs if name.startswith(b":")}
        regular = {name: value for name, value in pairs if value is not None}
        self.method = pseudo.get(b":method", b"")
        self.scheme = pseudo.get(b":scheme", b"")
        self.path = pseudo.get(b":path", b"")
        self.authority = pseudo.get(b":authority", regular.get(b"host", b""))
        self.template = tuple(pair for pair in pairs if not pair[0].startswith(b":"))
        self.constants = tuple((name, value) for name, value in self.template if value is not None)
        length = regular.get(b"content-length", b"")
        self.content_length = int(length) if _is_length(length) else -1
        varying = [name for name, value in pairs if value is None]
        self.timeout_at = _only(varying, b"grpc-timeout")
        self.trace_at = _only(varying, b"traceparent")


def _only(names: list[bytes], name: bytes) -> int:
    """Return where the one field of a name is; −1 without, −2 where there are several."""
    times = names.count(name)
    return names.index(name) if times == 1 else -min(times + 1, 2)


class Node(dict[Key, "Node"]):
    """A sequence of fields; leads by the key of the next field to the node of the longer one.

    `depth` is their number, `bytes` their size but for the values that vary. `prototype` is the
    head of exactly this sequence, once one was asked for.
    """

    __slots__ = ("bytes", "depth", "path", "prototype")

    def __init__(self, before: Node | None = None, key: Key | None = None) -> None:
        super().__init__()
        self.depth = 0
        self.bytes = 0
        # The keys that lead here, as (those before, the last one): shared by what follows.
        self.path: Any = None
        if before is not None and key is not None:
            self.depth = before.depth + 1
            self.bytes = before.bytes + key.size
            self.path = (before.path, key)
        self.prototype: Head | None = None

    def sequence(self) -> list[Key]:
        """Return the keys that lead here."""
        keys = []
        rest = self.path
        while rest is not None:
            rest, key = rest
            keys.append(key)
        return keys[::-1]


class HeadTable:
    """The names, fields and heads that the connections of one server share.

    `resolve` is called once for each new shape, and for that of each head that is too large. What
    is kept is bounded: at a bound it is forgotten and learnt anew, which costs time but no head its
    meaning. Clients may fill it with nonsense; then all work as slowly as on a first call.
    """

    def __init__(self, resolve: Callable[[Shape], None], *, heads_max: int = 1024) -> None:
        self._resolve = resolve
        self._heads_max = heads_max
        self._nodes_max = heads_max * 8
        self._node_bytes_max = heads_max * 1024
        self._values_max = heads_max * 2
        # HPACK's static table by index, 0 a stopgap. It and its names are never forgotten.
        table = [(b"", b""), *STATIC_TABLE]
        self._static_names = {text: Name(text) for text, _ in table}
        self.static_entries = [Field(self._static_names[text], value) for text, value in table]
        self._names = self._static_names.copy()
        # By the bytes of the literal, length included.
        self.names_by_literal: dict[bytes, Name] = {}
        self._values = 0
        self._rich_names: set[Name] = set()  # those with remembered values, still known or not
        self._forget_heads()

    def _forget_heads(self) -> None:
        self.root = Node()
        self._nodes = 0
        self._node_bytes = 0
        self._heads = 0

    def name(self, text: bytes, literal: bytes) -> Name:
        """Return the interned name; let it be found by its literal (RFC 7541 §5.2).

        One that is long is not kept.
        """
        name = self._names.get(text)
        if name is None:
            name = Name(text)
            if len(text) > _NAME_BYTES_MAX:
                return name
            if len(self._names) >= self._heads_max + len(self._static_names):
                self._names = self._static_names.copy()
                self.names_by_literal.clear()
            self._names[text] = name
        self.names_by_literal[literal] = name
        return name

    def remember_value(self, field: Field, literal: bytes) -> None:
        """Let `field` be found by the literal of its value among those of its name."""
        if self._values >= self._values_max:
            for name in self._rich_names:
                name.values.clear()
            self._rich_names.clear()
            self._values = 0
        self._values += 1
        self._rich_names.add(field.name)
        field.name.values[literal] = field

    def grow(self, node: Node, key: Key) -> Node:
        """Return the node that follows on `node` by a key that it lacks."""
        if self._nodes >= self._nodes_max or self._node_bytes >= self._node_bytes_max:
            self._forget_heads()
        self._nodes += 1
        self._node_bytes += key.size
        node[key] = after = Node(node, key)
        return after

    def prototype(self, node: Node) -> Head:
        """Return the shared head of this sequence, which had none yet."""
        if self._heads >= self._heads_max:
            self._forget_heads()
        self._heads += 1
        keys = node.sequence()
        node.prototype = head = head_of(Shape(keys, problem_of(keys)), [])
        if head.problem is None:
            self._resolve(head.shape)
        return head

    def too_large(self, node: Node, values: list[bytes], reason: str) -> Head:
        """Return the head of a list over the limits, as far as it was kept."""
        shape = Shape(node.sequence(), Problem(reason, too_large=True))
        self._resolve(shape)
        return head_of(shape, values)


def head_of(shape: Shape, values: list[bytes]) -> Head:
    """Return the head of this shape with these varying values."""
    at = shape.timeout_at
    # Of a prototype they are not known, nor of a list that was cut.
    timeout = timeout_ns(values[at]) if 0 <= at < len(values) else min(at, NO_TIMEOUT)
    return Head(shape, timeout, values)


def timeout_ns(value: bytes) -> int:
    """Parse a grpc-timeout: one to eight digits and a unit; −2 for anything else."""
    digits = value[:-1]
    unit_ns = _UNIT_NS.get(value[-1:])
    if unit_ns is None or not digits.isdigit() or len(digits) > 8:
        return BAD_TIMEOUT
    return int(digits) * unit_ns


def _is_length(value: bytes) -> bool:
    return value.isdigit() and len(value) <= _LENGTH_DIGITS_MAX


def problem_of(keys: Iterable[Key]) -> Problem | None:
    """Return what is wrong with a request of this shape, if anything (RFC 9113 §8.2, §8.3)."""
    pseudo: dict[bytes, bytes] = {}
    regular = False
    once: dict[bytes, bytes] = {}
    for key in keys:
        name, value = key.name, key.value
        problem = _field_problem(name, value, key.illegal)
        if problem is not None:
            return problem
        if name.startswith(b":"):
            if name not in _PSEUDO_NAMES:
                return Problem("an unknown pseudo-header")
            if name in pseudo:
                return Problem("a pseudo-header twice")
            if regular:
                return Problem("a pseudo-header after a regular field")
            pseudo[name] = value or b""
            continue
        regular = True
        if name in {b"content-length", b"host"}:
            if name in once:
                return Problem(f"{name.decode()} twice")
            once[name] = value or b""
    return _request_problem(pseudo, once)


def _field_problem(name: bytes, value: bytes | None, illegal: bool) -> Problem | None:
    if not name:
        return Problem("an empty field name")
    if name.translate(None, _NAME_BYTES) or b":" in name[1:]:
        return Problem("an illegal character in a field name")
    if illegal or not (value is None or is_legal(value)):
        return Problem("an illegal character in a field value")
    if name in _CONNECTION_NAMES:
        return Problem("a connection-specific field")
    if name == b"te" and value is not None and value.lower() != b"trailers":
        return Problem("te other than trailers")
    return None


def _request_problem(pseudo: dict[bytes, bytes], once: dict[bytes, bytes]) -> Problem | None:
    method = pseudo.get(b":method")
    if method is None:
        return Problem("no :method")
    if b":protocol" in pseudo and method != b"CONNECT":
        return Problem(":protocol without CONNECT")
    if method == b"CONNECT" and b":protocol" not in pseudo:
        if b":scheme" in pseudo or b":path" in pseudo:
            return Problem("CONNECT with :scheme or :path")
    elif b":scheme" not in pseudo or b":path" not in pseudo:
        return Problem("no :scheme or no :path")
    if pseudo.get(b":path") == b"":
        return Problem("an empty :path")
    authority = pseudo.get(b":authority", once.get(b"host"))
    if authority is None:
        return Problem("neither :authority nor host")
    if once.get(b"host", authority) != authority:
        return Problem("host differs from :authority")
    if not _is_length(once.get(b"content-length", b"0")):
        return Problem("a malformed content-length")
    return None


def trailers_problem(fields: Iterable[Field]) -> Problem | None:
    """Return what is wrong with the trailers of a request, if anything (RFC 9113 §8.1)."""
    for field in fields:
        name = field.name.text
        problem = _field_problem(name, field.value, illegal=False)
        if problem is not None:
            return problem
        if name.startswith(b":"):
            return Problem("a pseudo-header in trailers")
    return None
