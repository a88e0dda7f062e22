"""What is about the connection itself: its windows, settings, pings, timeouts and its end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hyperframe.frame import SettingsFrame

from server.wire.http2.control import NO_GOAWAY
from server.wire.http2.events import Body, Ended, Opened, Reset
from server.wire.http2.frames import ErrorCode
from server.wire.http2.limits import BUDGETS, Budget
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


def id_of(row: str) -> str:
    """A row as it stands in a test's id."""
    return row.lower().replace("-", "_")


CALM = "ENHANCE_YOUR_CALM"
HOUR = 3_600
MINUTE = 60


# -- the greeting ----------------------------------------------------------------------------------


def test_the_greeting_says_our_limits() -> None:
    client = CoreClient(with_limits(streams_max=7, stream_window_bytes=99_999), preface=False)
    settings = client.greeting.frames[0]
    assert isinstance(settings, SettingsFrame)
    assert settings.settings == {3: 7, 4: 99_999, 6: 16_384}
    assert client.greeting.increments == [(0, (8 << 20) - 65_535)]
    narrow = CoreClient(with_limits(connection_window_bytes=65_535), preface=False)
    assert narrow.greeting.kinds == ["Settings"]


# -- windows that we give back ---------------------------------------------------------------------


@pytest.mark.wire("B3-33")
def test_b3_33_windows_come_back_when_the_application_has_taken_the_bytes(
    client: MakeClient,
) -> None:
    one = client(with_limits(stream_window_bytes=20_000, connection_window_bytes=65_535))
    stream = one.open(1)
    said = one.send(one.make.data(1, bytes(10_000)), one.make.data(1, bytes(10_000)))
    assert not said.increments
    taken = [event for event in one.take_events() if isinstance(event, Body)]
    assert sum(len(event.data) for event in taken) == 20_000
    one.connection.consume(stream, 9_999)
    assert not one.read().increments
    one.connection.consume(stream, 0)
    one.connection.consume(stream, 1)
    assert one.read().increments == [(1, 10_000)]
    one.connection.consume(stream, 10_000)
    assert one.read().increments == [(1, 10_000)]  # the connection's: not half of it yet
    one.send(one.make.data(1, bytes(13_000), end_stream=True))
    # Of a stream that has ended only the connection's window is of use.
    one.connection.consume(stream, 13_000)
    assert one.read().increments == [(0, 33_000)]


@pytest.mark.wire("B3-33")
def test_b3_33_bytes_of_a_stream_that_is_gone_come_back_too(client: MakeClient) -> None:
    one = client(with_limits(connection_window_bytes=65_535))
    stream = one.open(1)
    one.send(one.make.data(1, bytes(16_000)), one.make.rst_stream(1))
    one.connection.consume(stream, 16_000)
    window = one.connection._window
    assert window.left + window.consumed == window.size
    one.send(one.make.data(1, bytes(16_384)), one.make.data(1, bytes(384)))
    assert one.read().frames == []
    assert window.left + window.consumed == window.size


# -- the windows that we spend ---------------------------------------------------------------------


@pytest.mark.wire("B2-16")
@pytest.mark.parametrize("where", ["connection", "whole request", "head", "stream"])
@pytest.mark.parametrize("increment", [0, 2**31 - 1])
def test_b2_16_bad_increments(client: MakeClient, where: str, increment: int) -> None:
    one = client()
    if where == "whole request":
        one.send(one.request(1))
    elif where == "head":
        one.send(one.make.headers(1))
    elif where == "stream":
        one.open(1)
    said = one.give(stream_id=0 if where == "connection" else 1, increment=increment)
    if increment:
        assert said.fault == ("FLOW_CONTROL_ERROR", "a window above 2^31-1")
        assert one.abuse == {"window_overflow": 1}
    else:
        assert said.fault == ("PROTOCOL_ERROR", "WINDOW_UPDATE with increment 0")
        assert one.abuse == {"window_update_zero": 1}


@pytest.mark.wire("B2-16")
def test_b2_16_the_widest_window_is_legal_and_one_more_is_not(client: MakeClient) -> None:
    one = client()
    assert one.give(increment=2**31 - 1 - 65_535).fault is None
    assert one.connection.send_window == 2**31 - 1
    assert one.give(increment=1).fault == ("FLOW_CONTROL_ERROR", "a window above 2^31-1")


