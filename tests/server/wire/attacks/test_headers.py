"""Header blocks as weapons: endless, swelling, out of step with the table, or meant to smuggle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, repeat

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.exceptions import ProtocolError

from server.wire.http2.frames import ErrorCode
from tests.support.attacker import Attacker, Goaway, Target, fields_for, message, under_attack
from tests.support.frame_factory import GRPC_FIELDS, FrameFactory, Pair

RESOURCE_EXHAUSTED, UNIMPLEMENTED = 8, 12
_ENDLESS = 1 << 40
_EMPTY_FIELD = b"\x00\x00\x00"  # a literal without indexing: no name, no value
_YOUNGEST = b"\xbe"  # the index of the dynamic table's youngest entry
# As many references as one frame holds.
_REFERENCES = _YOUNGEST * 16_000
_ANY_LIST = {"header_list_bytes_max": 1 << 30, "header_fields_max": 1 << 20}


def _begin(attacker: Attacker, stream_id: int, block: bytes) -> None:
    """Send a unary request whose head is this block, and its body."""
    factory = attacker.factory
    attacker.send(
        factory.headers(stream_id, block) + factory.data(stream_id, message(b"x"), end_stream=True)
    )


def _fields(attacker: Attacker, more: bytes) -> bytes:
    """A call's own fields, then more of a block."""
    return attacker.factory.block(GRPC_FIELDS) + more


# B2-06: fields without a name and without a value.


@pytest.mark.wire("B2-06")
def test_b2_06_empty_names_cost_their_stream(target: Target) -> None:
    target.start()
    with under_attack(target), target.greeted() as attacker:
        _begin(attacker, 1, _fields(attacker, _EMPTY_FIELD))
        assert attacker.reset(1) == ErrorCode.PROTOCOL_ERROR
        _begin(attacker, 3, _fields(attacker, _EMPTY_FIELD * 1_000))
        assert attacker.status(3) == RESOURCE_EXHAUSTED
        assert attacker.call(5) == 0
    assert not target.counters()["abuse"]


@pytest.mark.wire("B2-06")
def test_b2_06_many_empty_names_are_a_bomb(target: Target) -> None:
    target.start()
    with under_attack(target), target.greeted() as attacker:
        _begin(attacker, 1, _fields(attacker, _EMPTY_FIELD * 2_000))
        assert attacker.goaway() == Goaway(ErrorCode.ENHANCE_YOUR_CALM, "header_bomb")
    assert target.counters()["abuse"] == {"header_bomb": 1}


@pytest.mark.wire("B2-06")
def test_b2_06_without_the_defence_they_are_taken(target: Target) -> None:
    target.start(without=["header_validity"], **_ANY_LIST)
    with target.greeted() as attacker:
        for stream_id, count in ((1, 1), (3, 1_000), (5, 2_000)):
            _begin(attacker, stream_id, _fields(attacker, _EMPTY_FIELD * count))
            assert attacker.status(stream_id) == 0
    target.settled()


@pytest.mark.wire("B2-06")
def test_b2_06_they_leave_no_memory_behind(own_target: Target) -> None:
    """What CVE-2019-9516 leaked: an allocation for each name of no bytes."""
    own_target.start()

    def attack(streams: int) -> int:
        with own_target.greeted() as attacker:
            for stream_id in range(1, 2 * streams, 2):
                _begin(attacker, stream_id, _fields(attacker, _EMPTY_FIELD * 1_000))
                attacker.status(stream_id)
        rss_bytes: int = own_target.settled()["rss_bytes"]
        return rss_bytes

    before = attack(30)
    assert attack(150) - before < 2 << 20


# B2-11: CONTINUATION without end.


def _blocks(attacker: Attacker, piece: bytes, count: int | None) -> Iterator[bytes]:
    """HEADERS, then CONTINUATION frames that each carry `piece`; no END_HEADERS."""
    factory = attacker.factory
    head = factory.headers(1, GRPC_FIELDS, end_headers=False)
    frame = factory.continuation(1, piece, end_headers=False)
    return chain([head], repeat(frame) if count is None else repeat(frame, count))


