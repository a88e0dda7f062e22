"""The HPACK decoder against the `hpack` library, real clients' blocks, and attacks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import hpack
import pytest
from hpack import Encoder
from hypothesis import example, given
from hypothesis import strategies as st

from server.wire.http2.headers import BAD_TIMEOUT, Head, HeadTable, Shape, is_legal
from server.wire.http2.hpack import Decoder, HeaderBombError, HpackError, encode_fields
from tests.support.header_encoders import ENCODERS, HeaderEncoder, coded, integer, raw
from tests.support.memory import peak_bytes

Pair = tuple[bytes, bytes]

RECORDED = Path(__file__).parents[1] / "recorded"
REQUEST: list[Pair] = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/s/m"),
    (b":authority", b"host"),
]
BLOCK = b"\x83\x86\x04\x04/s/m\x01\x04host"
LIST_BYTES = 16_384


def nothing(shape: Shape) -> None:
    """Resolve nothing."""


def take(shape: Shape) -> None:
    """Resolve as a method whose whole requests are collected."""
    shape.sink = []


def new(heads: HeadTable | None = None, **limits: int) -> Decoder:
    return Decoder(heads or HeadTable(nothing), **limits)


def fields_of(head: Head) -> list[Pair]:
    """What a head says, its pseudo-headers in the order of `REQUEST`."""
    values = (head.method, head.scheme, head.path, head.authority)
    return [*zip((name for name, _ in REQUEST), values, strict=True), *head.fields]


def literal(name: bytes, value: bytes, start: bytes = b"\x00") -> bytes:
    return start + raw(name) + raw(value)


def test_the_examples_of_the_rfc() -> None:
    """RFC 7541 C.3 and C.4: three requests on one connection, without and with Huffman."""
    expected = [
        [(b"cache-control", b"")][:0],
        [(b"cache-control", b"no-cache")],
        [(b"custom-key", b"custom-value")],
    ]
    paths = [b"/", b"/", b"/index.html"]
    for blocks in (
        (
            "828684410f7777772e6578616d706c652e636f6d",
            "828684be58086e6f2d6361636865",
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        ),
        (
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ),
    ):
        decoder = new()
        heads = [decoder.decode(bytes.fromhex(block)) for block in blocks]
        assert [list(head.fields) for head in heads] == expected
        assert [head.path for head in heads] == paths
        assert {head.authority for head in heads} == {b"www.example.com"}
        assert [head.scheme for head in heads] == [b"http", b"http", b"https"]


def test_literals_of_the_rfc() -> None:
    """RFC 7541 C.2.1 to C.2.3: inserted, not inserted, never to be."""
    fields, problem = new().decode_trailers(
        bytes.fromhex(
            "400a637573746f6d2d6b65790d637573746f6d2d686561646572100870617373776f726406736563726574"
        )
    )
    assert problem is None
    assert fields == ((b"custom-key", b"custom-header"), (b"password", b"secret"))


@pytest.mark.parametrize("client", ENCODERS)
def test_recorded_clients(client: str) -> None:
    for blocks in json.loads((RECORDED / f"{client}.json").read_text())["blocks"].values():
        heads = HeadTable(nothing)
        decoder = new(heads)
        oracle = hpack.Decoder()
        for block in map(bytes.fromhex, blocks):
            expected = [
                (bytes(name), bytes(value)) for name, value in oracle.decode(block, raw=True)
            ]
            head = decoder.cache.get(block) or decoder.decode(block)
            assert head.problem is None
            assert sorted(fields_of(head)) == sorted(expected)
            assert list(head.fields) == [pair for pair in expected if pair[0][:1] != b":"]


NAMES = st.sampled_from([
    b"x", b"te", b"traceparent", b"grpc-timeout", b"authorization", b"content-type", b"user-agent",
    b"long-" + b"n" * 130, b"x-request-id",
])  # fmt: skip
VALUES = st.sampled_from(
    [b"", b"trailers", b"1S", b"v" * 40, b"w" * 126, b"x" * 127, b"y" * 1500]
) | (
    st.binary(max_size=60).filter(lambda value: value.strip(b" \t") == value).map(
        lambda value: value.translate(None, b"\0\r\n").strip(b" \t")
    )
)  # fmt: skip
LISTS = st.lists(st.tuples(NAMES.filter(lambda name: name != b"te"), VALUES), max_size=6)
CALLS = st.lists(
    st.tuples(LISTS, st.booleans(), st.none() | st.sampled_from([0, 40, 100, 500, 4096])),
    max_size=12,
)


@given(CALLS)
def test_whatever_the_library_encodes(calls: list[tuple[list[Pair], bool, int | None]]) -> None:
    """Repeats, insertions, evictions, Huffman and other table sizes, over one connection."""
    encoder = Encoder()
    heads = HeadTable(nothing)
    decoder = new(heads)
    for fields, huffman, size in calls:
        if size is not None:
            encoder.header_table_size = size
        sent = REQUEST + fields
        block = encoder.encode(sent, huffman=huffman)
        head = decoder.cache.get(block) or decoder.decode(block)
        assert head.problem is None
        assert fields_of(head) == sent
        again = encoder.encode(sent, huffman=huffman)
        assert fields_of(decoder.cache.get(again) or decoder.decode(again)) == sent


@given(st.randoms(use_true_random=False), st.sampled_from(sorted(ENCODERS)))
def test_clients_over_many_calls(random: object, client: str) -> None:
    """Fresh values until entries are evicted and indices need two bytes."""
    encoder, decoder, seed = ENCODERS[client](), new(), hash(random)
    for n in range(150):
        fields = [
            *REQUEST, (b"te", b"trailers"), (b"user-agent", b"a client"), (b"n", b"%d" % (n // 7)),
            (b"traceparent", b"00-%016x" % (n * seed & 0xFFFFFFFF)), (b"grpc-timeout", b"%du" % n),
        ]  # fmt: skip
        fields = fields if n % 5 else fields[:-2]
        block = encoder.encode(fields)
        head = decoder.cache.get(block) or decoder.decode(block)
        assert fields_of(head) == fields
        assert head.timeout_ns == (n * 1000 if n % 5 else -1)


def verdict_of_the_library(decoder: hpack.Decoder, block: bytes) -> list[Pair] | None:
    try:
        return [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
    except hpack.HPACKDecodingError:
        return None


@pytest.mark.wire("B2-15")
@given(
    st.lists(st.sampled_from(sorted(ENCODERS)), min_size=1, max_size=1),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3),
    st.integers(0, 400) | st.none(),
    st.sampled_from(["plain", "deadline", "traced"]),
)
def test_b2_15_any_bytes(
    clients: list[str], mutations: list[tuple[int, int]], cut: int | None, variant: str
) -> None:
    """Damaged blocks: the library's verdict, and its fields where both decode."""
    for client in clients:
        blocks = json.loads((RECORDED / f"{client}.json").read_text())["blocks"][variant][:4]
        decoder, oracle = new(), hpack.Decoder()
        for block in map(bytes.fromhex, blocks[:3]):
            decoder.decode_trailers(block)
            oracle.decode(block)
        damaged = bytearray(bytes.fromhex(blocks[3]))
        for at, byte in mutations:
            damaged[at % len(damaged)] = byte
        block = bytes(damaged[:cut])
        expected = verdict_of_the_library(oracle, block)
        try:
            head = decoder.decode(block)
        except HpackError:
            assert expected is None
            continue
        assert expected is not None
        assert list(head.fields) == [pair for pair in expected if pair[0][:1] != b":"]