@pytest.mark.wire("B2-16")
def test_b2_16_settings_move_the_windows_of_streams(client: MakeClient) -> None:
    """§6.9.2: also below zero; what is no Stream yet begins with the window of then."""
    one = client(settings={4: 100})
    stream = one.open(1)
    one.send(one.request(3), one.make.headers(5))
    one.connection.send_headers(stream, OPENING_BLOCK)
    one.connection.send_data(stream, bytes(80))
    one.send(one.make.settings({4: 50}))
    assert stream.send_window == -30
    one.connection.send_data(stream, bytes(80))
    assert not one.give(stream_id=1, increment=30).data[1:]
    assert one.read().data == []
    said = one.send(one.make.settings({4: 60}))
    assert said.data == [(1, 10)]
    assert said.settings_acks == 1
    assert one.answer(3, bytes(61)).data == [(3, 60)]
    one.send(one.make.data(5, b"x", end_stream=True))
    one.give(stream_id=5, increment=2)


@pytest.mark.wire("B2-16")
def test_b2_16_a_setting_may_not_overflow_a_streams_window(client: MakeClient) -> None:
    one = client()
    one.open(1)
    one.give(stream_id=1, increment=100)
    assert one.send(one.make.settings({4: 2**31 - 101})).fault is None
    said = one.send(one.make.settings({4: 2**31 - 100}))
    assert said.fault == ("FLOW_CONTROL_ERROR", "a window above 2^31-1")
    assert one.abuse == {"window_overflow": 1}


def test_a_window_update_before_the_answer_is_not_lost(client: MakeClient) -> None:
    """It makes a Stream of what was none; a change of the setting counts beside it."""
    one = client(settings={4: 10})
    one.send(one.request(1), one.make.headers(3))
    one.give(stream_id=1, increment=5)
    one.give(stream_id=3, increment=7)
    one.send(one.make.settings({4: 20}), one.make.data(3, b"body", end_stream=True))
    assert one.answer(1, bytes(100)).data == [(1, 25)]
    assert one.answer(3, bytes(100)).data == [(3, 27)]
    kinds = [type(event) for event in one.take_events()]
    assert kinds == [Opened, Body, Ended]  # stream 3 became one before its body came


def test_window_updates_for_streams_that_ended_are_honest(client: MakeClient) -> None:
    """A client gives back what it read of an answer whose last frame it has already."""
    one = client()
    one.send(one.request(1))
    one.answer(1, b"answer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGETS, "closed_stream_flood", Budget(0, 0, 0))
        assert one.give(stream_id=1, increment=0).fault is None
        frames = [one.make.window_update(1, 100)] * (BUDGETS["window_update_flood"].burst - 1)
        assert one.send(*frames).fault is None
    assert not one.connection.events


def test_a_smaller_header_table_is_acknowledged_in_the_next_block(client: MakeClient) -> None:
    one = client(settings={1: 0})
    one.send(one.make.settings({1: 4_096}), one.make.settings({1: 0}), one.request(1))
    assert [block[:1] == b"\x20" for block in one.answer(1, b"body").blocks(1)] == [True, False]


@pytest.mark.wire("B2-19")
@pytest.mark.parametrize("again", ["data", "headers"])
@pytest.mark.parametrize("stream_id", [1, 3])
def test_b2_19_frames_on_streams_that_ended(client: MakeClient, again: str, stream_id: int) -> None:
    """Also on one that was passed over: with stream 5 all before it are closed (§5.1.1)."""
    one = client()
    one.send(one.request(1), one.request(5))
    one.answer(1, b"answer")
    said = one.send(getattr(one.make, again)(stream_id))
    assert said.fault == ("STREAM_CLOSED", "a frame on a closed stream")


@pytest.mark.wire("B2-19")
@pytest.mark.parametrize("stream_id", [3, 2, 2**31 - 1])
def test_b2_19_frames_on_idle_streams(client: MakeClient, stream_id: int) -> None:
    for frame in ("window_update", "rst_stream"):
        one = client()
        one.send(one.request(1))
        said = one.send(getattr(one.make, frame)(stream_id, 5))
        assert said.fault == ("PROTOCOL_ERROR", "a frame on an idle stream")
        assert said.goaways[0][1] == 1


# -- floods ----------------------------------------------------------------------------------------

Frames = Callable[[CoreClient], bytes]
# (row, budget, what comes first, the frame)
FLOODS: list[tuple[str, str, Frames, Frames]] = [
    ("B2-02", "ping_flood", lambda one: b"", lambda one: one.make.ping()),
    ("B2-02", "ping_flood", lambda one: b"", lambda one: one.make.ping(ack=True)),
    ("B2-03", "priority_flood", lambda one: b"", lambda one: one.make.priority(9, 7)),
    ("B2-05", "settings_flood", lambda one: b"", lambda one: one.make.settings()),
    ("B2-05", "settings_flood", lambda one: b"", lambda one: one.make.settings(ack=True)),
    (
        "B2-16",
        "window_update_flood",
        lambda one: b"",
        lambda one: one.make.window_update(0, 1),
    ),
    (
        "B2-16",
        "window_update_flood",
        lambda one: one.make.headers(1),
        lambda one: one.make.window_update(1, 1),
    ),
    ("B2-24", "unknown_frame_flood", lambda one: b"", lambda one: one.make.raw(11, 255, 5, b"?")),
    ("B2-24", "unknown_frame_flood", lambda one: b"", lambda one: one.make.goaway()),
    (
        "B2-09",
        "closed_stream_flood",
        lambda one: one.make.headers(1) + one.make.rst_stream(1),
        lambda one: one.make.rst_stream(1),
    ),
    (
        "B2-08",
        "closed_stream_flood",
        lambda one: one.make.headers(1) + one.make.rst_stream(1),
        lambda one: one.make.data(1, b"late"),
    ),
]


@pytest.mark.parametrize(
    ("budget", "before", "frame"),
    [
        pytest.param(*case, marks=pytest.mark.wire(row), id=f"{id_of(row)}-{case[0]}-{at}")
        for at, (row, *case) in enumerate(FLOODS)
    ],
)
def test_floods(client: MakeClient, budget: str, before: Frames, frame: Frames) -> None:
    """The honest amount passes, one more ends the connection; without the budget all pass."""
    one = client()
    one.send(before(one))
    # The first SETTINGS were of this budget already.
    burst = BUDGETS[budget].burst - (budget == "settings_flood")
    assert one.send(*[frame(one)] * burst).fault is None
    assert one.send(frame(one)).fault == (CALM, budget)
    assert one.abuse == {budget: 1}
    assert one.connection.closed
    assert one.connection.fault is not None
    assert not one.send(one.make.ping()).frames
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGETS, budget, Budget(1 << 30, 0, 0))
        one = client()
        one.send(before(one))
        assert one.send(*[frame(one)] * (burst + 50)).fault is None