_NOTHING = b"\x00\x01x\x01y"  # a literal field: x: y
_FLOODS = [
    pytest.param(b"", 100, id="b2_11-100-empty-frames"),
    pytest.param(bytes(16_384), None, id="b2_11-16-KiB-for-ever"),
    pytest.param(b"\x88", 1_000, id="b2_11-a-byte-at-a-time"),
    pytest.param(b"", 64, id="b2_11-a-block-of-65-frames"),
]


@pytest.mark.wire("B2-11")
@pytest.mark.parametrize(("piece", "count"), _FLOODS)
def test_b2_11_a_continuation_flood_ends_its_connection(
    target: Target, piece: bytes, count: int | None
) -> None:
    target.start()
    with under_attack(target), target.greeted() as attacker:
        attacker.stuff(_blocks(attacker, piece, count))
        assert attacker.goaway() in {
            Goaway(ErrorCode.ENHANCE_YOUR_CALM, "continuation_flood"),
            Goaway(-1, ""),  # it sent on for so long that the goodbye was lost on the way
        }
    assert target.counters()["abuse"] == {"continuation_flood": 1}


@pytest.mark.wire("B2-11")
def test_b2_11_a_block_of_64_frames_is_honest(target: Target) -> None:
    target.start()
    with target.greeted() as client:
        factory = client.factory
        client.send(b"".join(_blocks(client, b"", 62)) + factory.continuation(1, b""))
        client.send(factory.data(1, message(b"x"), end_stream=True))
        assert client.status(1) == 0
    assert not target.settled()["abuse"]


@pytest.mark.wire("B2-11")
def test_b2_11_without_the_bounds_the_frames_are_gathered(target: Target) -> None:
    target.start(header_block_frames_max=_ENDLESS, **_ANY_LIST)
    with target.greeted() as attacker:
        factory = attacker.factory
        big = b"\x00\x01x\x7f" + _varint(200 * 16_000 - 127) + b"y" * (200 * 16_000)
        pieces = [big[at : at + 16_000] for at in range(0, len(big), 16_000)]
        head = factory.headers(1, GRPC_FIELDS, end_headers=False)
        frames = [factory.continuation(1, piece, end_headers=False) for piece in pieces]
        frames += [factory.continuation(1, b"", end_headers=False)] * 100
        attacker.send(head + b"".join(frames) + factory.continuation(1, _NOTHING))
        attacker.send(factory.data(1, message(b"x"), end_stream=True))
        assert attacker.status(1) == 0
    target.settled()


def _varint(value: int) -> bytes:
    """The bytes of an HPACK integer after its prefix."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


@pytest.mark.wire("B2-11")
def test_b2_11_twenty_floods_cost_little_processor_time(own_target: Target) -> None:
    """Also when they go on after our goodbye, which a while is given to be read."""
    own_target.start()
    before = own_target.counters()["cpu_s"]
    for _ in range(20):
        with own_target.greeted() as attacker:
            taken = attacker.stuff(_blocks(attacker, bytes(16_384), None))
            # A connection's window, and what the kernel's buffers hold.
            assert taken * 16_384 < 64 << 20
    now = own_target.settled()
    assert now["abuse"] == {"continuation_flood": 20}
    assert now["cpu_s"] - before < 2.0


# B2-12, B2-13: short blocks of long lists.


def _sow(attacker: Attacker, field: Pair) -> None:
    """Make `field` the youngest entry of the server's table, in a call that is answered."""
    attacker.factory.encoder.header_table_size = 4_096
    block = _fields(attacker, b"")
    name, value = field
    entry = b"\x40" + bytes((len(name),)) + name
    entry += bytes((len(value),)) if len(value) < 127 else b"\x7f" + _varint(len(value) - 127)
    _begin(attacker, 1, block + entry + value)
    assert attacker.status(1) == 0


