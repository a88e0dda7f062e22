"""Sums of floats that come out the same, to the bit, in whatever order the numbers came.

A finite double is a whole number of 2⁻¹⁰⁷⁴. It is cut into *limbs* of 32 bits: limb ℓ counts in
2^(32ℓ − 1074). Each limb is summed by itself as an int64, so no order of adding changes it (2³¹
numbers fit), and only the finished sum is rounded, once, to the nearest double, ties to even.

A cell keeps the four limbs below, and with, the greatest limb that it has seen (its *top*), each at
ℓ & 3. What lies further below is dropped, whether it came before the great number or after it. So
the sum is exact unless the magnitudes in one window span more than 2⁹⁶, and then it is off by less
than that from the greatest of them. Two cells are merged limb by limb.

After the superaccumulators of Neal (arXiv:1505.05571), cut to what a tile has room for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from features.windows.bits import float_of_bits, leading_zeros
from headrace.compiled import step

LIMBS = 4
SUM_WORDS = LIMBS + 1
AT_TOP = LIMBS  # (top + 1) | flags << 16; 0: no number other than zero yet
TOP_MASK = 0xFFFF
FLAGS_SHIFT = 16
NAN, PLUS_INFINITY, MINUS_INFINITY = 1, 2, 4

_LIMB_MASK = (1 << 32) - 1
_FRACTION = (1 << 52) - 1
_EXPONENT_MAX = 0x7FF


@step
def flags_of(word):  # type: ignore[no-untyped-def]
    """Return the flag of a double that is no number or infinite, by its bits; 0 of the others."""
    if (word >> 52) & _EXPONENT_MAX != _EXPONENT_MAX:
        return 0
    if word & _FRACTION:
        return NAN
    return MINUS_INFINITY if word < 0 else PLUS_INFINITY


@step
def is_added(word):  # type: ignore[no-untyped-def]
    """Whether a double, by its bits, is a finite number other than zero."""
    return flags_of(word) == 0 and word << 1 != 0


@step
def top_of(word):  # type: ignore[no-untyped-def]
    """Return the greatest limb of a finite double that is not zero, by its bits."""
    exponent = (word >> 52) & _EXPONENT_MAX
    return (max(exponent, 1) + 51) >> 5


@step
def split(word, top):  # type: ignore[no-untyped-def]
    """Return the limbs top − 2, top − 1 and top (`top_of`) of a finite double, with its sign."""
    exponent = (word >> 52) & _EXPONENT_MAX
    mantissa = word & _FRACTION
    if exponent:
        mantissa |= 1 << 52
    shift = max(exponent, 1) - 1 - 32 * (top - 2)  # 12 … 43
    if shift < 32:
        low = (mantissa << shift) & _LIMB_MASK
        middle = (mantissa >> (32 - shift)) & _LIMB_MASK
    else:
        low = 0
        middle = (mantissa << (shift - 32)) & _LIMB_MASK
    high = mantissa >> (64 - shift)
    if word < 0:
        return -low, -middle, -high
    return low, middle, high


@step
def raise_top(cells, at, top):  # type: ignore[no-untyped-def]
    """Make `top` the greatest limb of a cell, if it is; returns the cell's."""
    state = cells[at + AT_TOP]
    known = (state & TOP_MASK) - 1
    if top <= known:
        return known
    for limb in range(max(known + 1, top - LIMBS + 1), top + 1):
        cells[at + (limb & 3)] = 0
    cells[at + AT_TOP] = state + top - known
    return top


@step
def add_float(cells, at, word):  # type: ignore[no-untyped-def]
    """Add a double, by its bits, to the cell at `at`."""
    if not is_added(word):
        cells[at + AT_TOP] |= flags_of(word) << FLAGS_SHIFT
        return
    top = top_of(word)
    known = raise_top(cells, at, top)
    low, middle, high = split(word, top)
    lowest = known - LIMBS + 1
    if top >= lowest:
        cells[at + (top & 3)] += high
    if top - 1 >= lowest:
        cells[at + ((top - 1) & 3)] += middle
    if top - 2 >= lowest:
        cells[at + ((top - 2) & 3)] += low