class AnyEncoder(HeaderEncoder):
    """Writes each field as it is told, right for the table of its connection."""

    def __init__(self) -> None:
        super().__init__()
        self.ways: Iterator[int] = iter(())

    def resize(self, size: int) -> bytes:
        self.table_bytes_max = size  # type: ignore[misc]
        self._make_room(0)
        return integer(size, 5, 0x20)

    def _field(self, name: bytes, value: bytes) -> bytes:
        """The way is of bits: insert it; never index it; spell the name; Huffman for both."""
        way = next(self.ways)
        name_index = 0 if way & 4 else self._name_index(name)
        texts = [coded if way >> bit & 1 else raw for bit in (3, 4)]
        prefix, flags = (4, 0x10) if way & 2 else (4, 0)
        if way & 1:
            index = self._dynamic_index(name, value)
            if index:
                return integer(index, 7, 0x80)
            if len(name) + len(value) + 32 <= self.table_bytes_max:
                self._insert(name, value)
                prefix, flags = 6, 0x40
        start = integer(name_index, prefix, flags) + (b"" if name_index else texts[0](name))
        return start + texts[1](value)


# What may stand at the same place: of one length or of others, legal or not.
CHOICES: dict[bytes, list[bytes]] = {
    b"traceparent": [b"00-1", b"00-2", b"00-3", b"0\n-4", b" 0-5", b"00-longer", b"t" * 130],
    b"authorization": [b"token-a", b"token-b", b"token\0b", b"token"],
    b"x": [b"1", b"2", b"\xbe", b"", b"\t"],
    b"grpc-timeout": [b"1S", b"2S", b"3m", b"xx", b"100u"],
    b"user-agent": [b"agent-1", b"agent-2", b"agent\r2"],
    b"content-length": [b"1", b"2", b"12", b"-1"],
    b"te": [b"trailers", b"trailerz"],
    b"y" * 140: [b"1", b"2"],
}
LENGTHS = {b"1": 1, b"2": 2, b"12": 12}
TIMEOUTS = {b"1S": 10**9, b"2S": 2 * 10**9, b"3m": 3 * 10**6, b"100u": 10**5, b"xx": -2}
WAY = st.sampled_from([0, 0, 0, 1, 1, 2, 4, 5, 8, 16, 17, 21, 31])
SHAPES = st.lists(
    st.lists(st.tuples(st.sampled_from(sorted(CHOICES)), WAY), max_size=5, unique_by=itemgetter(0)),
    min_size=1, max_size=3,
)  # fmt: skip
STEPS = st.lists(
    st.tuples(
        st.integers(0, 1), st.integers(0, 2), st.lists(st.integers(0, 6), min_size=5, max_size=5),
        st.sampled_from([None] * 15 + [0, 60, 100, 4096]),
    ),
    max_size=40,
)  # fmt: skip