def _plain_fields() -> bytes:
    """A call's fields without the dynamic table."""
    encoded = b"\x83\x86"  # POST, http
    for name, value in GRPC_FIELDS[2:]:
        encoded += b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value
    return encoded


BIG = (b"b", b"x" * 3_900)
SMALL = (b"s", b"")


@pytest.mark.parametrize(
    ("field", "limits"),
    [
        pytest.param(BIG, {}, id="b2_12-a-big-value", marks=pytest.mark.wire("B2-12")),
        pytest.param(SMALL, {}, id="b2_13-an-empty-value", marks=pytest.mark.wire("B2-13")),
        pytest.param(
            SMALL, {"header_list_bytes_max": 1 << 30}, id="b2_13-by-their-number-alone",
            marks=pytest.mark.wire("B2-13"),
        ),
        pytest.param(
            BIG, {"header_fields_max": 1 << 20}, id="b2_12-by-their-size-alone",
            marks=pytest.mark.wire("B2-12"),
        ),
    ],
)  # fmt: skip
def test_a_header_bomb_ends_its_connection(
    own_target: Target, field: Pair, limits: dict[str, int]
) -> None:
    """16,000 references of one byte to an entry."""
    own_target.start(**limits)
    with under_attack(own_target), own_target.greeted() as attacker:
        _sow(attacker, field)
        before = own_target.counters()
        _begin(attacker, 3, _plain_fields() + _REFERENCES)
        assert attacker.goaway() == Goaway(ErrorCode.ENHANCE_YOUR_CALM, "header_bomb")
    now = own_target.counters()
    assert now["abuse"] == {"header_bomb": 1}
    assert now["rss_peak_bytes"] - before["rss_bytes"] < 4 << 20


@pytest.mark.parametrize(
    "field",
    [
        pytest.param(BIG, id="b2_12-a-big-value", marks=pytest.mark.wire("B2-12")),
        pytest.param(SMALL, id="b2_13-an-empty-value", marks=pytest.mark.wire("B2-13")),
    ],
)
def test_without_limits_a_header_bomb_goes_off(target: Target, field: Pair) -> None:
    target.start(**_ANY_LIST)
    with target.greeted() as attacker:
        _sow(attacker, field)
        _begin(attacker, 3, _plain_fields() + _REFERENCES)
        assert attacker.status(3) == 0
    target.settled()


@pytest.mark.wire("B2-13")
@pytest.mark.parametrize("name", [b"cookie", b"x-crumb"])
def test_b2_13_fields_are_counted_cookie_crumbs_too(target: Target, name: bytes) -> None:
    target.start()
    with under_attack(target), target.greeted() as attacker:
        for stream_id, more in ((1, 128 - len(GRPC_FIELDS)), (3, 200)):
            crumbs = [(name, b"%d" % at) for at in range(more)]
            _begin(attacker, stream_id, attacker.factory.block([*GRPC_FIELDS, *crumbs]))
        assert attacker.status(1) == 0
        assert attacker.status(3) == RESOURCE_EXHAUSTED
    assert not target.counters()["abuse"]


@pytest.mark.wire("B2-13")
def test_b2_13_lists_held_by_a_window_of_zero_are_bounded_and_reaped(own_target: Target) -> None:
    """The attack's second half: the answers cannot leave, so that nothing is freed."""
    own_target.start()
    with own_target.greeted() as warm:
        assert warm.call(1) == 0
    with under_attack(own_target), own_target.greeted({4: 0}) as attacker:
        before = own_target.counters()["rss_bytes"]
        _sow_unanswered(attacker)
        references = _YOUNGEST * (128 - len(GRPC_FIELDS))
        for stream_id in range(3, 203, 2):
            _begin(attacker, stream_id, _plain_fields() + references)
        held = own_target.wait_until("streams", 101)
        assert held["rss_bytes"] - before < 8 << 20
        own_target.sweep(29)
        assert own_target.counters()["streams"] >= 101
        own_target.sweep(31)
        assert attacker.reset(201) == ErrorCode.CANCEL
        assert own_target.counters()["pending_bytes"] == 0
    assert own_target.counters()["abuse"] == {"stalled_stream": 101}


