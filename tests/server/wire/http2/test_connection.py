"""Bytes in: whole requests, streams, and what is refused. Each test also runs chopped into single
bytes and at random places."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from server.wire.http2 import connection as connection_module
from server.wire.http2.events import Body, Ended, Opened
from server.wire.http2.frames import STREAM_ID_MAX
from server.wire.http2.limits import BUDGETS, Budget
from tests.support.core_client import (
    STREAMED,
    CoreClient,
    body_of,
    kinds,
    shape,
    with_limits,
)
from tests.support.frame_factory import GRPC_FIELDS, PREFACE, Pair

MakeClient = Callable[..., CoreClient]
CALM = "ENHANCE_YOUR_CALM"
END_STREAM, END_HEADERS, PADDED, PRIORITY = 0x1, 0x4, 0x8, 0x20


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
    assert one.abuse == {"refused_stream": 1}
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
    assert one.abuse == {"refused_stream": 1}
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
