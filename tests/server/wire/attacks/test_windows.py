"""Flow control as a weapon: windows that hardly open, never open, overflow, or are overrun."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from server.wire.http2.frames import ErrorCode
from tests.support.attacker import Attacker, Goaway, Target, fields_for, message, under_attack
from tests.support.frame_factory import PING, RST_STREAM, FrameFactory

_WITHOUT = (1 << 40, 0, 0)
_FOR_EVER_NS = 1 << 60
_INITIAL_WINDOW = 4  # the setting
_WINDOW_MAX = 2**31 - 1
_WINDOW = 65_535


def _ask(attacker: Attacker, stream_id: int, reply_bytes: int) -> None:
    """Call for a reply of so many bytes."""
    factory = attacker.factory
    body = factory.data(stream_id, message(b"%d" % reply_bytes), end_stream=True)
    attacker.send(factory.headers(stream_id, fields_for("Big")) + body)


def _open_connection_window(attacker: Attacker) -> None:
    attacker.send(attacker.factory.window_update(0, _WINDOW_MAX - _WINDOW))


def _hear_out(attacker: Attacker, opaque: bytes) -> None:
    """Read all that the server sends before it answers this ping."""
    attacker.send(attacker.factory.ping(opaque))
    while opaque not in [frame.payload for frame in attacker.frames if frame.kind == PING]:
        attacker.read_some()


# B2-01: Data Dribble. Windows of a byte, under many large replies.

_REPLY_BYTES = 100_000
_BACKLOG = {"output_bytes_max": 1 << 20}


def _ask_for_a_hundred(attacker: Attacker) -> None:
    for stream_id in range(1, 200, 2):
        _ask(attacker, stream_id, _REPLY_BYTES)
        assert attacker.is_alive()  # what it asked for before is answered


@pytest.mark.wire("B2-01")
def test_b2_01_what_waits_for_dribbling_windows_is_bounded(own_target: Target) -> None:
    own_target.start(budgets={"settings_flood": _WITHOUT}, **_BACKLOG)
    with under_attack(own_target), own_target.greeted({_INITIAL_WINDOW: 1}) as attacker:
        before = own_target.counters()["rss_bytes"]
        _ask_for_a_hundred(attacker)
        now = own_target.counters()
        # The last one that was let in, and the one whose handler was at work beside it.
        assert now["pending_bytes"] < (1 << 20) + 2 * _REPLY_BYTES
        assert now["rss_bytes"] - before < 16 << 20
        refused = attacker.resets()
        assert set(refused.values()) == {ErrorCode.REFUSED_STREAM}
        assert len(refused) >= 85
        own_target.sweep(29)
        counted = {"refused_stream": len(refused)}
        assert own_target.counters()["abuse"] == counted
        own_target.sweep(31)
        stalled = own_target.counters()
        assert stalled["abuse"] == counted | {"stalled_stream": 100 - len(refused)}
        assert stalled["pending_bytes"] == 0
        attacker.wait_for(RST_STREAM, 1)
        assert attacker.resets()[1] == ErrorCode.CANCEL


@pytest.mark.wire("B2-01")
def test_b2_01_windows_that_drip_run_out_of_budget(target: Target) -> None:
    """A byte more for a byte sent: each frame would cost us more than the client."""
    target.start()
    with under_attack(target), target.greeted({_INITIAL_WINDOW: 1}) as attacker:
        _open_connection_window(attacker)
        _ask(attacker, 1, _REPLY_BYTES)
        attacker.send(attacker.factory.window_update(1, 1) * 5_000)
        assert attacker.goaway() == Goaway(ErrorCode.ENHANCE_YOUR_CALM, "window_update_flood")
    assert target.counters()["abuse"] == {"window_update_flood": 1}


@pytest.mark.wire("B2-01")
def test_b2_01_to_take_a_little_now_and_then_is_to_stall(target: Target) -> None:
    target.start()
    with under_attack(target), target.greeted({_INITIAL_WINDOW: 1}) as attacker:
        _open_connection_window(attacker)
        _ask(attacker, 1, _REPLY_BYTES)
        target.wait_until("pending_bytes")
        attacker.send(attacker.factory.window_update(1, 10_000))
        assert attacker.is_alive()
        assert len(attacker.body(1)) == 10_001
        target.sweep(31)
        assert attacker.reset(1) == ErrorCode.CANCEL
        assert attacker.is_alive()
    assert target.counters()["abuse"] == {"stalled_stream": 1}


@pytest.mark.wire("B2-01")
def test_b2_01_without_the_bounds_the_replies_pile_up(target: Target) -> None:
    target.start(
        budgets={"settings_flood": _WITHOUT, "window_update_flood": _WITHOUT},
        output_bytes_max=1 << 40, stall_timeout_ns=_FOR_EVER_NS,
    )  # fmt: skip
    with target.greeted({_INITIAL_WINDOW: 1}) as attacker:
        _open_connection_window(attacker)
        _ask_for_a_hundred(attacker)
        assert target.wait_until("pending_bytes", 90 * _REPLY_BYTES)["streams"] == 100
        attacker.send(attacker.factory.window_update(1, 1) * 5_000)
        assert attacker.is_alive()
        assert len(attacker.body(1)) == 5_001
        target.sweep(31)
        assert target.counters()["streams"] == 100
        assert not attacker.resets()
    assert not target.settled()["abuse"]


@pytest.mark.wire("B2-01")
def test_b2_01_a_small_window_that_opens_is_honest(target: Target) -> None:
    target.start()
    with target.greeted({_INITIAL_WINDOW: 1}) as client:
        _open_connection_window(client)
        _ask(client, 1, _REPLY_BYTES)
        for _ in range(7):
            client.send(client.factory.window_update(1, 16_384))
            assert client.is_alive()
            target.sweep(29)
        assert client.status(1) == 0
        assert len(client.body(1)) == _REPLY_BYTES + 5
    assert not target.settled()["abuse"]


# Slow read: a window of zero, of a stream or of the connection.


def _stall_streams(attacker: Attacker) -> None:
    attacker.send(attacker.factory.settings({_INITIAL_WINDOW: 0}))
    for stream_id in range(1, 21, 2):
        _ask(attacker, stream_id, 1_000)


def _stall_connection(attacker: Attacker) -> None:
    attacker.send(attacker.factory.settings({_INITIAL_WINDOW: _WINDOW_MAX}))
    _ask(attacker, 1, _WINDOW - 5)  # takes all there is
    attacker.status(1)
    for stream_id in range(3, 23, 2):
        _ask(attacker, stream_id, 1_000)


@pytest.mark.parametrize(
    "stall",
    [
        pytest.param(_stall_streams, id="b2_01-streams", marks=pytest.mark.wire("B2-01")),
        pytest.param(_stall_connection, id="b2_07-connection", marks=pytest.mark.wire("B2-07")),
    ],
)
@pytest.mark.parametrize("timeout_ns", [None, _FOR_EVER_NS], ids=["defended", "undefended"])
def test_answers_that_wait_for_a_window_of_zero(
    target: Target, stall: Callable[[Attacker], None], timeout_ns: int | None
) -> None:
    target.start(**({} if timeout_ns is None else {"stall_timeout_ns": timeout_ns}))
    with under_attack(target), target.greeted() as attacker:
        stall(attacker)
        assert target.wait_until("pending_bytes", 10_000)["streams"] >= 10
        target.sweep(29)
        assert not target.counters()["abuse"]
        target.sweep(31)
        now = target.counters()
        if timeout_ns is None:
            assert now["abuse"] == {"stalled_stream": 10}
            assert now["pending_bytes"] == 0
        else:
            assert now["abuse"] == {}
            assert now["pending_bytes"] >= 10_000
        assert attacker.is_alive()


# B2-07: the windows of HTTP/2 are open, that of TCP is not.


def _endless(target: Target, receive_bytes: int = 1_024) -> Attacker:
    """A client that asks for a GiB, lets HTTP/2 send all of it, and takes none."""
    attacker = target.connect(receive_bytes=receive_bytes)
    attacker.greet({_INITIAL_WINDOW: _WINDOW_MAX})
    _open_connection_window(attacker)
    factory = attacker.factory
    body = factory.data(1, message(b"x"), end_stream=True)
    attacker.send(factory.headers(1, fields_for("Endless")) + body, read=False)
    return attacker


@pytest.mark.wire("B2-07")
def test_b2_07_a_closed_tcp_window_stops_the_handler(own_target: Target) -> None:
    own_target.start()
    with under_attack(own_target):
        before = own_target.counters()["rss_bytes"]
        with _endless(own_target) as attacker:
            own_target.wait_until("buffered_bytes", 256 << 10)
            assert own_target.counters()["produced_bytes"] < 16 << 20  # the kernel's buffers, too
            now = own_target.counters()
            # What the transport may hold, a chunk on top of it, and what one stream may hold.
            assert now["buffered_bytes"] + now["pending_bytes"] < (256 << 10) + (1 << 20) + (
                1 << 18
            )
            assert now["rss_bytes"] - before < 8 << 20
            own_target.sweep(29)
            assert not own_target.counters()["abuse"]
            own_target.sweep(31)
            assert own_target.counters()["abuse"] == {"slow_read": 1}
            attacker.read_for(10)
            assert attacker.ended
    assert own_target.counters()["abuse"] == {"slow_read": 1}


@pytest.mark.wire("B2-07")
def test_b2_07_without_the_write_timeout_it_stays(target: Target) -> None:
    target.start(stall_timeout_ns=_FOR_EVER_NS)
    with _endless(target):
        target.wait_until("buffered_bytes", 256 << 10)
        target.sweep(3_600)
        now = target.counters()
        assert (now["live"], now["abuse"]) == (1, {})
    target.settled()


@pytest.mark.wire("B2-07")
def test_b2_07_who_reads_again_gets_the_rest(target: Target) -> None:
    target.start()
    with _endless(target, receive_bytes=64 << 10) as client:
        produced = target.wait_until("buffered_bytes", 256 << 10)["produced_bytes"]
        # How much the kernel holds before it lets the server write again is its own matter.
        while target.counters()["produced_bytes"] < produced + (2 << 20):
            target.sweep(29)
            wanted = len(client.body(1)) + (1 << 20)
            assert wanted < 64 << 20
            while len(client.body(1)) < wanted:
                client.read_some()
    assert not target.settled()["abuse"]


@pytest.mark.wire("B2-07")
def test_b2_07_answers_of_no_window_are_bounded_too(target: Target) -> None:
    """Many replies of less than the pause: 200 calls of 64 KiB whose client takes nothing."""
    target.start(output_bytes_max=2 << 20)
    with under_attack(target), target.connect(receive_bytes=1_024) as attacker:
        attacker.greet({_INITIAL_WINDOW: _WINDOW_MAX})
        _open_connection_window(attacker)
        factory = attacker.factory

        def call(stream_id: int) -> bytes:
            body = factory.data(stream_id, message(b"65536"), end_stream=True)
            return factory.headers(stream_id, fields_for("Big")) + body

        most = 0
        for stream_id in range(1, 400, 2):
            attacker.stuff([call(stream_id)])
            now = target.counters()
            most = max(most, now["buffered_bytes"] + now["pending_bytes"])
        assert most < (2 << 20) + (256 << 10) + (1 << 20) + 2 * 65_541


# B2-16: the arithmetic of windows.


def _settings(value: int) -> Callable[[FrameFactory], bytes]:
    return lambda factory: factory.settings({_INITIAL_WINDOW: value})


_FAULTS: dict[str, tuple[Callable[[FrameFactory], bytes], Goaway, str]] = {
    "zero-of-a-stream": (
        lambda factory: factory.window_update(1, 0),
        Goaway(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE with increment 0"),
        "window_update_zero",
    ),
    "zero-of-the-connection": (
        lambda factory: factory.window_update(0, 0),
        Goaway(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE with increment 0"),
        "window_update_zero",
    ),
    "zero-but-the-reserved-bit": (
        lambda factory: factory.window_update(0, 1 << 31),
        Goaway(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE with increment 0"),
        "window_update_zero",
    ),
    "overflow-of-a-stream": (
        lambda factory: factory.window_update(1, _WINDOW_MAX - _WINDOW + 1),
        Goaway(ErrorCode.FLOW_CONTROL_ERROR, "a window above 2^31-1"),
        "window_overflow",
    ),
    "overflow-of-the-connection": (
        lambda factory: factory.window_update(0, _WINDOW_MAX - _WINDOW + 1),
        Goaway(ErrorCode.FLOW_CONTROL_ERROR, "a window above 2^31-1"),
        "window_overflow",
    ),
    "overflow-in-steps": (
        lambda factory: factory.window_update(1, 1 << 30) * 2,
        Goaway(ErrorCode.FLOW_CONTROL_ERROR, "a window above 2^31-1"),
        "window_overflow",
    ),
    "overflow-by-settings": (
        lambda factory: factory.window_update(1, 1) + _settings(_WINDOW_MAX)(factory),
        Goaway(ErrorCode.FLOW_CONTROL_ERROR, "a window above 2^31-1"),
        "window_overflow",
    ),
    "settings-above-the-maximum": (
        _settings(1 << 31),
        Goaway(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE above 2^31-1"),
        "",
    ),
}
_CHECKED_ELSEWHERE = {"overflow-by-settings", "settings-above-the-maximum"}


@pytest.mark.wire("B2-16")
@pytest.mark.parametrize("name", [pytest.param(name, id=f"b2_16-{name}") for name in _FAULTS])
def test_b2_16_impossible_windows_end_their_connection(target: Target, name: str) -> None:
    frames, goaway, abuse = _FAULTS[name]
    target.start()
    with under_attack(target), target.greeted() as attacker:
        attacker.send(attacker.factory.headers(1, fields_for("Total")))
        attacker.send(frames(attacker.factory))
        assert attacker.goaway() == goaway
    assert target.counters()["abuse"] == ({abuse: 1} if abuse else {})


@pytest.mark.wire("B2-16")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, id=f"b2_16-{name}") for name in _FAULTS if name not in _CHECKED_ELSEWHERE],
)
def test_b2_16_without_the_check_they_are_taken(target: Target, name: str) -> None:
    target.start(without=["increments"])
    with target.greeted() as attacker:
        attacker.send(attacker.factory.headers(1, fields_for("Total")))
        attacker.send(_FAULTS[name][0](attacker.factory))
        assert attacker.is_alive()
    assert not target.settled()["abuse"]


@pytest.mark.wire("B2-16")
@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(
            lambda factory: factory.window_update(1, _WINDOW_MAX - _WINDOW), id="b2_16-stream"
        ),
        pytest.param(
            lambda factory: factory.window_update(0, _WINDOW_MAX - _WINDOW), id="b2_16-connection"
        ),
        pytest.param(_settings(_WINDOW_MAX), id="b2_16-settings"),
        pytest.param(_settings(0), id="b2_16-settings-of-0"),
    ],
)
def test_b2_16_the_largest_windows_are_honest(
    target: Target, frames: Callable[[FrameFactory], bytes]
) -> None:
    target.start()
    with target.greeted() as client:
        client.send(client.factory.headers(1, fields_for("Total")))
        client.send(frames(client.factory))
        assert client.is_alive()
    assert not target.settled()["abuse"]


@pytest.mark.wire("B2-16")
def test_b2_16_a_window_may_become_negative(target: Target) -> None:
    """§6.9.2: after 65,535 bytes SETTINGS takes the window back that was spent."""
    target.start()
    with target.greeted() as client:
        factory = client.factory
        _open_connection_window(client)
        _ask(client, 1, 100_000)
        target.wait_until("pending_bytes")
        client.send(factory.settings({_INITIAL_WINDOW: 0}))
        client.send(factory.window_update(1, _WINDOW))
        _hear_out(client, b"nothing!")
        assert len(client.body(1)) == _WINDOW
        client.send(factory.window_update(1, 1))
        _hear_out(client, b"one byte")
        assert len(client.body(1)) == _WINDOW + 1
        client.send(factory.window_update(1, 100_000))
        assert client.status(1) == 0
        assert len(client.body(1)) == 100_005
    assert not target.settled()["abuse"]


# B2-17: more data than the windows that we gave.


def _messages(factory: FrameFactory, spent_bytes: int, padding: int | None) -> bytes:
    """Messages on stream 1, a frame each, that spend so much of a window, padding included."""
    overhead = 0 if padding is None else 1 + padding
    frames = []
    while spent_bytes:
        size = min(spent_bytes, 16_384)
        data = message(bytes(size - overhead - 5))
        frames.append(factory.data(1, data, padding=padding))
        spent_bytes -= size
    return b"".join(frames)


_NARROW: dict[str, dict[str, Any]] = {
    "stream": {"stream_window_bytes": _WINDOW},
    "connection": {"connection_window_bytes": _WINDOW},
}


@pytest.mark.wire("B2-17")
@pytest.mark.parametrize("which", [pytest.param(name, id=f"b2_17-{name}") for name in _NARROW])
@pytest.mark.parametrize("padding", [None, 200])
def test_b2_17_a_byte_above_the_window_ends_its_connection(
    target: Target, which: str, padding: int | None
) -> None:
    """The handler takes one message and then no more: of the others no window is given back."""
    target.start(**_NARROW[which])
    with under_attack(target), target.greeted() as attacker:
        attacker.send(attacker.factory.headers(1, fields_for("Hold")))
        attacker.send(_messages(attacker.factory, _WINDOW, padding))
        assert attacker.is_alive()
        assert target.counters()["abuse"] == {}
        attacker.send(attacker.factory.data(1, b"x"))
        expected = Goaway(ErrorCode.FLOW_CONTROL_ERROR, "more data than the window allows")
        assert attacker.goaway() == expected
        assert target.counters()["abuse"] == {"window_overrun": 1}
        target.release()


@pytest.mark.wire("B2-17")
def test_b2_17_nothing_of_a_frame_too_long_is_delivered(target: Target) -> None:
    target.start(stream_window_bytes=16_383)
    with under_attack(target), target.greeted() as attacker:
        whole = message(bytes(16_379))  # a request in one frame, a byte longer than the window
        factory = attacker.factory
        attacker.send(
            factory.headers(1, fields_for("Method")) + factory.data(1, whole, end_stream=True)
        )
        expected = Goaway(ErrorCode.FLOW_CONTROL_ERROR, "more data than the window allows")
        assert attacker.goaway() == expected
        assert not [frame for frame in attacker.frames if frame.stream_id == 1]
    assert target.counters()["abuse"] == {"window_overrun": 1}


@pytest.mark.wire("B2-17")
def test_b2_17_without_the_count_it_is_all_taken(target: Target) -> None:
    target.start(without=["receive_windows"], stream_window_bytes=_WINDOW)
    with target.greeted() as attacker:
        factory = attacker.factory
        attacker.send(factory.headers(1, fields_for("Hold")))
        attacker.send(_messages(factory, 16_384 * 64, None))
        assert attacker.is_alive()
        assert target.counters()["held_bytes"] >= 16_384 * 63  # all but what the handler took
        target.release()
    target.settled()
