"""Huffman decoding of HPACK strings (RFC 7541 §5.2, appendix B), compiled.

The code is canonical: the lengths alone give it. A string is read a byte at a time through a table
of states; a byte ends at most two symbols, since none is shorter than five bits. The kernel has one
signature and is compiled (or loaded from numba's cache) when this module is imported: in the
parent, never in a worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numba import njit, types

from headrace.compiled import kept

# Bits of the code of each byte, and of EOS (256).
CODE_BITS = (
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
)  # fmt: skip
EOS = 256
ROOM = 2  # bytes that one byte of a code may decode to

# An entry of the table: next state (8 bits), two bytes to write (8 bits each), how many of them it
# is (2 bits), whether it is no code (1 bit).
_FIRST, _SECOND, _COUNT, _FAILS = 8, 16, 24, 26


def _tree() -> list[list[int]]:
    """Return the code as a tree: node → [child of bit 0, of bit 1]; a leaf is −1 − symbol."""
    nodes = [[0, 0]]
    code = bits = 0
    for symbol in sorted(range(EOS + 1), key=lambda symbol: (CODE_BITS[symbol], symbol)):
        code <<= CODE_BITS[symbol] - bits
        bits = CODE_BITS[symbol]
        node = 0
        for shift in range(bits - 1, 0, -1):
            bit = code >> shift & 1
            if not nodes[node][bit]:
                nodes[node][bit] = len(nodes)
                nodes.append([0, 0])
            node = nodes[node][bit]
        nodes[node][code & 1] = -1 - symbol
        code += 1
    return nodes


def _by_nibble(nodes: list[list[int]]) -> Any:
    """Return the table [256 states, 16 nibbles]."""
    table = np.zeros((len(nodes), 16), dtype=np.int32)
    for state in range(len(nodes)):
        for nibble in range(16):
            node, entry = state, 0
            for shift in (3, 2, 1, 0):
                node = nodes[node][nibble >> shift & 1]
                if node == -1 - EOS:
                    entry, node = 1 << _FAILS, 0
                elif node < 0:
                    entry |= 1 << _COUNT | (-1 - node) << _FIRST
                    node = 0
            table[state, nibble] = entry | node
    return table


def _by_byte(by_nibble: Any) -> Any:
    """Return the table [256 states, 256 bytes]: two nibbles in one step."""
    high = by_nibble[:, :, None]
    low = by_nibble[by_nibble & 0xFF]
    # The low one's symbol is the second, if the high one has a symbol, too.
    counts = (high >> _COUNT & 3) + (low >> _COUNT & 3)
    first = np.where(high >> _COUNT & 3, high, low) >> _FIRST & 0xFF
    second = low >> _FIRST & 0xFF
    fails = (high | low) >> _FAILS & 1
    table = low & 0xFF | first << _FIRST | second << _SECOND | counts << _COUNT | fails << _FAILS
    return table.reshape(-1).astype(np.int32)


def _ends(nodes: list[list[int]]) -> Any:
    """Return which states may end a string: padding is at most seven ones (§5.2)."""
    ends = np.zeros(len(nodes), dtype=np.bool_)
    node = 0
    for _ in range(8):
        ends[node] = True
        node = nodes[node][1]
    return ends


_NODES = _tree()
_TABLE, _ENDS = _by_byte(_by_nibble(_NODES)), _ends(_NODES)

BYTES: Final = types.Bytes(types.uint8, 1, "C", readonly=True)
_part: Callable[[Any], Any] = njit()


@_part
def decode_to(text, at, stop, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Decode text[at:stop] to `out`; return the bytes written, or −1 where it is no code.

    `out` has ROOM bytes for each that is read.
    """
    state = written = np.int64(0)
    fails = np.int64(0)
    for i in range(at, stop):
        entry = np.int64(_TABLE[state << 8 | np.int64(text[i])])
        # Always both: to write in vain costs less than to guess wrong whether one must.
        out[written] = entry >> 8 & 0xFF
        out[written + 1] = entry >> 16 & 0xFF
        written += entry >> 24 & 3
        fails |= entry >> 26
        state = entry & 0xFF
    if fails or not _ENDS[state]:
        return -1
    return written


@kept(signature=types.int64(BYTES, types.uint8[::1]))
def _decode(text, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    return decode_to(text, 0, len(text), out)


# Codes of the usual sizes are decoded to a room that is made once. It belongs to the one thread of
# a worker that reads from connections.
USUAL_BYTES = 512
_OUT = memoryview(bytearray(ROOM * USUAL_BYTES))
_OUT_ARRAY = np.frombuffer(_OUT, dtype=np.uint8)


def decode(text: bytes) -> bytes | None:
    """Return the decoded bytes, or None where `text` is no Huffman code (§5.2)."""
    if len(text) <= USUAL_BYTES:
        written: int = _decode(text, _OUT_ARRAY)
        return _OUT[:written].tobytes() if written >= 0 else None
    out = np.empty(ROOM * len(text), dtype=np.uint8)
    written = _decode(text, out)
    return out[:written].tobytes() if written >= 0 else None