@pytest.mark.wire("B2-15")
@given(
    SHAPES, STEPS, st.sampled_from([1, 2, 50]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=2),
)  # fmt: skip
def test_b2_15_no_value_of_another_call(
    shapes: list[list[tuple[bytes, int]]],
    steps: list[tuple[int, int, list[int], int | None]],
    heads_max: int,
    damage: list[tuple[int, int]],
) -> None:
    """Two connections share a table that soon forgets; every call says what its own bytes say."""
    heads = HeadTable(take, heads_max=heads_max)
    peers = [(AnyEncoder(), new(heads), hpack.Decoder()) for _ in range(2)]
    block = BLOCK
    decoder, oracle = peers[0][1:]
    given: list[tuple[Head, list[Pair]]] = []
    for which, shape, choices, size in steps:
        encoder, decoder, oracle = peers[which]
        named = shapes[shape % len(shapes)]
        encoder.ways = iter([0, 0, 0, 0, *(way for _, way in named)])
        fields = [
            (name, CHOICES[name][choice % len(CHOICES[name])])
            for (name, _), choice in zip(named, choices, strict=False)
        ]
        block = encoder.resize(size) if size is not None else b""
        block += encoder.encode([*REQUEST, *fields])
        assert verdict_of_the_library(oracle, block) == [*REQUEST, *fields]
        given.append((decoder.cache.get(block) or decoder.decode(block), fields))
        check_head(*given[-1])
        assert all(
            head.problem is None and head.sink is not None for head in decoder.cache.values()
        )
    for head, fields in given:  # still
        check_head(head, fields)
    damaged = bytearray(block)
    for at, byte in damage:
        damaged[at % len(damaged)] = byte
    block = bytes(damaged)
    expected = verdict_of_the_library(oracle, block)
    try:
        head = decoder.cache.get(block) or decoder.decode(block)
    except HpackError:
        assert expected is None
    else:
        assert expected is not None
        assert list(head.fields) == [pair for pair in expected if pair[0][:1] != b":"]


