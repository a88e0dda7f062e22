"""Rapid reset (CVE-2023-44487) and MadeYouReset (CVE-2025-8671): work outlives its stream.

A stream that is reset counts no more against MAX_CONCURRENT_STREAMS, but its handler may still be
at work. So handlers are counted, not streams: whatever frees the streams, by the client or by us.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from server.wire.http2.frames import ErrorCode
from tests.support.attacker import (
    Attacker,
    Goaway,
    Target,
    fields_for,
    message,
    under_attack,
)
from tests.support.frame_factory import FrameFactory

_WITHOUT = (1 << 40, 0, 0)
_NO_BUDGETS = dict.fromkeys(
    ("rapid_reset", "made_you_reset", "closed_stream_flood", "window_update_flood"), _WITHOUT
)
_STREAMS_MAX = 32
_LIVE_MAX = 2 * _STREAMS_MAX  # of one connection
_COUNT = 1_000


def _whole(factory: FrameFactory, stream_id: int, method: str) -> bytes:
    head = factory.headers(stream_id, fields_for(method))
    return head + factory.data(stream_id, message(b"work"), end_stream=True)


def _rapid(attacker: Attacker, method: str, count: int) -> Iterator[bytes]:
    """Requests, a few of them in a read so that their handlers begin, each then reset."""
    factory = attacker.factory
    for first in range(1, 2 * count, 20):
        ids = range(first, first + 20, 2)
        yield b"".join(_whole(factory, stream_id, method) for stream_id in ids)
        yield b"".join(factory.rst_stream(stream_id) for stream_id in ids)


def _hammer(attacker: Attacker, pieces: Iterator[bytes]) -> None:
    """Send each piece alone: before the next one comes the handlers that it starts have begun.

    (A task begins a turn of the loop after its request came: hence two answers are waited for.)
    """
    for piece in pieces:
        attacker.send(piece)
        if not (attacker.is_alive() and attacker.is_alive()):
            return
        attacker.frames.clear()


_QUIET_SETTINGS = {"settings_flood": _WITHOUT}


@pytest.mark.wire("B2-09")
@pytest.mark.parametrize("method", ["Method", "Slow", "Stubborn", "Batched"])
def test_b2_09_a_rapid_reset_ends_its_connection(target: Target, method: str) -> None:
    """5,000 resets as fast as they go: about a burst of them, then the connection is closed."""
    target.start()
    with under_attack(target), target.greeted() as attacker:
        attacker.send(b"".join(_rapid(attacker, method, 5_000)))
        assert attacker.goaway() == Goaway(ErrorCode.ENHANCE_YOUR_CALM, "rapid_reset")
        now = target.counters()
        assert now["abuse"] == {"rapid_reset": 1}
        assert now["peak"] <= 512 + 1
        target.release()


@pytest.mark.wire("B2-09")
@pytest.mark.parametrize("method", ["Method", "Slow", "Stubborn"])
def test_b2_09_a_thousand_cancelled_calls_are_honest(target: Target, method: str) -> None:
    """What the budget allows at once: a client whose thousand calls all time out."""
    target.start()
    with target.greeted() as client:
        target.release()
        client.send(b"".join(_rapid(client, method, 990)))
        assert client.call(1_999) == 0
    assert not target.settled()["abuse"]


@pytest.mark.wire("B2-09")
def test_b2_09_without_that_budget_the_resets_get_through(target: Target) -> None:
    target.start(budgets=_NO_BUDGETS)
    with target.greeted() as attacker:
        attacker.send(b"".join(_rapid(attacker, "Method", 5_000)))
        assert attacker.is_alive()
    assert not target.settled()["abuse"]


@pytest.mark.wire("B2-09")
def test_b2_09_live_handlers_outlive_their_reset_and_stay_bounded(target: Target) -> None:
    """Even with no budget for resets: handlers that go on are counted."""
    target.start(budgets=_NO_BUDGETS | _QUIET_SETTINGS, streams_max=_STREAMS_MAX)
    with under_attack(target):
        with target.greeted() as attacker:
            _hammer(attacker, _rapid(attacker, "Stubborn", _COUNT))
            now = target.counters()
            # Beside the attacker's there may be one honest call.
            assert _LIVE_MAX <= now["live"] <= _LIVE_MAX + 1
            assert now["peak"] <= _LIVE_MAX + 1
            assert attacker.call(2 * _COUNT + 21) == 8  # RESOURCE_EXHAUSTED
        assert target.counters()["running"] >= _LIVE_MAX  # even when the connection is gone
        target.release()


@pytest.mark.wire("B2-09")
def test_b2_09_the_batch_is_bounded_too(target: Target) -> None:
    """What waits in the batch waits on, reset or not: at most a budget's worth and the streams."""
    target.start(budgets=_QUIET_SETTINGS, streams_max=_STREAMS_MAX)
    with under_attack(target), target.greeted() as attacker:
        _hammer(attacker, _rapid(attacker, "Batched", 2 * _COUNT))
        assert attacker.goaway() == Goaway(ErrorCode.ENHANCE_YOUR_CALM, "rapid_reset")
        assert target.counters()["batched_peak"] <= 1_000 + 33 * 5 + _STREAMS_MAX
        target.release()


