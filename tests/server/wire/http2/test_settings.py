"""The peer's SETTINGS: what is taken, what is refused."""

from __future__ import annotations

import struct

import pytest
from h2.settings import _validate_setting
from hypothesis import given
from hypothesis import strategies as st

from server.wire.http2.frames import ConnectionFault, ErrorCode
from server.wire.http2.settings import PeerSettings, Setting


def payload(*pairs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack(">HI", key, value) for key, value in pairs)


def test_the_defaults() -> None:
    peer = PeerSettings()
    assert (peer.window, peer.frame_bytes_max, peer.header_table_bytes_least) == (
        65_535,
        16_384,
        4_096,
    )


def test_values_are_taken_in_order() -> None:
    peer = PeerSettings()
    peer.apply(payload((4, 10), (5, 20_000), (4, 30), (2, 0), (2, 1), (3, 7), (6, 0), (99, 1)), 64)
    assert (peer.window, peer.frame_bytes_max) == (30, 20_000)
    peer.apply(b"", 64)
    assert (peer.window, peer.frame_bytes_max) == (30, 20_000)


def test_the_least_table_counts_even_when_it_grows_again() -> None:
    peer = PeerSettings()
    peer.apply(payload((1, 100), (1, 4_096)), 64)
    peer.apply(payload((1, 1 << 20)), 64)
    assert peer.header_table_bytes_least == 100


@pytest.mark.wire("B2-16")
@pytest.mark.parametrize(
    ("pair", "code"),
    [
        ((4, 2**31), ErrorCode.FLOW_CONTROL_ERROR),
        ((4, 2**32 - 1), ErrorCode.FLOW_CONTROL_ERROR),
        ((5, 16_383), ErrorCode.PROTOCOL_ERROR),
        ((5, 2**24), ErrorCode.PROTOCOL_ERROR),
        ((2, 2), ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_b2_16_bad_values(pair: tuple[int, int], code: ErrorCode) -> None:
    with pytest.raises(ConnectionFault) as caught:
        PeerSettings().apply(payload(pair), 64)
    assert caught.value.code is code


@given(st.sampled_from(Setting), st.integers(0, 2**32 - 1))
def test_h2_refuses_the_same_values(key: Setting, value: int) -> None:
    try:
        PeerSettings().apply(payload((key, value)), 64)
        code = ErrorCode.NO_ERROR
    except ConnectionFault as fault:
        code = fault.code
    assert code == _validate_setting(key, value)


@pytest.mark.wire("B2-18")
@given(st.binary(max_size=30).filter(lambda data: len(data) % 6))
def test_b2_18_a_broken_length(data: bytes) -> None:
    with pytest.raises(ConnectionFault) as caught:
        PeerSettings().apply(data, 64)
    assert caught.value.code is ErrorCode.FRAME_SIZE_ERROR


@pytest.mark.wire("B2-05")
def test_b2_05_too_many_entries() -> None:
    PeerSettings().apply(payload((3, 1)) * 64, 64)
    with pytest.raises(ConnectionFault) as caught:
        PeerSettings().apply(payload((3, 1)) * 65, 64)
    assert caught.value.code is ErrorCode.ENHANCE_YOUR_CALM
    assert caught.value.abuse == "settings_entries"