def check_head(head: Head, fields: list[Pair]) -> None:
    assert fields_of(head) == [*REQUEST, *fields]
    said = dict(fields)
    legal = (
        all(is_legal(value) for value in said.values())
        and said.get(b"te") != b"trailerz"
        and said.get(b"content-length") != b"-1"
    )
    assert (head.problem is None) == legal
    assert (head.sink is not None) == (legal and head.timeout_ns != BAD_TIMEOUT)
    assert head.content_length == LENGTHS.get(said.get(b"content-length", b""), -1)
    assert head.timeout_ns == TIMEOUTS.get(said.get(b"grpc-timeout", b""), -1)


@pytest.mark.wire("B2-15")
@given(st.binary(max_size=40))
@example(b"\x20\x20\x20")
@example(b"\x82\x20")
@example(b"\x00")
@example(b"\x00\x01")
@example(b"\x0f")
@example(b"\x7f\x7f")
@example(b"\xff")
@example(b"\xff\x80\x00")
def test_b2_15_the_verdict_of_the_library(block: bytes) -> None:
    expected = verdict_of_the_library(hpack.Decoder(), block)
    for decode in (new().decode, new().decode_trailers):
        try:
            decode(block)
        except HpackError:
            assert expected is None
        else:
            assert expected is not None


@pytest.mark.wire("B2-15")
@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"\x80", id="index 0"),
        pytest.param(b"\xbe", id="beyond the static table"),
        pytest.param(b"\xff\x00", id="a long index beyond the table"),
        pytest.param(b"\xff" + b"\x80" * 8000, id="an integer without end"),
        pytest.param(b"\x83\x00\xff" + b"\x80" * 8000, id="a length without end"),
        pytest.param(b"\xff\xff\xff\xff\xff\x0f", id="an integer over 2^31"),
        pytest.param(b"\x3f" + b"\xe1\xff\xff\xff\x03", id="size update 2^30"),
        pytest.param(b"\x3f\xe2\x1f", id="size update above the advertised"),
        pytest.param(b"\x83\x20", id="size update after a field"),
        pytest.param(b"\x20" * 9, id="size updates without end"),
        pytest.param(b"\x04\x81\x00", id="Huffman padding of zeros"),
        pytest.param(b"\x00\x0btraceparent\x81\x00", id="the same, in a known place"),
        pytest.param(b"\x04\x05/s/m", id="truncated value"),
        pytest.param(b"\x00\x0btraceparent\x05a", id="the same of a fresh name"),
        pytest.param(b"\x7e\x00", id="a name beyond the table"),
        pytest.param(b"\x7f\x00\x00", id="a name further beyond"),
        pytest.param(b"\x7f\x60\x00", id="a name beyond the places"),
        pytest.param(b"\x0f\x80\x01\x00", id="a name by a long index"),
        pytest.param(b"\x04", id="truncated after a name"),
    ],
)  # fmt: skip
def test_b2_15_blocks_that_end_the_connection(block: bytes) -> None:
    heads = HeadTable(nothing)
    new(heads).decode(BLOCK + literal(b"traceparent", b"1"))  # so that names are known
    began = time.thread_time()
    for decoder in (new(heads), new(heads)):
        with pytest.raises(HpackError) as caught:
            decoder.decode(block)
        assert not isinstance(caught.value, HeaderBombError)
    with pytest.raises(HpackError):
        new().decode_trailers(block)
    assert time.thread_time() - began < 0.4


def test_trailers_end_the_connection_too() -> None:
    with pytest.raises(HpackError):
        new().decode_trailers(b"\x83\x20")


@pytest.mark.wire("B2-12")
@pytest.mark.parametrize("name", [b"x", b"user-agent"])
def test_b2_12_many_references_to_a_big_value(name: bytes) -> None:
    decoder = new()
    seed = literal(name, b"v" * 3_900, b"\x40")
    assert decoder.decode(BLOCK + seed).problem is None

    def bomb() -> None:
        with pytest.raises(HeaderBombError):
            decoder.decode(BLOCK + b"\xbe" * 16_000)

    assert peak_bytes(bomb) < 256 * 1024
    began = time.thread_time()
    bomb()
    assert time.thread_time() - began < 0.2


