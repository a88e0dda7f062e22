"""What is about the connection itself: its windows, settings, pings, timeouts and its end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hyperframe.frame import SettingsFrame

from server.wire.http2.events import Body
from server.wire.http2.limits import BUDGETS, Budget
from tests.support.core_client import (
    OPENING_BLOCK,
    CoreClient,
    with_limits,
)

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
    """It makes no Stream of what is none; a change of the setting counts beside it."""
    one = client(settings={4: 10})
    one.send(one.request(1), one.make.headers(3))
    one.give(stream_id=1, increment=5)
    one.give(stream_id=3, increment=7)
    one.send(one.make.settings({4: 20}), one.make.data(3, b"body", end_stream=True))
    assert one.answer(1, bytes(100)).data == [(1, 25)]
    assert one.answer(3, bytes(100)).data == [(3, 27)]
    assert one.take_events() == []  # stream 3 was none when its body came


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
