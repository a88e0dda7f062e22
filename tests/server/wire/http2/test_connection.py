"""Bytes in: whole requests, streams, and what is refused. Each test also runs chopped into single
bytes and at random places."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.wire.http2 import connection as connection_module
from server.wire.http2.events import Body, Ended, Event, Opened, Reset
from server.wire.http2.frames import STREAM_ID_MAX, ErrorCode
from server.wire.http2.limits import BUDGETS, Budget
from tests.support.core_client import (
    ENDING_BLOCK,
    PATIENT,
    STREAMED,
    CoreClient,
    Said,
    shape,
    with_limits,
)
from tests.support.frame_factory import GRPC_FIELDS, PREFACE, Pair

MakeClient = Callable[..., CoreClient]
CALM = "ENHANCE_YOUR_CALM"
END_STREAM, END_HEADERS, PADDED, PRIORITY = 0x1, 0x4, 0x8, 0x20
ENDLESS = Budget(1 << 40, 0, 0)


def kinds(client: CoreClient) -> list[type[Event]]:
    return [type(event) for event in client.take_events()]


def body_of(events: list[Event]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, Body))


def with_length(length: bytes, fields: list[Pair] = GRPC_FIELDS) -> list[Pair]:
    return [*fields, (b"content-length", length)]


# -- the preface -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", b"\x16\x03\x01\x02"],
)
@pytest.mark.wire("B2-21")
def test_b2_21_other_protocols_are_closed_at_once(client: MakeClient, first: bytes) -> None:
    one = client(preface=False)
    assert one.send(first).fault == ("PROTOCOL_ERROR", "no HTTP/2 connection preface")
    assert one.connection.closed


@pytest.mark.parametrize("first", ["ping", "headers", "settings ack", "window_update"])
def test_the_first_frame_is_settings(client: MakeClient, first: str) -> None:
    one = client(preface=False)
    frame = {
        "ping": one.make.ping(),
        "headers": one.make.headers(1),
        "settings ack": one.make.settings(ack=True),
        "window_update": one.make.window_update(0, 1),
    }[first]
    said = one.send(PREFACE, frame, one.make.settings())
    assert said.fault == ("PROTOCOL_ERROR", "the first frame is not SETTINGS")


def test_nothing_is_read_after_a_fault(client: MakeClient) -> None:
    one = client()
    said = one.send(one.request(1), one.make.window_update(0, 0), one.request(3), b"noise")
    assert said.kinds == ["GoAway"]
    assert said.goaways[0][1] == 1
    assert one.take_whole() == [(1, b"body")]
    assert not one.send(b"more").frames


# -- whole requests --------------------------------------------------------------------------------


def test_whole_requests(client: MakeClient) -> None:
    one = client()
    said = one.send(*[one.request(stream_id, b"%d" % stream_id) for stream_id in range(1, 21, 2)])
    assert not said.frames
    assert not one.connection.events
    heads = {id(head) for _, _, head, _ in one.whole}
    assert len(heads) == 1
    assert one.take_whole() == [(stream_id, b"%d" % stream_id) for stream_id in range(1, 21, 2)]
    assert one.connection.requests == 10
    ids = list(range(1, 21, 2))
    one.connection.answer_all(ids, shape(1), [b"x"] * 10)
    said = one.read()
    assert all(said.ended(stream_id) for stream_id in ids)
    assert not one.connection.streams


@pytest.mark.parametrize("apart", [False, True], ids=["in turns", "heads first"])
def test_many_requests_in_one_read(client: MakeClient, apart: bool) -> None:
    one = client()
    for first in (1, 101, 201):  # from the second time on the head is known
        ids = range(first, first + 100, 2)
        bodies = [
            one.make.data(stream_id, b"%06d" % stream_id, end_stream=True) for stream_id in ids
        ]
        heads = [one.make.headers(stream_id) for stream_id in ids]
        frames = heads + bodies
        if not apart:
            frames = [frame for pair in zip(heads, bodies, strict=True) for frame in pair]
        assert not one.send(*frames).fault
        assert one.take_whole() == [(stream_id, b"%06d" % stream_id) for stream_id in ids]
        one.connection.answer_all(list(ids), shape(1), [b"x"] * 50)
        assert all(map(one.read().ended, ids))


@pytest.mark.wire("B2-20")
def test_b2_20_in_a_run_each_body_is_of_its_announced_length(client: MakeClient) -> None:
    one = client()
    ids = range(1, 21, 2)
    for stream_id in ids:
        one.send(one.make.headers(stream_id, with_length(b"9") if stream_id == 11 else GRPC_FIELDS))
    said = one.send(*(one.make.data(stream_id, b"body", end_stream=True) for stream_id in ids))
    assert said.resets == {11: "PROTOCOL_ERROR"}
    assert one.take_whole() == [(stream_id, b"body") for stream_id in ids if stream_id != 11]


def test_a_body_that_comes_twice_ends_a_run_and_the_connection() -> None:
    one = CoreClient()
    ids = range(1, 21, 2)
    one.send(*map(one.make.headers, ids))
    bodies = [one.make.data(stream_id, bytes(100), end_stream=True) for stream_id in ids]
    said = one.send(*bodies[:6], bodies[2], *bodies[6:])
    assert said.fault == ("STREAM_CLOSED", "a frame after END_STREAM")
    assert [stream_id for stream_id, _ in one.take_whole()] == list(ids[:6])


def test_a_large_frame_that_is_not_whole_yet_is_no_run() -> None:
    one = CoreClient()
    frames = one.request(1, bytes(5_000))
    for piece in (frames[:1_000], frames[1_000:]):
        assert not one.send(piece).fault
    assert one.take_whole() == [(1, bytes(5_000))]


@pytest.mark.parametrize("apart", [False, True], ids=["in turns", "heads first"])
@pytest.mark.wire("B2-17")
def test_b2_17_a_run_may_not_overrun_the_window(apart: bool) -> None:
    one = CoreClient(with_limits(connection_window_bytes=65_535))
    for stream_id in (1, 3, 5):
        one.send(one.request(stream_id, b""))
    one.take_whole()
    ids = range(7, 107, 2)
    bodies = [one.make.data(stream_id, bytes(6_000), end_stream=True) for stream_id in ids]
    heads = [one.make.headers(stream_id) for stream_id in ids]
    frames = heads + bodies
    if not apart:
        frames = [frame for pair in zip(heads, bodies, strict=True) for frame in pair]
    said = one.send(*frames)
    assert said.fault == ("FLOW_CONTROL_ERROR", "more data than the window allows")
    assert [stream_id for stream_id, _ in one.take_whole()] == list(ids[:10])


@pytest.mark.parametrize("count", [5, 8, 9])
@pytest.mark.wire("B3-28")
def test_b3_28_a_run_may_not_open_more_streams_than_there_may_be(count: int) -> None:
    one = CoreClient(with_limits(streams_max=8))
    for stream_id in (1, 3, 5):
        one.send(one.request(stream_id))
    one.connection.answer_all([1, 3, 5], shape(1), [b"x"] * 3)
    one.read()
    one.take_whole()
    ids = range(7, 7 + 2 * count, 2)
    said = one.send(*map(one.make.headers, ids))
    assert len(one.connection.streams) == min(count, 8)
    assert [frame.stream_id for frame in said.frames] == list(ids[8:])


def test_a_client_that_indexes_what_never_comes_again_is_asked_to_index_nothing(
    client: MakeClient,
) -> None:
    one = client()
    asked: list[dict[int, int]] = []
    for at, stream_id in enumerate(range(1, 101, 2)):
        fields = [*GRPC_FIELDS, (b"traceparent", b"%d" % at)]
        said = one.send(one.make.headers(stream_id, fields), one.make.data(stream_id, b"x"))
        asked += [frame.settings for frame in said.frames if frame.type == 4]
        assert not said.fault
        if asked and one.make.encoder.header_table_size:
            assert at == 15
            one.make.encoder.header_table_size = 0
            one.send(one.make.settings(ack=True))
        one.send(one.make.rst_stream(stream_id, 8))
    assert asked == [{1: 0}]
    heads = [event.stream.head for event in one.take_events() if isinstance(event, Opened)]
    traces = [dict(head.fields)[b"traceparent"] for head in heads if head is not None]
    assert traces == [b"%d" % at for at in range(50)]


def test_a_client_whose_table_settles_is_asked_nothing(client: MakeClient) -> None:
    one = client()
    for at, stream_id in enumerate(range(1, 101, 2)):
        fields = [*GRPC_FIELDS, (b"x-shard", b"%d" % (at // 2))]
        said = one.send(one.request(stream_id, b"", fields), one.make.rst_stream(stream_id, 8))
        assert not [frame for frame in said.frames if frame.type == 4]


def test_requests_between_each_other(client: MakeClient) -> None:
    one = client()
    one.send(
        one.make.headers(1),
        one.make.headers(3),
        one.make.data(3, b"three", end_stream=True),
        one.make.headers(5),
        one.make.data(1, b"one", end_stream=True),
        one.make.data(5, end_stream=True),
    )
    assert one.take_whole() == [(3, b"three"), (1, b"one"), (5, b"")]


def test_heads_that_vary(client: MakeClient) -> None:
    one = client()
    for at, stream_id in enumerate(range(1, 41, 2)):
        fields = [*GRPC_FIELDS, (b"grpc-timeout", b"%dm" % (1_000 + at)), (b"x-id", b"%d" % at)]
        one.send(one.make.headers(stream_id, fields), one.make.data(stream_id, end_stream=True))
        _, found, head, _ = one.whole[-1]
        assert found == stream_id
        assert head.fields == tuple(fields[4:])
        assert head.timeout_ns == (1_000 + at) * 10**6


def test_windows_of_whole_requests_come_back(client: MakeClient) -> None:
    one = client(with_limits(connection_window_bytes=65_535))
    returned = 0
    for stream_id in range(1, 41, 2):
        said = one.send(one.request(stream_id, bytes(10_000)))
        assert {where for where, _ in said.increments} <= {0}
        returned += sum(count for _, count in said.increments)
        one.answer(stream_id, b"")
    window = one.connection._window
    assert returned >= 160_000
    assert window.left + window.consumed == window.size
    assert window.left == 65_535 - 200_000 + returned


def test_the_reserved_bit_of_a_stream_id_is_ignored(client: MakeClient) -> None:
    one = client()
    bit = 1 << 31
    one.send(one.request(1), one.request(3 | bit), one.make.ping(b"12345678"))
    assert [stream_id for stream_id, _ in one.take_whole()] == [1]
    events = one.take_events()  # the long way
    assert [type(event) for event in events] == [Opened, Body, Ended]
    assert one.send(one.request(5)).fault is None
    assert one.answer(3, b"three").ended(3)


def test_a_head_without_a_sink_is_a_stream_from_the_start(client: MakeClient) -> None:
    one = client()
    for stream_id in (1, 3):  # the second time its block is cached
        stream = one.open(stream_id)
        assert stream.head is not None
        assert stream.head.path == b"/test.Service/Stream"
    one.send(one.make.data(1, b"a"), one.make.data(1, b"b", end_stream=True))
    events = one.take_events()
    assert body_of(events) == b"ab"
    assert isinstance(events[-1], Ended)
    assert not one.take_whole()


def test_a_body_in_pieces_is_a_stream(client: MakeClient) -> None:
    one = client()
    one.send(
        one.make.headers(1),
        one.make.data(1, b"one, "),
        one.make.data(1),
        one.make.data(1, b"two", end_stream=True),
    )
    assert not one.whole
    events = one.take_events()
    assert [type(event) for event in events] == [Opened, Body, Body, Ended]
    assert body_of(events) == b"one, two"
    assert one.answer(1, b"answer").ended(1)


def test_a_request_without_a_body(client: MakeClient) -> None:
    one = client()
    one.send(one.make.headers(1, end_stream=True), one.make.headers(3, STREAMED, end_stream=True))
    assert kinds(one) == [Opened, Ended] * 2
    assert not one.whole


@pytest.mark.parametrize("padding", [0, 1, 255])
@pytest.mark.parametrize("priority", [None, (0, 16, False), (1, 256, True)])
def test_padding_and_priority_change_nothing(
    client: MakeClient, padding: int, priority: tuple[int, int, bool] | None
) -> None:
    one = client()
    for stream_id in (1, 3):
        one.send(
            one.make.headers(stream_id, padding=padding, priority=priority),
            one.make.data(stream_id, b"body", padding=padding, end_stream=True),
        )
        events = one.take_events()
        assert body_of(events) == b"body"
        assert isinstance(events[-1], Ended)
    window = one.connection._window
    # Padding is returned at once, the body once it was consumed.
    assert window.left + window.consumed + 8 == window.size


@pytest.mark.parametrize("split", [[0], [1], [5, 5, 9], list(range(40))])
def test_header_blocks_in_pieces(client: MakeClient, split: list[int]) -> None:
    one = client()
    one.send(one.make.split_headers(1, cuts=split), one.make.data(1, b"x", end_stream=True))
    one.send(one.make.split_headers(3, cuts=split, end_stream=True))
    assert one.take_whole() == [(1, b"x")]
    assert kinds(one) == [Opened, Ended]


def test_trailers_end_a_request(client: MakeClient) -> None:
    one = client()
    trailers = [(b"x-checksum", b"1")]
    one.send(one.make.headers(1), one.make.headers(1, trailers, end_stream=True))
    assert kinds(one) == [Opened, Ended]
    one.open(3)
    one.send(one.make.data(3, b"body"), one.make.headers(3, trailers, end_stream=True))
    assert kinds(one) == [Body, Ended]
    said = one.send(one.make.headers(3, trailers, end_stream=True))
    assert said.fault == ("STREAM_CLOSED", "a frame on a stream that is half-closed (remote)")


def test_malformed_trailers_after_the_end_are_no_reset_either(client: MakeClient) -> None:
    one = client()
    one.open(1)
    one.send(one.make.data(1, end_stream=True))
    said = one.send(one.make.headers(1, [(b":path", b"/")], end_stream=True))
    assert said.fault == ("STREAM_CLOSED", "a frame on a stream that is half-closed (remote)")
    assert not said.resets


def test_frames_that_follow_a_known_head_in_one_read(client: MakeClient) -> None:
    one = client()
    one.warm()
    said = one.send(
        one.make.headers(9),
        one.make.window_update(9, 10),
        one.make.headers(11),
        one.make.rst_stream(11),
        one.request(13),
        one.make.ping(),
    )
    assert said.kinds == ["Ping"]
    assert one.take_whole() == [(13, b"body")]
    assert set(one.connection.streams) == {1, 3, 9, 13}
    assert one.send(one.make.rst_stream(11)).fault is None


def test_after_faults_in_a_read_the_last_id_is_right(client: MakeClient) -> None:
    """GOAWAY names every stream that the layer above has heard of."""
    one = client()
    said = one.send(
        one.request(1), one.make.headers(3, STREAMED), one.make.raw(0, 1, 3, bytes(20_000))
    )
    assert said.goaways == [("FRAME_SIZE_ERROR", 3, "a frame above SETTINGS_MAX_FRAME_SIZE")]
    one = client()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGETS, "made_you_reset", Budget(1, 0, 0))
        malformed = [(b":path", b"/")]
        said = one.send(
            one.request(1), one.make.headers(3, malformed), one.make.headers(5, malformed)
        )
    assert said.goaways == [(CALM, 5, "made_you_reset")]


# -- concurrency and refusal -----------------------------------------------------------------------


@pytest.mark.wire("B3-28")
@pytest.mark.parametrize("end_stream", [False, True])
def test_b3_28_streams_above_the_limit_are_refused(client: MakeClient, end_stream: bool) -> None:
    one = client(with_limits(streams_max=3))
    one.warm()
    one.send(one.make.headers(9))
    said = one.send(one.make.headers(11, end_stream=end_stream))
    assert said.resets == {11: "REFUSED_STREAM"}
    if not end_stream:  # its body had left already
        said = one.send(one.make.data(11, b"body"), one.make.data(11, b"body", end_stream=True))
        assert not said.frames
    assert said.fault is None
    one.answer(1, b"answer")
    assert not one.send(one.request(13)).frames
    assert [stream_id for stream_id, _ in one.take_whole()] == [13]


@pytest.mark.wire("B2-01")
@pytest.mark.wire("B2-07")
def test_b2_01_b2_07_too_much_that_waits_refuses_more(client: MakeClient) -> None:
    one = client(with_limits(output_bytes_max=100_000), settings={4: 0})
    one.send(one.request(1), one.request(3))
    one.answer(1, bytes(100_001))
    said = one.send(one.request(5))
    assert said.resets == {5: "REFUSED_STREAM"}
    assert [stream_id for stream_id, _ in one.take_whole()] == [1, 3]
    one.give(increment=1 << 20)
    one.give(stream_id=1, increment=1)
    assert not one.send(one.request(7)).frames
    assert one.take_whole() == [(7, b"body")]


@pytest.mark.wire("B3-34")
def test_b3_34_near_the_last_stream_id_the_client_is_sent_away(client: MakeClient) -> None:
    one = client()
    first = connection_module._DRAIN_FROM_ID | 1
    one.warm()
    assert not one.send(one.request(first - 2)).frames
    said = one.send(one.request(first))
    assert said.goaways == [("NO_ERROR", STREAM_ID_MAX, "stream ids used up")]
    assert one.connection.draining
    said = one.send(one.request(STREAM_ID_MAX - 2), one.request(STREAM_ID_MAX))
    assert not said.frames
    ids = [stream_id for stream_id, _ in one.take_whole()]
    assert ids == [first - 2, first, STREAM_ID_MAX - 2, STREAM_ID_MAX]
    said = one.send(one.make.ping(b"drain\0\0\0", ack=True))
    assert said.goaways == [("NO_ERROR", STREAM_ID_MAX, "")]
    assert not one.wait(5).goaways  # said once, also where it is the largest there is
    for stream_id in [1, *ids]:
        assert one.answer(stream_id, b"answer").ended(stream_id)
    said = one.send(one.make.rst_stream(3))  # with the last stream the connection ends
    assert said.goaways == [("NO_ERROR", STREAM_ID_MAX, "")]
    assert one.connection.closed


# -- stream ids ------------------------------------------------------------------------------------


@pytest.mark.wire("B2-19")
@pytest.mark.parametrize(
    ("stream_id", "frame", "code"),
    [
        (2, "headers", "PROTOCOL_ERROR"),
        (6, "headers", "PROTOCOL_ERROR"),
        (0, "headers", "PROTOCOL_ERROR"),
        (0, "data", "PROTOCOL_ERROR"),
        (0, "rst_stream", "PROTOCOL_ERROR"),
        (7, "data", "PROTOCOL_ERROR"),
        (2, "data", "PROTOCOL_ERROR"),
        (3, "headers", "STREAM_CLOSED"),  # lower than the last, never used
        (3, "data", "STREAM_CLOSED"),
        (5, "headers", "STREAM_CLOSED"),  # after END_STREAM
        (5, "data", "STREAM_CLOSED"),
        (1, "headers", "STREAM_CLOSED"),  # ended
    ],
)
def test_b2_19_wrong_stream_ids(client: MakeClient, stream_id: int, frame: str, code: str) -> None:
    one = client()
    one.send(one.request(1), one.request(5))
    if frame == "headers":  # the same with a head from the cache
        one.send(*[one.request(more) for more in (7, 9, 11, 13)])
        assert one.make.block() in one.connection._decoder.cache
        stream_id += 8 if stream_id > 5 else 0
    one.answer(1, b"answer")
    said = one.send(getattr(one.make, frame)(stream_id))
    assert said.fault is not None
    assert said.fault[0] == code
    assert [found for found, _ in one.take_whole()][:2] == [1, 5]


# -- frames of a wrong length ----------------------------------------------------------------------

LENGTHS = [
    (0, 0, 16_385, "FRAME_SIZE_ERROR"),
    (0xBB, 0, 16_385, "FRAME_SIZE_ERROR"),
    (0, 0, 2**24 - 1, "FRAME_SIZE_ERROR"),
    (3, 0, 3, "FRAME_SIZE_ERROR"),
    (3, 0, 5, "FRAME_SIZE_ERROR"),
    (1, END_HEADERS | PRIORITY, 4, "FRAME_SIZE_ERROR"),
    (1, END_HEADERS | PADDED, 0, "FRAME_SIZE_ERROR"),
    (0, PADDED, 0, "FRAME_SIZE_ERROR"),
]


@pytest.mark.wire("B2-18")
@pytest.mark.parametrize(("kind", "flags", "length", "code"), LENGTHS)
def test_b2_18_wrong_lengths(
    client: MakeClient, kind: int, flags: int, length: int, code: str
) -> None:
    one = client()
    one.open(1)
    # Of the longest only the head: it is refused before it has come.
    frame = one.make.raw(kind, flags, 1, bytes(min(length, 16_385)))
    frame = length.to_bytes(3, "big") + frame[3:]
    said = one.send(frame[: 9 if length > 16_384 else None])
    assert said.fault is not None
    assert said.fault[0] == code


@pytest.mark.wire("B2-18")
def test_b2_18_the_longest_frame_is_taken() -> None:
    one = CoreClient()
    one.send(one.request(1, bytes(16_384)))
    assert one.take_whole() == [(1, bytes(16_384))]
    said = one.send(one.request(3, bytes(16_385)))
    assert said.fault == ("FRAME_SIZE_ERROR", "a frame above SETTINGS_MAX_FRAME_SIZE")


@pytest.mark.wire("B2-18")
@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize(("padding", "length"), [(1, 1), (5, 5), (255, 100)])
def test_b2_18_more_padding_than_payload(
    client: MakeClient, kind: int, padding: int, length: int
) -> None:
    one = client()
    one.open(1)
    payload = bytes((padding,)) + bytes(length - 1)
    said = one.send(one.make.raw(kind, PADDED | END_HEADERS, 1, payload))
    assert said.fault == ("PROTOCOL_ERROR", "more padding than payload")


# -- flow control ----------------------------------------------------------------------------------


@pytest.mark.wire("B2-17")
@pytest.mark.parametrize("which", ["stream", "connection, in pieces", "connection, whole"])
def test_b2_17_more_than_a_window(client: MakeClient, which: str) -> None:
    limits = (
        with_limits(stream_window_bytes=40_000)
        if which == "stream"
        else with_limits(connection_window_bytes=65_535)
    )
    one = client(limits)
    budget = 40_000 if which == "stream" else 65_535
    stream = one.open(1)
    if which == "connection, whole":
        one.send(one.make.headers(3))
    pieces = []
    while budget:
        size = min(budget, 16_000)
        pieces.append(one.make.data(1, bytes(size)))
        budget -= size
    assert one.send(*pieces).fault is None
    before = len(body_of(one.take_events()))
    excess = one.make.data(3 if "whole" in which else 1, b"x", end_stream=True)
    said = one.send(excess)
    assert said.fault == ("FLOW_CONTROL_ERROR", "more data than the window allows")
    assert one.abuse == {"window_overrun": 1}
    assert not body_of(one.take_events())
    assert not one.whole
    assert stream.body_bytes == before


@pytest.mark.wire("B2-17")
def test_b2_17_a_whole_request_larger_than_a_streams_window(client: MakeClient) -> None:
    one = client(with_limits(stream_window_bytes=10_000))
    one.send(one.request(1, bytes(10_000)), one.request(3, bytes(10_000)))
    assert len(body_of(one.take_events())) == 20_000
    assert one.send(one.make.headers(5), one.make.data(5, bytes(10_000))).fault is None
    said = one.send(one.request(7, bytes(10_001)))
    assert said.fault == ("FLOW_CONTROL_ERROR", "more data than the window allows")
    assert one.abuse == {"window_overrun": 1}


@pytest.mark.wire("B2-17")
def test_b2_17_padding_counts(client: MakeClient) -> None:
    one = client(with_limits(stream_window_bytes=16_384))
    one.open(1)
    one.send(one.make.data(1, bytes(16_000)))
    one.send(one.make.data(1, b"", padding=200))
    said = one.send(one.make.data(1, bytes(384), padding=0))
    assert said.fault == ("FLOW_CONTROL_ERROR", "more data than the window allows")


# -- header blocks ---------------------------------------------------------------------------------


@pytest.mark.wire("B2-24")
@pytest.mark.parametrize("frame", ["ping", "data", "headers", "unknown", "continuation", "other"])
def test_b2_24_another_frame_within_a_header_block(client: MakeClient, frame: str) -> None:
    one = client()
    other = {
        "ping": one.make.ping(),
        "data": one.make.data(1, b"x"),
        "headers": one.make.headers(3),
        "unknown": one.make.raw(0xBB, 0, 0),
        "continuation": one.make.continuation(3, b""),
        "other": one.make.rst_stream(1),
    }[frame]
    said = one.send(one.make.headers(1, b"\x83", end_headers=False), other)
    assert said.fault == ("PROTOCOL_ERROR", "another frame within a header block")
    assert one.abuse == {"interleaved": 1}


@pytest.mark.wire("B2-24")
def test_b2_24_a_continuation_of_nothing(client: MakeClient) -> None:
    one = client()
    said = one.send(one.make.continuation(1, b"\x83"))
    assert said.fault == ("PROTOCOL_ERROR", "CONTINUATION without HEADERS")


@pytest.mark.wire("B2-11")
def test_b2_11_a_block_of_too_many_frames(client: MakeClient) -> None:
    one = client()
    said = one.send(one.make.split_headers(1, cuts=[0] * 63, end_stream=True))
    assert said.fault is None
    assert kinds(one) == [Opened, Ended]
    said = one.send(one.make.split_headers(3, cuts=[0] * 64))
    assert said.fault == (CALM, "continuation_flood")
    assert one.abuse == {"continuation_flood": 1}
    loose = client(with_limits(header_block_frames_max=65))
    assert loose.send(loose.make.split_headers(1, cuts=[0] * 64)).fault is None


@pytest.mark.wire("B2-11")
def test_b2_11_a_block_of_too_many_bytes() -> None:
    """An endless one is ended at 64 KiB, not when it ends."""
    one = CoreClient()
    piece = b"\x00\x01a\x7f\xff\x7f" + bytes(16_000)
    one.send(one.make.headers(1, piece, end_headers=False))
    for _ in range(3):
        assert one.send(one.make.continuation(1, piece, end_headers=False)).fault is None
    said = one.send(one.make.continuation(1, piece, end_headers=False))
    assert said.fault == (CALM, "continuation_flood")
    loose = CoreClient(with_limits(header_list_bytes_max=1 << 20))
    loose.send(loose.make.headers(1, piece, end_headers=False))
    for _ in range(4):
        assert loose.send(loose.make.continuation(1, piece, end_headers=False)).fault is None


@pytest.mark.wire("B2-12")
@pytest.mark.wire("B2-13")
@pytest.mark.parametrize("trailers", [False, True])
def test_b2_12_b2_13_header_bombs_end_the_connection(client: MakeClient, trailers: bool) -> None:
    one = client()
    if trailers:
        one.open(1)
    # An entry of the table, then references to it, a byte each.
    bomb = one.make.block([(b"x-seed", b"s" * 3_000)]) + b"\xbe" * 10_000
    said = one.send(one.make.headers(1, bomb, end_stream=True))
    assert said.fault == (CALM, "header_bomb")
    assert one.abuse == {"header_bomb": 1}


@pytest.mark.wire("B2-13")
@pytest.mark.wire("B2-14")
@pytest.mark.parametrize(
    "fields",
    [[(b"x-%d" % at, b"") for at in range(130)], [(b"x-large", b"v" * 16_000)]],
    ids=["count", "bytes"],
)
def test_b2_13_b2_14_a_head_that_is_too_large_keeps_the_table(
    client: MakeClient, fields: list[Pair]
) -> None:
    """The layer above refuses it; its block was decoded all the same (CVE-2023-32731)."""
    one = client()
    seed = (b"x-seed", b"from the block that was refused")
    one.send(one.make.split_headers(1, [*GRPC_FIELDS, *fields, seed], cuts=[16_000]))
    (opened,) = one.take_events()
    assert isinstance(opened, Opened)
    head = opened.stream.head
    assert head is not None
    assert head.problem is not None
    assert head.problem.too_large
    assert not one.whole
    one.send(one.make.headers(3, [*GRPC_FIELDS, seed]), one.make.data(3, b"x", end_stream=True))
    assert one.whole[0][2].fields[-1] == seed
    assert one.abuse == {}


@pytest.mark.wire("B2-14")
@pytest.mark.parametrize("why", ["refused", "malformed", "draining", "trailers", "closed"])
def test_b2_14_blocks_of_streams_that_nobody_wants_are_decoded(
    client: MakeClient, why: str
) -> None:
    one = client(with_limits(streams_max=2))
    one.send(one.make.headers(1, STREAMED))
    seed = (b"x-seed", why.encode())
    fields = [*STREAMED, seed]
    if why == "refused":
        one.send(one.make.headers(3, STREAMED), one.make.headers(5, fields))
        one.send(one.make.rst_stream(3))
    elif why == "malformed":
        one.send(one.make.headers(3, [*fields, (b":late", b"pseudo")]))
    elif why == "draining":
        one.connection.begin_drain()
        one.send(one.make.ping(b"drain\0\0\0", ack=True), one.make.headers(3, fields))
        one.connection._goaway_id = 1 << 31  # only so that the next one is heard
    elif why == "trailers":
        one.send(one.make.headers(1, [(b"x-trailer", b"1"), seed], end_stream=True))
    else:
        one.connection.reset(1, ErrorCode.CANCEL)
        one.send(one.make.headers(1, [(b"x-trailer", b"1"), seed], end_stream=True))
    one.take_events()
    one.send(one.make.headers(9, fields))
    (opened,) = one.take_events()
    assert isinstance(opened, Opened)
    assert opened.stream.head is not None
    assert opened.stream.head.fields[-1] == seed


@pytest.mark.wire("B2-15")
@pytest.mark.parametrize(
    "block",
    [
        b"\xff\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",  # an endless integer
        b"\xff" + b"\x80" * 8_000,
        b"\x3f\xe1\xff\xff\xff\x03",  # a table of 2^30 bytes
        b"\x80",  # index 0
        b"\xfe",  # an index beyond the table
        b"\x83\x86\x04",  # torn
        b"\x00\x81\xff\x00",  # Huffman padding of eight bits
    ],
)
@pytest.mark.parametrize("trailers", [False, True])
def test_b2_15_broken_blocks(client: MakeClient, block: bytes, trailers: bool) -> None:
    one = client()
    if trailers:
        one.open(1)
    said = one.send(one.make.headers(1, block, end_stream=True))
    assert said.fault is not None
    assert said.fault[0] == "COMPRESSION_ERROR"
    assert not one.whole


# -- malformed requests ----------------------------------------------------------------------------

MALFORMED: dict[str, list[Pair]] = {
    "B2-06 an empty name": [*GRPC_FIELDS, (b"", b"1")],
    "B2-20 upper case": [*GRPC_FIELDS, (b"X-Upper", b"1")],
    "B2-20 CR LF": [*GRPC_FIELDS, (b"x-a", b"1\r\nx-b: 2")],
    "B2-20 NUL": [*GRPC_FIELDS, (b"x-a", b"\0")],
    "B2-20 spaces": [*GRPC_FIELDS, (b"x-a", b" 1")],
    "B2-20 connection": [*GRPC_FIELDS, (b"connection", b"close")],
    "B2-20 transfer-encoding": [*GRPC_FIELDS, (b"transfer-encoding", b"chunked")],
    "B2-20 te": [*GRPC_FIELDS[:-1], (b"te", b"gzip")],
    "B2-20 twice": [GRPC_FIELDS[2], *GRPC_FIELDS],
    "B2-20 unknown": [(b":status", b"200"), *GRPC_FIELDS],
    "B2-20 late": [*GRPC_FIELDS[:3], *GRPC_FIELDS[4:], GRPC_FIELDS[3]],
    "B2-20 no path": [*GRPC_FIELDS[:2], *GRPC_FIELDS[3:]],
    "B2-20 an empty path": [*GRPC_FIELDS[:2], (b":path", b""), *GRPC_FIELDS[3:]],
    "B2-20 another host": [*GRPC_FIELDS, (b"host", b"elsewhere")],
    "B2-20 no length": with_length(b"x"),
    "B2-20 two lengths": [*with_length(b"1"), (b"content-length", b"2")],
}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(
            MALFORMED[name],
            marks=pytest.mark.wire(name[:5]),
            id=name[:5].lower().replace("-", "_") + name[5:],
        )
        for name in MALFORMED
    ],
)
@pytest.mark.parametrize("end_stream", [False, True])
def test_malformed_heads_cost_their_stream(
    client: MakeClient, fields: list[Pair], end_stream: bool
) -> None:
    one = client()
    for stream_id in (1, 3):
        said = one.send(one.make.headers(stream_id, fields, end_stream=end_stream))
        assert said.resets == {stream_id: "PROTOCOL_ERROR"}
        if not end_stream:  # its body had left already
            assert not one.send(one.make.data(stream_id, b"body", end_stream=True)).frames
    assert not one.send(one.request(5)).frames
    assert one.take_whole() == [(5, b"body")]
    assert not one.take_events()


@pytest.mark.wire("B2-20")
@pytest.mark.parametrize(
    ("announced", "pieces", "right"),
    [
        (b"4", [b"body"], True),
        (b"4", [b"bo", b"dy"], True),
        (b"0", [b""], True),
        (b"4", [b"bodyguard"], False),
        (b"4", [b"bod"], False),
        (b"4", [b""], False),
        (b"4", [b"bo", b"dyguard"], False),
        (b"4", [b"bod", b""], False),
        (b"0", [b"x"], False),
    ],
)
@pytest.mark.parametrize("fields", [GRPC_FIELDS, STREAMED], ids=["unary", "stream"])
def test_b2_20_a_body_of_another_length_than_announced(
    client: MakeClient, announced: bytes, pieces: list[bytes], right: bool, fields: list[Pair]
) -> None:
    one = client()
    frames = [one.make.data(1, piece) for piece in pieces[:-1]]
    last = one.make.data(1, pieces[-1], end_stream=True)
    said = one.send(one.make.headers(1, with_length(announced, fields)), *frames, last)
    events = one.take_events()
    if right:
        assert not said.resets
        whole = one.take_whole()
        assert whole == [(1, b"".join(pieces))] or isinstance(events[-1], Ended)
    else:
        assert said.resets == {1: "PROTOCOL_ERROR"}
        assert not one.whole
        assert isinstance(events[-1], Reset)
        assert not any(isinstance(event, Ended) for event in events)
        window = one.connection._window
        held = len(body_of(events))
        assert window.left + window.consumed + held == window.size
    assert not one.send(one.request(3)).frames


@pytest.mark.wire("B2-20")
@pytest.mark.parametrize("how", ["headers only", "trailers"])
def test_b2_20_an_end_without_the_announced_body(client: MakeClient, how: str) -> None:
    one = client()
    if how == "headers only":
        said = one.send(one.make.headers(1, with_length(b"4"), end_stream=True))
    else:
        one.send(one.make.headers(1, with_length(b"4")))
        said = one.send(one.make.headers(1, [(b"x-trailer", b"1")], end_stream=True))
    assert said.resets == {1: "PROTOCOL_ERROR"}
    assert kinds(one) == [Opened, Reset]


@pytest.mark.wire("B2-20")
@pytest.mark.parametrize(
    ("trailers", "end_stream"),
    [
        ([(b":path", b"/")], True),
        ([(b"X-Upper", b"1")], True),
        ([(b"connection", b"close")], True),
        ([(b"x-fine", b"1")], False),
    ],
)
def test_b2_20_malformed_trailers(
    client: MakeClient, trailers: list[Pair], end_stream: bool
) -> None:
    one = client()
    stream = one.open(1)
    said = one.send(one.make.headers(1, trailers, end_stream=end_stream))
    assert said.resets == {1: "PROTOCOL_ERROR"}
    assert one.take_events() == [Reset(1, stream)]
    assert not one.send(one.request(3)).frames


# -- resets ----------------------------------------------------------------------------------------


@pytest.mark.wire("B3-25")
def test_b3_25_a_client_cancels(client: MakeClient) -> None:
    one = client()
    stream = one.open(1)
    one.send(one.request(3), one.make.headers(5))
    one.take_whole()
    said = one.send(*[one.make.rst_stream(stream_id) for stream_id in (1, 3, 5)])
    assert not said.frames
    assert one.take_events() == [Reset(1, stream), Reset(3, None)]
    assert not one.connection.streams
    assert not one.answer(3, b"late").frames
    # A stream that it has seen end may be reset as well: they crossed.
    one.send(one.request(7))
    one.answer(7, b"answer")
    assert not one.send(one.make.rst_stream(7)).frames


def _stream_and_reset(one: CoreClient, stream_id: int) -> bytes:
    return one.make.headers(stream_id) + one.make.rst_stream(stream_id)


def _request_and_reset(one: CoreClient, stream_id: int) -> bytes:
    return one.request(stream_id) + one.make.rst_stream(stream_id)


@pytest.mark.wire("B2-09")
@pytest.mark.parametrize("attack", [_stream_and_reset, _request_and_reset])
def test_b2_09_rapid_reset(client: MakeClient, attack: Callable[[CoreClient, int], bytes]) -> None:
    burst = BUDGETS["rapid_reset"].burst
    one = client()
    assert one.send(*[attack(one, 2 * at + 1) for at in range(burst)]).fault is None
    assert one.send(attack(one, 2 * burst + 1)).fault == (CALM, "rapid_reset")
    assert one.abuse == {"rapid_reset": 1}
    assert len(one.whole) <= burst + 1
    # A second later so many more, and as many as were answered.
    one = client()
    one.send(*[attack(one, 2 * at + 1) for at in range(burst)])
    one.wait(1)
    for at in range(burst, burst + 33):
        assert one.send(attack(one, 2 * at + 1)).fault is None
    for at in range(2 * burst, 2 * burst + 100, 2):
        one.send(one.request(2 * at + 1))
        one.answer(2 * at + 1, b"answer")
        assert one.send(attack(one, 2 * at + 3)).fault is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGETS, "rapid_reset", ENDLESS)
        one = client()
        assert one.send(*[attack(one, 2 * at + 1) for at in range(5_000)]).fault is None


Trigger = Callable[[CoreClient, int], bytes]


def _content_too_long(one: CoreClient, stream_id: int) -> bytes:
    fields = with_length(b"1")
    return one.make.headers(stream_id, fields) + one.make.data(stream_id, b"long")


def _bad_trailers(one: CoreClient, stream_id: int) -> bytes:
    return one.make.headers(stream_id) + one.make.headers(
        stream_id, [(b":path", b"/")], end_stream=True
    )


def _no_end_of_trailers(one: CoreClient, stream_id: int) -> bytes:
    return one.make.headers(stream_id) + one.make.headers(stream_id, [(b"x", b"1")])


def _malformed_head(one: CoreClient, stream_id: int) -> bytes:
    return one.make.headers(stream_id, MALFORMED["B2-20 upper case"], end_stream=True)


def _too_many(one: CoreClient, stream_id: int) -> bytes:
    return one.make.headers(stream_id, end_stream=True)


@pytest.mark.wire("B2-04")
@pytest.mark.wire("B2-10")
@pytest.mark.parametrize(
    "trigger", [_content_too_long, _bad_trailers, _no_end_of_trailers, _malformed_head, _too_many]
)
def test_b2_04_b2_10_resets_that_we_are_made_to_send_have_a_budget(
    client: MakeClient, trigger: Trigger
) -> None:
    burst = BUDGETS["made_you_reset"].burst
    limits = with_limits(streams_max=1)
    full = trigger is _too_many

    def attack(count: int) -> tuple[CoreClient, Said]:
        one = client(limits)
        if full:
            one.open(1)
        return one, one.send(*[trigger(one, 2 * at + 3) for at in range(count)])

    one, said = attack(burst)
    assert said.fault is None
    assert len(said.resets) == burst
    one, said = attack(burst + 1)
    assert said.fault == (CALM, "made_you_reset")
    assert one.abuse == {"made_you_reset": 1}
    assert len(one.connection.streams) <= 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGETS, "made_you_reset", ENDLESS)
        one, said = attack(burst + 50)
        assert said.fault is None
        assert len(said.resets) == burst + 50


@pytest.mark.wire("B2-10")
@pytest.mark.parametrize(
    ("trigger", "code"),
    [
        (lambda one: one.make.window_update(1, 0), "PROTOCOL_ERROR"),
        (lambda one: one.make.window_update(1, 2**31 - 1), "FLOW_CONTROL_ERROR"),
        (lambda one: one.make.data(1, b"after the end"), "STREAM_CLOSED"),
        (lambda one: one.make.headers(1), "STREAM_CLOSED"),
        (lambda one: one.make.raw(2, 0, 1, b"1234"), "FRAME_SIZE_ERROR"),
        (lambda one: one.make.raw(8, 0, 1, b"123"), "FRAME_SIZE_ERROR"),
    ],
)
def test_b2_10_where_the_rfc_allows_it_the_connection_ends(
    client: MakeClient, trigger: Callable[[CoreClient], bytes], code: str
) -> None:
    """Not one reset can be had by these (CVE-2025-8671)."""
    one = client()
    one.send(one.request(1))
    said = one.send(trigger(one))
    assert said.fault is not None
    assert said.fault[0] == code
    assert not said.resets


# -- empty frames ----------------------------------------------------------------------------------


@pytest.mark.wire("B2-08")
@pytest.mark.parametrize("padding", [None, 0, 200])
def test_b2_08_empty_frames_in_a_row(client: MakeClient, padding: int | None) -> None:
    one = client()
    one.open(1)
    empty = one.make.data(1, padding=padding)
    for _ in range(3):
        assert one.send(*[empty] * 16, one.make.data(1, b"x")).fault is None
    assert one.send(*[empty] * 16).fault is None
    assert one.send(empty).fault == (CALM, "empty_frame_flood")
    assert one.abuse == {"empty_frame_flood": 1}
    loose = client(with_limits(empty_frames_max=1_000))
    loose.open(1)
    assert loose.send(*[empty] * 1_000).fault is None
    assert loose.send(empty).fault is not None


@pytest.mark.wire("B2-08")
@pytest.mark.parametrize("kind", ["headers", "push_promise"])
def test_b2_08_other_empty_frames(client: MakeClient, kind: str) -> None:
    one = client()
    if kind == "headers":
        said = one.send(one.make.headers(1, b""), one.make.headers(3, b"", end_stream=True))
        assert said.resets == {1: "PROTOCOL_ERROR", 3: "PROTOCOL_ERROR"}
    else:
        said = one.send(one.make.raw(5, END_HEADERS, 1))
        assert said.fault == ("PROTOCOL_ERROR", "a client may not push")


# -- many reads ------------------------------------------------------------------------------------


@given(cuts=st.lists(st.integers(1, 400), min_size=1, max_size=20))
def test_it_does_not_matter_where_reads_end(cuts: list[int]) -> None:
    def script(one: CoreClient) -> bytes:
        return b"".join([
            one.request(1, b"first"),
            one.make.headers(3, STREAMED, padding=7),
            one.make.data(3, b"second", padding=3),
            one.make.split_headers(5, [*GRPC_FIELDS, (b"x-a", b"b" * 300)], cuts=[1, 200]),
            one.make.ping(),
            one.make.data(5, bytes(1_000), end_stream=True),
            one.make.window_update(1, 10),
            one.make.data(3, b"end", end_stream=True),
            one.make.rst_stream(5),
            one.request(7, b"last"),
        ])  # fmt: skip

    def chop(data: bytes) -> list[bytes]:
        pieces = []
        at = 0
        while data:
            count = cuts[at % len(cuts)]
            pieces.append(data[:count])
            data = data[count:]
            at += 1
        return pieces

    found = []
    for one in (CoreClient(PATIENT), CoreClient(PATIENT, chop=chop)):
        said = one.send(script(one))
        events = [
            (type(event).__name__, getattr(event, "data", b"")) for event in one.take_events()
        ]
        found.append((one.take_whole(), events, said.kinds, said.pings))
    assert found[0] == found[1]
    assert [stream_id for stream_id, _ in found[0][0]] == [1, 5, 7]


def test_early_answers_cross_the_rest_of_the_body(client: MakeClient) -> None:
    one = client()
    stream = one.open(1)
    one.connection.send_headers(stream, ENDING_BLOCK, end_stream=True)
    assert one.read().resets == {1: "NO_ERROR"}
    said = one.send(
        one.make.data(1, bytes(5_000)),
        one.make.headers(1, [(b"x-trailer", b"1")], end_stream=True),
        one.make.rst_stream(1),
        one.make.window_update(1, 5),
    )
    assert not said.frames
    assert not one.take_events()
