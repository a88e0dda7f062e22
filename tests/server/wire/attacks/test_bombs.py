"""Messages that say, or become, far more than what was sent of them."""

from __future__ import annotations

import zlib

import pytest

from tests.support.attacker import Attacker, Target, fields_for, message, under_attack
from tests.support.frame_factory import RST_STREAM, FrameFactory

RESOURCE_EXHAUSTED = 8
_MIB = 1 << 20
_GZIP = [(b"grpc-encoding", b"gzip")]


def _bomb(mib: int, encoding: str = "gzip") -> bytes:
    """So many MiB of zeros, compressed a thousandfold."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31 if encoding == "gzip" else 15)
    head = packer.compress(b"") or packer.flush(zlib.Z_SYNC_FLUSH)
    # One MiB after a full flush stands for itself: it may be repeated.
    one = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = one.compress(bytes(_MIB)) + one.flush(zlib.Z_FULL_FLUSH)
    return head + piece * mib


def _compressed(data: bytes) -> bytes:
    return message(zlib.compress(data, 9, 31), flag=1)


def _send(attacker: Attacker, stream_id: int, method: str, body: bytes, encoding: str) -> None:
    factory = attacker.factory
    head = factory.headers(stream_id, fields_for(method, (b"grpc-encoding", encoding.encode())))
    attacker.send(head)
    pieces = [body[at : at + 16_384] for at in range(0, len(body), 16_384)]
    attacker.send(
        b"".join(
            factory.data(stream_id, piece, end_stream=at == len(pieces) - 1)
            for at, piece in enumerate(pieces)
        )
    )


# B2-22: a compressed message that swells.


@pytest.mark.wire("B2-22")
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("method", ["Method", "Total"])
def test_b2_22_a_bomb_of_a_gib_is_refused_at_the_limit(
    own_target: Target, encoding: str, method: str
) -> None:
    own_target.start(server_limits={"message_bytes_max": 4 * _MIB})
    bomb = message(_bomb(1_024, encoding), flag=1)
    assert len(bomb) < 1.1 * _MIB
    with under_attack(own_target), own_target.greeted() as attacker:
        before = own_target.counters()
        _send(attacker, 1, method, bomb, encoding)
        assert attacker.status(1) == RESOURCE_EXHAUSTED
        now = own_target.counters()
        # The message as it came, what came out of it up to the limit, and zlib's own.
        assert now["rss_peak_bytes"] - before["rss_bytes"] < 12 * _MIB
        assert now["held_bytes"] == 0
        assert attacker.call(3) == 0
    now = own_target.counters()
    assert now["abuse"] == {}
    assert now["ended"]["RESOURCE_EXHAUSTED"] == 1


@pytest.mark.wire("B2-22")
def test_b2_22_bombs_cost_little_processor_time(own_target: Target) -> None:
    own_target.start(server_limits={"message_bytes_max": 4 * _MIB})
    bomb = message(_bomb(1_024), flag=1)
    with own_target.greeted() as attacker:
        before = own_target.counters()["cpu_s"]
        for stream_id in range(1, 11, 2):
            _send(attacker, stream_id, "Method", bomb, "gzip")
            assert attacker.status(stream_id) == RESOURCE_EXHAUSTED
        # All of five GiB would take many seconds.
        assert own_target.counters()["cpu_s"] - before < 1.0
    own_target.settled()


@pytest.mark.wire("B2-22")
@pytest.mark.parametrize(("limit_mib", "status"), [(31, RESOURCE_EXHAUSTED), (32, 0)])
def test_b2_22_it_is_the_limit_that_refuses_it(target: Target, limit_mib: int, status: int) -> None:
    target.start(server_limits={"message_bytes_max": limit_mib * _MIB})
    with target.greeted() as attacker:
        _send(attacker, 1, "Total", _compressed(bytes(32 * _MIB)), "gzip")
        assert attacker.status(1) == status
    assert not target.settled()["abuse"]


@pytest.mark.wire("B2-22")
@pytest.mark.parametrize("request_mib", [4, 1_024])
def test_b2_22_many_that_are_within_the_limit_are_bounded_together(
    target: Target, request_mib: int
) -> None:
    """Twenty messages of a MiB, each a KiB on the wire, whose handlers are at work."""
    limits = {"message_bytes_max": _MIB, "request_bytes_max": request_mib * _MIB}
    target.start(server_limits=limits)
    with under_attack(target), target.greeted() as attacker:
        for stream_id in range(1, 41, 2):
            _send(attacker, stream_id, "Slow", _compressed(bytes(_MIB)), "gzip")
        assert attacker.is_alive()
        now = target.counters()
        if request_mib == 4:
            assert now["held_bytes"] == 4 * _MIB
            assert now["ended"]["RESOURCE_EXHAUSTED"] == 16
        else:
            assert now["held_bytes"] >= 20 * _MIB
            assert "RESOURCE_EXHAUSTED" not in now["ended"]
        target.release()
    assert not target.counters()["abuse"]


# B2-23: a length prefix that lies.

_METHODS = ["Method", "Batched", "Total", "Chat"]


def _open(factory: FrameFactory, method: str, flag: int, length: int) -> bytes:
    head = factory.headers(1, fields_for(method, *_GZIP))
    return head + factory.data(1, message(b"and a little of it", flag=flag, length=length))


@pytest.mark.wire("B2-23")
@pytest.mark.parametrize("method", _METHODS)
@pytest.mark.parametrize("flag", [0, 1])
@pytest.mark.parametrize(
    ("length", "limit"), [(2**32 - 1, 64 * _MIB), (5_242_880, 4_194_304), (101, 100)]
)
def test_b2_23_a_length_above_the_limit_is_refused_at_once(
    target: Target, method: str, flag: int, length: int, limit: int
) -> None:
    target.start(server_limits={"message_bytes_max": limit})
    with under_attack(target), target.greeted() as attacker:
        attacker.send(_open(attacker.factory, method, flag, length))
        assert attacker.status(1) == RESOURCE_EXHAUSTED
        # Nobody waits for the rest, and the client is told so.
        assert attacker.reset(1) == 0
        now = target.counters()
        assert now["held_bytes"] == 0
        attacker.send(attacker.factory.data(1, bytes(16_384)) * 3)
        assert attacker.call(3) == 0
    assert not target.counters()["abuse"]


@pytest.mark.wire("B2-23")
@pytest.mark.parametrize("method", _METHODS)
def test_b2_23_below_the_limit_it_is_waited_for_and_no_room_is_made(
    own_target: Target, method: str
) -> None:
    """With the limit out of the way 4 GiB may be announced: they cost what has come of them."""
    own_target.start(server_limits={"message_bytes_max": 1 << 32})
    with own_target.greeted() as attacker:
        before = own_target.counters()["rss_bytes"]
        attacker.send(_open(attacker.factory, method, 0, 2**32 - 1))
        assert attacker.is_alive()
        now = own_target.counters()
        assert (now["live"], now["streams"]) == (1, 1)
        assert now["rss_peak_bytes"] - before < 4 * _MIB
        assert not [frame for frame in attacker.frames if frame.kind == RST_STREAM]
    assert not own_target.settled()["abuse"]
