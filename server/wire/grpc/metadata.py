"""Header fields ↔ metadata: timeouts, status messages, ASCII and binary values.

Fields come as HTTP/2 left them: lower-case names, values without CR, LF or NUL. A value that
gRPC cannot read is the stream's error, never the connection's (CVE-2023-32732).
"""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from headrace.errors import InternalError

# A value of nothing but commas would make a pair of every byte (as HTTP/2 Bomb, CVE-2026-49975,
# does with one-byte header fields): as many parts as a header list may have fields.
_PARTS_MAX = 128
# Each kept name is at most as long as a header list: 128 of 16 KiB are 2 MiB.
_NAMES_KEPT = 128

_KEY = re.compile(r"[0-9a-z_.-]+")
_ASCII_VALUE = re.compile(r"[ -~]*")
# Not metadata though not named `grpc-*`: they belong to the protocol.
_PROTOCOL_NAMES = frozenset({"te", "content-type"})
# What a handler may not send either: HTTP/2's own (RFC 9113 §8.2.2), and what the server sets.
_UNSENDABLE = _PROTOCOL_NAMES | {
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "upgrade",
    "user-agent",
}

_PERCENT_ENCODED = [
    bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte
    for byte in range(256)
]


class MetadataError(InternalError):
    """Metadata that gRPC's grammar does not allow. The call ends; its connection lives on."""


def encode_message(text: str) -> bytes:
    """Return `grpc-message`: UTF-8, percent-encoded but for 0x20–0x24 and 0x26–0x7E.

    A space at either end is encoded, too: HTTP/2 forbids it there, and clients that check
    (h2, nghttp2) would drop the whole response.
    """
    if text.isascii() and text.isprintable() and "%" not in text and text == text.strip():
        return text.encode()
    data = text.encode("utf-8", "replace")
    pieces = [_PERCENT_ENCODED[byte] for byte in data]
    for end in (0, -1):
        if pieces and pieces[end] == b" ":
            pieces[end] = b"%20"
    return b"".join(pieces)


def decode_message(value: bytes) -> str:
    """Return the text of `grpc-message`. Never fails: what is no escape or no UTF-8 is kept."""
    return unquote_to_bytes(value).decode("utf-8", "replace")


@lru_cache(_NAMES_KEPT)
def _key_of(name: bytes) -> tuple[str, bool] | None:
    """Return (key, is binary), or None for a field that no handler is shown."""
    key = name.decode("latin-1")
    if key in _PROTOCOL_NAMES or key.startswith("grpc-") or not _KEY.fullmatch(key):
        return None
    return key, key.endswith("-bin")


def decode_metadata(fields: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str | bytes]]:
    """Return the metadata among a request's fields: in order, repeats kept, `-bin` values bytes.

    Left out: `grpc-*`, `te`, `content-type`, and names that gRPC's grammar does not have.
    `user-agent`, `host` and `cookie` are shown, as grpc.aio shows them. Text is UTF-8, or Latin-1
    where it is not: what HTTP allows and gRPC does not is no error.
    Raises MetadataError for a `-bin` value that is not base64.
    """
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in fields:
        found = _key_of(name)
        if found is None:
            continue
        key, binary = found
        if binary:
            parts = value.split(b",", _PARTS_MAX)
            if len(parts) > _PARTS_MAX:
                raise MetadataError(
                    f"metadata '{key}' has too many values", expected=f"at most {_PARTS_MAX}"
                )
            for part in parts:
                metadata.append((key, _decode_binary(key, part)))  # noqa: PERF401 - may raise
            continue
        try:
            metadata.append((key, value.decode()))
        except UnicodeDecodeError:
            metadata.append((key, value.decode("latin-1")))
    return metadata


def _decode_binary(key: str, part: bytes) -> bytes:
    digits = part.strip(b" \t").rstrip(b"=")
    try:
        data = a2b_base64(digits + b"==")
    except Base64Error:
        data = b""
    # a2b skips what is no digit, and bits that are left over: only what encodes back is base64.
    if b2a_base64(data, newline=False).rstrip(b"=") != digits:
        raise MetadataError(f"metadata '{key}' is not base64")
    return data


def encode_metadata(pairs: Iterable[tuple[str, str | bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the header fields of a handler's metadata: bytes as unpadded base64.

    Raises MetadataError for a key that gRPC's grammar does not have or the protocol reserves,
    for a text that is not printable ASCII, and for bytes without `-bin` or text with it.
    """
    return [(key.encode(), _encode_value(key, value)) for key, value in pairs]


def _encode_value(key: str, value: str | bytes) -> bytes:
    if not _KEY.fullmatch(key):
        raise MetadataError(
            "a metadata key is malformed", expected="characters of 0-9 a-z _ - .", got=repr(key)
        )
    if key.startswith("grpc-") or key in _UNSENDABLE:
        raise MetadataError(f"metadata key '{key}' is reserved")
    if isinstance(value, bytes):
        if not key.endswith("-bin"):
            raise MetadataError(f"metadata '{key}' holds bytes", mend="end its key with -bin")
        return b2a_base64(value, newline=False).rstrip(b"=")
    if key.endswith("-bin"):
        raise MetadataError(f"metadata '{key}' holds text", mend="encode it to bytes")
    if not _ASCII_VALUE.fullmatch(value):
        raise MetadataError(
            f"metadata '{key}' is not printable ASCII", mend="send bytes under a key with -bin"
        )
    # gRPC lets white space at the ends be stripped; HTTP/2 does not let it be sent.
    return value.strip(" ").encode()
