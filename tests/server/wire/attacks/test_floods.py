"""Floods of frames that cost their sender nothing: each ends its connection, and only that.

Every flood is made three times: at full size (it ends with a GOAWAY that names it), within its
budget, and at full size against a server without that budget, where it gets through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from server.wire.http2.frames import ErrorCode
from server.wire.http2.limits import BUDGETS
from tests.support.attacker import (
    Attacker,
    Goaway,
    Target,
    fields_for,
    message,
    pings,
    under_attack,
)
from tests.support.frame_factory import FrameFactory

_WITHOUT = (1 << 40, 0, 0)


@dataclass(frozen=True)
class Flood:
    """`frames` gives a piece of the flood after `before`; `allowed` such pieces are honest."""

    row: str
    reason: str
    allowed: int
    count: int
    frames: Callable[[FrameFactory], bytes]
    before: Callable[[FrameFactory], bytes] = lambda factory: b""
    budget: str = ""  # that holds it back; "": one of `limits`
    limits: dict[str, int] = field(default_factory=dict)  # that hold it back, loosened
    always: dict[str, int] = field(default_factory=dict)  # other limits that it would meet first
    debug: str = ""  # where it is not the reason's name

    @property
    def loosened(self) -> dict[str, object]:
        """The arguments of a start without the defence."""
        budgets = {self.budget: _WITHOUT} if self.budget else {}
        return {"budgets": budgets, **self.always, **self.limits}


def _open_stream(factory: FrameFactory) -> bytes:
    """An unfinished call: its stream stays."""
    return factory.headers(1, fields_for("Total"))


def _reset_stream(factory: FrameFactory) -> bytes:
    return factory.headers(1, fields_for("Total")) + factory.rst_stream(1)


def _ended_stream(factory: FrameFactory) -> bytes:
    return factory.headers(1, fields_for("Nowhere"), end_stream=True)


_MANY_STRIKES = {"ping_strikes_max": 1 << 40}
FLOODS = [
    Flood(
        "B2-02", "too_many_pings", 3, 10_000, FrameFactory.ping,
        budget="ping_flood", limits=_MANY_STRIKES,
    ),
    Flood(
        "B2-02", "ping_flood", 1_000, 10_000, FrameFactory.ping,
        budget="ping_flood", always=_MANY_STRIKES,
    ),
    Flood(
        "B2-02", "ping_flood", 1_000, 10_000, lambda factory: factory.ping(ack=True),
        budget="ping_flood",
    ),
    Flood(
        "B2-03", "priority_flood", 1_000, 10_000, lambda factory: factory.priority(3, 1),
        budget="priority_flood",
    ),
    Flood("B2-05", "settings_flood", 90, 5_000, FrameFactory.settings, budget="settings_flood"),
    Flood(
        "B2-05", "settings_flood", 90, 5_000, lambda factory: factory.settings(ack=True),
        budget="settings_flood",
    ),
    Flood(
        "B2-05", "settings_entries", 0, 1, lambda factory: factory.settings([(4, 65_535)] * 2_730),
        limits={"settings_entries_max": 1 << 20}, debug="too many entries in SETTINGS",
    ),
    Flood(
        "B2-08", "empty_frame_flood", 16, 1_000, lambda factory: factory.data(1),
        before=_open_stream, limits={"empty_frames_max": 1 << 20},
    ),
    Flood(
        "B2-08", "empty_frame_flood", 16, 1_000, lambda factory: factory.data(1, padding=9),
        before=_open_stream, limits={"empty_frames_max": 1 << 20},
    ),
    Flood(
        "B2-08", "closed_stream_flood", 2_000, 20_000, lambda factory: factory.data(1),
        before=_reset_stream, budget="closed_stream_flood",
    ),
    Flood(
        "B2-09", "closed_stream_flood", 2_000, 20_000, lambda factory: factory.rst_stream(1),
        before=_ended_stream, budget="closed_stream_flood",
    ),
    Flood(
        "B2-16", "window_update_flood", 2_000, 20_000, lambda factory: factory.window_update(0, 1),
        budget="window_update_flood",
    ),
    Flood(
        "B2-16", "window_update_flood", 2_000, 20_000, lambda factory: factory.window_update(1, 1),
        before=_open_stream, budget="window_update_flood",
    ),
    Flood(
        "B2-24", "unknown_frame_flood", 1_000, 10_000, lambda factory: factory.raw(0xBB, 0xFF, 7),
        budget="unknown_frame_flood",
    ),
    Flood(
        "B2-24", "unknown_frame_flood", 1_000, 10_000, FrameFactory.goaway,
        budget="unknown_frame_flood",
    ),
]  # fmt: skip


def _names(floods: list[Flood]) -> list[object]:
    return [
        pytest.param(
            flood,
            marks=pytest.mark.wire(flood.row),
            id=f"{flood.row.lower().replace('-', '_')}-{flood.reason}-{at}",
        )
        for at, flood in enumerate(floods)
    ]


@pytest.mark.parametrize("flood", _names(FLOODS))
def test_a_flood_ends_its_connection_and_no_other(target: Target, flood: Flood) -> None:
    target.start(**flood.always)
    with under_attack(target), target.greeted() as attacker:
        attacker.send(flood.before(attacker.factory) + flood.frames(attacker.factory) * flood.count)
        assert attacker.goaway() == Goaway(ErrorCode.ENHANCE_YOUR_CALM, flood.debug or flood.reason)
    assert target.counters()["abuse"] == {flood.reason: 1}


@pytest.mark.parametrize("flood", _names([flood for flood in FLOODS if flood.allowed]))
def test_what_an_honest_client_might_send_is_no_flood(target: Target, flood: Flood) -> None:
    target.start(**flood.always)
    with target.greeted() as client:
        frames = flood.frames(client.factory) * flood.allowed
        client.send(flood.before(client.factory) + frames)
        assert client.call(3) == 0
    assert not target.settled()["abuse"]


@pytest.mark.parametrize("flood", _names(FLOODS))
def test_without_its_defence_a_flood_gets_through(target: Target, flood: Flood) -> None:
    target.start(**flood.loosened)  # type: ignore[arg-type]
    with target.greeted() as client:
        client.send(flood.before(client.factory) + flood.frames(client.factory) * flood.count)
        assert client.call(3) == 0
    assert not target.settled()["abuse"]


def test_every_budget_has_its_flood() -> None:
    resets = {"rapid_reset", "made_you_reset"}  # in test_resets
    assert {flood.budget for flood in FLOODS if flood.budget} | resets == set(BUDGETS)


@pytest.mark.wire("B2-03")
def test_b2_03_a_priority_flood_costs_little_processor_time(own_target: Target) -> None:
    own_target.start()
    with own_target.greeted() as attacker:
        assert attacker.is_alive()
        before = own_target.counters()["cpu_s"]
        attacker.send(attacker.factory.priority(3, 1) * 10_000)
        attacker.goaway()
    assert own_target.settled()["cpu_s"] - before < 0.2


@pytest.mark.wire("B2-02")
def test_b2_02_ping_floods_leave_no_memory_behind(own_target: Target) -> None:
    own_target.start()

    def flood(times: int) -> int:
        """The least memory that there was after one of so many floods, in bytes."""
        least = 1 << 62
        for _ in range(times):
            with own_target.connect(receive_bytes=1024) as attacker:
                attacker.greet().stuff(pings(1_000) for _ in range(10))
            least = min(least, own_target.settled()["rss_bytes"])
        return least

    flood(5)
    before = flood(5)
    # What one flood leaves behind would be there thirty times: 10,000 pings are 170 kB.
    assert flood(30) - before < 1 << 20


def _is_full(now: dict[str, Any]) -> bool:
    return bool(now["abuse"])


@pytest.mark.parametrize(
    ("frame", "budget"),
    [
        pytest.param(
            pings(1), "ping_flood", id="b2_02-ping", marks=pytest.mark.wire("B2-02")
        ),
        pytest.param(
            FrameFactory().settings(), "settings_flood", id="b2_05-settings",
            marks=pytest.mark.wire("B2-05"),
        ),
    ],
)  # fmt: skip
def test_answers_nobody_reads_do_not_pile_up(target: Target, frame: bytes, budget: str) -> None:
    """Where the budgets let them pass, the queue of unread answers is bounded all the same."""
    target.start(budgets={budget: _WITHOUT}, ping_strikes_max=1 << 40)
    with under_attack(target), target.connect(receive_bytes=1024) as attacker:
        attacker.greet()
        now = target.stuff_until(attacker, [frame * 1_000] * 900, _is_full)
        assert now["abuse"] == {"control_queue_full": 1}
        assert now["buffered_bytes"] < 1 << 20


@pytest.mark.wire("B2-02")
def test_b2_02_without_that_bound_they_do(target: Target) -> None:
    target.start(
        budgets={"ping_flood": _WITHOUT}, ping_strikes_max=1 << 40,
        control_frames_queued_max=1 << 40, server_limits={"unread_bytes_max": 1 << 40},
    )  # fmt: skip
    with target.connect(receive_bytes=1024) as attacker:
        attacker.greet()
        now = target.stuff_until(
            attacker, [pings(1_000)] * 900, lambda now: now["buffered_bytes"] > 2 << 20
        )
        assert now["abuse"] == {}
    target.settled()


def _bad_stream(attacker: Attacker, stream_id: int) -> bytes:
    """A head that lacks :path: its stream is reset."""
    return attacker.factory.headers(stream_id, [(b":method", b"POST"), (b":scheme", b"http")])


@pytest.mark.wire("B2-04")
@pytest.mark.parametrize("reads", [True, False])
def test_b2_04_resets_that_we_are_made_to_send_are_counted(target: Target, reads: bool) -> None:
    target.start()
    with under_attack(target), target.greeted() as attacker:
        flood = b"".join(_bad_stream(attacker, stream_id) for stream_id in range(1, 10_000, 2))
        attacker.send(flood, read=reads)
        assert attacker.goaway() == Goaway(ErrorCode.ENHANCE_YOUR_CALM, "made_you_reset")
        assert 500 <= len(attacker.resets()) <= 600
    assert target.counters()["abuse"] == {"made_you_reset": 1}


@pytest.mark.wire("B2-04")
def test_b2_04_without_that_count_all_are_sent(target: Target) -> None:
    target.start(budgets={"made_you_reset": _WITHOUT})
    with target.greeted() as attacker:
        for stream_id in range(1, 10_000, 2):
            attacker.send(_bad_stream(attacker, stream_id))
        attacker.reset(9_999)
        assert len(attacker.resets()) == 5_000
        assert attacker.is_alive()
    assert not target.settled()["abuse"]


def _refused_calls(attacker: Attacker) -> Iterator[bytes]:
    """Calls of an unknown method, each so large that one read brings less than a connection's."""
    fields = fields_for("Nowhere")
    attacker.send(attacker.factory.headers(1, fields, end_stream=True))
    block = attacker.factory.block(fields) + b"\x00\x05x-pad\x7f\xd1\x0e" + b"x" * 2_000
    for first in range(3, 200_000, 200):
        yield b"".join(
            attacker.factory.headers(stream_id, block, end_stream=True)
            for stream_id in range(first, first + 200, 2)
        )


