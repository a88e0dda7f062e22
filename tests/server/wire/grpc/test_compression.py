"""Compressed messages: zlib and gzip as oracles, and what a bomb costs."""

import contextlib
import gzip
import random
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InternalError, ResourceExhaustedError, UnimplementedError
from server.wire.grpc import compression
from server.wire.grpc.compression import choose, compress, decompress, encoding_of

MIB = 1 << 20
NOISE_ZLIB = zlib.compress(random.Random(2).randbytes(100_000))  # more than is taken at once
ENCODINGS = pytest.mark.parametrize("encoding", ["gzip", "deflate"])

GZIPPED = gzip.compress(b"abc", mtime=0)


@pytest.mark.wire("B3-14")
@given(st.binary(max_size=2000), st.sampled_from(["gzip", "deflate"]))
def test_b3_14_every_message_has_a_context_of_its_own(message, encoding):
    first, second = compress(message, encoding), compress(message, encoding)
    assert first == second
    assert decompress(second, encoding, 2000) == message
    oracle = gzip.decompress if encoding == "gzip" else zlib.decompress
    assert oracle(first) == message


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, 256 * 1024 + 1, 3 * MIB])
@ENCODINGS
def test_large_messages_come_out_whole(size, encoding):
    message = random.Random(1).randbytes(size // 2) + bytes(size - size // 2)
    assert decompress(compress(message, encoding), encoding, size) == message
    oracle = gzip.compress if encoding == "gzip" else zlib.compress
    assert decompress(oracle(message), encoding, size) == message


def test_identity_leaves_a_message_alone():
    assert compress(b"abc", "identity") == b"abc"


@ENCODINGS
def test_an_empty_message_needs_no_container(encoding):
    assert decompress(b"", encoding, 0) == b""


@pytest.mark.wire("B3-10")
def test_b3_10_a_compressed_message_without_an_encoding_is_an_internal_error():
    with pytest.raises(InternalError, match=r"^Compression bit set but no encoding configured$"):
        decompress(b"abc", encoding_of(None), 100)
    with pytest.raises(InternalError, match=r"^Compression bit set but no encoding configured$"):
        decompress(b"abc", encoding_of(b"identity"), 100)


@pytest.mark.wire("B3-11")
@pytest.mark.parametrize("value", [b"br", b"", b"GZIP", b"gzip, identity", b"\xff", b"x" * 10_000])
def test_b3_11_another_encoding_is_unimplemented_and_the_error_lists_what_is_not(value):
    with pytest.raises(UnimplementedError, match="identity, deflate, gzip") as caught:
        encoding_of(value)
    assert len(str(caught.value)) < 200
    assert compression.ACCEPT_ENCODING == b"identity, deflate, gzip"


@pytest.mark.parametrize("name", ["identity", "deflate", "gzip"])
def test_supported_encodings_are_known(name):
    assert encoding_of(name.encode()) == name


@pytest.mark.wire("B3-12")
@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (b"junk", "gzip"),
        (b"junk", "deflate"),
        (zlib.compress(b"abc"), "gzip"),
        (GZIPPED, "deflate"),
        (zlib.compress(b"abc", wbits=-15), "deflate"),  # bare deflate: grpcio refuses it, too
        (GZIPPED[:-1], "gzip"),
        (GZIPPED[:1], "gzip"),
        (zlib.compress(b"abc")[:-4], "deflate"),
        (GZIPPED[:-8] + bytes(8), "gzip"),  # wrong checksum
        (GZIPPED + b"x", "gzip"),
        (GZIPPED * 2, "gzip"),  # a second member
        (zlib.compress(b"abc") + b"x", "deflate"),
        (zlib.compress(b"abc") + bytes(100_000), "deflate"),
        (NOISE_ZLIB[:-4], "deflate"),
        (NOISE_ZLIB[: 64 * 1024], "deflate"),
        (NOISE_ZLIB + bytes(100_000), "deflate"),
    ],
)
def test_b3_12_undecompressible_data_is_an_internal_error(data, encoding):
    with pytest.raises(InternalError, match=r"^Decompression failed"):
        decompress(data, encoding, 100_000)


@pytest.mark.wire("B3-12")
@given(st.binary(max_size=60), st.sampled_from(["gzip", "deflate"]))
def test_b3_12_no_data_breaks_the_decoder(data, encoding):
    for tried in (data, compress(b"abc", encoding)[:4] + data):
        with contextlib.suppress(InternalError, ResourceExhaustedError):
            decompress(tried, encoding, 100)


@pytest.mark.wire("B3-16")
@pytest.mark.parametrize("size", [0, 1, 100, 256 * 1024, 768 * 1024])
@ENCODINGS
def test_b3_16_the_limit_is_exact(size, encoding):
    data = compress(bytes(size), encoding)
    assert decompress(data, encoding, size) == bytes(size)
    with pytest.raises(ResourceExhaustedError, match="Decompressed message larger than max"):
        decompress(compress(bytes(size + 1), encoding), encoding, size)


@pytest.fixture(scope="module")
def bombs():
    """1 GiB of zeros (a MiB or so of gzip), and the first KiB of it."""
    packer = zlib.compressobj(9, wbits=31)
    block = bytes(16 * MIB)
    data = b"".join(packer.compress(block) for _ in range(64)) + packer.flush()
    return {"1 MiB": data, "1 KiB": data[:1024]}


@pytest.mark.wire("B2-22")
@pytest.mark.parametrize(
    ("name", "limit"),
    # A KiB cannot come to more than a MiB.
    [("1 MiB", 4 * MIB), ("1 MiB", 256 * 1024), ("1 KiB", 256 * 1024)],
)
def test_b2_22_a_gzip_bomb_costs_less_than_8_mib(bombs, name, limit):
    data = bombs[name]
    tracemalloc.start()
    try:
        with pytest.raises(ResourceExhaustedError, match=f"larger than max .{limit}."):
            decompress(data, "gzip", limit)
        assert tracemalloc.get_traced_memory()[1] < limit + MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("accept", "name"),
    [
        (None, "identity"),
        (b"", "identity"),
        (b"identity", "identity"),
        (b"identity, deflate, gzip", "gzip"),
        (b"deflate", "deflate"),
        (b"br,deflate", "deflate"),
        (b" gzip ", "gzip"),
        (b"gzipped\xff", "identity"),
    ],
)
def test_the_best_accepted_encoding_is_chosen(accept, name):
    assert choose(accept) == name