@step
def merge_sums(cells, at, others, other_at):  # type: ignore[no-untyped-def]
    """Add the cell others[other_at:] to the one at `at`."""
    state = others[other_at + AT_TOP]
    if state == 0:
        return
    cells[at + AT_TOP] |= state >> FLAGS_SHIFT << FLAGS_SHIFT
    top = (state & TOP_MASK) - 1
    if top < 0:
        return
    known = raise_top(cells, at, top)
    for limb in range(known - LIMBS + 1, top + 1):
        cells[at + (limb & 3)] += others[other_at + (limb & 3)]


@step
def rounded_sum(cells, at):  # type: ignore[no-untyped-def]
    """Return the sum of a cell as a double."""
    state = cells[at + AT_TOP]
    top = (state & TOP_MASK) - 1
    if top < 0:
        return rounded(0, 0, 0, 0, 0, state >> FLAGS_SHIFT)
    return rounded(
        cells[at + ((top - 3) & 3)],
        cells[at + ((top - 2) & 3)],
        cells[at + ((top - 1) & 3)],
        cells[at + (top & 3)],
        top,
        state >> FLAGS_SHIFT,
    )


@step
def rounded(limb0, limb1, limb2, limb3, top, flags):  # type: ignore[no-untyped-def]
    """Return the double nearest to the limbs top − 3 … top, ties to even."""
    if flags:
        if flags == PLUS_INFINITY:
            return np.inf
        return -np.inf if flags == MINUS_INFINITY else np.nan
    # Carry, so that all but the last are digits of 32 bits and the last holds the sign.
    limb1 += limb0 >> 32
    limb2 += limb1 >> 32
    limb3 += limb2 >> 32
    low = np.uint64((limb1 << 32) | (limb0 & _LIMB_MASK))
    middle = limb2 & _LIMB_MASK
    negative = limb3 < 0
    if negative:
        low = np.uint64(0) - low
        middle = (-middle - (low != 0)) & _LIMB_MASK
        limb3 = -limb3 - (low != 0 or middle != 0)
    # The magnitude is limb3 · 2⁹⁶ + middle · 2⁶⁴ + low units: take its 64 leading bits.
    unit = 32 * (top - LIMBS + 1)
    if limb3 >> 32 == 0:
        return _nearest(np.uint64((limb3 << 32) | middle), low, unit, negative)
    dropped = np.uint64(low & np.uint64(_LIMB_MASK) != 0)
    low = np.uint64(middle << 32) | (low >> np.uint64(32)) | dropped
    return _nearest(np.uint64(limb3), low, unit + 32, negative)


@step
def _nearest(high, low, unit, negative):  # type: ignore[no-untyped-def]
    """Return the double nearest to (high · 2⁶⁴ + low) · 2^unit · 2⁻¹⁰⁷⁴, ties to even."""
    if high == 0:
        if low == 0:
            return 0.0
        high, low, unit = low, np.uint64(0), unit - 64
    zeros: Any = leading_zeros(high)  # type: ignore[call-arg]
    leading = high << zeros
    if zeros:
        leading |= low >> (np.uint64(64) - zeros)
        low <<= zeros
    mantissa = np.int64(leading >> np.uint64(11))
    rest = np.int64(leading & np.uint64(0x7FF))
    if rest > 0x400 or (rest == 0x400 and (low != 0 or mantissa & 1)):
        mantissa += 1
    # mantissa · 2^(exponent − 1) · 2⁻¹⁰⁷⁴, its first bit the hidden one.
    exponent = unit + 64 + 11 - np.int64(zeros) + 1
    if exponent >= _EXPONENT_MAX:
        bits = _EXPONENT_MAX << 52
    elif exponent > 0:
        bits = ((exponent - 1) << 52) + mantissa
    else:
        # There is nothing below 2⁻¹⁰⁷⁴, so the bits that go are 0.
        bits = mantissa >> (1 - exponent)
    value: Any = float_of_bits(bits)
    return -value if negative else value
