"""What time does to a connection: timeouts, keepalive, age, and its end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from server.wire.http2.control import NO_GOAWAY
from server.wire.http2.events import Reset
from server.wire.http2.frames import ErrorCode
from tests.support.core_client import (
    ENDING_BLOCK,
    OPENING_BLOCK,
    PATIENT,
    STREAMED,
    CoreClient,
    shape,
    with_limits,
)
from tests.support.frame_factory import GRPC_FIELDS, PREFACE

MakeClient = Callable[..., CoreClient]


CALM = "ENHANCE_YOUR_CALM"


# -- timeouts --------------------------------------------------------------------------------------


@pytest.mark.wire("B2-21")
@pytest.mark.parametrize("sent", [b"", PREFACE[:10], PREFACE, PREFACE + b"\0\0\0\4\0"])
def test_b2_21_a_preface_that_does_not_come(client: MakeClient, sent: bytes) -> None:
    one = client(preface=False)
    one.send(sent)
    assert not one.wait(10).frames
    assert one.wait(1).fault == ("SETTINGS_TIMEOUT", "preface_timeout")
    assert one.abuse == {"preface_timeout": 1}
    loose = client(with_limits(preface_timeout_ns=1 << 62), preface=False)
    loose.send(sent)
    assert not loose.wait(30).frames


@pytest.mark.wire("B2-11")
@pytest.mark.wire("B2-21")
def test_b2_11_b2_21_a_header_block_that_does_not_end(client: MakeClient) -> None:
    for limits, fault in (
        (PATIENT, (CALM, "header_block_timeout")),
        (with_limits(header_block_timeout_ns=1 << 62), None),
    ):
        one = client(limits)
        block = one.make.block()
        one.send(one.make.headers(1, block[:1], end_headers=False))
        for at in range(1, 11):
            one.send(one.make.continuation(1, block[at : at + 1], end_headers=False))
            assert not one.wait(1).frames
        assert one.wait(1).fault == fault
    assert one.abuse == {}


def test_a_header_block_in_time(client: MakeClient) -> None:
    one = client()
    block = one.make.block()
    one.send(one.make.headers(1, block[:9], end_headers=False))
    one.wait(9)
    one.send(one.make.continuation(1, block[9:]), one.make.data(1, end_stream=True))
    assert not one.wait(30).frames
    assert one.take_whole() == [(1, b"")]


@pytest.mark.wire("B2-21")
def test_b2_21_a_frame_byte_by_byte() -> None:
    for limits, fault in (
        (PATIENT, (CALM, "slow_frame")),
        (with_limits(body_timeout_ns=1 << 62), None),
    ):
        one = CoreClient(limits)
        one.wait(100)
        frame = one.make.ping() + one.make.headers(1)
        one.send(frame[:17])
        for at in range(17, 77):
            one.send(frame[at : at + 1])
            if at % 10 == 0:
                one.read()
        one.send(one.make.raw(0xBB, 0, 0, bytes(1_000))[:20])
        for _ in range(60):
            assert one.wait(1).fault is None
            one.send(b"\0")
        assert one.wait(1).fault == fault


def test_frames_that_are_cut_all_the_time_are_no_slow_frames(client: MakeClient) -> None:
    one = client()
    frame = one.make.priority(5)
    one.send(frame[:5])
    for _ in range(10):
        assert not one.wait(30).frames
        assert one.send(frame[5:], frame[:5]).fault is None
    one.send(frame[5:])
    assert not one.wait(100).frames
    one.send(frame[:5])
    assert not one.wait(50).frames
    one.send(frame[5:])
    assert not one.wait(100).frames


@pytest.mark.wire("B2-21")
@pytest.mark.parametrize("body", ["none", "one byte", "a byte a second", "ends not"])
def test_b2_21_a_body_that_comes_too_slowly(body: str) -> None:
    for limits, reset in ((PATIENT, {1: "CANCEL"}), (with_limits(body_timeout_ns=1 << 62), {})):
        one = CoreClient(limits)
        one.wait(30)
        one.send(one.make.headers(1))
        if body != "none":
            count = 6 if body == "ends not" else 1
            one.send(*[one.make.data(1, b"x" * (16_000 if count > 1 else 1))] * count)
        said = one.wait(60)
        for _ in range(62):
            if body == "a byte a second" and one.connection.streams:
                one.send(one.make.data(1, b"x"))
            said.frames += one.wait(1).frames
        if body == "ends not":  # in its first minute it was fast enough
            said.frames += one.wait(60).frames
        assert said.resets == reset
        assert said.fault is None
        assert one.abuse == ({"slow_body": 1} if reset else {})
        resets = [event for event in one.take_events() if isinstance(event, Reset)]
        assert len(resets) == (1 if reset and body != "none" else 0)
        # What was on its way is passed over.
        if reset:
            assert one.send(one.make.data(1, b"late", end_stream=True)).fault is None
            assert not one.take_whole()


def test_bodies_that_may_take_their_time() -> None:
    one = CoreClient()
    one.open(1, STREAMED)  # a client that streams
    one.send(one.request(3))  # one that waits for its answer
    one.send(one.make.headers(5), one.make.data(5, b"x"))
    one.send(one.make.data(5, end_stream=True))
    one.send(one.make.headers(7))
    fast = bytes(16_000)
    for _ in range(20):
        one.send(one.make.data(7, fast))
        stream = one.connection.streams[7]
        one.connection.consume(stream, len(fast))
        assert not one.wait(15).resets
    assert one.abuse == {}


@pytest.mark.parametrize("which", ["stream", "connection"])
def test_who_has_no_window_is_not_slow(which: str) -> None:
    one = CoreClient(
        with_limits(stream_window_bytes=16_384)
        if which == "stream"
        else with_limits(connection_window_bytes=65_535)
    )
    one.wait(50)
    one.send(one.make.headers(1), one.make.data(1, b"x"))
    one.wait(50)
    if which == "stream":
        one.send(one.make.data(1, bytes(16_383)))
    else:
        one.open(3)
        one.send(*[one.make.data(3, bytes(16_000))] * 4, one.make.data(3, bytes(1_534)))
    assert not one.wait(300).resets


@pytest.mark.wire("B2-01")
@pytest.mark.parametrize("drip", [0, 1, 100])
@pytest.mark.parametrize("window", ["stream", "connection"])
def test_b2_01_an_answer_whose_window_drips(drip: int, window: str) -> None:
    for limits, stalled in ((PATIENT, 3), (with_limits(stall_timeout_ns=1 << 62), 0)):
        one = CoreClient(limits, settings={4: 0 if window == "stream" else 1 << 20})
        if window == "connection":
            one.connection.send_window = 0
        one.send(*[one.request(stream_id) for stream_id in (1, 3, 5)])
        for stream_id in (1, 3, 5):
            one.answer(stream_id, bytes(100_000))
        one.send(one.request(7))
        one.open(9)  # these two wait for nobody
        resets: dict[int, str] = {}
        for _ in range(32):
            if drip and window == "connection":
                one.give(increment=drip)
            elif drip:
                for stream_id in {1, 3, 5} & one.connection.streams.keys():
                    one.give(stream_id=stream_id, increment=drip)
            resets |= one.wait(1).resets
        assert resets == dict.fromkeys([1, 3, 5][:stalled], "CANCEL")
        assert one.abuse == ({"stalled_stream": 3} if stalled else {})
        if stalled:
            assert one.connection.pending_bytes == 0
            assert [type(event) for event in one.take_events()] == [Reset] * 3


def test_a_slow_client_that_goes_on_reading_is_left_alone() -> None:
    """256 large answers over a slow line: each stream waits long for its turn."""
    one = CoreClient(settings={4: 1 << 20})
    ids = list(range(1, 60, 2))
    one.send(*[one.request(stream_id) for stream_id in ids])
    for stream_id in ids:
        one.answer(stream_id, bytes(30_000))
    for _ in range(60):
        assert not one.wait(5).resets
        one.give(increment=15_000)
    assert not one.connection.streams
    # And a stream whose window comes in useful pieces, again and again.
    one.give(increment=1 << 20)
    one.send(one.request(61), one.make.settings({4: 0}))
    one.answer(61, bytes(100_000))
    for _ in range(7):
        assert not one.wait(29).resets
        one.give(stream_id=61, increment=16_384)
    assert not one.connection.streams


def test_a_stall_begins_when_something_waits() -> None:
    one = CoreClient(settings={4: 0})
    stream = one.open(1)
    one.connection.send_headers(stream, OPENING_BLOCK)
    one.wait(100)
    one.connection.send_data(stream, b"message")
    assert not one.wait(30).resets
    assert one.wait(1).resets == {1: "CANCEL"}


@pytest.mark.wire("B2-10")
def test_b2_10_resets_by_timeout_have_a_budget_too() -> None:
    one = CoreClient(with_limits(streams_max=600), settings={4: 0})
    ids = range(1, 1_201, 2)
    one.send(*[one.request(stream_id) for stream_id in ids])
    for stream_id in ids:
        one.answer(stream_id, b"body")
    assert one.wait(32).fault == (CALM, "made_you_reset")


# -- the end ---------------------------------------------------------------------------------------


@pytest.mark.wire("B3-29")
def test_b3_29_a_drain_in_two_steps(client: MakeClient) -> None:
    one = client()
    one.warm()
    for stream_id in (1, 3):
        one.answer(stream_id, b"answer")
    one.send(one.request(9))
    one.connection.begin_drain("restart")
    said = one.read()
    assert said.kinds == ["GoAway", "Ping"]
    assert said.goaways == [("NO_ERROR", 2**31 - 1, "restart")]
    one.connection.begin_drain("again")
    assert not one.read().frames
    assert one.connection.draining
    # Still taken: the client had not seen it.
    one.send(one.request(11))
    assert [stream_id for stream_id, _ in one.take_whole()] == [9, 11]
    said = one.send(one.make.ping(said.pings[0][0], ack=True))
    assert said.goaways == [("NO_ERROR", 11, "")]
    # Not taken any more, and no error either.
    said = one.send(one.make.headers(13), one.make.data(13, b"x" * 100), one.make.data(13, b"x"))
    said.frames += one.send(one.make.headers(13, [(b"x-trailer", b"1")], end_stream=True)).frames
    said.frames += one.send(one.request(15)).frames
    assert not said.frames
    assert not one.take_whole()
    assert not one.take_events()
    assert one.answer(9, b"nine").ended(9)
    assert not one.connection.drained
    one.connection.answer_all([11], shape(1), [b"1"])
    assert one.connection.drained
    said = one.wait(1)
    assert said.goaways[-1] == ("NO_ERROR", 11, "")  # never more than before: §6.8
    assert one.connection.closed
    assert one.connection.fault is None


@pytest.mark.wire("B3-29")
def test_b3_29_a_drain_ends_with_the_last_reset(client: MakeClient) -> None:
    one = client()
    one.send(one.request(1))
    one.connection.begin_drain()
    one.send(one.make.ping(b"drain\0\0\0", ack=True))
    assert not one.connection.closed
    assert one.send(one.make.rst_stream(1)).goaways == [("NO_ERROR", 1, "")]
    assert one.connection.closed


@pytest.mark.wire("B3-29")
def test_b3_29_an_idle_connection_drains_at_once(client: MakeClient) -> None:
    one = client()
    one.connection.begin_drain()
    said = one.send(one.make.ping(b"drain\0\0\0", ack=True))
    assert one.connection.closed
    assert {last_id for _, last_id, _ in said.goaways} == {2**31 - 1, 0}


@pytest.mark.wire("B3-29")
def test_b3_29_a_client_that_does_not_answer_the_ping(client: MakeClient) -> None:
    one = client()
    one.send(one.request(1))
    one.connection.begin_drain()
    one.read()
    assert not one.wait(1).frames
    assert one.wait(1).goaways == [("NO_ERROR", 1, "")]
    assert not one.wait(27).frames
    assert one.connection._goaway_id != NO_GOAWAY
    assert one.wait(2).fault == ("NO_ERROR", "drain_timeout")


def test_a_fault_in_a_drain_does_not_raise_the_last_id(client: MakeClient) -> None:
    one = client()
    one.send(one.request(1))
    one.connection.begin_drain()
    one.send(one.make.ping(b"drain\0\0\0", ack=True), one.request(3))
    said = one.send(one.make.window_update(0, 0))
    assert said.goaways == [("PROTOCOL_ERROR", 1, "WINDOW_UPDATE with increment 0")]


def test_after_a_fault_nothing_begins(client: MakeClient) -> None:
    one = client()
    one.send(one.request(1), one.make.window_update(0, 0))
    connection = one.connection
    connection.begin_drain()
    connection.close(ErrorCode.NO_ERROR, "again")
    assert not connection.draining
    assert not one.read().frames
    assert not one.wait(100).frames
    assert connection.streams
    connection.lose()
    assert not connection.streams
    one.connection.answer_all([1], shape(1), [b"1"])
    assert not one.read().frames


def test_a_lost_connection_forgets_everything() -> None:
    one = CoreClient(settings={4: 0})
    stream = one.open(1)
    one.send(one.request(3), one.make.headers(5))
    one.connection.send_headers(stream, OPENING_BLOCK)
    one.connection.send_data(stream, bytes(1_000))
    one.connection.lose()
    one.connection.send_data(stream, bytes(1_000))
    assert one.connection.closed
    assert not one.connection.streams
    assert one.connection.pending_bytes == 0
    assert one.connection.requests == 3


@pytest.mark.wire("B3-30")
def test_b3_30_old_connections_are_drained(client: MakeClient) -> None:
    one = client(with_limits(age_max_ns=100 * 10**9))
    one.send(one.request(1))
    assert one.connection.born_ns == one.now_ns
    assert not one.wait(100).frames
    said = one.wait(1)
    assert said.goaways == [("NO_ERROR", 2**31 - 1, "max_age")]
    said = one.send(one.make.ping(b"drain\0\0\0", ack=True))
    assert said.goaways == [("NO_ERROR", 1, "")]
    one.answer(1, b"answer")
    one.wait(1)
    assert one.connection.closed
    # The connection may have an age of its own.
    one = client(with_limits(age_max_ns=100 * 10**9))
    one.connection.age_max_ns = 10 * 10**9
    assert one.wait(11).goaways == [("NO_ERROR", 2**31 - 1, "max_age")]
    assert not client().wait(1_000, step=10).frames


@pytest.mark.wire("B3-30")
def test_b3_30_idle_connections_are_drained(client: MakeClient) -> None:
    one = client(with_limits(idle_timeout_ns=100 * 10**9))
    one.send(one.request(1))
    assert not one.wait(500).goaways  # a call is at work
    one.answer(1, b"answer")
    # Calls shorter than the time between two sweeps count, too.
    for stream_id in range(3, 23, 2):
        assert not one.wait(50).goaways
        one.send(one.request(stream_id))
        one.answer(stream_id, b"answer")
    assert not one.wait(100).goaways
    assert one.wait(2).goaways == [("NO_ERROR", 2**31 - 1, "max_idle")]
    assert one.wait(3).fault == ("NO_ERROR", "")


@pytest.mark.wire("B2-02")
def test_b2_02_a_fault_keeps_nothing_of_what_was_read() -> None:
    """A traceback refers to it, and to the connection: a cycle, which only a collection ends."""
    client = CoreClient()
    client.send(client.make.ping(b"short"))
    fault = client.connection.fault
    assert fault is not None
    assert fault.__traceback__ is None


def test_trailers_only_and_fields_are_what_was_sent() -> None:
    one = CoreClient()
    one.send(one.request(1, fields=GRPC_FIELDS))
    stream = one.connection.stream(1)
    assert stream is not None
    one.connection.send_headers(stream, ENDING_BLOCK, end_stream=True)
    assert one.read().fields(1) == [[(b"grpc-status", b"0")]]
