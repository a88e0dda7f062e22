"""Sums of squares that have no order, and the variance from them, rounded once.

The square of a double is a whole number of 2⁻²¹⁴⁸ of at most 106 bits: five limbs of 32. A cell of
squares keeps eight, so that it is exact whenever the cell of the sum (`sums`) is. With n numbers,
their sum S and that of their squares Q, the sample variance is (n·Q − S²) / (n·(n − 1)): both are
taken as whole numbers and only the quotient is rounded, so no offset of the numbers cancels.
"""

from __future__ import annotations

import numpy as np

from features.windows.sums import (
    FLAGS_MASK,
    LIMB_MASK,
    LIMBS,
    flags_of,
    is_added,
    mantissa_of,
    nearest,
    place_of,
    raise_top,
    top_limb,
)
from headrace.compiled import apart, step

SQUARE_LIMBS = 8
SQUARE_WORDS = SQUARE_LIMBS + 1
# Limbs of one square, and digits of 32 bits of what is calculated with.
SPREAD = 5
_SUM_DIGITS = LIMBS + 2
_DIGITS = 16
_EXTRA = 5  # digits behind the quotient's point: it has 98 bits or more


@step
def top_of_square(word):  # type: ignore[no-untyped-def]
    """Return the greatest limb of the square of a finite double, by its bits."""
    return (2 * place_of(word) + 105) >> 5


@apart
def split_square(word, top):  # type: ignore[no-untyped-def]
    """Return the limbs top − 4 … top (`top_of_square`) of the square of a finite double."""
    mantissa = mantissa_of(word)
    a = np.uint64(mantissa >> 32)
    b = np.uint64(mantissa & LIMB_MASK)
    cross = a * b << np.uint64(1)
    low = b * b
    high = a * a + (cross >> np.uint64(32))
    cross = low + (cross << np.uint64(32))
    high += np.uint64(cross < low)
    low = cross
    shift = 2 * place_of(word) - 32 * (top - 4)  # 23 … 54
    is_above = shift >= 32  # the lowest limb, and then `over` is 0
    if is_above:
        shift -= 32
    up = np.uint64(shift)
    mask = np.uint64(LIMB_MASK)
    # In two steps: a shift by 64 is none.
    over = np.int64(high >> np.uint64(1) >> (np.uint64(63) - up))
    carried = low >> np.uint64(1) >> (np.uint64(63) - up)
    low, high = low << up, high << up | carried
    limb0, limb1 = np.int64(low & mask), np.int64(low >> np.uint64(32))
    limb2, limb3 = np.int64(high & mask), np.int64(high >> np.uint64(32))
    if is_above:
        return over, limb0, limb1, limb2, limb3
    return limb0, limb1, limb2, limb3, over


@apart
def add_square(cells, at, word):  # type: ignore[no-untyped-def]
    """Add the square of a double, by its bits, to the cell at `at`."""
    if not is_added(word):
        cells[at + SQUARE_LIMBS] |= flags_of(word)
        return
    top = top_of_square(word)
    lowest = raise_top(cells, at, SQUARE_LIMBS, top) - SQUARE_LIMBS + 1
    limbs = split_square(word, top)
    for i in range(SPREAD):
        limb = top - SPREAD + 1 + i
        if limb >= lowest:
            cells[at + (limb & (SQUARE_LIMBS - 1))] += limbs[i]


