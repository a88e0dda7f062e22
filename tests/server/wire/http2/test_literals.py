"""Integers and strings of HPACK against the `hpack` library."""

from __future__ import annotations

import time

import hpack.hpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.wire.http2.literals import (
    HpackError,
    encode_integer,
    read_huffman,
    read_integer,
    read_string,
)
from tests.support.header_encoders import coded, raw

BITS = st.integers(4, 7)


@given(st.integers(0, 2**31) | st.integers(0, 400), BITS)
@example(0x7F, 7)
@example(0x7F + 0x7F, 7)
@example(0x7F + 0x80, 7)
@example(2**31, 7)
def test_integers(value: int, bits: int) -> None:
    mask = (1 << bits) - 1
    flags = mask + 1 & 0xFF
    block = encode_integer(value, mask, flags)
    expected = hpack.hpack.encode_integer(value, bits)
    expected[0] |= flags
    assert block == bytes(expected)
    assert read_integer(b"??" + block + b"?", 2, mask) == (value, 2 + len(block))


@pytest.mark.wire("B2-15")
@given(st.binary(max_size=8), BITS)
@example(b"\xff\x80\x80\x80\x80\x00", 7)
def test_b2_15_any_integer(block: bytes, bits: int) -> None:
    try:
        expected = hpack.hpack.decode_integer(block, bits)
    except hpack.HPACKDecodingError:
        expected = None
    try:
        got = read_integer(block, 0, (1 << bits) - 1)
    except IndexError:
        assert expected is None
    except HpackError:
        assert expected is None or expected[0] > 2**31 or expected[1] > 6
    else:
        assert got == expected


@pytest.mark.wire("B2-15")
@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"\xff" + b"\x80" * 8_000_000, id="without end"),
        pytest.param(b"\xff\x80\x80\x80\x80\x80\x00", id="six bytes of nothing"),
        pytest.param(b"\xff\x82\xff\xff\xff\x07", id="2^31 + 1"),
    ],
)
def test_b2_15_integers_beyond_the_limits(block: bytes) -> None:
    began = time.thread_time()
    with pytest.raises(HpackError):
        read_integer(block, 0, 0x7F)
    assert time.thread_time() - began < 0.05


@given(st.binary(max_size=300))
def test_strings(text: bytes) -> None:
    for literal in (raw(text), coded(text)):
        assert read_string(b"?" + literal + b"?", 1) == (text, 1 + len(literal))
        for cut in range(len(literal)):
            with pytest.raises(IndexError):
                read_string(literal[:cut], 0)


@pytest.mark.wire("B2-15")
def test_b2_15_padding_that_is_no_prefix_of_eos() -> None:
    with pytest.raises(HpackError):
        read_huffman(b"\x00")
    with pytest.raises(HpackError):
        read_string(b"\x81\x00", 0)
