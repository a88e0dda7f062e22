"""The header blocks and frames of gRPC responses."""

from __future__ import annotations

from functools import lru_cache
from math import ceil

from headrace.errors import HeadraceError
from server.wire.grpc import compression, metadata, status
from server.wire.grpc.framing import PREFIX_BYTES
from server.wire.handlers import Metadata
from server.wire.http2.hpack import encode_fields
from server.wire.http2.sending import AnswerShape

_OPENING = [(b":status", b"200"), (b"content-type", b"application/grpc")]
_ACCEPTS = (b"grpc-accept-encoding", compression.ACCEPT_ENCODING)
HEADERS = encode_fields(_OPENING)
OK_TRAILERS = encode_fields([(b"grpc-status", b"0")])


@lru_cache(1024)
def shape(message_head: bytes, tail_bytes: int) -> AnswerShape:
    """Return the shape of answers whose message is `message_head` and then `tail_bytes` more."""
    length = len(message_head) + tail_bytes
    body_head = length.to_bytes(PREFIX_BYTES, "big") + message_head
    return AnswerShape(HEADERS, body_head, tail_bytes, OK_TRAILERS)


def opening(initial: Metadata, encoding: str) -> bytes:
    """Return the block of response headers."""
    if not initial and encoding == compression.IDENTITY:
        return HEADERS
    fields = [*_OPENING, _ACCEPTS]
    if encoding != compression.IDENTITY:
        fields.append((b"grpc-encoding", encoding.encode()))
    return encode_fields(fields + metadata.encode_metadata(initial))


def ok_trailers(trailing: Metadata) -> bytes:
    """Return the block that ends a call which succeeded."""
    if not trailing:
        return OK_TRAILERS
    return encode_fields([(b"grpc-status", b"0"), *metadata.encode_metadata(trailing)])


def error_trailers(error: HeadraceError, trailing: Metadata = ()) -> bytes:
    """Return the block that ends a call which failed after its headers were sent."""
    return encode_fields(_status_fields(error, trailing))


def trailers_only(error: HeadraceError, trailing: Metadata = ()) -> bytes:
    """Return the one block of a call that failed before it sent anything."""
    return encode_fields([*_OPENING, _ACCEPTS, *_status_fields(error, trailing)])


def http_error(http_status: int) -> bytes:
    """Return the one block for who does not speak gRPC; no grpc-status, as the mapping says."""
    fields = [(b":status", str(http_status).encode())]
    if http_status == 405:
        fields.append((b"allow", b"POST"))
    return encode_fields(fields)


def _status_fields(error: HeadraceError, trailing: Metadata) -> list[tuple[bytes, bytes]]:
    code, message = status.of_error(error)
    return [
        (b"grpc-status", status.WIRE[code]),
        (b"grpc-message", metadata.encode_message(message)),
        *_retry_after(error),
        *metadata.encode_metadata(trailing),
    ]


def _retry_after(error: HeadraceError) -> list[tuple[bytes, bytes]]:
    if error.retry_after_s is None:
        return []
    # Whole seconds, as in HTTP: REST and gRPC say it alike.
    return [(b"retry-after", b"%d" % ceil(error.retry_after_s))]