@pytest.mark.wire("B2-13")
@pytest.mark.parametrize("name", [b"x", b"user-agent"])
def test_b2_13_many_references_to_an_empty_value(name: bytes) -> None:
    decoder = new()
    assert decoder.decode(BLOCK + literal(name, b"", b"\x40")).problem is None

    def bomb() -> None:
        with pytest.raises(HeaderBombError):
            decoder.decode(BLOCK + b"\xbe" * 16_000)
        with pytest.raises(HeaderBombError):
            decoder.decode_trailers(b"\xbe" * 16_000)

    assert peak_bytes(bomb) < 256 * 1024
    began = time.thread_time()
    bomb()
    assert time.thread_time() - began < 0.4


@pytest.mark.wire("B2-13")
@pytest.mark.parametrize("name", [b"x", b"user-agent", b"traceparent"])
@pytest.mark.parametrize("extra", [0, 1])
def test_b2_13_the_limit_of_fields(name: bytes, extra: int) -> None:
    fields = [*REQUEST, *[(name, b"")] * (124 + extra)]
    head = new().decode(encode_fields(fields))
    assert (head.problem is not None and head.problem.too_large) == bool(extra)
    assert len(head.fields) == 124
    _, problem = new().decode_trailers(encode_fields([(name, b"")] * (128 + extra)))
    assert (problem is not None and problem.too_large) == bool(extra)


@pytest.mark.parametrize("name", [b"x", b"user-agent", b"traceparent"])
@pytest.mark.parametrize("extra", [0, 1])
def test_the_limit_of_bytes(name: bytes, extra: int) -> None:
    resolved = []
    used = sum(len(key) + len(value) + 32 for key, value in REQUEST)
    value = b"v" * (LIST_BYTES - used - len(name) - 32 + extra)
    head = new(HeadTable(resolved.append)).decode(encode_fields([*REQUEST, (name, value)]))
    assert (head.problem is not None and head.problem.too_large) == bool(extra)
    assert resolved[0].path == b"/s/m"
    assert head.path == b"/s/m"


def test_limits_hold_for_shapes_that_others_may_send() -> None:
    heads = HeadTable(nothing)
    block = encode_fields([*REQUEST, *[(b"x", b"")] * 20])
    assert new(heads).decode(block).problem is None
    for narrow in (new(heads, fields_max=10), new(heads, list_bytes_max=500)):
        problem = narrow.decode(block).problem
        assert problem is not None
        assert problem.too_large


@pytest.mark.wire("B2-14")
@pytest.mark.parametrize("filler", [b"x", b"user-agent"])
def test_b2_14_a_refused_block_still_fills_the_table(filler: bytes) -> None:
    decoder = new()
    many = encode_fields([(filler, b"v" * 1_000)] * 17)
    refused = decoder.decode(BLOCK + many + literal(b"token", b"secret", b"\x40"))
    assert refused.problem is not None
    assert refused.problem.too_large
    assert decoder.decode(BLOCK + b"\xbe").fields == ((b"token", b"secret"),)
    with pytest.raises(HpackError):
        decoder.decode(BLOCK + many + b"\x20")


@pytest.mark.wire("B2-06")
def test_b2_06_a_thousand_empty_names() -> None:
    decoder = new()
    for start in (b"\x00\x00\x00", b"\x40\x00\x00"):
        head = decoder.decode(BLOCK + start * 1000)
        assert head.problem is not None
        with pytest.raises(HeaderBombError):
            decoder.decode(BLOCK + start * 2000)
    assert decoder.decode(BLOCK).problem is None


def test_a_block_is_cached_while_it_means_the_same() -> None:
    decoder = new(HeadTable(take))
    first = decoder.decode(BLOCK)
    assert not decoder.cache  # it may never come again
    assert decoder.decode(BLOCK) is first
    assert decoder.cache == {BLOCK: first}
    decoder.decode(BLOCK + literal(b"traceparent", b"1"))
    decoder.decode(BLOCK + literal(b"traceparent", b"2"))
    assert list(decoder.cache) == [BLOCK]
    decoder.decode(BLOCK + literal(b"x", b"1", b"\x40"))
    assert not decoder.cache
    for _ in range(2):
        assert decoder.decode(BLOCK + b"\xbe").fields == ((b"x", b"1"),)
    assert BLOCK + b"\xbe" in decoder.cache
    decoder.decode(BLOCK + literal(b"y", b"2", b"\x40"))
    assert decoder.decode(BLOCK + b"\xbe").fields == ((b"y", b"2"),)
    decoder.decode(BLOCK)
    assert decoder.cache
    decoder.decode_trailers(literal(b"z", b"3", b"\x40"))
    assert not decoder.cache
    decoder.decode(BLOCK)
    decoder.decode(BLOCK)
    decoder.decode(b"\x20" + BLOCK)
    assert not decoder.cache


