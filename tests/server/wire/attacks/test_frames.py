"""Frames that are wrong by themselves: their length, their stream, their place."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from server.wire.http2.frames import ErrorCode
from tests.support.attacker import (
    CLOSED_SILENTLY,
    Goaway,
    Target,
    fields_for,
    message,
    under_attack,
)
from tests.support.frame_factory import (
    DATA,
    END_HEADERS,
    GOAWAY,
    GRPC_FIELDS,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    FrameFactory,
)

UNIMPLEMENTED = 12
Frames = Callable[[FrameFactory], bytes]


def _raw(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> Frames:
    return lambda factory: factory.raw(kind, flags, stream_id, payload)


# B2-18: lengths. Stream 1 is open.

_FIXED = {
    "SETTINGS-of-5": (_raw(SETTINGS, 0, 0, bytes(5)), "SETTINGS of a broken length"),
    "SETTINGS-of-7": (_raw(SETTINGS, 0, 0, bytes(7)), "SETTINGS of a broken length"),
    "SETTINGS-ack-of-6": (_raw(SETTINGS, 1, 0, bytes(6)), "SETTINGS ack with a payload"),
    "PING-of-7": (_raw(PING, 0, 0, bytes(7)), "PING is not 8 bytes"),
    "PING-of-9": (_raw(PING, 0, 0, bytes(9)), "PING is not 8 bytes"),
    "PRIORITY-of-4": (_raw(PRIORITY, 0, 1, bytes(4)), "PRIORITY is not 5 bytes"),
    "PRIORITY-of-6": (_raw(PRIORITY, 0, 1, bytes(6)), "PRIORITY is not 5 bytes"),
    "RST_STREAM-of-3": (_raw(RST_STREAM, 0, 1, bytes(3)), "RST_STREAM is not 4 bytes"),
    "RST_STREAM-of-5": (_raw(RST_STREAM, 0, 1, bytes(5)), "RST_STREAM is not 4 bytes"),
    "WINDOW_UPDATE-of-3": (_raw(WINDOW_UPDATE, 0, 1, bytes(3)), "WINDOW_UPDATE is not 4 bytes"),
    "WINDOW_UPDATE-of-5": (_raw(WINDOW_UPDATE, 0, 0, bytes(5)), "WINDOW_UPDATE is not 4 bytes"),
    "GOAWAY-of-7": (_raw(GOAWAY, 0, 0, bytes(7)), "GOAWAY too short"),
    "padded-DATA-of-0": (_raw(DATA, PADDED, 1), "a padded frame without a pad length"),
    "HEADERS-with-priority-of-4": (_raw(HEADERS, 0x24, 3, bytes(4)), "HEADERS too short"),
    "DATA-of-16385": (_raw(DATA, 0, 1, bytes(16_385)), "a frame above SETTINGS_MAX_FRAME_SIZE"),
    "HEADERS-of-16385": (
        _raw(HEADERS, END_HEADERS, 3, bytes(16_385)), "a frame above SETTINGS_MAX_FRAME_SIZE",
    ),
    "unknown-of-16385": (_raw(0xBB, 0, 0, bytes(16_385)), "a frame above SETTINGS_MAX_FRAME_SIZE"),
    # Only what it announces: not a byte of it is waited for.
    "DATA-of-16-MiB-announced": (
        lambda _: b"\xff\xff\xff" + b"\x00\x00" + b"\x00\x00\x00\x01",
        "a frame above SETTINGS_MAX_FRAME_SIZE",
    ),
}  # fmt: skip


@pytest.mark.wire("B2-18")
@pytest.mark.parametrize("name", [pytest.param(name, id=f"b2_18-{name}") for name in _FIXED])
def test_b2_18_a_frame_of_a_wrong_length_ends_its_connection(target: Target, name: str) -> None:
    frames, reason = _FIXED[name]
    target.start()
    with under_attack(target), target.greeted() as attacker:
        attacker.send(attacker.factory.headers(1, fields_for("Total")))
        attacker.send(frames(attacker.factory))
        assert attacker.goaway() == Goaway(ErrorCode.FRAME_SIZE_ERROR, reason)
    now = target.settled()
    assert now["abuse"] == {}
    assert now["peak"] <= 2  # the open call's handler, and one of the honest client


@pytest.mark.wire("B2-18")
def test_b2_18_frames_of_their_right_lengths_are_taken(target: Target) -> None:
    """Each of them again, a byte longer or shorter."""
    target.start()
    with target.greeted() as client:
        factory = client.factory
        client.send(factory.headers(1, fields_for("Total")))
        client.send(
            factory.settings({4: 65_535}) + factory.settings(ack=True) + factory.ping()
            + factory.priority(1) + factory.window_update(1, 1) + factory.window_update(0, 1)
            + factory.goaway() + factory.raw(0xBB, 0, 0, bytes(16_384))
            + factory.data(1, message(bytes(16_379)))  # a frame of 16,384 bytes
            + factory.data(1, message(b"x"), padding=0, end_stream=True)
        )  # fmt: skip
        assert client.status(1) == 0
        assert client.body(1)[5:] == b"16380"
        client.send(factory.headers(3, fields_for("Total")) + factory.rst_stream(3))
        client.send(factory.headers(5, fields_for("Total"), priority=(0, 16, False)))
        client.send(factory.data(5, end_stream=True))
        assert client.status(5) == 0
    assert not target.settled()["abuse"]


# B2-19: stream ids. Streams 1 and 7 have ended, 9 is open.

_IDLE = Goaway(ErrorCode.PROTOCOL_ERROR, "a frame on an idle stream")
_CLOSED = Goaway(ErrorCode.STREAM_CLOSED, "a frame on a closed stream")
_IDS: dict[str, tuple[Frames, Goaway]] = {
    "even": (
        lambda factory: factory.headers(10, GRPC_FIELDS),
        Goaway(ErrorCode.PROTOCOL_ERROR, "a client's stream id is even"),
    ),
    "used-again": (lambda factory: factory.headers(7, GRPC_FIELDS, end_stream=True), _CLOSED),
    "passed-over": (lambda factory: factory.headers(5, GRPC_FIELDS, end_stream=True), _CLOSED),
    "lower-and-even": (
        lambda factory: factory.headers(2, GRPC_FIELDS, end_stream=True),
        _IDLE,
    ),
    "HEADERS-on-0": (
        lambda factory: factory.headers(0, GRPC_FIELDS),
        Goaway(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0"),
    ),
    "DATA-on-0": (
        lambda factory: factory.data(0, b"x"),
        Goaway(ErrorCode.PROTOCOL_ERROR, "DATA on stream 0"),
    ),
    "DATA-on-an-idle-one": (lambda factory: factory.data(11, b"x"), _IDLE),
    "DATA-on-a-closed-one": (lambda factory: factory.data(7, b"x"), _CLOSED),
    "RST_STREAM-on-an-idle-one": (lambda factory: factory.rst_stream(11), _IDLE),
    "RST_STREAM-on-0": (
        lambda factory: factory.rst_stream(0),
        Goaway(ErrorCode.PROTOCOL_ERROR, "RST_STREAM on stream 0"),
    ),
    "WINDOW_UPDATE-on-an-idle-one": (lambda factory: factory.window_update(11, 1), _IDLE),
    "WINDOW_UPDATE-on-an-even-one": (lambda factory: factory.window_update(8, 1), _IDLE),
    "PRIORITY-on-0": (
        lambda factory: factory.priority(0),
        Goaway(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0"),
    ),
    "SETTINGS-on-a-stream": (
        _raw(SETTINGS, 0, 9),
        Goaway(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream"),
    ),
    "PING-on-a-stream": (
        _raw(PING, 0, 9, bytes(8)),
        Goaway(ErrorCode.PROTOCOL_ERROR, "PING on a stream"),
    ),
    "GOAWAY-on-a-stream": (
        _raw(GOAWAY, 0, 9, bytes(8)),
        Goaway(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream"),
    ),
    "PUSH_PROMISE": (
        _raw(PUSH_PROMISE, END_HEADERS, 9, bytes(4)),
        Goaway(ErrorCode.PROTOCOL_ERROR, "a client may not push"),
    ),
}


@pytest.mark.wire("B2-19")
@pytest.mark.parametrize("name", [pytest.param(name, id=f"b2_19-{name}") for name in _IDS])
def test_b2_19_a_wrong_stream_ends_its_connection(target: Target, name: str) -> None:
    frames, goaway = _IDS[name]
    target.start()
    with under_attack(target), target.greeted() as attacker:
        assert attacker.call(1) == attacker.call(7) == 0
        attacker.send(attacker.factory.headers(9, fields_for("Total")))
        attacker.send(frames(attacker.factory))
        assert attacker.goaway() == goaway
    assert not target.counters()["abuse"]


@pytest.mark.wire("B2-19")
def test_b2_19_what_may_come_late_is_honest(target: Target) -> None:
    """The same frames where they are allowed: they crossed the end of their stream."""
    target.start()
    with target.greeted() as client:
        factory = client.factory
        assert client.call(1) == client.call(7) == 0
        client.send(
            factory.rst_stream(7) + factory.window_update(7, 1) + factory.window_update(5, 1)
        )
        client.send(factory.priority(11) + factory.priority(8))
        client.send(factory.headers(9, fields_for("Nowhere")))
        assert client.status(9) == UNIMPLEMENTED
        client.send(
            factory.data(9, b"under way") + factory.headers(9, [(b"a", b"b")], end_stream=True)
        )
        assert client.call(101) == 0
    assert not target.settled()["abuse"]


@pytest.mark.wire("B2-19")
def test_b2_19_the_last_stream_ids_are_served_and_the_client_sent_away(target: Target) -> None:
    """A client may begin anywhere: the ids that are left are too few for long."""
    target.start()
    with under_attack(target), target.greeted() as attacker:
        assert attacker.call(2**31 - 3) == 0
        assert attacker.call(2**31 - 1) == 0
        first = attacker.wait_for(GOAWAY)
        assert int.from_bytes(first.payload[:4], "big") == 2**31 - 1
        assert first.payload[4:] == bytes(4) + b"stream ids used up"
        attacker.send(attacker.factory.ping(b"drain\0\0\0", ack=True))
        assert attacker.goaway().code == ErrorCode.NO_ERROR
    assert not target.counters()["abuse"]


# B2-24: what may not stand within a header block, and what nobody knows.

_INTERLEAVED: dict[str, Frames] = {
    "DATA": lambda factory: factory.data(1, b"x"),
    "HEADERS": lambda factory: factory.headers(3, GRPC_FIELDS),
    "HEADERS-of-the-same": lambda factory: factory.headers(1, GRPC_FIELDS),
    "CONTINUATION-of-another": lambda factory: factory.continuation(3, b""),
    "PRIORITY": lambda factory: factory.priority(1),
    "RST_STREAM": lambda factory: factory.rst_stream(1),
    "SETTINGS": lambda factory: factory.settings(),
    "PING": lambda factory: factory.ping(),
    "GOAWAY": lambda factory: factory.goaway(),
    "WINDOW_UPDATE": lambda factory: factory.window_update(0, 1),
    "an-unknown-type": _raw(0xBB, 0, 1),
}


@pytest.mark.wire("B2-24")
@pytest.mark.parametrize("name", [pytest.param(name, id=f"b2_24-{name}") for name in _INTERLEAVED])
@pytest.mark.parametrize("within", [True, False], ids=["within", "behind"])
def test_b2_24_frames_within_a_header_block(target: Target, name: str, within: bool) -> None:
    """Each ends the connection within a block, and is fine behind it (if it is fine at all)."""
    target.start()
    with under_attack(target), target.greeted() as attacker:
        factory = attacker.factory
        block = factory.block(fields_for("Method"))
        attacker.send(factory.headers(1, block[:5], end_headers=False))
        if within:
            attacker.send(_INTERLEAVED[name](factory) + factory.continuation(1, block[5:]))
            expected = Goaway(ErrorCode.PROTOCOL_ERROR, "another frame within a header block")
            assert attacker.goaway() == expected
            assert target.counters()["abuse"] == {"interleaved": 1}
            return
        attacker.send(factory.continuation(1, block[5:]) + _INTERLEAVED[name](factory))
        if name == "CONTINUATION-of-another":
            expected = Goaway(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
            assert attacker.goaway() == expected
        elif name == "HEADERS-of-the-same":  # trailers, and malformed ones
            assert attacker.reset(1) == ErrorCode.PROTOCOL_ERROR
        else:
            assert attacker.call(101) == 0
        assert not target.counters()["abuse"]


@pytest.mark.wire("B2-24")
def test_b2_24_what_nobody_knows_is_passed_over(target: Target) -> None:
    target.start()
    with target.greeted({0x99: 1, 8: 1}) as client:
        factory = client.factory
        for kind in (0x0A, 0x0C, 0x10, 0x42, 0xFF):
            for stream_id in (0, 1, 2, 101):
                client.send(factory.raw(kind, 0xFF, stream_id, b"whatever"))
        unknown_flags = factory.headers(1, fields_for("Method"))
        client.send(unknown_flags[:4] + bytes((unknown_flags[4] | 0xD2,)) + unknown_flags[5:])
        client.send(factory.data(1, message(b"x"), end_stream=True))
        assert client.status(1) == 0
    assert not target.settled()["abuse"]


@pytest.mark.wire("B2-24")
@pytest.mark.parametrize(
    "first",
    [
        pytest.param(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n", id="b2_24-HTTP-1.1"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", id="b2_24-a-wrong-preface"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="b2_24-TLS"),
    ],
)
def test_b2_24_who_does_not_speak_http2_is_told_at_once(target: Target, first: bytes) -> None:
    target.start()
    with under_attack(target), target.connect() as attacker:
        attacker.send(first)
        expected = Goaway(ErrorCode.PROTOCOL_ERROR, "no HTTP/2 connection preface")
        assert attacker.goaway() in {expected, CLOSED_SILENTLY}
    assert not target.counters()["abuse"]