@pytest.mark.wire("B2-05")
def test_b2_05_too_many_entries_in_one_frame(client: MakeClient) -> None:
    one = client()
    assert one.send(one.make.settings([(3, 1)] * 64)).settings_acks == 1
    said = one.send(one.make.settings([(3, 1)] * 65))
    assert said.fault == (CALM, "too many entries in SETTINGS")
    assert one.abuse == {"settings_entries": 1}
    assert (
        client(with_limits(settings_entries_max=65))
        .send(one.make.settings([(3, 1)] * 65))
        .settings_acks
    )


@pytest.mark.wire("B2-02")
@pytest.mark.parametrize("frame", ["ping", "settings"])
def test_b2_02_answers_that_nobody_reads_queue_up_to_a_limit(
    client: MakeClient, frame: str
) -> None:
    one = client(with_limits(control_frames_queued_max=20))
    one.connection.writable = False
    send = getattr(one.make, frame)
    assert one.send(*[send()] * 20).fault is None
    assert one.send(send()).fault == (CALM, "control_queue_full")
    assert one.abuse == {"control_queue_full": 1}
    one = client(with_limits(control_frames_queued_max=20))
    for writable in (False, True, False):
        one.connection.writable = writable
        assert one.send(*[send()] * 15).fault is None


# -- settings and frames of a wrong form -----------------------------------------------------------

WRONG = [
    ("B2-18", lambda make: make.raw(8, 0, 0, b"123"), "FRAME_SIZE_ERROR"),
    ("B2-18", lambda make: make.raw(8, 0, 0, b"12345"), "FRAME_SIZE_ERROR"),
    ("B2-18", lambda make: make.raw(6, 0, 0, b"1234567"), "FRAME_SIZE_ERROR"),
    ("B2-18", lambda make: make.raw(6, 0, 0, b"123456789"), "FRAME_SIZE_ERROR"),
    ("B2-18", lambda make: make.raw(4, 0, 0, b"1234567"), "FRAME_SIZE_ERROR"),
    ("B2-18", lambda make: make.raw(4, 1, 0, b"123456"), "FRAME_SIZE_ERROR"),
    ("B2-18", lambda make: make.raw(2, 0, 1, b"1234"), "FRAME_SIZE_ERROR"),
    ("B2-18", lambda make: make.raw(7, 0, 0, b"1234567"), "FRAME_SIZE_ERROR"),
    ("B2-24", lambda make: make.raw(5, 4, 1, b"12345"), "PROTOCOL_ERROR"),
    ("B2-19", lambda make: make.raw(6, 0, 1, b"12345678"), "PROTOCOL_ERROR"),
    ("B2-19", lambda make: make.raw(4, 0, 1, b""), "PROTOCOL_ERROR"),
    ("B2-19", lambda make: make.raw(2, 0, 0, b"12345"), "PROTOCOL_ERROR"),
    ("B2-19", lambda make: make.raw(7, 0, 1, b"12345678"), "PROTOCOL_ERROR"),
]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        pytest.param(frame, code, marks=pytest.mark.wire(row), id=f"{id_of(row)}-{at}")
        for at, (row, frame, code) in enumerate(WRONG)
    ],
)
def test_wrong_frames(client: MakeClient, frame: Callable[..., bytes], code: str) -> None:
    one = client()
    said = one.send(frame(one.make))
    assert said.fault is not None
    assert said.fault[0] == code