@pytest.mark.wire("B2-09")
def test_b2_09_without_that_budget_the_server_bounds_the_batch(target: Target) -> None:
    target.start(budgets=_NO_BUDGETS | _QUIET_SETTINGS, server_limits={"calls_max": 1_500})
    with target.greeted() as attacker:
        _hammer(attacker, _rapid(attacker, "Batched", 2 * _COUNT))
        now = target.counters()
        assert now["batched"] == now["live"] == 1_500
        assert now["ended"] == {"RESOURCE_EXHAUSTED": 500}
        target.release()
    target.settled()


@pytest.mark.wire("B2-09")
def test_b2_09_without_the_semaphore_work_piles_up(target: Target) -> None:
    target.start(budgets=_NO_BUDGETS | _QUIET_SETTINGS, streams_max=_COUNT)
    with target.greeted() as attacker:
        _hammer(attacker, _rapid(attacker, "Stubborn", _COUNT))
        assert target.counters()["running"] == _COUNT
        target.release()
    target.settled()


@pytest.mark.wire("B2-09")
def test_b2_09_what_is_reset_within_a_read_never_begins(target: Target) -> None:
    target.start()
    with target.greeted() as attacker:
        factory = attacker.factory
        attacker.send(_whole(factory, 1, "Method"))
        attacker.status(1)
        flood = b"".join(
            _whole(factory, stream_id, "Stubborn") + factory.rst_stream(stream_id)
            for stream_id in range(3, 503, 2)
        )
        attacker.send(flood)
        assert attacker.call(503) == 0
        assert target.counters()["begun"] <= 2 + 10  # at most a read's end fell between the two
        target.release()
    target.settled()


# MadeYouReset: what makes the server end the stream. Each is sent behind the request itself.


@dataclass(frozen=True)
class Trigger:
    """`frames` open stream `id` with its handler at work, and make the server reset it."""

    name: str
    frames: Callable[[FrameFactory, int], tuple[bytes, bytes]]
    fault: Goaway | None = None  # that ends the connection; None: only the stream ends
    abuse: str = ""


def _then(method: str, then: Callable[[FrameFactory, int], bytes]) -> Callable[..., object]:
    return lambda factory, stream_id: (
        _whole(factory, stream_id, method),
        then(factory, stream_id),
    )


def _started_stream(
    then: Callable[[FrameFactory, int], bytes], *more: tuple[bytes, bytes]
) -> Callable[..., object]:
    return lambda factory, stream_id: (
        factory.headers(stream_id, fields_for("StubbornStream", *more)),
        then(factory, stream_id),
    )


