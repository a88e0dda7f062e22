"""Message compression: gzip, deflate (zlib's format, as RFC 9110 means it) and identity.

Every message has a context of its own. The limit counts what comes out, while it comes out: a
bomb costs no more than the largest message that is allowed. One message is one compressed
stream: bytes behind its end, a second gzip member included, are an error, as with grpcio.
"""

from __future__ import annotations

import zlib

from headrace.errors import InternalError, ResourceExhaustedError, UnimplementedError

IDENTITY = "identity"
# The best first. zlib's numbers for the container around the same deflate data.
_WINDOW_BITS = {"gzip": 31, "deflate": 15}
SUPPORTED = (IDENTITY, "deflate", "gzip")
# The value of `grpc-accept-encoding`: in every response, also in the one that refuses.
ACCEPT_ENCODING = ", ".join(SUPPORTED).encode()

# zlib needs twice the room of what it is asked for at once, and copies what it leaves of its
# input: with steps on both sides a refused bomb costs the limit and half a MiB.
_INPUT_STEP_BYTES = 64 * 1024
_OUTPUT_STEP_BYTES = 256 * 1024


def encoding_of(value: bytes | None) -> str:
    """Return the encoding that `grpc-encoding` names; None is identity.

    Raises UnimplementedError for another; the response must carry ACCEPT_ENCODING.
    """
    name = IDENTITY if value is None else value.decode("latin-1")
    if name not in SUPPORTED:
        raise UnimplementedError(
            "the message encoding is not supported",
            expected=ACCEPT_ENCODING.decode(),
            got=repr(name[:32]),
        )
    return name


def choose(accept_encoding: bytes | None) -> str:
    """Return the best encoding for responses to a client with this `grpc-accept-encoding`."""
    if accept_encoding:
        accepted = {part.strip() for part in accept_encoding.decode("latin-1").split(",")}
        for name in _WINDOW_BITS:
            if name in accepted:
                return name
    return IDENTITY


def compress(message: bytes, encoding: str) -> bytes:
    """Return `message` in one of SUPPORTED. It may come out longer: the caller compares."""
    if encoding == IDENTITY:
        return message
    return zlib.compress(message, wbits=_WINDOW_BITS[encoding])


def decompress(data: bytes, encoding: str, message_bytes_max: int) -> bytes:
    """Return the message in `data`, whose compressed flag was set.

    Raises InternalError when the call named no encoding or the data is not in it, and
    ResourceExhaustedError when more than `message_bytes_max` bytes come out.
    """
    if encoding == IDENTITY:
        raise InternalError("Compression bit set but no encoding configured")
    if not data:  # grpc's C core sends an empty message so
        return b""
    try:
        return _inflate(data, _WINDOW_BITS[encoding], message_bytes_max)
    except zlib.error:
        raise InternalError(f"Decompression failed: the message is not {encoding}") from None


def _inflate(data: bytes, window_bits: int, message_bytes_max: int) -> bytes:
    inflater = zlib.decompressobj(window_bits)
    pieces: list[bytes] = []
    position, room = 0, message_bytes_max
    while not inflater.eof:
        given = inflater.unconsumed_tail
        if not given:
            given = data[position : position + _INPUT_STEP_BYTES]
            position += len(given)
        # One byte over the limit is enough to know.
        piece = inflater.decompress(given, min(_OUTPUT_STEP_BYTES, room + 1))
        if not (piece or given or inflater.eof):
            raise InternalError("Decompression failed: the message is cut short")
        room -= len(piece)
        if room < 0:
            raise ResourceExhaustedError(
                f"Decompressed message larger than max ({message_bytes_max})"
            )
        pieces.append(piece)
    if inflater.unused_data or position < len(data):
        raise InternalError("Decompression failed: not all input consumed")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
