"""Header blocks and what makes a request malformed. Each test also runs chopped into single
bytes and at random places."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from server.wire.http2.events import Ended, Opened, Reset
from server.wire.http2.frames import ErrorCode
from tests.support.core_client import (
    STREAMED,
    CoreClient,
    body_of,
    kinds,
    with_limits,
)
from tests.support.frame_factory import GRPC_FIELDS, Pair

MakeClient = Callable[..., CoreClient]
CALM = "ENHANCE_YOUR_CALM"
END_STREAM, END_HEADERS, PADDED, PRIORITY = 0x1, 0x4, 0x8, 0x20


def with_length(length: bytes, fields: list[Pair] = GRPC_FIELDS) -> list[Pair]:
    return [*fields, (b"content-length", length)]


# -- header blocks ---------------------------------------------------------------------------------


@pytest.mark.wire("B2-24")
@pytest.mark.parametrize("frame", ["ping", "data", "headers", "unknown", "continuation", "other"])
def test_b2_24_another_frame_within_a_header_block(client: MakeClient, frame: str) -> None:
    one = client()
    other = {
        "ping": one.make.ping(),
        "data": one.make.data(1, b"x"),
        "headers": one.make.headers(3),
        "unknown": one.make.raw(0xBB, 0, 0),
        "continuation": one.make.continuation(3, b""),
        "other": one.make.rst_stream(1),
    }[frame]
    said = one.send(one.make.headers(1, b"\x83", end_headers=False), other)
    assert said.fault == ("PROTOCOL_ERROR", "another frame within a header block")
    assert one.abuse == {"interleaved": 1}


@pytest.mark.wire("B2-24")
def test_b2_24_a_continuation_of_nothing(client: MakeClient) -> None:
    one = client()
    said = one.send(one.make.continuation(1, b"\x83"))
    assert said.fault == ("PROTOCOL_ERROR", "CONTINUATION without HEADERS")


@pytest.mark.wire("B2-11")
def test_b2_11_a_block_of_too_many_frames(client: MakeClient) -> None:
    one = client()
    said = one.send(one.make.split_headers(1, cuts=[0] * 63, end_stream=True))
    assert said.fault is None
    assert kinds(one) == [Opened, Ended]
    said = one.send(one.make.split_headers(3, cuts=[0] * 64))
    assert said.fault == (CALM, "continuation_flood")
    assert one.abuse == {"continuation_flood": 1}
    loose = client(with_limits(header_block_frames_max=65))
    assert loose.send(loose.make.split_headers(1, cuts=[0] * 64)).fault is None


@pytest.mark.wire("B2-11")
def test_b2_11_a_block_of_too_many_bytes() -> None:
    """An endless one is ended at 64 KiB, not when it ends."""
    one = CoreClient()
    piece = b"\x00\x01a\x7f\xff\x7f" + bytes(16_000)
    one.send(one.make.headers(1, piece, end_headers=False))
    for _ in range(3):
        assert one.send(one.make.continuation(1, piece, end_headers=False)).fault is None
    said = one.send(one.make.continuation(1, piece, end_headers=False))
    assert said.fault == (CALM, "continuation_flood")
    loose = CoreClient(with_limits(header_list_bytes_max=1 << 20))
    loose.send(loose.make.headers(1, piece, end_headers=False))
    for _ in range(4):
        assert loose.send(loose.make.continuation(1, piece, end_headers=False)).fault is None


@pytest.mark.wire("B2-12")
@pytest.mark.wire("B2-13")
@pytest.mark.parametrize("trailers", [False, True])
def test_b2_12_b2_13_header_bombs_end_the_connection(client: MakeClient, trailers: bool) -> None:
    one = client()
    if trailers:
        one.open(1)
    # An entry of the table, then references to it, a byte each.
    bomb = one.make.block([(b"x-seed", b"s" * 3_000)]) + b"\xbe" * 10_000
    said = one.send(one.make.headers(1, bomb, end_stream=True))
    assert said.fault == (CALM, "header_bomb")
    assert one.abuse == {"header_bomb": 1}


@pytest.mark.wire("B2-13")
@pytest.mark.wire("B2-14")
@pytest.mark.parametrize(
    "fields",
    [[(b"x-%d" % at, b"") for at in range(130)], [(b"x-large", b"v" * 16_000)]],
    ids=["count", "bytes"],
)
def test_b2_13_b2_14_a_head_that_is_too_large_keeps_the_table(
    client: MakeClient, fields: list[Pair]
) -> None:
    """The layer above refuses it; its block was decoded all the same (CVE-2023-32731)."""
    one = client()
    seed = (b"x-seed", b"from the block that was refused")
    one.send(one.make.split_headers(1, [*GRPC_FIELDS, *fields, seed], cuts=[16_000]))
    (opened,) = one.take_events()
    assert isinstance(opened, Opened)
    head = opened.stream.head
    assert head is not None
    assert head.problem is not None
    assert head.problem.too_large
    assert not one.whole
    one.send(one.make.headers(3, [*GRPC_FIELDS, seed]), one.make.data(3, b"x", end_stream=True))
    assert one.whole[0][2].fields[-1] == seed
    assert one.abuse == {}


@pytest.mark.wire("B2-14")
@pytest.mark.parametrize("why", ["refused", "malformed", "draining", "trailers", "closed"])
def test_b2_14_blocks_of_streams_that_nobody_wants_are_decoded(
    client: MakeClient, why: str
) -> None:
    one = client(with_limits(streams_max=2))
    one.send(one.make.headers(1, STREAMED))
    seed = (b"x-seed", why.encode())
    fields = [*STREAMED, seed]
    if why == "refused":
        one.send(one.make.headers(3, STREAMED), one.make.headers(5, fields))
        one.send(one.make.rst_stream(3))
    elif why == "malformed":
        one.send(one.make.headers(3, [*fields, (b":late", b"pseudo")]))
    elif why == "draining":
        one.connection.begin_drain()
        one.send(one.make.ping(b"drain\0\0\0", ack=True), one.make.headers(3, fields))
        one.connection._goaway_id = 1 << 31  # only so that the next one is heard
    elif why == "trailers":
        one.send(one.make.headers(1, [(b"x-trailer", b"1"), seed], end_stream=True))
    else:
        one.connection.reset(1, ErrorCode.CANCEL)
        one.send(one.make.headers(1, [(b"x-trailer", b"1"), seed], end_stream=True))
    one.take_events()
    one.send(one.make.headers(9, fields))
    (opened,) = one.take_events()
    assert isinstance(opened, Opened)
    assert opened.stream.head is not None
    assert opened.stream.head.fields[-1] == seed


@pytest.mark.wire("B2-15")
@pytest.mark.parametrize(
    "block",
    [
        b"\xff\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",  # an endless integer
        b"\xff" + b"\x80" * 8_000,
        b"\x3f\xe1\xff\xff\xff\x03",  # a table of 2^30 bytes
        b"\x80",  # index 0
        b"\xfe",  # an index beyond the table
        b"\x83\x86\x04",  # torn
        b"\x00\x81\xff\x00",  # Huffman padding of eight bits
    ],
)
@pytest.mark.parametrize("trailers", [False, True])
def test_b2_15_broken_blocks(client: MakeClient, block: bytes, trailers: bool) -> None:
    one = client()
    if trailers:
        one.open(1)
    said = one.send(one.make.headers(1, block, end_stream=True))
    assert said.fault is not None
    assert said.fault[0] == "COMPRESSION_ERROR"
    assert not one.whole


# -- malformed requests ----------------------------------------------------------------------------

MALFORMED: dict[str, list[Pair]] = {
    "B2-06 an empty name": [*GRPC_FIELDS, (b"", b"1")],
    "B2-20 upper case": [*GRPC_FIELDS, (b"X-Upper", b"1")],
    "B2-20 CR LF": [*GRPC_FIELDS, (b"x-a", b"1\r\nx-b: 2")],
    "B2-20 NUL": [*GRPC_FIELDS, (b"x-a", b"\0")],
    "B2-20 spaces": [*GRPC_FIELDS, (b"x-a", b" 1")],
    "B2-20 connection": [*GRPC_FIELDS, (b"connection", b"close")],
    "B2-20 transfer-encoding": [*GRPC_FIELDS, (b"transfer-encoding", b"chunked")],
    "B2-20 te": [*GRPC_FIELDS[:-1], (b"te", b"gzip")],
    "B2-20 twice": [GRPC_FIELDS[2], *GRPC_FIELDS],
    "B2-20 unknown": [(b":status", b"200"), *GRPC_FIELDS],
    "B2-20 late": [*GRPC_FIELDS[:3], *GRPC_FIELDS[4:], GRPC_FIELDS[3]],
    "B2-20 no path": [*GRPC_FIELDS[:2], *GRPC_FIELDS[3:]],
    "B2-20 an empty path": [*GRPC_FIELDS[:2], (b":path", b""), *GRPC_FIELDS[3:]],
    "B2-20 another host": [*GRPC_FIELDS, (b"host", b"elsewhere")],
    "B2-20 no length": with_length(b"x"),
    "B2-20 two lengths": [*with_length(b"1"), (b"content-length", b"2")],
}


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(
            MALFORMED[name],
            marks=pytest.mark.wire(name[:5]),
            id=name[:5].lower().replace("-", "_") + name[5:],
        )
        for name in MALFORMED
    ],
)
@pytest.mark.parametrize("end_stream", [False, True])
def test_malformed_heads_cost_their_stream(
    client: MakeClient, fields: list[Pair], end_stream: bool
) -> None:
    one = client()
    for stream_id in (1, 3):
        said = one.send(one.make.headers(stream_id, fields, end_stream=end_stream))
        assert said.resets == {stream_id: "PROTOCOL_ERROR"}
        if not end_stream:  # its body had left already
            assert not one.send(one.make.data(stream_id, b"body", end_stream=True)).frames
    assert not one.send(one.request(5)).frames
    assert one.take_whole() == [(5, b"body")]
    assert not one.take_events()


@pytest.mark.wire("B2-20")
@pytest.mark.parametrize(
    ("announced", "pieces", "right"),
    [
        (b"4", [b"body"], True),
        (b"4", [b"bo", b"dy"], True),
        (b"0", [b""], True),
        (b"4", [b"bodyguard"], False),
        (b"4", [b"bod"], False),
        (b"4", [b""], False),
        (b"4", [b"bo", b"dyguard"], False),
        (b"4", [b"bod", b""], False),
        (b"0", [b"x"], False),
    ],
)
@pytest.mark.parametrize("fields", [GRPC_FIELDS, STREAMED], ids=["unary", "stream"])
def test_b2_20_a_body_of_another_length_than_announced(
    client: MakeClient, announced: bytes, pieces: list[bytes], right: bool, fields: list[Pair]
) -> None:
    one = client()
    frames = [one.make.data(1, piece) for piece in pieces[:-1]]
    last = one.make.data(1, pieces[-1], end_stream=True)
    said = one.send(one.make.headers(1, with_length(announced, fields)), *frames, last)
    events = one.take_events()
    if right:
        assert not said.resets
        whole = one.take_whole()
        assert whole == [(1, b"".join(pieces))] or isinstance(events[-1], Ended)
    else:
        assert said.resets == {1: "PROTOCOL_ERROR"}
        assert not one.whole
        assert isinstance(events[-1], Reset)
        assert not any(isinstance(event, Ended) for event in events)
        window = one.connection._window
        held = len(body_of(events))
        assert window.left + window.consumed + held == window.size
    assert not one.send(one.request(3)).frames


@pytest.mark.wire("B2-20")
@pytest.mark.parametrize("how", ["headers only", "trailers"])
def test_b2_20_an_end_without_the_announced_body(client: MakeClient, how: str) -> None:
    one = client()
    if how == "headers only":
        said = one.send(one.make.headers(1, with_length(b"4"), end_stream=True))
    else:
        one.send(one.make.headers(1, with_length(b"4")))
        said = one.send(one.make.headers(1, [(b"x-trailer", b"1")], end_stream=True))
    assert said.resets == {1: "PROTOCOL_ERROR"}
    assert kinds(one) == [Opened, Reset]


@pytest.mark.wire("B2-20")
@pytest.mark.parametrize(
    ("trailers", "end_stream"),
    [
        ([(b":path", b"/")], True),
        ([(b"X-Upper", b"1")], True),
        ([(b"connection", b"close")], True),
        ([(b"x-fine", b"1")], False),
    ],
)
def test_b2_20_malformed_trailers(
    client: MakeClient, trailers: list[Pair], end_stream: bool
) -> None:
    one = client()
    stream = one.open(1)
    said = one.send(one.make.headers(1, trailers, end_stream=end_stream))
    assert said.resets == {1: "PROTOCOL_ERROR"}
    assert one.take_events() == [Reset(1, stream)]
    assert not one.send(one.request(3)).frames