def _sow_unanswered(attacker: Attacker) -> None:
    """As `_sow`, where no answer can come."""
    _begin(attacker, 1, _fields(attacker, b"\x40\x01s\x00"))


@pytest.mark.wire("B2-13")
def test_b2_13_without_the_timeout_they_are_held(target: Target) -> None:
    target.start(stall_timeout_ns=1 << 60)
    with target.greeted({4: 0}) as attacker:
        for stream_id in range(1, 201, 2):
            _begin(attacker, stream_id, _plain_fields())
        target.wait_until("streams", 100)
        target.sweep(31)
        assert target.counters()["streams"] == 100
    target.settled()


# B2-14: a refused block changes the table all the same.


def _refuse_too_large(attacker: Attacker) -> None:
    # What is too much comes first: the entries follow where a server might have stopped.
    crumbs = [(b"x-crumb", b"")] * 200
    attacker.send(attacker.factory.headers(1, [*crumbs, *GRPC_FIELDS], end_stream=True))
    assert attacker.status(1) == RESOURCE_EXHAUSTED


def _refuse_malformed(attacker: Attacker) -> None:
    attacker.send(attacker.factory.headers(1, [(b"X", b""), *GRPC_FIELDS]))
    assert attacker.reset(1) == ErrorCode.PROTOCOL_ERROR


def _refuse_one_too_many(attacker: Attacker) -> None:
    factory = attacker.factory
    attacker.send(b"".join(factory.headers(each, fields_for("Slow")) for each in range(1, 65, 2)))
    attacker.send(factory.headers(65, fields_for("Method", (b"x-new", b"1"))))
    assert attacker.reset(65) == ErrorCode.REFUSED_STREAM
    for stream_id in range(1, 65, 2):
        attacker.send(factory.rst_stream(stream_id))


def _refuse_trailers_of_the_dead(attacker: Attacker) -> None:
    factory = attacker.factory
    attacker.send(factory.headers(1, fields_for("Total")) + factory.rst_stream(1))
    attacker.send(factory.headers(1, [(b"x-late", b"1"), *GRPC_FIELDS], end_stream=True))
    assert attacker.is_alive()


_REFUSALS = [
    pytest.param(_refuse_too_large, id="b2_14-too-large"),
    pytest.param(_refuse_malformed, id="b2_14-malformed"),
    pytest.param(_refuse_one_too_many, id="b2_14-one-too-many"),
    pytest.param(_refuse_trailers_of_the_dead, id="b2_14-trailers-of-a-dead-stream"),
]


@pytest.mark.wire("B2-14")
@pytest.mark.parametrize("refuse", _REFUSALS)
def test_b2_14_entries_of_a_refused_block_mean_what_they_say(
    target: Target, refuse: Callable[[Attacker], None]
) -> None:
    target.start(streams_max=32)
    with under_attack(target), target.greeted() as attacker:
        refuse(attacker)
        assert attacker.call(101) == 0
        assert attacker.call(103, method="Total") == 0
        assert attacker.call(105, method="Nowhere") == UNIMPLEMENTED
    assert target.counters()["abuse"].keys() <= {"refused_stream"}


@pytest.mark.wire("B2-14")
def test_b2_14_a_server_that_skips_the_rest_of_a_block_is_out_of_step(target: Target) -> None:
    target.start(without=["decoding_of_refused_blocks"])
    with target.greeted() as attacker:
        _refuse_too_large(attacker)
        attacker.send(attacker.factory.headers(3, fields_for("Method"), end_stream=True))
        assert attacker.goaway().code == ErrorCode.COMPRESSION_ERROR
    target.settled()


# B2-15: blocks that are hard to read.