@pytest.mark.parametrize("end", [b"", literal(b"traceparent", b"1"), literal(b"x", b"1")])
def test_a_repeated_block_is_cached_whatever_is_in_it(end: bytes) -> None:
    decoder = new(HeadTable(take))
    decoder.decode(BLOCK + literal(b"traceparent", b"0"))
    for _ in range(3):
        head = decoder.decode(BLOCK + end)
    assert fields_of(decoder.cache[BLOCK + end]) == fields_of(head)


def test_only_heads_that_need_no_check_are_cached() -> None:
    """The connection takes them as they are: what is refused is a matter for the layer above."""
    malformed = BLOCK + literal(b"connection", b"close")
    large = BLOCK + encode_fields([(b"x", b"")] * 20)
    timeout = BLOCK + literal(b"grpc-timeout", b"soon")
    for resolve, cached in ((nothing, []), (take, [BLOCK])):
        decoder = new(HeadTable(resolve), fields_max=10)
        for block in (BLOCK, malformed, large, timeout):
            for _ in range(4):
                decoder.decode(block)
        assert list(decoder.cache) == cached


def test_the_cache_is_bounded() -> None:
    decoder = new(HeadTable(take))
    for n in range(200):
        block = encode_fields([*REQUEST, (b"x", b"%d" % n)])
        for _ in range(2):
            decoder.decode(block)
        assert block in decoder.cache
        assert len(decoder.cache) <= 32
    decoder.cache.clear()
    for _ in range(3):
        decoder.decode(encode_fields([*REQUEST, (b"x", b"v" * 600)]))
    assert not decoder.cache


def test_heads_outlive_what_the_table_forgets() -> None:
    heads = HeadTable(take, heads_max=2)
    decoder = new(heads)
    tail = literal(b"authorization", b"token")
    for _ in range(2):
        decoder.decode(BLOCK)
        decoder.decode(BLOCK + literal(b"traceparent", b"1") + tail)
    cached = decoder.cache[BLOCK]
    for n in range(50):
        new(heads).decode(encode_fields([*REQUEST, (b"user-agent", b"%d" % n)]))
    assert decoder.cache[BLOCK] is cached
    assert fields_of(cached) == REQUEST
    head = decoder.decode(BLOCK + literal(b"traceparent", b"2") + tail)
    assert head.fields == ((b"traceparent", b"2"), (b"authorization", b"token"))
    assert head.sink == []


def test_values_that_change_among_constant_bytes() -> None:
    """The shortest way: what it recognises must be what the long way would say."""
    decoder = new()
    values = (b"00-1", b"00-2", b"0\n-3", b" 0-4", b"00-5", b"longer", b"00-6", b"")
    for value in values:
        for token in (b"Bearer a", b"Bearer b", b"Bearer\r"):
            for name in (b"x-first", b"x-other"):
                head = decoder.decode(
                    BLOCK
                    + literal(b"traceparent", value)
                    + literal(name, b"")
                    + literal(b"authorization", token)
                    + literal(name, b"1")
                )
                legal = value not in {b"0\n-3", b" 0-4"} and token != b"Bearer\r"
                assert (head.problem is None) == legal
                assert head.fields == (
                    (b"traceparent", value), (name, b""), (b"authorization", token), (name, b"1")
                )  # fmt: skip


def traced(value: bytes, end: bytes) -> bytes:
    return BLOCK + literal(b"traceparent", value) + end


