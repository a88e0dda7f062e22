"""What costs its sender little and would cost the server much: bounded, counted, and only there.

Each attack is made twice: against the limit, and against a server without it, where it gets
through.
"""

from __future__ import annotations

import contextlib
import gzip
import resource
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.support.http_target import (
    HttpAttacker,
    HttpTarget,
    http_under_attack,
)

NEVER_S = 1e6
_GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
_INFLATE = b"POST /inflate HTTP/1.1\r\nHost: a\r\n"
_POST = b"POST /echo HTTP/1.1\r\nHost: a\r\n"
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n\r\n"
Target = HttpTarget


def stays_open(attacker: HttpAttacker, seconds: float = 1.0) -> bool:
    """Whether nothing comes for so long, not even an end."""
    attacker.socket.settimeout(seconds)
    with contextlib.suppress(TimeoutError):
        return attacker.read()
    return True


@pytest.mark.wire("B2-21")
@pytest.mark.parametrize("begin", [b"GET / HT", _GET, _GET + b"A: b\r\n", b"\r\n"])
def test_b2_21_a_head_that_never_ends_is_given_up(http_target: Target, begin: bytes) -> None:
    http_target.start(head_timeout_s=0.2)
    with http_under_attack(http_target), http_target.connect() as attacker:
        attacker.send(begin)
        answer = attacker.answer()
        assert (answer is None) is (begin == b"\r\n") or answer.status == 408  # type: ignore[union-attr]
        assert attacker.closed()
    assert http_target.counters()["abuse"] == ({} if begin == b"\r\n" else {"slow_head": 1})


@pytest.mark.wire("B2-21")
def test_b2_21_a_head_in_drips_is_given_up(http_target: Target) -> None:
    http_target.start(head_timeout_s=0.3)
    with http_under_attack(http_target), http_target.connect() as attacker:
        drip_until_closed(attacker, _GET + b"A: " + b"b" * 10_000)
    assert http_target.counters()["abuse"] == {"slow_head": 1}


@pytest.mark.wire("B2-21")
def test_b2_21_without_that_timeout_it_may_take_for_ever(http_target: Target) -> None:
    http_target.start(head_timeout_s=NEVER_S)
    with http_target.connect() as attacker:
        attacker.send(b"GET / HT")
        assert stays_open(attacker)


def drip_until_closed(attacker: HttpAttacker, data: bytes) -> None:
    """Send byte after byte until the server ends; it ends before they do."""
    attacker.socket.settimeout(0.01)
    for at in range(len(data)):
        if not attacker.send(data[at : at + 1]):
            return
        with contextlib.suppress(TimeoutError):
            if not attacker.read():
                return
    raise AssertionError("all of it was taken")


@pytest.mark.wire("B2-21")
@pytest.mark.parametrize(
    "start", [_POST + b"Content-Length: 9000\r\n\r\n", _CHUNKED + b"2000\r\n",
              b"PUT /stream HTTP/1.1\r\nHost: a\r\nContent-Length: 9000\r\n\r\n"],
    ids=["length", "chunked", "streamed"],
)  # fmt: skip
def test_b2_21_a_body_in_drips_is_given_up(http_target: Target, start: bytes) -> None:
    http_target.start(body_grace_s=0.3)
    http_target.release()
    with http_under_attack(http_target), http_target.connect() as attacker:
        attacker.send(start)
        drip_until_closed(attacker, b"x" * 8_000)
        answer = attacker.answer()
        assert answer is not None
        assert answer.status == 408
    assert http_target.counters()["abuse"] == {"slow_body": 1}


@pytest.mark.wire("B2-21")
def test_b2_21_without_a_rate_drips_are_enough(http_target: Target) -> None:
    http_target.start(body_grace_s=0.3, body_bytes_per_s_min=1)
    with http_target.connect() as attacker:
        attacker.send(_POST + b"Content-Length: 60\r\n\r\n")
        attacker.socket.settimeout(0.01)
        for _ in range(60):
            attacker.send(b"x")
            with contextlib.suppress(TimeoutError):
                attacker.read()
        attacker.socket.settimeout(10)
        answer = attacker.answer()
        assert answer is not None
        assert answer.status == 200


