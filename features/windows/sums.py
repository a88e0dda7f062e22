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
# Behind a cell's limbs stands (top + 1) << 3 | flags; top + 1 is 0: no number other than zero yet.
NAN, PLUS_INFINITY, MINUS_INFINITY = 1, 2, 4
FLAGS_BITS = 3
FLAGS_MASK = 7

LIMB_MASK = (1 << 32) - 1
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
def top_of(word, scale):  # type: ignore[no-untyped-def]
    """Return the greatest limb of a finite double that is not zero, by its bits, times 2^scale."""
    exponent = (word >> 52) & _EXPONENT_MAX
    return (max(exponent, 1) + 51 + scale) >> 5


@step
def mantissa_of(word):  # type: ignore[no-untyped-def]
    """Return the 53 bits of a finite double, by its bits, without its sign."""
    mantissa = word & _FRACTION
    return mantissa | 1 << 52 if (word >> 52) & _EXPONENT_MAX else mantissa


@step
def place_of(word):  # type: ignore[no-untyped-def]
    """Return where the last bit of a finite double's mantissa counts: in 2^(place − 1074)."""
    return max((word >> 52) & _EXPONENT_MAX, 1) - 1


@step
def split(word, scale, top):  # type: ignore[no-untyped-def]
    """Return the limbs top − 2, top − 1 and top (`top_of`) of a finite double, with its sign."""
    mantissa = mantissa_of(word)
    shift = place_of(word) + scale - 32 * (top - 2)  # 12 … 43
    if shift < 32:
        low = (mantissa << shift) & LIMB_MASK
        middle = (mantissa >> (32 - shift)) & LIMB_MASK
    else:
        low = 0
        middle = (mantissa << (shift - 32)) & LIMB_MASK
    high = mantissa >> (64 - shift)
    if word < 0:
        return -low, -middle, -high
    return low, middle, high


@step
def top_limb(cells, at, limbs):  # type: ignore[no-untyped-def]
    """Return the greatest limb of a cell of so many limbs; -1: it has none yet."""
    return (cells[at + limbs] >> FLAGS_BITS) - 1


@step
def raise_top(cells, at, limbs, top):  # type: ignore[no-untyped-def]
    """Make `top` the greatest limb of a cell, if it is; returns the cell's."""
    known = top_limb(cells, at, limbs)
    if top <= known:
        return known
    for limb in range(max(known + 1, top - limbs + 1), top + 1):
        cells[at + (limb & (limbs - 1))] = 0
    cells[at + limbs] += (top - known) << FLAGS_BITS
    return top


@step
def add_float(cells, at, word, scale):  # type: ignore[no-untyped-def]
    """Add a double, by its bits, times 2^scale, to the cell at `at`."""
    if not is_added(word):
        cells[at + LIMBS] |= flags_of(word)
        return
    top = top_of(word, scale)
    known = raise_top(cells, at, LIMBS, top)
    low, middle, high = split(word, scale, top)
    lowest = known - LIMBS + 1
    if top >= lowest:
        cells[at + (top & 3)] += high
    if top - 1 >= lowest:
        cells[at + ((top - 1) & 3)] += middle
    if top - 2 >= lowest:
        cells[at + ((top - 2) & 3)] += low


@step
def merge_sums(cells, at, others, other_at, limbs):  # type: ignore[no-untyped-def]
    """Add the cell others[other_at:] to the one at `at`."""
    state = others[other_at + limbs]
    if state == 0:
        return
    cells[at + limbs] |= state & FLAGS_MASK
    top = top_limb(others, other_at, limbs)
    if top < 0:
        return
    known = raise_top(cells, at, limbs, top)
    for limb in range(known - limbs + 1, top + 1):
        place = limb & (limbs - 1)
        cells[at + place] += others[other_at + place]


@step
def rounded_sum(cells, at, scale):  # type: ignore[no-untyped-def]
    """Return the sum of a cell, times 2^-scale, as a double."""
    top = top_limb(cells, at, LIMBS)
    flags = cells[at + LIMBS] & FLAGS_MASK
    if top < 0:
        return rounded(0, 0, 0, 0, 0, flags)
    return rounded(
        cells[at + ((top - 3) & 3)],
        cells[at + ((top - 2) & 3)],
        cells[at + ((top - 1) & 3)],
        cells[at + (top & 3)],
        32 * (top - LIMBS + 1) - scale,
        flags,
    )


@step
def rounded(limb0, limb1, limb2, limb3, unit, flags):  # type: ignore[no-untyped-def]
    """Return the double nearest to these limbs, ties to even.

    The first counts in 2^(unit − 1074), the others each in 2³² times the one before.
    """
    if flags:
        if flags == PLUS_INFINITY:
            return np.inf
        return -np.inf if flags == MINUS_INFINITY else np.nan
    # Carry, so that all but the last are digits of 32 bits and the last holds the sign.
    limb1 += limb0 >> 32
    limb2 += limb1 >> 32
    limb3 += limb2 >> 32
    low = np.uint64((limb1 << 32) | (limb0 & LIMB_MASK))
    middle = limb2 & LIMB_MASK
    negative = limb3 < 0
    if negative:
        low = np.uint64(0) - low
        middle = (-middle - (low != 0)) & LIMB_MASK
        limb3 = -limb3 - (low != 0 or middle != 0)
    # The magnitude is limb3 · 2⁹⁶ + middle · 2⁶⁴ + low units: take its 64 leading bits.
    if limb3 >> 32 == 0:
        return nearest(np.uint64((limb3 << 32) | middle), low, unit, negative)
    dropped = np.uint64(low & np.uint64(LIMB_MASK) != 0)
    low = np.uint64(middle << 32) | (low >> np.uint64(32)) | dropped
    return nearest(np.uint64(limb3), low, unit + 32, negative)


@step
def nearest(high, low, unit, negative):  # type: ignore[no-untyped-def]
    """Return the double nearest to (high · 2⁶⁴ + low) · 2^(unit − 1074), ties to even."""
    if high == 0:
        if low == 0:
            return 0.0
        high, low, unit = low, np.uint64(0), unit - 64
    zeros: Any = leading_zeros(high)  # type: ignore[call-arg]
    leading = high << zeros
    if zeros:
        leading |= low >> (np.uint64(64) - zeros)
        low <<= zeros
    # mantissa · 2^(exponent − 1) · 2⁻¹⁰⁷⁴, its first bit the hidden one.
    exponent = unit + 64 + 11 - np.int64(zeros) + 1
    if exponent < 1:
        # Below the least normal number there are fewer bits.
        leading, low = _shifted(leading, low, 1 - exponent)
        exponent = 1
    mantissa = np.int64(leading >> np.uint64(11))
    rest = np.int64(leading & np.uint64(0x7FF))
    if rest > 0x400 or (rest == 0x400 and (low != 0 or mantissa & 1)):
        mantissa += 1
    bits = _EXPONENT_MAX << 52
    if exponent < _EXPONENT_MAX:
        bits = ((exponent - 1) << 52) + mantissa
    value: Any = float_of_bits(bits)
    return -value if negative else value


@step
def _shifted(leading, low, shift):  # type: ignore[no-untyped-def]
    """Shift a word to the right; what goes leaves a mark in `low`."""
    if shift >= 64:
        return np.uint64(0), low | leading
    gone = leading << np.uint64(64 - shift)
    return leading >> np.uint64(shift), low | gone
