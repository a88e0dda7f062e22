"""Resets, frames that carry nothing, and many reads. Each test also runs chopped into single
bytes and at random places."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.wire.http2.events import Reset
from server.wire.http2.limits import BUDGETS, Budget
from tests.support.core_client import (
    ENDING_BLOCK,
    PATIENT,
    STREAMED,
    CoreClient,
    Said,
    with_limits,
)
from tests.support.frame_factory import GRPC_FIELDS, Pair

MakeClient = Callable[..., CoreClient]
CALM = "ENHANCE_YOUR_CALM"
END_STREAM, END_HEADERS, PADDED, PRIORITY = 0x1, 0x4, 0x8, 0x20
ENDLESS = Budget(1 << 40, 0, 0)


def with_length(length: bytes, fields: list[Pair] = GRPC_FIELDS) -> list[Pair]:
    return [*fields, (b"content-length", length)]


# -- resets ----------------------------------------------------------------------------------------


@pytest.mark.wire("B3-25")
def test_b3_25_a_client_cancels(client: MakeClient) -> None:
    one = client()
    stream = one.open(1)
    one.send(one.request(3), one.make.headers(5))
    one.take_whole()
    said = one.send(*[one.make.rst_stream(stream_id) for stream_id in (1, 3, 5)])
    assert not said.frames
    assert one.take_events() == [Reset(1, stream), Reset(3, None)]
    assert not one.connection.streams
    assert not one.answer(3, b"late").frames
    # A stream that it has seen end may be reset as well: they crossed.
    one.send(one.request(7))
    one.answer(7, b"answer")
    assert not one.send(one.make.rst_stream(7)).frames


def _stream_and_reset(one: CoreClient, stream_id: int) -> bytes:
    return one.make.headers(stream_id) + one.make.rst_stream(stream_id)


def _request_and_reset(one: CoreClient, stream_id: int) -> bytes:
    return one.request(stream_id) + one.make.rst_stream(stream_id)


@pytest.mark.wire("B2-09")
@pytest.mark.parametrize("attack", [_stream_and_reset, _request_and_reset])
def test_b2_09_rapid_reset(client: MakeClient, attack: Callable[[CoreClient, int], bytes]) -> None:
    burst = BUDGETS["rapid_reset"].burst
    one = client()
    assert one.send(*[attack(one, 2 * at + 1) for at in range(burst)]).fault is None
    assert one.send(attack(one, 2 * burst + 1)).fault == (CALM, "rapid_reset")
    assert one.abuse == {"rapid_reset": 1}
    assert len(one.whole) <= burst + 1
    # A second later so many more, and as many as were answered.
    one = client()
    one.send(*[attack(one, 2 * at + 1) for at in range(burst)])
    one.wait(1)
    for at in range(burst, burst + 33):
        assert one.send(attack(one, 2 * at + 1)).fault is None
    for at in range(2 * burst, 2 * burst + 100, 2):
        one.send(one.request(2 * at + 1))
        one.answer(2 * at + 1, b"answer")
        assert one.send(attack(one, 2 * at + 3)).fault is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGETS, "rapid_reset", ENDLESS)
        one = client()
        assert one.send(*[attack(one, 2 * at + 1) for at in range(5_000)]).fault is None


Trigger = Callable[[CoreClient, int], bytes]


def _content_too_long(one: CoreClient, stream_id: int) -> bytes:
    fields = with_length(b"1")
    return one.make.headers(stream_id, fields) + one.make.data(stream_id, b"long")


def _bad_trailers(one: CoreClient, stream_id: int) -> bytes:
    return one.make.headers(stream_id) + one.make.headers(
        stream_id, [(b":path", b"/")], end_stream=True
    )


def _no_end_of_trailers(one: CoreClient, stream_id: int) -> bytes:
    return one.make.headers(stream_id) + one.make.headers(stream_id, [(b"x", b"1")])


def _malformed_head(one: CoreClient, stream_id: int) -> bytes:
    return one.make.headers(stream_id, [*GRPC_FIELDS, (b"X-Upper", b"1")], end_stream=True)


def _too_many(one: CoreClient, stream_id: int) -> bytes:
    return one.make.headers(stream_id, end_stream=True)


@pytest.mark.wire("B2-04")
@pytest.mark.wire("B2-10")
@pytest.mark.parametrize(
    "trigger", [_content_too_long, _bad_trailers, _no_end_of_trailers, _malformed_head, _too_many]
)
def test_b2_04_b2_10_resets_that_we_are_made_to_send_have_a_budget(
    client: MakeClient, trigger: Trigger
) -> None:
    burst = BUDGETS["made_you_reset"].burst
    limits = with_limits(streams_max=1)
    full = trigger is _too_many

    def attack(count: int) -> tuple[CoreClient, Said]:
        one = client(limits)
        if full:
            one.open(1)
        return one, one.send(*[trigger(one, 2 * at + 3) for at in range(count)])

    one, said = attack(burst)
    assert said.fault is None
    assert len(said.resets) == burst
    one, said = attack(burst + 1)
    assert said.fault == (CALM, "made_you_reset")
    assert one.abuse.pop("refused_stream", 0) == (burst + 1 if full else 0)
    assert one.abuse == {"made_you_reset": 1}
    assert len(one.connection.streams) <= 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUDGETS, "made_you_reset", ENDLESS)
        one, said = attack(burst + 50)
        assert said.fault is None
        assert len(said.resets) == burst + 50


@pytest.mark.wire("B2-10")
@pytest.mark.parametrize(
    ("trigger", "code"),
    [
        (lambda one: one.make.window_update(1, 0), "PROTOCOL_ERROR"),
        (lambda one: one.make.window_update(1, 2**31 - 1), "FLOW_CONTROL_ERROR"),
        (lambda one: one.make.data(1, b"after the end"), "STREAM_CLOSED"),
        (lambda one: one.make.headers(1), "STREAM_CLOSED"),
        (lambda one: one.make.raw(2, 0, 1, b"1234"), "FRAME_SIZE_ERROR"),
        (lambda one: one.make.raw(8, 0, 1, b"123"), "FRAME_SIZE_ERROR"),
    ],
)
def test_b2_10_where_the_rfc_allows_it_the_connection_ends(
    client: MakeClient, trigger: Callable[[CoreClient], bytes], code: str
) -> None:
    """Not one reset can be had by these (CVE-2025-8671)."""
    one = client()
    one.send(one.request(1))
    said = one.send(trigger(one))
    assert said.fault is not None
    assert said.fault[0] == code
    assert not said.resets


# -- empty frames ----------------------------------------------------------------------------------


@pytest.mark.wire("B2-08")
@pytest.mark.parametrize("padding", [None, 0, 200])
def test_b2_08_empty_frames_in_a_row(client: MakeClient, padding: int | None) -> None:
    one = client()
    one.open(1)
    empty = one.make.data(1, padding=padding)
    for _ in range(3):
        assert one.send(*[empty] * 16, one.make.data(1, b"x")).fault is None
    assert one.send(*[empty] * 16).fault is None
    assert one.send(empty).fault == (CALM, "empty_frame_flood")
    assert one.abuse == {"empty_frame_flood": 1}
    loose = client(with_limits(empty_frames_max=1_000))
    loose.open(1)
    assert loose.send(*[empty] * 1_000).fault is None
    assert loose.send(empty).fault is not None


@pytest.mark.wire("B2-08")
@pytest.mark.parametrize("kind", ["headers", "push_promise"])
def test_b2_08_other_empty_frames(client: MakeClient, kind: str) -> None:
    one = client()
    if kind == "headers":
        said = one.send(one.make.headers(1, b""), one.make.headers(3, b"", end_stream=True))
        assert said.resets == {1: "PROTOCOL_ERROR", 3: "PROTOCOL_ERROR"}
    else:
        said = one.send(one.make.raw(5, END_HEADERS, 1))
        assert said.fault == ("PROTOCOL_ERROR", "a client may not push")


# -- many reads ------------------------------------------------------------------------------------


@given(cuts=st.lists(st.integers(1, 400), min_size=1, max_size=20))
def test_it_does_not_matter_where_reads_end(cuts: list[int]) -> None:
    def script(one: CoreClient) -> bytes:
        return b"".join([
            one.request(1, b"first"),
            one.make.headers(3, STREAMED, padding=7),
            one.make.data(3, b"second", padding=3),
            one.make.split_headers(5, [*GRPC_FIELDS, (b"x-a", b"b" * 300)], cuts=[1, 200]),
            one.make.ping(),
            one.make.data(5, bytes(1_000), end_stream=True),
            one.make.window_update(1, 10),
            one.make.data(3, b"end", end_stream=True),
            one.make.rst_stream(5),
            one.request(7, b"last"),
        ])  # fmt: skip

    def chop(data: bytes) -> list[bytes]:
        pieces = []
        at = 0
        while data:
            count = cuts[at % len(cuts)]
            pieces.append(data[:count])
            data = data[count:]
            at += 1
        return pieces

    found = []
    for one in (CoreClient(PATIENT), CoreClient(PATIENT, chop=chop)):
        said = one.send(script(one))
        events = [
            (type(event).__name__, getattr(event, "data", b"")) for event in one.take_events()
        ]
        found.append((one.take_whole(), events, said.kinds, said.pings))
    assert found[0] == found[1]
    assert [stream_id for stream_id, _ in found[0][0]] == [1, 5, 7]


def test_early_answers_cross_the_rest_of_the_body(client: MakeClient) -> None:
    one = client()
    stream = one.open(1)
    one.connection.send_headers(stream, ENDING_BLOCK, end_stream=True)
    assert one.read().resets == {1: "NO_ERROR"}
    said = one.send(
        one.make.data(1, bytes(5_000)),
        one.make.headers(1, [(b"x-trailer", b"1")], end_stream=True),
        one.make.rst_stream(1),
        one.make.window_update(1, 5),
    )
    assert not said.frames
    assert not one.take_events()