@apart
def variance(sums, sum_at, squares, square_at, count):  # type: ignore[no-untyped-def]
    """Return the sample variance of `count` (2 or more) doubles from their two cells."""
    if (sums[sum_at + LIMBS] | squares[square_at + SQUARE_LIMBS]) & FLAGS_MASK:
        return np.nan
    top = top_limb(sums, sum_at, LIMBS)
    square_top = top_limb(squares, square_at, SQUARE_LIMBS)
    if top < 0:
        return 0.0
    total = np.zeros(_SUM_DIGITS, dtype=np.uint64)
    _magnitude(sums, sum_at, LIMBS, top, total)
    # The lowest limbs of Q and S², and of both. They differ by three at most.
    square_lowest = square_top - SQUARE_LIMBS + 1
    lowest = min(square_lowest, 2 * (top - LIMBS + 1))
    spread = np.zeros(_EXTRA + _DIGITS, dtype=np.uint64)
    place = _EXTRA + square_lowest - lowest
    _magnitude(squares, square_at, SQUARE_LIMBS, square_top, spread[place:])
    _multiply(spread[place:], np.uint64(count))
    place = _EXTRA + 2 * (top - LIMBS + 1) - lowest
    if not _subtract_square(spread[place:], total):
        return 0.0  # only where some was dropped
    rest = _divide(spread, np.uint64(count)) | _divide(spread, np.uint64(count - 1))
    return _rounded(spread, lowest, rest)


@step
def _magnitude(cells, at, limbs, top, digits):  # type: ignore[no-untyped-def]
    """Write the absolute value of a cell's limbs as digits of 32 bits."""
    carry = np.int64(0)
    for i in range(limbs):
        carry += cells[at + ((top - limbs + 1 + i) & (limbs - 1))]
        digits[i] = np.uint64(carry & LIMB_MASK)
        carry >>= 32
    for i in range(limbs, limbs + 2):
        digits[i] = np.uint64(carry & LIMB_MASK)
        carry >>= 32
    if carry < 0:
        borrow = np.uint64(1)
        for i in range(limbs + 2):
            digit = (digits[i] ^ np.uint64(LIMB_MASK)) + borrow
            digits[i] = digit & np.uint64(LIMB_MASK)
            borrow = digit >> np.uint64(32)


@step
def _multiply(digits, factor):  # type: ignore[no-untyped-def]
    carry = np.uint64(0)
    for i in range(digits.size):
        carry += digits[i] * factor
        digits[i] = carry & np.uint64(LIMB_MASK)
        carry >>= np.uint64(32)


@step
def _subtract_square(digits, root):  # type: ignore[no-untyped-def]
    """Take the square of `root` from `digits`; returns whether there was enough."""
    mask = np.uint64(LIMB_MASK)
    square = np.zeros(digits.size, dtype=np.uint64)
    for i in range(root.size):
        carry = np.uint64(0)
        for j in range(root.size):
            carry += square[i + j] + root[i] * root[j]
            square[i + j] = carry & mask
            carry >>= np.uint64(32)
        square[i + root.size] = carry
    borrow = np.int64(0)
    for i in range(digits.size):
        left = np.int64(digits[i]) - np.int64(square[i]) + borrow
        digits[i] = np.uint64(left & LIMB_MASK)
        borrow = left >> 32
    return borrow == 0


@step
def _divide(digits, divisor):  # type: ignore[no-untyped-def]
    """Divide the digits by a number below 2³²; returns what is left."""
    rest = np.uint64(0)
    for i in range(digits.size - 1, -1, -1):
        rest = rest << np.uint64(32) | digits[i]
        digits[i] = rest // divisor
        rest %= divisor
    return rest


@step
def _rounded(digits, lowest, rest):  # type: ignore[no-untyped-def]
    """Return the double nearest to a quotient of squares, whose limb `lowest` is digit `_EXTRA`."""
    last = digits.size - 1
    while last >= 0 and digits[last] == 0:
        last -= 1
    if last < 3:
        return 0.0
    high = digits[last] << np.uint64(32) | digits[last - 1]
    low = digits[last - 2] << np.uint64(32) | digits[last - 3]
    for i in range(last - 3):
        rest |= digits[i]
    low |= np.uint64(rest != 0)
    # From 2⁻²¹⁴⁸ to the 2⁻¹⁰⁷⁴ of `nearest`.
    unit = 32 * (lowest + last - 3 - _EXTRA) - 2148 + 1074
    return nearest(high, low, unit, False)