@pytest.mark.wire("B2-04")
def test_b2_04_refusals_nobody_reads_do_not_pile_up(target: Target) -> None:
    """Each call of an unknown method is answered at once: answers that no window holds back."""
    target.start(server_limits={"unread_bytes_max": 64 << 10})
    with under_attack(target), target.connect(receive_bytes=1024) as attacker:
        attacker.greet()
        now = target.stuff_until(attacker, _refused_calls(attacker), _is_full)
        assert now["buffered_bytes"] < 1 << 20
        assert now["abuse"] == {"slow_read": 1}


@pytest.mark.wire("B2-04")
def test_b2_04_without_that_bound_the_refusals_do_pile_up(target: Target) -> None:
    target.start(server_limits={"unread_bytes_max": 1 << 40})
    with target.connect(receive_bytes=1024) as attacker:
        attacker.greet()
        now = target.stuff_until(
            attacker, _refused_calls(attacker), lambda now: now["buffered_bytes"] > 2 << 20
        )
        assert now["abuse"] == {}
    target.settled()


@pytest.mark.wire("B2-08")
def test_b2_08_empty_frames_between_honest_ones_are_allowed(target: Target) -> None:
    target.start()
    with target.greeted() as client:
        factory = client.factory
        client.send(factory.headers(1, fields_for("Total")))
        for piece in message(b"a hundred pieces" * 8):
            client.send(factory.data(1) * 16 + factory.data(1, bytes((piece,))))
        client.send(factory.data(1, end_stream=True))
        assert client.status(1) == 0
    assert not target.settled()["abuse"]
