"""Templates: what varies may be another string each time, or the same one for a long while."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from server.wire.http2.headers import HeadTable, Shape
from server.wire.http2.hpack import Decoder
from server.wire.http2.templates import BLOCK_BYTES_MAX, TEMPLATES_MAX
from tests.support.core_client import CoreClient
from tests.support.frame_factory import GRPC_FIELDS, FrameFactory, Pair
from tests.support.header_encoders import coded, raw

MAKE = FrameFactory()
AUTHORIZATION = b"authorization"


def block(*fields: Pair, huffman: bool = False) -> bytes:
    """A head of which nothing is indexed."""
    text = coded if huffman else raw
    return b"".join(b"\0" + raw(name) + text(value) for name, value in [*GRPC_FIELDS, *fields])


def take(shape: Shape) -> None:
    shape.sink = []


def new() -> Decoder:
    return Decoder(HeadTable(take))


def value(decoder: Decoder, head: bytes, name: bytes) -> bytes:
    return dict(decoder.decode(head).fields)[name]


def is_consistent(decoder: Decoder) -> bool:
    return decoder.code == b"".join(template.code for template in decoder.templates)


def test_tokens_that_change_are_learnt_anew_once_it_is_worth_while() -> None:
    for way in ("decode", "scan"):
        client = CoreClient()
        decoder = client.connection._decoder
        seen = []
        stream_id = 1
        for number, token in enumerate([b"a" * 50] * 100 + [b"b" * 50] * 100):
            head = block((AUTHORIZATION, token), (b"traceparent", b"%d" % number))
            if way == "decode":
                assert value(decoder, head, AUTHORIZATION) == token
            else:
                data = MAKE.data(stream_id, b"x", end_stream=True)
                client.send(MAKE.headers(stream_id, head), data)
                assert dict(client.whole[-1][2].fields)[AUTHORIZATION] == token
                stream_id += 2
            assert len(decoder.templates) == 1
            assert is_consistent(decoder)
            if decoder.templates[0] not in seen:
                seen.append(decoder.templates[0])
        assert [token * 50 in template.code for template in seen for token in (b"a", b"b")] == [
            True, False, False, True,
        ]  # fmt: skip


def test_equal_literals_mean_equal_values() -> None:
    decoder = new()
    first = decoder.decode(block((AUTHORIZATION, b"a" * 300), (b"traceparent", b"0"), (b"x", b"y")))
    assert first.literal(0) is None  # of the template itself: it is read
    heads = [
        decoder.decode(
            block((AUTHORIZATION, token), (b"traceparent", b"%d" % n), (b"x", b"y"), huffman=True)
        )
        for n, token in enumerate([b"a" * 300, b"b" * 300, b"a" * 300])
    ]
    literals = [head.literal(0) for head in heads[1:]]
    assert literals == [coded(b"b" * 300), coded(b"a" * 300)]
    assert [head.literal(1) for head in heads[1:]] == [coded(b"1"), coded(b"2")]
    assert [head.literal(7) for head in heads[1:]] == [None, None]
    assert [head.read_values() for head in heads[1:]] == [
        [token, b"%d" % n, b"y"] for n, token in ((1, b"b" * 300), (2, b"a" * 300))
    ]
    assert heads[1].literal(0) is None


def test_a_token_that_changes_early_is_read_all_the_same() -> None:
    decoder = new()
    for number in range(50):
        token = b"%d" % (number % 2) * 50
        assert value(decoder, block((AUTHORIZATION, token)), AUTHORIZATION) == token
    assert b"0" * 50 in decoder.templates[-1].code


def test_long_tokens_of_many_users_take_one_place() -> None:
    decoder = new()
    for number in range(100):
        token = b"%04d" % number * 200
        for huffman in (False, True):
            head = block((AUTHORIZATION, token), huffman=huffman)
            assert value(decoder, head, AUTHORIZATION) == token
    assert len(decoder.templates) == 2


def test_one_value_is_read_and_the_others_stay_as_they_are() -> None:
    decoder = new()
    for number in range(8):
        for huffman in (False, True):
            fields = [
                (AUTHORIZATION, b"%04d" % number * 60),
                (b"traceparent", b"00-%d" % number),
                (b"x-last", b"%d" % number),
            ]
            head = decoder.decode(block(*fields, huffman=huffman))
            lazy = isinstance(head._values, tuple)
            assert head.traceparent == b"00-%d" % number
            assert isinstance(head._values, tuple) == lazy
            assert dict(head.fields)[b"x-last"] == b"%d" % number
    assert lazy
    # A value that is no slot, for it stands in the table.
    decoder = new()
    decoder.decode(b"\x40" + raw(b"traceparent") + raw(b"00-t"))
    entry = b"\xbe"  # the newest of the dynamic table
    for number in range(4):
        head = decoder.decode(block((b"x-more", b"%d" % number)) + entry)
        assert head.traceparent == b"00-t"
        assert dict(head.fields)[b"x-more"] == b"%d" % number
    assert isinstance(decoder.decode(block((b"x-more", b"9")) + entry)._values, tuple)


def test_a_head_that_is_shared_is_read_already() -> None:
    decoder = new()
    for _ in range(4):
        decoder.decode(block((b"x", b"1")))
    assert list(decoder.cache) == [block((b"x", b"1"))]
    assert [head._values for head in decoder.cache.values()] == [[b"1"]]


def test_what_a_connection_keeps_of_long_blocks() -> None:
    decoder = new()
    tracemalloc.start()
    try:
        for number in range(64):
            name = b"n%d" % number
            for text in (b"v" * 3_500, b"", b""):
                decoder.decode(block((name, text)))
        assert tracemalloc.get_traced_memory()[0] < 400_000
    finally:
        tracemalloc.stop()


def test_there_are_never_more_than_some() -> None:
    decoder = new()
    for number in range(3 * TEMPLATES_MAX):
        head = block((b"n%d" % number, b"1"))
        assert value(decoder, head, b"n%d" % number) == b"1"
        assert is_consistent(decoder)
    assert len(decoder.templates) == TEMPLATES_MAX


def test_what_no_template_is_made_of() -> None:
    decoder = new()
    decoder.decode(block((b"x", b"v" * BLOCK_BYTES_MAX)))
    decoder.decode(block(*((b"x%d" % number, b"1") for number in range(9))))
    decoder.decode(block((b"x", b" bad")))
    decoder.decode(block((b"grpc-timeout", b"bad")))
    assert decoder.templates == []
    decoder.decode(block(*((b"x%d" % number, b"1") for number in range(8))))
    assert len(decoder.templates) == 1


VALUES = st.sampled_from([b"", b"1", b"22", b"v" * 130, b"\xff", b" bad"])


@given(st.lists(st.tuples(VALUES, VALUES, st.booleans()), max_size=30))
def test_the_list_is_never_larger_than_it_may_be(calls: list[tuple[bytes, bytes, bool]]) -> None:
    """What a template lets pass is what the decoder of fields lets pass."""
    fixed = sum(len(name) + len(text) + 32 for name, text in GRPC_FIELDS) + 2 * (1 + 32)
    limit = fixed + 140
    decoder = Decoder(HeadTable(take), list_bytes_max=limit)
    for first, second, huffman in calls:
        head = decoder.decode(block((b"x", first), (b"y", second), huffman=huffman))
        too_large = fixed + len(first) + len(second) > limit
        assert (head.problem is not None and head.problem.too_large) == too_large
        illegal = b" bad" in {first, second}
        assert (head.problem is not None) == (too_large or illegal)
