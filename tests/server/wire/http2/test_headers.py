"""Heads and their validation; h2 is the oracle of what is malformed (wire.md B2-20)."""

from __future__ import annotations

import re
import tracemalloc
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import StreamEnded
from h2.exceptions import ProtocolError
from hpack import Encoder
from hypothesis import example, given
from hypothesis import strategies as st

from server.wire.http2.headers import (
    BAD_TIMEOUT,
    NO_TIMEOUT,
    Head,
    HeadTable,
    Shape,
    timeout_ns,
)
from server.wire.http2.hpack import Decoder, encode_fields

Pair = tuple[bytes, bytes]

PSEUDO: list[Pair] = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/s/m"),
    (b":authority", b"host"),
]
GOOD = [*PSEUDO, (b"content-type", b"application/grpc"), (b"te", b"trailers")]


def nothing(shape: Shape) -> None:
    """Resolve nothing."""


def decoded(fields: list[Pair], heads: HeadTable | None = None) -> Head:
    return Decoder(heads or HeadTable(nothing)).decode(encode_fields(fields))


def h2_accepts(fields: list[Pair], trailers: list[Pair] | None = None) -> bool:
    """Whether an h2 server accepts a request of these fields, sent as they are."""
    client = H2Connection(H2Configuration(client_side=True))
    client.initiate_connection()
    server = H2Connection(H2Configuration(client_side=False, header_encoding=None))
    server.receive_data(client.data_to_send())
    encoder = Encoder()
    frames = b""
    for part, last in ((fields, trailers is None), (trailers, True)):
        if part is not None:
            block = encoder.encode(part)
            flags = 5 if last else 4
            frames += len(block).to_bytes(3, "big") + bytes((1, flags, 0, 0, 0, 1)) + block
    try:
        events = server.receive_data(frames)
    except ProtocolError:
        return False
    return any(isinstance(event, StreamEnded) for event in events)


def without(name: bytes) -> list[Pair]:
    return [pair for pair in GOOD if pair[0] != name]


def changed(name: bytes, value: bytes) -> list[Pair]:
    return [(key, value if key == name else old) for key, old in GOOD]


MALFORMED: dict[str, list[Pair]] = {
    "CR in a value": [*GOOD, (b"x", b"a\rb")],
    "LF in a value": [*GOOD, (b"x", b"a\nb")],
    "NUL in a value": [*GOOD, (b"x", b"a\0b")],
    "an upper-case name": [*GOOD, (b"X", b"a")],
    "a space before a value": [*GOOD, (b"x", b" a")],
    "a tab after a value": [*GOOD, (b"x", b"a\t")],
    "connection": [*GOOD, (b"connection", b"close")],
    "transfer-encoding": [*GOOD, (b"transfer-encoding", b"chunked")],
    "te other than trailers": changed(b"te", b"gzip"),
    "a pseudo-header twice": [*PSEUDO, (b":path", b"/t"), *GOOD[4:]],
    "an unknown pseudo-header": [*PSEUDO, (b":colour", b"red"), *GOOD[4:]],
    "a late pseudo-header": [*GOOD[:-1], (b":extra", b""), GOOD[-1]],
    "no :path": without(b":path"),
    "no :method": without(b":method"),
    "no :scheme": without(b":scheme"),
    "an empty :path": changed(b":path", b""),
    "host differs from :authority": [*GOOD, (b"host", b"other")],
    "a bad content-length": [*GOOD, (b"content-length", b"+1")],
    "two content-lengths": [*GOOD, (b"content-length", b"1"), (b"content-length", b"2")],
    "a space in a name": [*GOOD, (b"a b", b"")],
    "a colon in a name": [*GOOD, (b"a:b", b"")],
    "a known pseudo-header late": [*without(b":path"), (b":path", b"/s/m")],
    "neither :authority nor host": without(b":authority"),
    "two hosts": [*GOOD, (b"host", b"host"), (b"host", b"host")],
    ":status": [*PSEUDO, (b":status", b"200")],
    "CONNECT with :path": changed(b":method", b"CONNECT"),
    ":protocol without CONNECT": [*PSEUDO, (b":protocol", b"websocket")],
    "CONNECT with :protocol but no :path": [
        (b":method", b"CONNECT"), (b":protocol", b"p"), (b":scheme", b"http"),
        (b":authority", b"host"),
    ],
    "an illegal value of a fresh name": [*GOOD, (b"traceparent", b"a\nb")],
    "upgrade": [*GOOD, (b"upgrade", b"h2c")],
    "CR in a constant": [*without(b"te"), (b"user-agent", b"a\r")],
}  # fmt: skip


@pytest.mark.wire("B2-20")
@pytest.mark.parametrize("case", MALFORMED)
def test_b2_20_malformed(case: str) -> None:
    fields = MALFORMED[case]
    assert not h2_accepts(fields)
    head = decoded(fields)
    assert head.problem is not None
    assert head.problem.reason
    assert not head.problem.too_large