def test_constant_bytes_that_differ_around_a_value() -> None:
    decoder = new()
    for n, (end, pair) in enumerate([
        (b"\x90", (b"accept-encoding", b"gzip, deflate")),
        (b"\x93", (b"accept", b"")),
        (literal(b"user-agent", b"1"), (b"user-agent", b"1")),
        (literal(b"user-agent", b"2"), (b"user-agent", b"2")),
        (literal(b"x-name-one", b"2"), (b"x-name-one", b"2")),
    ]):  # fmt: skip
        trace = (b"traceparent", b"%d" % n)
        assert decoder.decode(traced(trace[1], end)).fields == (trace, pair)


@pytest.mark.wire("B2-14")
@pytest.mark.parametrize(
    "change",
    [BLOCK + literal(b"y", b"2", b"\x40"), b"\x20\x3f\xe1\x1f" + BLOCK, None],
    ids=["insertion", "eviction", "insertion by trailers"],
)
def test_b2_14_an_index_means_something_else(change: bytes | None) -> None:
    decoder = new()
    decoder.decode(BLOCK + literal(b"x", b"1", b"\x40"))
    for n in (b"1", b"2"):
        assert decoder.decode(traced(n, b"\xbe")).fields == ((b"traceparent", n), (b"x", b"1"))
    if change is None:
        decoder.decode_trailers(literal(b"y", b"2", b"\x40"))
    else:
        decoder.decode(change)
    if change is not None and change.startswith(b"\x20"):
        with pytest.raises(HpackError):
            decoder.decode(traced(b"3", b"\xbe"))
    else:
        assert decoder.decode(traced(b"3", b"\xbe")).fields[-1] == (b"y", b"2")


@pytest.mark.wire("B2-14")
@pytest.mark.parametrize("values", [b"12", b"11"], ids=["changing", "constant"])
def test_b2_14_every_insertion_counts(values: bytes) -> None:
    decoder = new(HeadTable(take))
    for n in values * 2:
        block = traced(bytes((n,)), literal(b"x", b"1", b"\x40"))
        decoder.decode(block)
        assert not decoder.cache
    assert decoder.decode(BLOCK + b"\xbe\xbf\xc0\xc1").fields == ((b"x", b"1"),) * 4
    with pytest.raises(HpackError):
        decoder.decode(BLOCK + b"\xc2")


def test_a_head_keeps_its_values() -> None:
    decoder = new()
    ends = [literal(b"authorization", b"token-%d" % n) for n in range(4)]
    heads = [decoder.decode(traced(b"%d" % n, end)) for n, end in enumerate(ends)]
    assert [head.fields for head in heads] == [
        ((b"traceparent", b"%d" % n), (b"authorization", b"token-%d" % n)) for n in range(4)
    ]


def test_an_entry_goes_when_the_table_is_a_byte_too_small() -> None:
    for size, fits in ((33 + 33, True), (33 + 32, False)):
        for by_update in (True, False):
            decoder = new(table_bytes_max=4096 if by_update else size)
            decoder.decode(BLOCK + literal(b"x", b"", b"\x40") + literal(b"y", b"", b"\x40"))
            block = (integer(size, 5, 0x20) if by_update else b"") + BLOCK + b"\xbf"
            if fits:
                assert decoder.decode(block).fields == ((b"x", b""),)
            else:
                with pytest.raises(HpackError):
                    decoder.decode(block)


def test_a_fresh_value_by_huffman_or_long() -> None:
    decoder = new()
    for code, text in ((b"\x00\x03", b"001"), (b"\x00\x3f", b"00"), (b"\x00\x01", b"000")):
        block = BLOCK + b"\x00\x0btraceparent\x82" + code
        assert hpack.Decoder().decode(block, raw=True)[-1] == (b"traceparent", text)
        for _ in range(3):
            assert decoder.decode(block).fields == ((b"traceparent", text),)
    for value in (b"abc", b"abd"):  # of one length, and their codes legal as values
        block = BLOCK + b"\x00" + raw(b"traceparent") + coded(value)
        assert decoder.decode(block).fields == ((b"traceparent", value),)
    for value in (b"1" * 200, b"2" * 200):
        head = decoder.decode(BLOCK + literal(b"traceparent", value))
        assert head.fields == ((b"traceparent", value),)