TRIGGERS = [
    Trigger(
        "window-update-0",
        _then("Stubborn", lambda factory, stream_id: factory.window_update(stream_id, 0)),
        Goaway(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE with increment 0"),
        "window_update_zero",
    ),
    Trigger(
        "window-overflow",
        _then("Stubborn", lambda factory, stream_id: factory.window_update(stream_id, 2**31 - 1)),
        Goaway(ErrorCode.FLOW_CONTROL_ERROR, "a window above 2^31-1"),
        "window_overflow",
    ),
    Trigger(
        "data-after-end",
        _then("Stubborn", lambda factory, stream_id: factory.data(stream_id, b"x")),
        Goaway(ErrorCode.STREAM_CLOSED, "a frame after END_STREAM"),
    ),
    Trigger(
        "headers-after-end",
        _then("Stubborn", lambda factory, stream_id: factory.headers(stream_id, end_stream=True)),
        Goaway(ErrorCode.STREAM_CLOSED, "a frame after END_STREAM"),
    ),
    Trigger(
        "priority-of-4-bytes",
        _then("Stubborn", lambda factory, stream_id: factory.raw(2, 0, stream_id, bytes(4))),
        Goaway(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY is not 5 bytes"),
    ),
    Trigger(
        "rst-stream-of-3-bytes",
        _then("Stubborn", lambda factory, stream_id: factory.raw(3, 0, stream_id, bytes(3))),
        Goaway(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM is not 4 bytes"),
    ),
    Trigger(
        "window-overrun",
        _started_stream(lambda factory, stream_id: factory.data(stream_id, bytes(16_384)) * 5),
        Goaway(ErrorCode.FLOW_CONTROL_ERROR, "more data than the window allows"),
        "window_overrun",
    ),
    Trigger(
        "content-length-exceeded",
        _started_stream(
            lambda factory, stream_id: factory.data(stream_id, message(b"too long")),
            (b"content-length", b"6"),
        ),
        abuse="made_you_reset",
    ),
    Trigger(
        "content-length-missed",
        _started_stream(
            lambda factory, stream_id: factory.data(stream_id, message(b""), end_stream=True),
            (b"content-length", b"60"),
        ),
        abuse="made_you_reset",
    ),
    Trigger(
        "malformed-trailers",
        _started_stream(
            lambda factory, stream_id: factory.headers(
                stream_id, [(b":path", b"/again")], end_stream=True
            ),
        ),
        abuse="made_you_reset",
    ),
    Trigger(
        "trailers-without-end",
        _started_stream(lambda factory, stream_id: factory.headers(stream_id, [(b"a", b"b")])),
        abuse="made_you_reset",
    ),
    # gRPC's own ways to make a server end a stream at once: no reset is counted for them, since
    # they are answers; the work is.
    Trigger(
        "a-message-of-flag-2",
        _started_stream(
            lambda factory, stream_id: factory.data(stream_id, message(b"", flag=2))
        ),
    ),
    Trigger(
        "a-message-too-large",
        _started_stream(
            lambda factory, stream_id: factory.data(stream_id, message(b"", length=2**32 - 1))
        ),
    ),
    Trigger(
        "a-deadline-of-a-millisecond",
        _started_stream(lambda factory, stream_id: b"", (b"grpc-timeout", b"1m")),
    ),
]  # fmt: skip
_ids = [f"b2_10-{trigger.name}" for trigger in TRIGGERS]
_SMALL_WINDOW = {"stream_window_bytes": 65_535}


@pytest.mark.wire("B2-10")
@pytest.mark.parametrize("trigger", TRIGGERS, ids=_ids)
def test_b2_10_made_you_reset_never_gets_more_work_done(target: Target, trigger: Trigger) -> None:
    """1,000 streams, each made to end by the server while its handler goes on."""
    target.start(budgets=_QUIET_SETTINGS, streams_max=_STREAMS_MAX, **_SMALL_WINDOW)
    with under_attack(target), target.greeted() as attacker:
        pieces = (
            piece
            for stream_id in range(1, 2 * _COUNT, 2)
            for piece in trigger.frames(attacker.factory, stream_id)
        )
        _hammer(attacker, pieces)
        now = target.counters()
        if trigger.fault is not None:
            assert attacker.goaway() == trigger.fault
            assert now["peak"] <= 2  # the first one ends it
            assert now["abuse"] == ({trigger.abuse: 1} if trigger.abuse else {})
        else:
            assert attacker.is_alive()
            assert _LIVE_MAX <= now["running"] <= now["peak"] <= _LIVE_MAX + 1
            # Where the deadline passed before a handler began (the machine is busy), none was.
            ended = now["ended"]
            never = ended["RESOURCE_EXHAUSTED"] + ended.get("DEADLINE_EXCEEDED", 0)
            assert never >= _COUNT - _LIVE_MAX
        target.release()


@pytest.mark.wire("B2-10")
@pytest.mark.parametrize(
    "trigger",
    [trigger for trigger in TRIGGERS if trigger.abuse == "made_you_reset"],
    ids=[f"b2_10-{trigger.name}" for trigger in TRIGGERS if trigger.abuse == "made_you_reset"],
)
def test_b2_10_the_resets_we_are_made_to_send_have_a_budget(
    target: Target, trigger: Trigger
) -> None:
    """Where the handlers end at once there is no work to bound, but still the resets."""
    target.start(budgets=_QUIET_SETTINGS)
    target.release()
    with under_attack(target), target.greeted() as attacker:
        _hammer(
            attacker,
            (
                b"".join(trigger.frames(attacker.factory, stream_id))
                for stream_id in range(1, 2 * _COUNT, 2)
            ),
        )
        assert attacker.goaway() == Goaway(ErrorCode.ENHANCE_YOUR_CALM, "made_you_reset")
        assert target.counters()["abuse"] == {"made_you_reset": 1}


@pytest.mark.wire("B2-10")
@pytest.mark.parametrize(
    "trigger",
    [trigger for trigger in TRIGGERS if trigger.fault is None],
    ids=[f"b2_10-{trigger.name}" for trigger in TRIGGERS if trigger.fault is None],
)
def test_b2_10_without_the_semaphore_the_work_piles_up(target: Target, trigger: Trigger) -> None:
    """With room for it, every one of the streams would leave a handler behind."""
    target.start(budgets=_NO_BUDGETS | _QUIET_SETTINGS, streams_max=_COUNT)
    with target.greeted() as attacker:
        pieces = (
            piece
            for stream_id in range(1, 2 * 300, 2)
            for piece in trigger.frames(attacker.factory, stream_id)
        )
        _hammer(attacker, pieces)
        assert attacker.is_alive()
        now = target.counters()
        assert now["running"] == now["begun"]
        # A deadline of a millisecond may pass before its handler begins.
        assert now["running"] == 300 or (
            "deadline" in trigger.name and 2 * _LIVE_MAX < now["running"] < 300
        )
        target.release()
    assert not target.settled()["abuse"]


@pytest.mark.wire("B2-10")
def test_b2_10_streams_above_the_advertised_number_are_refused(target: Target) -> None:
    target.start(streams_max=_STREAMS_MAX)
    with under_attack(target), target.greeted() as attacker:
        factory = attacker.factory
        attacker.send(
            b"".join(_whole(factory, stream_id, "Stubborn") for stream_id in range(1, 2_000, 2))
        )
        assert attacker.goaway() == Goaway(ErrorCode.ENHANCE_YOUR_CALM, "made_you_reset")
        assert set(attacker.resets().values()) == {ErrorCode.REFUSED_STREAM}
        assert target.counters()["peak"] <= _STREAMS_MAX + 1
        target.release()
    abuse = target.counters()["abuse"]
    assert abuse.pop("refused_stream") >= 500  # the budget
    assert abuse == {"made_you_reset": 1}


@pytest.mark.wire("B2-09")
def test_b2_09_connections_that_come_and_go_leave_no_more_work_than_the_server_bears(
    target: Target,
) -> None:
    """Work outlives its connection, too."""
    target.start(server_limits={"calls_max": 100}, streams_max=_STREAMS_MAX)
    for _ in range(10):
        with target.greeted() as attacker:
            factory = attacker.factory
            ids = range(1, 2 * _STREAMS_MAX, 2)
            calls = b"".join(_whole(factory, each, "Stubborn") for each in ids)
            _hammer(attacker, iter((calls,)))
            assert not attacker.ended
    now = target.counters()
    assert now["live"] == now["running"] == now["peak"] == 100
    assert now["ended"] == {"RESOURCE_EXHAUSTED": 220}
    target.release()
    assert not target.settled()["abuse"]
