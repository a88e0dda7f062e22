"""Clients that take their time, and those that only take a place.

The server is shown each connection as it will be when so much time has passed: nothing waits here.
"""

from __future__ import annotations

import contextlib
import resource
import socket
from collections.abc import Callable, Iterator

import pytest

from server.wire.http2.frames import ErrorCode
from tests.support.attacker import Attacker, Goaway, Target, fields_for, message, under_attack
from tests.support.frame_factory import PREFACE

_FOR_EVER_NS = 1 << 60
IDLE_BYTES_MAX = 12 << 10  # of a connection that does nothing


# B2-21: a preface, and a head, that never end.


def _nothing(attacker: Attacker) -> None:
    """Not a byte."""


def _half_a_preface(attacker: Attacker) -> None:
    attacker.send(PREFACE[:12])


def _a_preface_alone(attacker: Attacker) -> None:
    attacker.send(PREFACE)


def _half_settings(attacker: Attacker) -> None:
    attacker.send(PREFACE + attacker.factory.settings({4: 65_535})[:12])


@pytest.mark.wire("B2-21")
@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(_nothing, id="b2_21-silent"),
        pytest.param(_half_a_preface, id="b2_21-half-a-preface"),
        pytest.param(_a_preface_alone, id="b2_21-a-preface-alone"),
        pytest.param(_half_settings, id="b2_21-half-settings"),
    ],
)
@pytest.mark.parametrize("defended", [True, False], ids=["defended", "undefended"])
def test_b2_21_who_does_not_begin_is_closed(
    target: Target, begin: Callable[[Attacker], None], defended: bool
) -> None:
    target.start(**({} if defended else {"preface_timeout_ns": _FOR_EVER_NS}))
    with under_attack(target), target.connect() as attacker:
        begin(attacker)
        target.wait_until("connections", 2)
        target.sweep(9)
        assert not target.counters()["abuse"]
        target.sweep(11)
        if defended:
            assert attacker.goaway() == Goaway(ErrorCode.SETTINGS_TIMEOUT, "preface_timeout")
            assert target.counters()["abuse"] == {"preface_timeout": 1}
        else:
            assert target.counters()["abuse"] == {}
            assert target.counters()["connections"] == 2


@pytest.mark.wire("B2-21")
@pytest.mark.parametrize("defended", [True, False], ids=["defended", "undefended"])
def test_b2_21_a_head_that_does_not_end(target: Target, defended: bool) -> None:
    """The slow loris: a piece of the head now and then."""
    target.start(**({} if defended else {"header_block_timeout_ns": _FOR_EVER_NS}))
    with under_attack(target), target.greeted() as attacker:
        factory = attacker.factory
        block = factory.block(fields_for("Method"))
        attacker.send(factory.headers(1, block[:1], end_headers=False))
        for at in range(1, 10):
            attacker.send(factory.continuation(1, block[at : at + 1], end_headers=False))
        target.wait_until("connections", 2)
        _until_read(target, attacker)
        target.sweep(9)
        assert not target.counters()["abuse"]
        target.sweep(12)
        if defended:
            expected = Goaway(ErrorCode.ENHANCE_YOUR_CALM, "header_block_timeout")
            assert attacker.goaway() == expected
            assert target.counters()["abuse"] == {"header_block_timeout": 1}
        else:
            attacker.send(factory.continuation(1, block[10:]))
            attacker.send(factory.data(1, message(b"x"), end_stream=True))
            assert attacker.status(1) == 0
            assert target.counters()["abuse"] == {}


def _until_read(target: Target, attacker: Attacker) -> None:
    """Wait until the kernel has handed over what the attacker sent, and the server has read it.

    Within a header block no frame may be sent that would be answered.
    """
    other = target.greeted()
    with other:
        assert other.is_alive()
        assert other.is_alive()


@pytest.mark.wire("B2-21")
@pytest.mark.parametrize("defended", [True, False], ids=["defended", "undefended"])
def test_b2_21_a_body_that_does_not_come(target: Target, defended: bool) -> None:
    """Of ten calls nothing comes, of ten a byte now and then."""
    target.start(**({} if defended else {"body_timeout_ns": _FOR_EVER_NS}))
    with under_attack(target), target.greeted() as attacker:
        factory = attacker.factory
        for stream_id in range(1, 41, 2):
            attacker.send(factory.headers(stream_id, fields_for("Method")))
        assert attacker.is_alive()
        target.sweep(61)
        for stream_id in range(1, 21, 2):
            attacker.send(factory.data(stream_id, b"\0"))
        assert attacker.is_alive()
        assert not target.counters()["abuse"]
        target.sweep(123)
        if defended:
            assert attacker.reset(39) == ErrorCode.CANCEL
            assert set(attacker.resets()) == set(range(1, 41, 2))
            now = target.counters()
            assert now["abuse"] == {"slow_body": 20}
            assert now["held_bytes"] == 0
        else:
            assert attacker.is_alive()
            assert not attacker.resets()
            for stream_id in range(21, 41, 2):
                attacker.send(factory.data(stream_id, message(b"x"), end_stream=True))
                assert attacker.status(stream_id) == 0
            assert not target.counters()["abuse"]