def test_an_entry_larger_than_the_table_empties_it() -> None:
    decoder = new(table_bytes_max=100)
    decoder.decode(BLOCK + literal(b"x", b"1", b"\x40"))
    decoder.decode(BLOCK + literal(b"x", b"v" * 100, b"\x40"))
    with pytest.raises(HpackError):
        decoder.decode(BLOCK + b"\xbe")


def test_values_of_other_lengths_and_codings_among_constant_bytes() -> None:
    decoder = new(HeadTable(take))
    given = []
    for at, string in enumerate((raw, coded, raw, coded, raw, raw)):
        trace, token = b"%d" % 10**at, b"token-%d" % 9**at
        block = BLOCK + b"\x00" + raw(b"traceparent") + string(trace)
        block += b"\x00" + raw(b"authorization") + coded(token) + literal(b"te", b"trailers")
        head = decoder.decode(block)
        given.append((head, ((b"traceparent", trace), (b"authorization", token))))
    for head, fields in given:
        assert head.fields == (*fields, (b"te", b"trailers"))


def test_a_template_takes_nothing_that_a_reader_would_not() -> None:
    decoder = new(HeadTable(take), list_bytes_max=1_000)
    before = BLOCK + b"\x00" + raw(b"x-id")
    after = literal(b"te", b"trailers")
    for value in (b"1", b"2"):
        assert decoder.decode(before + raw(value) + after).problem is None
    illegal = decoder.decode(before + raw(b"a\nb") + after).problem
    assert illegal is not None
    assert not illegal.too_large
    large = decoder.decode(before + raw(b"x" * 900) + after).problem
    assert large is not None
    assert large.too_large
    assert decoder.decode(before + raw(b"3") + after + literal(b"more", b"")).problem is None
    for end in (b"\x83\xff\xff\xff", b"\x7f\x00", b"\x05abc", b"", b"\x7f\xff"):
        with pytest.raises(HpackError):
            decoder.decode(before + end)
    assert decoder.decode(before + raw(b"4") + after).fields[0] == (b"x-id", b"4")


def test_clients_of_several_shapes_on_one_connection() -> None:
    decoder = new(HeadTable(take))
    for at in range(40):
        fields = [(b"x-%d" % (at % 6), b"%d" % at), (b"te", b"trailers")]
        assert decoder.decode(encode_fields([*REQUEST, *fields])).fields == tuple(fields)


def test_heads_that_change_the_table_are_counted() -> None:
    decoder = new(HeadTable(take))
    for at in range(1, 20):
        decoder.decode(BLOCK + literal(b"traceparent", b"%d" % at, b"\x40"))
        assert decoder.changes_in_a_row == at
    decoder.decode(BLOCK)
    assert decoder.changes_in_a_row == 0


def test_what_finds_no_room_in_an_empty_table_changes_nothing() -> None:
    """A client that may index nothing, and says so all the same."""
    decoder = new(HeadTable(take))
    decoder.decode(b"\x20" + BLOCK)
    for _ in range(2):
        decoder.decode(BLOCK)
    for at in range(3):
        head = decoder.decode(BLOCK + literal(b"x", b"%d" % at, b"\x40"))
        assert head.fields == ((b"x", b"%d" % at),)
    assert BLOCK in decoder.cache
    assert decoder.changes_in_a_row == 0
    with pytest.raises(HpackError):
        decoder.decode(BLOCK + b"\xbe")


def test_what_is_learnt_from_one_connection_changes_nothing_for_another() -> None:
    heads = HeadTable(nothing)
    new(heads).decode(BLOCK + literal(b"x", b"1", b"\x40"))
    with pytest.raises(HpackError):
        new(heads).decode(BLOCK + b"\xbe")


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=200), st.binary(max_size=300))))
@example([(b":status", b"200"), (b":status", b"418"), (b"content-type", b"application/grpc")])
@example([(b"grpc-status", b"0"), (b"n" * 127, b"v" * 5000), (b"www-authenticate", b"")])
def test_encoded_fields_are_read_by_the_library(fields: list[Pair]) -> None:
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = decoder.header_table_size = 0
    block = encode_fields(fields)
    assert [
        (bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)
    ] == fields
    assert not decoder.header_table.dynamic_entries
