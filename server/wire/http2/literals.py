"""Integers and strings of HPACK (RFC 7541 §5), read and written."""

from __future__ import annotations

from typing import Final

from server.wire.http2 import huffman

# CVE-2022-41723 and its kin: long integers cost time. Five bytes after the prefix hold 32 bits.
_INTEGER_BYTES_MAX: Final = 5
_INTEGER_MAX: Final = 2**31


class HpackError(Exception):
    """A block that cannot be decoded: its connection ends with COMPRESSION_ERROR."""


def read_integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """Read an integer whose prefix has the bits of `mask`: (value, where it ends).

    Raises IndexError where the block ends before it.
    """
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    byte = block[at]
    at += 1
    if byte < 0x80:
        return value + byte, at
    value += byte & 0x7F
    for shift in range(7, 7 * _INTEGER_BYTES_MAX, 7):
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            if value > _INTEGER_MAX:
                break
            return value, at
    raise HpackError("an integer beyond the limits")


def read_huffman(text: bytes) -> bytes:
    """Return what a Huffman-coded string says."""
    value = huffman.decode(text)
    if value is None:
        raise HpackError("a malformed Huffman string")
    return value


def read_string(block: bytes, at: int) -> tuple[bytes, int]:
    """Read a string: (text, where it ends). Raises IndexError where the block ends before it."""
    length, start = read_integer(block, at, 0x7F)
    end = start + length
    if end > len(block):
        raise IndexError
    text = block[start:end]
    return read_huffman(text) if block[at] >= 0x80 else text, end


def encode_integer(value: int, mask: int, flags: int) -> bytes:
    """Write an integer whose prefix has the bits of `mask`, below `flags`."""
    if value < mask:
        return bytes((flags | value,))
    encoded = [flags | mask]
    value -= mask
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
