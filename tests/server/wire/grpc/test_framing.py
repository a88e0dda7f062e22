"""Length-prefixed messages, whole and chopped, and what a hostile prefix costs."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InternalError, ResourceExhaustedError
from server.wire.grpc.framing import MessageReader, frame, whole

MIB = 1 << 20
MESSAGES = st.lists(st.tuples(st.booleans(), st.binary(max_size=40)), max_size=5)


def joined(messages: list[tuple[bool, bytes]]) -> bytes:
    return b"".join(frame(message, compressed) for compressed, message in messages)


def test_frame_is_flag_length_and_message():
    assert frame(b"abc") == b"\0\0\0\0\3abc"
    assert frame(b"", compressed=True) == b"\1\0\0\0\0"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\0\0\0\0\0", b""),
        (b"\0\0\0\0\3abc", b"abc"),
        (frame(bytes(70_000)), bytes(70_000)),
        (b"", None),
        (b"\0\0\0\0", None),
        (b"\1\0\0\0\3abc", None),
        (b"\2\0\0\0\3abc", None),
        (b"\0\0\0\0\3ab", None),
        (b"\0\0\0\0\3abcd", None),
        (frame(b"") * 2, None),
    ],
)
def test_whole_takes_exactly_one_plain_message(body, message):
    assert whole(body) == message


@pytest.mark.wire("B3-15")
@pytest.mark.parametrize("cut", range(1, 13))
def test_b3_15_a_message_may_be_split_anywhere(cut):
    body = frame(b"abc", compressed=True) + frame(b"") + b"\0"
    reader = MessageReader(10)
    messages = reader.feed(body[:cut]) + reader.feed(body[cut:])
    assert messages == [(True, b"abc"), (False, b"")]
    assert reader.bytes_held == 1


@pytest.mark.wire("B3-15")
def test_b3_15_three_messages_in_one_piece():
    reader = MessageReader(3)
    assert reader.feed(frame(b"a") + frame(b"bcd", compressed=True) + frame(b"")) == [
        (False, b"a"),
        (True, b"bcd"),
        (False, b""),
    ]
    reader.finish()


@pytest.mark.wire("B3-15")
@given(MESSAGES, st.data())
def test_b3_15_splits_change_nothing(messages, data):
    body = joined(messages)
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=8).map(sorted))
    reader = MessageReader(40)
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        found += reader.feed(body[start:end])
        assert reader.bytes_held == end - len(joined(found))
    assert found == messages
    reader.finish()


@pytest.mark.wire("B3-15")
@given(MESSAGES)
def test_b3_15_single_bytes_change_nothing(messages):
    reader = MessageReader(40)
    body = joined(messages)
    assert [m for at in range(len(body)) for m in reader.feed(body[at : at + 1])] == messages


def test_small_and_large_pieces_are_put_together_in_order():
    message = bytes(range(256)) * 40
    body = frame(message)
    reader = MessageReader(len(message))
    found = []
    at = 0
    for size in (3, 4, 100, 2000, 1, 1024, 1023, 5, 3000, len(body)):
        found += reader.feed(body[at : at + size])
        at += size
    assert found == [(False, message)]
    assert reader.bytes_held == 0


@pytest.mark.wire("B2-23")
@pytest.mark.parametrize("size", [4 * MIB + 1, 5 * MIB, 2**32 - 1])
def test_b2_23_a_declared_length_over_the_limit_is_refused_before_anything_is_kept(size):
    reader = MessageReader(4 * MIB)
    tracemalloc.start()
    try:
        with pytest.raises(ResourceExhaustedError) as caught:
            reader.feed(b"\0" + size.to_bytes(4, "big") + b"x" * 100)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()
    assert str(caught.value) == f"Received message larger than max ({size} vs. 4194304)"
    assert reader.bytes_held <= 5


@pytest.mark.wire("B3-16")
def test_b3_16_the_limit_itself_is_allowed_and_a_refusal_comes_with_the_prefix():
    reader = MessageReader(4)
    assert reader.feed(frame(b"abcd")) == [(False, b"abcd")]
    assert reader.feed(b"\0\0\0\0") == []
    with pytest.raises(ResourceExhaustedError):
        reader.feed(b"\5")


@pytest.mark.wire("B3-13")
@pytest.mark.parametrize("flag", [2, 3, 128, 255])
def test_b3_13_a_flag_other_than_0_and_1_is_corrupt(flag):
    reader = MessageReader(100)
    with pytest.raises(InternalError, match=f"neither 0 nor 1 .got {flag}."):
        reader.feed(bytes((flag, 0, 0, 0, 0)))


@pytest.mark.wire("B3-17")
@pytest.mark.parametrize("body", [b"\0", b"\0\0\0\0", b"\0\0\0\0\1", b"\0\0\0\0\2a"])
@pytest.mark.parametrize("before", [b"", frame(b"whole")])
def test_b3_17_a_message_cut_short_by_the_streams_end_is_corrupt(before, body):
    reader = MessageReader(100)
    reader.feed(before + body)
    assert reader.bytes_held == len(body)
    with pytest.raises(InternalError, match="the stream ended within a message"):
        reader.finish()


@pytest.mark.wire("B2-01")
@pytest.mark.parametrize("piece_bytes", [1, 2, 1023, 1025])
def test_b2_01_a_dribbled_message_costs_little_more_than_its_size(piece_bytes):
    size = 256 * 1024
    message = bytes(size)
    body = frame(message)
    end = len(body) - 1
    pieces = [body[at : min(at + piece_bytes, end)] for at in range(0, end, piece_bytes)]
    reader = MessageReader(size)
    tracemalloc.start()
    try:
        for piece in pieces:
            reader.feed(bytes(bytearray(piece)))
        assert tracemalloc.get_traced_memory()[1] < 1.4 * size
    finally:
        tracemalloc.stop()
    assert reader.feed(body[end:]) == [(False, message)]