@pytest.mark.wire("B2-15")
@pytest.mark.parametrize(
    ("block", "reason"),
    [
        pytest.param(b"\xff" + b"\x80" * 8_000, "an integer beyond the limits", id="b2_15-varint"),
        pytest.param(
            b"\x3f" + _varint(2**30 - 31), "a table size above the advertised one",
            id="b2_15-a-size-update-of-2^30",
        ),
        pytest.param(
            b"\x20" * 9, "too many table size updates", id="b2_15-nine-size-updates"
        ),
        pytest.param(b"\xfe", "a truncated block or an index beyond the table", id="b2_15-index"),
        pytest.param(b"\x80", "the index 0", id="b2_15-index-0"),
        pytest.param(
            b"\x00\x01x\xff" + _varint(8_000 - 127) + b"\xff" * 8_000,
            "a malformed Huffman string", id="b2_15-huffman",
        ),
    ],
)  # fmt: skip
def test_b2_15_a_broken_block_ends_its_connection_cheaply(
    target: Target, block: bytes, reason: str
) -> None:
    target.start()
    before = target.counters()["cpu_s"]
    for _ in range(20):
        with target.greeted() as attacker:
            attacker.send(attacker.factory.headers(1, block))
            assert attacker.goaway() == Goaway(ErrorCode.COMPRESSION_ERROR, reason)
    now = target.settled()
    assert now["cpu_s"] - before < 1.0
    assert not now["abuse"]
    with under_attack(target), target.greeted() as attacker:
        attacker.send(attacker.factory.headers(1, block))
        assert attacker.goaway() == Goaway(ErrorCode.COMPRESSION_ERROR, reason)


@pytest.mark.wire("B2-15")
@pytest.mark.parametrize("update", [b"\x3f\xe1\x1f", b"\x20\x3f\xe1\x1f", b"\x20" * 8])
def test_b2_15_a_size_update_up_to_the_advertised_size_is_honest(
    target: Target, update: bytes
) -> None:
    target.start()
    with target.greeted() as client:
        _begin(client, 1, update + _plain_fields())
        assert client.status(1) == 0
    assert not target.settled()["abuse"]


@pytest.mark.wire("B2-15")
def test_b2_15_a_table_is_its_connections_own(target: Target) -> None:
    """CVE-2024-7246: the same bytes on another connection mean what was sent there."""
    target.start()
    with target.greeted() as attacker, target.greeted() as honest:
        for client, method in ((attacker, "Nowhere"), (honest, "Method")):
            expected = UNIMPLEMENTED if client is attacker else 0
            for stream_id in (1, 3, 5):
                assert client.call(stream_id, method=method) == expected
        assert attacker.factory.block(fields_for("Nowhere")) == honest.factory.block(GRPC_FIELDS)
        assert (attacker.call(7, method="Nowhere"), honest.call(7)) == (UNIMPLEMENTED, 0)
    assert not target.settled()["abuse"]


# B2-20: smuggling. h2 is the oracle; grpcio accepts some of these.


def _changed(name: bytes, value: bytes) -> list[Pair]:
    return [(key, value if key == name else old) for key, old in GRPC_FIELDS]


def _without(name: bytes) -> list[Pair]:
    return [pair for pair in GRPC_FIELDS if pair[0] != name]


def _head(fields: list[Pair]) -> Callable[[FrameFactory], bytes]:
    return lambda factory: (
        factory.headers(1, fields) + factory.data(1, message(b"x"), end_stream=True)
    )


def _length(announced: bytes, body: bytes) -> Callable[[FrameFactory], bytes]:
    fields = [*fields_for("Method"), (b"content-length", announced)]
    return lambda factory: factory.headers(1, fields) + factory.data(1, body, end_stream=True)


def _trailers(trailers: list[Pair]) -> Callable[[FrameFactory], bytes]:
    return lambda factory: (
        factory.headers(1, fields_for("Total"))
        + factory.data(1, message(b"x"))
        + factory.headers(1, trailers, end_stream=True)
    )