@pytest.mark.wire("B2-21")
@pytest.mark.parametrize("defended", [True, False], ids=["defended", "undefended"])
def test_b2_21_a_frame_that_does_not_end(target: Target, defended: bool) -> None:
    target.start(**({} if defended else {"body_timeout_ns": _FOR_EVER_NS}))
    with under_attack(target), target.greeted() as attacker:
        factory = attacker.factory
        attacker.send(factory.headers(1, fields_for("Total")))
        assert attacker.is_alive()
        body = factory.data(1, message(b"x" * 100), end_stream=True)
        attacker.send(body[:30])
        _until_read(target, attacker)
        target.sweep(59)
        assert not target.counters()["abuse"]
        target.sweep(61)
        if defended:
            assert attacker.goaway() == Goaway(ErrorCode.ENHANCE_YOUR_CALM, "slow_frame")
            assert target.counters()["abuse"] == {"slow_frame": 1}
        else:
            attacker.send(body[30:])
            assert attacker.status(1) == 0
            assert not target.counters()["abuse"]


@pytest.mark.wire("B2-21")
def test_b2_21_a_stream_of_messages_may_pause(target: Target) -> None:
    """What is slow of a unary call is a client stream's right: nobody says when its next comes."""
    target.start()
    with target.greeted() as client:
        factory = client.factory
        client.send(factory.headers(1, fields_for("Total")) + factory.data(1, message(b"x")))
        assert client.is_alive()
        for after_s in (61, 123, 185, 600):
            target.sweep(after_s)
        client.send(factory.data(1, message(b"yz"), end_stream=True))
        assert client.status(1) == 0
        assert client.body(1)[5:] == b"3"
    assert not target.settled()["abuse"]


@pytest.mark.wire("B2-21")
def test_b2_21_an_idle_connection_is_sent_away_in_the_end(target: Target) -> None:
    target.start()
    with target.greeted() as idle, target.greeted() as busy:
        assert idle.call(1) == 0
        busy.send(busy.factory.headers(1, fields_for("Total")))
        assert busy.is_alive()
        target.sweep(0)  # it learns that there was a call
        target.sweep(1_799)
        assert target.counters()["connections"] == 2
        target.sweep(1_802)
        target.sweep(1_804)  # the ping of the first GOAWAY is not answered
        assert idle.goaway() == Goaway(ErrorCode.NO_ERROR, "")
        assert busy.is_alive()
    assert not target.settled()["abuse"]


# B2-21: connections that only take a place.


@contextlib.contextmanager
def _files(count: int) -> Iterator[None]:
    """Let this process open so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"{count} connections, and only {hard} files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def _idle_connections(target: Target, count: int) -> Iterator[list[socket.socket]]:
    """Connections that said hello and then nothing."""
    with contextlib.ExitStack() as stack:
        opened = []
        hello = PREFACE + bytes.fromhex("000000040000000000")
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", target.port))
            stack.callback(sock.close)
            sock.sendall(hello)
            opened.append(sock)
        yield opened


@pytest.mark.wire("B2-21")
def test_b2_21_ten_thousand_idle_connections(own_target: Target) -> None:
    """They are let in, cost little, and the next one is refused; a place that is free is given."""
    with _files(11_000):
        own_target.start()
        with under_attack(own_target):
            before = own_target.counters()["rss_bytes"]
            with _idle_connections(own_target, 9_999):
                now = own_target.wait_until("connections", 10_000)
                assert now["open_connections"] == 10_000
                assert now["abuse"] == {}
                assert (now["rss_bytes"] - before) / 9_999 < IDLE_BYTES_MAX
                with own_target.connect() as refused:
                    refused.read_for(10)
                    assert refused.ended
                    assert not refused.frames
                assert own_target.counters()["abuse"] == {"connections": 1}
            own_target.wait_until_at_most("open_connections", 1)
            with own_target.greeted() as client:
                assert client.call(1) == 0
        assert own_target.counters()["abuse"] == {"connections": 1}


@pytest.mark.wire("B2-21")
@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        pytest.param("connections_max", "connections", id="b2_21-of-all"),
        pytest.param(
            "connections_per_address_max", "connections_per_address", id="b2_21-of-one-address"
        ),
    ],
)
def test_b2_21_the_number_of_connections_is_bounded(
    target: Target, limit: str, reason: str
) -> None:
    for bound, refused in ((50, 10), (60, 0)):
        target.start(server_limits={limit: bound})
        with _idle_connections(target, 60):
            now = target.wait_until("connections", bound)
            if refused:
                now = target.wait_until(reason, refused)
            assert now["connections"] == now["open_connections"] == bound
            assert now["abuse"] == ({reason: refused} if refused else {})
        target.settled()