WELL_FORMED: dict[str, list[Pair]] = {
    "a call": GOOD,
    "host for :authority": [*without(b":authority"), (b"host", b"host")],
    "host as :authority": [*GOOD, (b"host", b"host")],
    "CONNECT": [(b":method", b"CONNECT"), (b":authority", b"host")],
    "extended CONNECT": [*changed(b":method", b"CONNECT")[:4], (b":protocol", b"websocket")],
    "a value of bytes": [*GOOD, (b"x", b"a\x01 \x80\xff")],
    "an empty value": [*GOOD, (b"x", b"")],
}


@pytest.mark.wire("B2-20")
@pytest.mark.parametrize("case", WELL_FORMED)
def test_b2_20_well_formed(case: str) -> None:
    assert h2_accepts(WELL_FORMED[case])
    assert decoded(WELL_FORMED[case]).problem is None


def test_a_length_twice_is_refused_though_equal() -> None:
    """Stricter than h2: who sends it twice gains by somebody reading it otherwise."""
    head = decoded([*GOOD, (b"content-length", b"1"), (b"content-length", b"1")])
    assert head.problem is not None


NAMES = st.sampled_from([
    b":method", b":scheme", b":path", b":authority", b":protocol", b":status", b":x", b"host",
    b"te", b"content-type", b"connection", b"x", b"X", b"a:b", b"traceparent", b"caf\xc3\xa9",
    b"keep-alive",
])  # fmt: skip
VALUES = st.sampled_from(
    [b"", b"POST", b"CONNECT", b"http", b"/", b"host", b"trailers", b"Trailers"]
)
FIELDS = st.lists(st.tuples(NAMES, VALUES | st.binary(max_size=4)), max_size=8)


@pytest.mark.wire("B2-20")
@given(prefix=st.permutations(GOOD), length=st.integers(0, 6), fields=FIELDS)
@example(prefix=GOOD, length=6, fields=[])
def test_b2_20_the_verdict_of_h2(prefix: list[Pair], length: int, fields: list[Pair]) -> None:
    sent = prefix[:length] + fields
    if sent:
        assert (decoded(sent).problem is None) == h2_accepts(sent)


@pytest.mark.wire("B2-20")
@given(FIELDS)
@example([(b"x", b"1")])
@example([(b":path", b"/")])
@example([(b"x", b" ")])
def test_b2_20_trailers(fields: list[Pair]) -> None:
    if any(name == b"host" for name, _ in fields):
        return
    got, problem = Decoder(HeadTable(nothing)).decode_trailers(encode_fields(fields))
    assert (problem is None) == h2_accepts(GOOD, fields)
    assert got == (() if problem else tuple(fields))


@pytest.mark.wire("B2-06")
def test_b2_06_empty_names() -> None:
    sent = [*GOOD, (b"", b"")]
    assert not h2_accepts(sent)
    problem = decoded(sent).problem
    assert problem is not None
    assert not problem.too_large


def test_a_head() -> None:
    trace = (b"traceparent", b"00-1")
    head = decoded([*GOOD, (b"content-length", b"12"), trace, (b"x", b"1"), (b"x", b"2")])
    assert (head.method, head.scheme, head.path) == (b"POST", b"http", b"/s/m")
    assert head.authority == b"host"
    assert head.fields == (
        *GOOD[4:], (b"content-length", b"12"), trace, (b"x", b"1"), (b"x", b"2"),
    )  # fmt: skip
    assert head.content_length == 12
    assert head.timeout_ns == NO_TIMEOUT
    assert decoded(GOOD).content_length == -1
    assert decoded([*without(b":authority"), (b"host", b"other")]).authority == b"other"
    assert decoded(GOOD).fields == tuple(GOOD[4:])


def test_one_head_for_all_connections_and_one_resolution() -> None:
    resolved: list[tuple[Pair, ...]] = []

    def resolve(shape: Shape) -> None:
        resolved.append(shape.constants)
        shape.route = object()
        shape.sink = []

    heads = HeadTable(resolve)
    first, second = decoded(GOOD, heads), decoded(GOOD, heads)
    assert first is second
    traced = [decoded([*GOOD, (b"traceparent", value)], heads) for value in (b"1", b"2")]
    assert traced[0].route is traced[1].route
    assert traced[0].sink is traced[1].sink
    assert traced[0].fields != traced[1].fields
    decoded(MALFORMED["no :path"], heads)
    assert resolved == [tuple(GOOD[4:])] * 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"1n", 1), (b"2u", 2_000), (b"3m", 3_000_000), (b"4S", 4_000_000_000),
        (b"5M", 300_000_000_000), (b"6H", 21_600_000_000_000), (b"0n", 0),
        (b"99999999H", 99_999_999 * 3600 * 10**9),
        (b"", BAD_TIMEOUT), (b"S", BAD_TIMEOUT), (b"1", BAD_TIMEOUT), (b"10x", BAD_TIMEOUT),
        (b"-1S", BAD_TIMEOUT), (b"+1S", BAD_TIMEOUT), (b"1_0S", BAD_TIMEOUT),
        (b"123456789n", BAD_TIMEOUT), (b"\xb2S", BAD_TIMEOUT), (b"1 S", BAD_TIMEOUT),
    ],
)  # fmt: skip
@pytest.mark.wire("B3-23")
def test_b3_23_timeouts(value: bytes, expected: int) -> None:
    heads = HeadTable(nothing)
    for _ in range(2):
        assert decoded([*GOOD, (b"grpc-timeout", value)], heads).timeout_ns == expected