@pytest.mark.wire("B2-21")
def test_b2_21_a_client_that_never_reads_is_dropped(http_target: Target) -> None:
    http_target.start(write_grace_s=0.3)
    with http_under_attack(http_target), http_target.connect(receive_bytes=2048) as attacker:
        attacker.send(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
        http_target.wait_until("slow_read")
    assert http_target.counters()["abuse"] == {"slow_read": 1}


@pytest.mark.wire("B2-21")
def test_b2_21_without_that_timeout_the_answer_is_held(http_target: Target) -> None:
    http_target.start(write_grace_s=NEVER_S)
    with http_target.connect(receive_bytes=2048) as attacker:
        attacker.send(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
        http_target.wait_until("buffered_bytes", 1 << 20)
        with http_target.connect() as other:
            assert stays_open(other)
        assert http_target.counters()["buffered_bytes"] > 1 << 20


def test_a_streamed_answer_waits_for_its_reader(http_target: Target) -> None:
    http_target.start()
    with http_under_attack(http_target), http_target.connect(receive_bytes=2048) as attacker:
        attacker.send(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
        http_target.wait_until("produced_bytes")
        assert not stays_open(attacker) or http_target.counters()["produced_bytes"] < 16 << 20
        assert http_target.counters()["buffered_bytes"] < 1 << 20
    # `settled` has seen that the generator was closed when the client left.


@pytest.mark.parametrize("bounded", [True, False])
def test_a_streamed_body_waits_for_its_handler(http_target: Target, bounded: bool) -> None:
    http_target.start(**({} if bounded else {"stream_bytes_max": 1 << 40}))
    size = 32 << 20
    with http_under_attack(http_target), http_target.connect() as attacker:
        attacker.send(b"PUT /stream HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        sent = attacker.stuff(bytes(1 << 16) for _ in range(size >> 16))
        held = http_target.counters()["held_bytes"]
        if bounded:
            assert held < 2 << 20
            assert sent < size
        else:
            assert held > 16 << 20
        http_target.release()
        assert attacker.send(bytes(size - sent))
        answer = attacker.answer()
        assert answer is not None
        assert answer.body == b"%d" % size


BOMBS = [
    ("head_too_large", 431, {"head_bytes_max": 1 << 30}, _GET + b"A: " + b"b" * 70_000
     + b"\r\n\r\n"),
    ("headers", 431, {"headers_max": 1 << 30}, _GET + b"A:b\r\n" * 101 + b"\r\n"),
    ("headers", 431, {"headers_max": 1 << 30}, _CHUNKED + b"0\r\n" + b"A:b\r\n" * 101 + b"\r\n"),
    ("head_too_large", 431, {"head_bytes_max": 1 << 30}, b"GET /?" + b"a" * 70_000
     + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("chunk_flood", 413, {"chunks_max": 1 << 30}, _CHUNKED + b"1\r\nx\r\n" * 70_000 + b"0\r\n\r\n"),
    ("chunk_overhead", 413, {"chunk_overhead_bytes_max": 1 << 30}, _CHUNKED
     + b"1;" + b"e" * 40_000 + b"\r\nx\r\n0\r\n\r\n"),
    ("body_too_large", 413, {"body_bytes_max": 1 << 40}, _INFLATE
     + b"Content-Length: 68000000\r\n\r\n" + bytes(68_000_000)),
]  # fmt: skip


def _row(reason: str) -> str:
    """The row of the reference: header bombs, or empty pieces and too many of them."""
    return "B2-13" if reason.startswith("head") else "B2-08"


def _rows() -> list[object]:
    return [
        pytest.param(*bomb, marks=pytest.mark.wire(_row(bomb[0])),
                     id=f"{_row(bomb[0]).lower().replace('-', '_')}-{bomb[0]}-{at}")
        for at, bomb in enumerate(BOMBS)
    ]  # fmt: skip


@pytest.mark.parametrize(("reason", "status", "loosened", "data"), _rows())
def test_a_bomb_is_refused(
    http_target: Target,
    reason: str,
    status: int,
    loosened: dict[str, int],
    data: bytes,
) -> None:
    http_target.start()
    with http_under_attack(http_target), http_target.connect() as attacker:
        threading.Thread(target=attacker.send, args=(data,), daemon=True).start()
        answer = attacker.answer()
        assert answer is not None
        assert answer.status == status
    assert http_target.counters()["abuse"] == {reason: 1}


@pytest.mark.parametrize(("reason", "status", "loosened", "data"), _rows())
def test_without_its_limit_it_is_answered(
    http_target: Target,
    reason: str,
    status: int,
    loosened: dict[str, int],
    data: bytes,
) -> None:
    http_target.start(**loosened)
    with http_target.connect() as attacker:
        threading.Thread(target=attacker.send, args=(data,), daemon=True).start()
        answer = attacker.answer()
        assert answer is not None
        assert answer.status == 200
    assert not http_target.settled()["abuse"]


def _bomb(size: int) -> bytes:
    body = gzip.compress(bytes(size), 9)
    return (
        b"POST /inflate HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body) + body
    )


@pytest.mark.wire("B2-22")
@pytest.mark.parametrize(
    ("inflated_max", "held_max", "status"),
    [(1 << 20, 1 << 30, 400), (64 << 20, 1 << 20, 429), (64 << 20, 1 << 30, 200)],
    ids=["b2_22-too_large", "b2_22-budget_spent", "b2_22-without_limits"],
)
def test_b2_22_an_inflation_bomb_is_cut_off(
    http_target: Target,
    inflated_max: int,
    held_max: int,
    status: int,
) -> None:
    http_target.start(inflated_bytes_max=inflated_max, held_bytes_max=held_max)
    with http_under_attack(http_target), http_target.connect() as attacker:
        before = http_target.counters()["rss_bytes"]
        attacker.send(_bomb(48 << 20))
        answer = attacker.answer()
        assert answer is not None
        assert answer.status == status
        if status == 429:
            assert http_target.counters()["abuse"] == {"held_bytes": 1}
        if status != 200:
            assert http_target.counters()["rss_bytes"] - before < 16 << 20


@pytest.mark.parametrize("bounded", [True, False])
def test_all_bodies_together_are_bounded(http_target: Target, bounded: bool) -> None:
    http_target.start(**({"held_bytes_max": 1 << 20} if bounded else {}))
    half = _POST + b"Content-Length: 700001\r\n\r\n" + bytes(700_000)
    with http_under_attack(http_target), http_target.connect() as first:
        first.send(half)
        http_target.wait_until("held_bytes", 650_000)
        with http_target.connect() as second:
            second.send(half)
            if not bounded:
                second.send(b"x")
            answer = second.answer()
            assert answer is not None
            assert answer.status == (429 if bounded else 200)
        first.send(b"x")
        assert first.answer() is not None
    assert http_target.counters()["abuse"] == ({"held_bytes": 1} if bounded else {})


@pytest.mark.wire("B2-09")
@pytest.mark.parametrize("bounded", [True, False])
def test_b2_09_handlers_count_until_they_end(http_target: Target, bounded: bool) -> None:
    """Also those whose clients have left."""
    http_target.start(calls_max=4 if bounded else 8192)
    wait = b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n"
    for count in range(1, 5):
        with http_target.connect() as attacker:
            attacker.send(wait)
            http_target.wait_until("running", count)
    with http_target.connect() as client:
        client.send(_GET + b"\r\n")
        answer = client.answer()
        assert answer is not None
        assert answer.status == (429 if bounded else 200)
        http_target.release()
    http_target.settled()


@pytest.mark.wire("B2-09")
@pytest.mark.parametrize("bounded", [True, False])
def test_b2_09_pipelined_requests_wait_in_the_socket(http_target: Target, bounded: bool) -> None:
    http_target.start(**({} if bounded else {"pipelined_max": 1 << 30}))
    with http_under_attack(http_target), http_target.connect() as attacker:
        attacker.send(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n" + (_GET + b"\r\n") * 5_000)
        queued = http_target.wait_until("queued", 60 if bounded else 4_900)["queued"]
        assert (queued <= 64) is bounded
        http_target.release()
        for _ in range(5_001):
            answer = attacker.answer()
            assert answer is not None
            assert answer.status == 200


@pytest.fixture
def many_files() -> Iterator[int]:
    """As many descriptors as there may be, here and in processes that begin now."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.wire("B2-21")
@pytest.mark.slow
def test_b2_21_ten_thousand_idle_connections_are_bounded(many_files: int) -> None:
    count = 10_000
    if many_files < count + 500:
        pytest.skip(f"only {many_files} open files are allowed")
    target = HttpTarget()
    with contextlib.closing(target), contextlib.ExitStack() as clients:
        target.start(connections_max=count + 2, connections_per_address_max=count + 2,
                     head_timeout_s=NEVER_S)  # fmt: skip
        with http_under_attack(target):
            empty = target.counters()["rss_bytes"]
            for _ in range(count):
                clients.enter_context(target.connect())
            full = target.wait_until("connections", count)
            assert (full["rss_bytes"] - empty) / count < 12 * 1024
            clients.enter_context(target.connect())
            with target.connect() as one_too_many:
                assert one_too_many.closed()
            assert target.counters()["abuse"] == {"connections": 1}
            clients.close()


@pytest.mark.wire("B2-21")
@pytest.mark.parametrize(
    ("limit", "reason"),
    [("connections_max", "connections"),
     ("connections_per_address_max", "connections_per_address"), ("", "")],
)  # fmt: skip
def test_b2_21_connections_count_from_the_accept_on(
    http_target: Target,
    limit: str,
    reason: str,
) -> None:
    http_target.start(**({limit: 3} if limit else {}))
    with contextlib.ExitStack() as clients:
        for _ in range(3):
            clients.enter_context(http_target.connect())
        http_target.wait_until("open_connections", 3)
        with http_target.connect() as fourth:
            fourth.send(_GET + b"\r\n")
            assert (fourth.answer() is None) is bool(limit)
    assert http_target.settled()["abuse"] == ({reason: 1} if limit else {})


def test_a_client_that_resets_at_once_costs_nothing(http_target: Target) -> None:
    http_target.start()
    linger = (1).to_bytes(4, "little") + bytes(4)
    with http_under_attack(http_target):
        for _ in range(50):
            with http_target.connect() as attacker:
                attacker.send(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
                attacker.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