SMUGGLED: dict[str, Callable[[FrameFactory], bytes]] = {
    "CR-LF": _head([*GRPC_FIELDS, (b"x", b"1\r\nhost: elsewhere")]),
    "LF": _head([*GRPC_FIELDS, (b"x", b"1\n2")]),
    "NUL": _head([*GRPC_FIELDS, (b"x", b"1\x002")]),
    "an-upper-case-name": _head([*GRPC_FIELDS, (b"X-Name", b"1")]),
    "a-space-before-a-value": _head([*GRPC_FIELDS, (b"x", b" 1")]),
    "a-tab-after-a-value": _head([*GRPC_FIELDS, (b"x", b"1\t")]),
    "connection": _head([*GRPC_FIELDS, (b"connection", b"close")]),
    "transfer-encoding": _head([*GRPC_FIELDS, (b"transfer-encoding", b"chunked")]),
    "upgrade": _head([*GRPC_FIELDS, (b"upgrade", b"websocket")]),
    "path-twice": _head([GRPC_FIELDS[2], *GRPC_FIELDS]),
    "an-unknown-pseudo-header": _head([(b":version", b"HTTP/1.1"), *GRPC_FIELDS]),
    "a-late-pseudo-header": _head([*_without(b":scheme"), GRPC_FIELDS[1]]),
    "a-pseudo-header-in-trailers": _trailers([(b":path", b"/")]),
    "no-path": _head(_without(b":path")),
    "an-empty-path": _head(_changed(b":path", b"")),
    "host-other-than-authority": _head([*GRPC_FIELDS, (b"host", b"elsewhere")]),
    "content-length-too-short": _length(b"4", message(b"x")),
    "content-length-too-long": _length(b"60", message(b"x")),
}
_LENGTHS = {"content-length-too-short", "content-length-too-long"}
_smuggled = [pytest.param(name, id=f"b2_20-{name}") for name in SMUGGLED]


def _h2_accepts(data: bytes) -> bool:
    server = H2Connection(H2Configuration(client_side=False, header_encoding=None))
    server.initiate_connection()
    try:
        server.receive_data(data)
    except ProtocolError:
        return False
    return b"\x00\x00\x04\x03" not in server.data_to_send()  # no RST_STREAM either


@pytest.mark.wire("B2-20")
@pytest.mark.parametrize("name", _smuggled)
def test_b2_20_what_h2_refuses_is_refused(target: Target, name: str) -> None:
    assert not _h2_accepts(FrameFactory().preface() + SMUGGLED[name](FrameFactory()))
    target.start()
    with under_attack(target), target.greeted() as attacker:
        attacker.send(SMUGGLED[name](attacker.factory))
        assert attacker.reset(1) == ErrorCode.PROTOCOL_ERROR
        assert not [frame for frame in attacker.frames if frame.stream_id == 1 and frame.kind < 3]
        assert attacker.call(3) == 0
    assert not target.counters()["abuse"]


@pytest.mark.wire("B2-20")
@pytest.mark.parametrize("name", _smuggled)
def test_b2_20_without_the_check_it_gets_through(target: Target, name: str) -> None:
    target.start(without=["content_length" if name in _LENGTHS else "header_validity"])
    with target.greeted() as attacker:
        attacker.send(SMUGGLED[name](attacker.factory))
        path_is_gone = name in {"no-path", "an-empty-path"}
        assert attacker.status(1) == (UNIMPLEMENTED if path_is_gone else 0)
    target.settled()


@pytest.mark.wire("B2-20")
def test_b2_20_an_honest_call_is_what_h2_takes_it_for(target: Target) -> None:
    fields = [*GRPC_FIELDS, (b"host", b"localhost"), (b"content-length", b"6")]
    assert _h2_accepts(FrameFactory().preface() + _head(fields)(FrameFactory()))
    target.start()
    with target.greeted() as client:
        client.send(_head(fields)(client.factory))
        assert client.status(1) == 0
    assert not target.settled()["abuse"]
