"""The compiled reading of the event log's blocks (`blocks` says what lies where).

The bytes come from anybody who can write to the log: `find_blocks` and `measure` look before
anything is read, and `fill` reads only what they have found whole.
"""

from __future__ import annotations

import numpy as np

from headrace.compiled import kept, step

FORMAT = 0x4852_4C02  # "HRL", format 2
FIXED_WORDS = 3
KIND_WORDS, KIND_BITS, KIND_CELLS = range(3)
_HEAD_BYTES = 0xFFFF_FFFF


@step
def _head_words(words, start):  # type: ignore[no-untyped-def]
    return ((words[start] & _HEAD_BYTES) + 7) >> 3


@step
def _bit_words(count):  # type: ignore[no-untyped-def]
    return (count + 63) >> 6


@step
def _bit(words, at, i):  # type: ignore[no-untyped-def]
    return (words[at + (i >> 6)] >> (i & 63)) & 1


@kept(signature="Tuple((int64[:, ::1], boolean[::1]))(int64[::1], int64[::1])")
def find_blocks(words, bounds):  # type: ignore[no-untyped-def]
    """Return (start, entry, events) of every block, and whether each entry is whole blocks.

    bounds: int64[entries + 1], where each entry begins and the last ends. An entry that is not
    whole has no blocks.
    """
    blocks = np.empty((words.size // FIXED_WORDS + 1, 3), dtype=np.int64)
    good = np.ones(bounds.size - 1, dtype=np.bool_)
    found = 0
    for entry in range(bounds.size - 1):
        at, end, first = bounds[entry], bounds[entry + 1], found
        good[entry] = at < end
        while at < end:
            if end - at < FIXED_WORDS or words[at] >> 32 != FORMAT:
                good[entry] = False
                break
            length, events = words[at + 1], words[at + 2]
            least = FIXED_WORDS + _head_words(words, at)
            if length > end - at or length < least or events < 0 or events > length - least:
                good[entry] = False
                break
            blocks[found, 0], blocks[found, 1], blocks[found, 2] = at, entry, events
            found += 1
            at += length
        if not good[entry]:
            found = first
    return blocks[:found].copy(), good


@kept(signature="boolean[::1](int64[::1], int64[::1])")
def alike(words, starts):  # type: ignore[no-untyped-def]
    """Return which of the blocks have the head of the first."""
    same = np.ones(starts.size, dtype=np.bool_)
    first = starts[0]
    head = _head_words(words, first)
    for i in range(1, starts.size):
        start = starts[i]
        if words[start] != words[first]:
            same[i] = False
            continue
        for k in range(FIXED_WORDS, FIXED_WORDS + head):
            if words[start + k] != words[first + k]:
                same[i] = False
                break
    return same


@kept(signature="boolean(int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1])")
def measure(words, bodies, ends, events, kinds, cell_bytes):  # type: ignore[no-untyped-def]
    """Return whether every block is as long as what it should hold, to the word.

    bodies: int64[blocks], where each is behind its head; kinds: int64[C]; cell_bytes: int64[C] gets
    the bytes of each column's cells.
    """
    for block in range(bodies.size):
        flags, end, n = bodies[block], ends[block], events[block]
        at = flags + _bit_words(1 + kinds.size)
        if at > end:
            return False
        at += n << (words[flags] & 1)
        for column in range(kinds.size):
            if _bit(words, flags, 1 + column):
                at += _bit_words(n)
            if kinds[column] == KIND_BITS:
                at += _bit_words(n)
                continue
            if kinds[column] == KIND_CELLS:
                if at + n > end:
                    return False
                total = np.int64(0)
                for i in range(at, at + n):
                    if words[i] < 0 or words[i] > 8 * (end - at):
                        return False
                    total += words[i]
                cell_bytes[column] += total
                at += (total + 7) >> 3
            at += n
        if at != end:
            return False
    return True


@step
def _fill_bits(words, at, n, to, out):  # type: ignore[no-untyped-def]
    for i in range(n):
        out[to + i] = _bit(words, at, i)


@kept(
    signature="void(int64[::1], uint8[::1], int64[::1], int64[::1], int64[::1], int64[::1], "
    "int64[::1], int64[:, ::1], int64[:, ::1], boolean[:, ::1], uint8[::1])"
)
def fill(words, data, bodies, events, firsts, kinds, cell_bytes, times, values, valid, cells):  # type: ignore[no-untyped-def]
    """Read blocks that were measured, one after the other.

    data: the bytes of `words`; firsts: int64[blocks], the place of each one's first event.
    times: int64[3, n] gets event times, created times and places; values: int64[C, n] the words,
    bits or lengths; valid: bool[C, n], true before, gets false where null; cells: the cells of all
    columns, one column after the other.
    """
    cell_at = np.zeros(kinds.size, dtype=np.int64)
    for column in range(1, kinds.size):
        cell_at[column] = cell_at[column - 1] + cell_bytes[column - 1]
    to = 0
    for block in range(bodies.size):
        flags, n = bodies[block], events[block]
        at = flags + _bit_words(1 + kinds.size)
        created = at + n if words[flags] & 1 else at
        for i in range(n):
            times[0, to + i] = words[at + i]
            times[1, to + i] = words[created + i]
            times[2, to + i] = firsts[block] + i
        at = created + n
        for column in range(kinds.size):
            if _bit(words, flags, 1 + column):
                _fill_bits(words, at, n, to, valid[column])
                at += _bit_words(n)
            if kinds[column] == KIND_BITS:
                _fill_bits(words, at, n, to, values[column])
                at += _bit_words(n)
                continue
            total = np.int64(0)
            for i in range(n):
                values[column, to + i] = words[at + i]
                total += words[at + i]
            at += n
            if kinds[column] == KIND_CELLS:
                for i in range(total):
                    cells[cell_at[column] + i] = data[8 * at + i]
                cell_at[column] += total
                at += (total + 7) >> 3
        to += n