@pytest.mark.wire("B2-24")
def test_b2_24_unknown_frames_and_settings_are_passed_over(client: MakeClient) -> None:
    one = client()
    said = one.send(
        one.make.raw(0xBB, 0xFF, 2**31 - 1, b"anything"),
        one.make.settings({0xFFFF: 5}),
        one.make.goaway(debug=b"farewell"),
        one.make.priority(77),
        one.request(1),
    )
    assert said.kinds == ["Settings"]
    assert one.take_whole() == [(1, b"body")]


# -- pings -----------------------------------------------------------------------------------------


def test_pings_are_answered(client: MakeClient) -> None:
    one = client()
    said = one.send(one.make.ping(b"opaque 1"), one.make.ping(b"opaque 2"))
    assert said.pings == [(b"opaque 1", True), (b"opaque 2", True)]


@pytest.mark.wire("B3-31")
@pytest.mark.parametrize(("busy", "interval"), [(False, 2 * HOUR), (True, 5 * MINUTE)])
def test_b3_31_keepalive_is_enforced(client: MakeClient, busy: bool, interval: int) -> None:
    one = client(with_limits(ping_strikes_max=2, idle_timeout_ns=1 << 62))
    if busy:
        one.open(1)
    for _ in range(4):  # not too often
        assert one.send(one.make.ping()).fault is None
        one.wait(interval, step=interval)
    assert one.send(one.make.ping()).fault is None
    for _ in range(2):
        one.wait(interval - 1, step=interval)
        assert one.send(one.make.ping()).fault is None
    one.wait(interval - 1, step=interval)
    said = one.send(one.make.ping())
    assert said.fault == (CALM, "too_many_pings")
    assert said.pings  # answered all the same
    assert one.abuse == {"too_many_pings": 1}


@pytest.mark.wire("B3-31")
def test_b3_31_what_we_send_forgives_pings(client: MakeClient) -> None:
    one = client(with_limits(ping_strikes_max=2))
    stream = one.open(1)
    one.connection.send_headers(stream, OPENING_BLOCK)
    for _ in range(20):
        one.connection.send_data(stream, b"message")
        assert one.send(one.make.ping()).fault is None
    for _ in range(2):
        assert one.send(one.make.ping()).fault is None
    assert one.send(one.make.ping()).fault == (CALM, "too_many_pings")


@pytest.mark.wire("B3-32")
def test_b3_32_a_silent_client_is_asked_and_a_dead_one_is_left(client: MakeClient) -> None:
    one = client(with_limits(idle_timeout_ns=1 << 62))
    assert not one.wait(2 * HOUR, step=MINUTE).frames
    said = one.wait(1)
    assert said.pings == [(b"alive\0\0\0", False)]
    one.send(one.make.ping(b"alive\0\0\0", ack=True))
    assert not one.wait(2 * HOUR, step=MINUTE).frames  # the answer was a sign of life
    assert one.wait(1).pings
    one.send(one.make.priority(5))  # so is anything else
    assert not one.wait(2 * HOUR, step=MINUTE).frames
    assert one.wait(1).pings
    assert not one.wait(20).frames
    said = one.wait(1)
    assert said.fault == ("NO_ERROR", "keepalive_timeout")
    assert one.connection.closed
    assert not one.wait(1).frames


@pytest.mark.wire("B2-02")
def test_b2_02_pongs_that_nobody_asked_for_are_counted(client: MakeClient) -> None:
    for opaque in (b"alive\0\0\0", b"drain\0\0\0", b"anything"):
        one = client()
        pong = one.make.ping(opaque, ack=True)
        one.send(pong)
        if opaque.startswith(b"drain"):
            one.open(1)
            one.connection.begin_drain()
            one.send(pong)
        burst = BUDGETS["ping_flood"].burst
        said = one.send(*[pong] * (burst + 1))
        assert said.fault == (CALM, "ping_flood")


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
