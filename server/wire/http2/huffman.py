"""Huffman decoding of HPACK strings (RFC 7541 §5.2, appendix B), compiled.

The code is canonical: the lengths alone give it. A string is read four bits at a time through a
table of states, since no symbol is shorter than five. The kernel has one signature and is compiled
(or loaded from numba's cache) when this module is imported: in the parent, never in a worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types

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

# An entry of the table: next state (8 bits), the byte to write (8 bits), and these.
_WRITES = 1 << 16
_FAILS = 1 << 17


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


def _transitions(nodes: list[list[int]]) -> tuple[Any, Any]:
    """Return the table [256 states × 16 nibbles] and which states may end a string."""
    table = np.zeros(len(nodes) * 16, dtype=np.int32)
    for state in range(len(nodes)):
        for nibble in range(16):
            node, entry = state, 0
            for shift in (3, 2, 1, 0):
                node = nodes[node][nibble >> shift & 1]
                if node == -1 - EOS:
                    entry, node = _FAILS, 0
                elif node < 0:
                    entry |= _WRITES | (-1 - node) << 8
                    node = 0
            table[state * 16 + nibble] = entry | node
    ends = np.zeros(len(nodes), dtype=np.bool_)
    node = 0
    for _ in range(8):  # padding is at most seven ones (§5.2): anything else is an error
        ends[node] = True
        node = nodes[node][1]
    return table, ends


_TABLE, _ENDS = _transitions(_tree())

_BYTES = types.Bytes(types.uint8, 1, "C", readonly=True)
_compiled: Callable[..., Any] = njit(types.int64(_BYTES, types.uint8[::1]), cache=True)


@_compiled
def _decode(text, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Decode `text` to `out`; return the bytes written, or −1 where it is no code."""
    state = 0
    written = 0
    for i in range(len(text)):
        byte = np.int64(text[i])
        entry = _TABLE[state * 16 + (byte >> 4)]
        if entry & 0x30000:
            if entry & 0x20000:
                return -1
            out[written] = entry >> 8 & 0xFF
            written += 1
        entry = _TABLE[(entry & 0xFF) * 16 + (byte & 15)]
        if entry & 0x30000:
            if entry & 0x20000:
                return -1
            out[written] = entry >> 8 & 0xFF
            written += 1
        state = entry & 0xFF
    if _ENDS[state]:
        return written
    return -1


# Codes of the usual sizes are decoded to a room that is made once. It belongs to the one thread of
# a worker that reads from connections. The kernel writes at most two bytes for each that it reads.
USUAL_BYTES = 512
_OUT = memoryview(bytearray(USUAL_BYTES * 2))
_OUT_ARRAY = np.frombuffer(_OUT, dtype=np.uint8)


def decode(text: bytes) -> bytes | None:
    """Return the decoded bytes, or None where `text` is no Huffman code (§5.2)."""
    if len(text) <= USUAL_BYTES:
        written: int = _decode(text, _OUT_ARRAY)
        return _OUT[:written].tobytes() if written >= 0 else None
    out = np.empty(len(text) * 2, dtype=np.uint8)
    written = _decode(text, out)
    return out[:written].tobytes() if written >= 0 else None
