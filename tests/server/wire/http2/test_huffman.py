"""Huffman decoding against the `hpack` library."""

from __future__ import annotations

import pytest
from hpack.exceptions import HPACKDecodingError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hypothesis import given
from hypothesis import strategies as st

from server.wire.http2.huffman import CODE_BITS, USUAL_BYTES, decode

ENCODER = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


def test_the_code_is_that_of_the_rfc() -> None:
    assert list(CODE_BITS) == list(REQUEST_CODES_LENGTH)


@given(st.binary(max_size=USUAL_BYTES * 3))
def test_decodes_what_is_encoded(text: bytes) -> None:
    assert decode(ENCODER.encode(text)) == text


@pytest.mark.parametrize("length", [0, 1, USUAL_BYTES - 1, USUAL_BYTES, USUAL_BYTES + 1, 100_000])
def test_any_length(length: int) -> None:
    # "0" has five bits, the most text from the fewest bytes; "&" eight, as many as itself.
    for symbol in (b"0", b"&"):
        assert decode(ENCODER.encode(symbol * length)) == symbol * length


@given(st.binary(max_size=64))
def test_says_what_the_library_says_of_any_bytes(coded: bytes) -> None:
    try:
        expected = decode_huffman(coded)
    except HPACKDecodingError:
        expected = None
    assert decode(coded) == expected


@pytest.mark.parametrize(
    "coded",
    [
        pytest.param(b"\xff\xff\xff\xff", id="EOS"),
        pytest.param(b"\xff\xff\xff\xfc" + b"\xff" * USUAL_BYTES, id="EOS in a long string"),
        pytest.param(b"\x07\xff", id="eight bits of padding and more"),
        pytest.param(b"\x00", id="padding of zeros"),
        pytest.param(b"\xff", id="nothing but padding of a byte"),
    ],
)
def test_no_code(coded: bytes) -> None:
    assert decode(coded) is None