@pytest.mark.wire("B3-23")
@given(st.one_of(st.binary(max_size=11), st.from_regex(rb"[0-9]{1,9}[HMSmunx]", fullmatch=True)))
@example(b"1S\n")
@example(b"1.5S")
@example("٣S".encode())
def test_b3_23_timeout_agrees_with_the_grammar(value: bytes) -> None:
    legal = re.fullmatch(rb"[0-9]{1,8}[HMSmun]", value) is not None
    assert (timeout_ns(value) != BAD_TIMEOUT) == legal


def test_what_a_head_says_of_its_trace() -> None:
    head = decoded(GOOD)
    assert (head.traceparent, head.tracestate) == (b"", "")
    fields = [(b"tracestate", b"a=1"), (b"traceparent", b"00-x"), (b"tracestate", b"b=\xff")]
    head = decoded([*GOOD, *fields])
    assert (head.traceparent, head.tracestate) == (b"00-x", "a=1,b=\xff")
    twice = decoded([*GOOD, (b"traceparent", b"1"), (b"traceparent", b"2")])
    assert twice.traceparent == b""


@pytest.mark.wire("B3-23")
def test_b3_23_two_timeouts_are_malformed() -> None:
    timeout = (b"grpc-timeout", b"1S")
    assert decoded([*GOOD, (b"x", b""), timeout]).timeout_ns == 10**9
    assert decoded([*GOOD, timeout, timeout]).timeout_ns == BAD_TIMEOUT


@pytest.mark.wire("B3-22")
@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("name", [b"x", b"user-agent"])
def test_b3_22_too_large_is_answered_with_what_is_known(name: bytes, extra: int) -> None:
    """The size is the sum of name + value + 32; what is over it gets a route all the same."""
    resolved: list[Shape] = []
    limit = sum(len(key) + len(value) + 32 for key, value in GOOD) + len(name) + 10 + 32
    decoder = Decoder(HeadTable(resolved.append), list_bytes_max=limit)
    head = decoder.decode(encode_fields([*GOOD, (name, b"v" * (10 + extra))]))
    assert (head.problem is not None and head.problem.too_large) == bool(extra)
    assert resolved == [head.shape] or not extra
    assert head.path == b"/s/m"


def sizes(heads: HeadTable) -> list[int]:
    """All that the table keeps."""
    kept = [heads._names, heads.names_by_literal, heads._rich_names]
    values = [name.values for name in heads._rich_names]
    return [len(part) for part in (*kept, *values)] + [heads._nodes, heads._heads]


@pytest.mark.wire("B2-15")
@pytest.mark.parametrize("varied", ["name", "value", "path", "user-agent"])
def test_b2_15_nothing_grows_without_bound(varied: str) -> None:
    heads = HeadTable(nothing, heads_max=100)
    decoder = Decoder(heads)
    for n in range(2_000):
        fields: dict[str, Any] = {
            "name": [*GOOD, (b"x-%d" % n, b"")],
            "value": [*GOOD, (b"x", b"%d" % n)],
            "user-agent": [*GOOD, (b"user-agent", b"%d" % n)],
            "path": changed(b":path", b"/%d" % n),
        }
        block = encode_fields(fields[varied])
        for _ in range(2):  # what comes once is not worth remembering
            head = decoder.decode(block)
            assert head.problem is None
            assert head.fields == tuple(pair for pair in fields[varied] if pair[0][:1] != b":")
            assert max(sizes(heads)) <= 800


@pytest.mark.wire("B2-15")
@pytest.mark.parametrize("name", [b"x", b"user-agent", b"n%d"])
def test_b2_15_no_memory_for_long_fields(name: bytes) -> None:
    """Each is within the limits of a request; a thousand of them may not stay."""
    heads = HeadTable(nothing)
    tracemalloc.start()
    for n in range(1_500):
        long = b"v" * 12_000 + b"%d" % n
        field = (long, b"") if b"%d" in name else (name, long)
        assert Decoder(heads).decode(encode_fields([*GOOD, field])).fields[-1] == field
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2 << 20
