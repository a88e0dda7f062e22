"""Floats as text by compiled code: the fewest digits that read back as the same float64.

Schubfach, after Raffaello Giulietti, «The Schubfach way to render doubles» (2020). The form is that
of the JSON which the rest of the server writes: from 1e-5 to below 1e16 without an exponent, and a
fraction always.
"""

from __future__ import annotations

import numpy as np

from headrace.compiled import borrowing_step
from headrace.raw_bytes import multiply_high, put_word

TEXT_BYTES_MAX = 24
# So far behind its text `put_float` may write.
SPARE_BYTES = 24
_SIGNIFICAND_BITS = 52
_EXPONENT_MAX = 0x7FF
_BIAS = 1023 + _SIGNIFICAND_BITS
_POWER_MIN, _POWER_MAX = -292, 324
# Where the point may stand beside the first digit before an exponent is written.
_POINT_MIN, _POINT_MAX = -5, 16
_DIGITS_MAX = 17
_FEW = 6  # digits before a point, of most floats
_U64 = np.uint64
_HIDDEN_BIT = _U64(1 << _SIGNIFICAND_BITS)
_ONE, _TWO, _FOUR, _TEN, _FORTY = _U64(1), _U64(2), _U64(4), _U64(10), _U64(40)
_EIGHT_DIGITS = _U64(100_000_000)
_ZEROS = _U64(0x3030303030303030)
_TENS = np.array([10**n for n in range(_DIGITS_MAX)], np.uint64)
_MINUS, _PLUS_ZERO, _POINT, _EXPONENT = np.uint8(45), np.uint8(48), np.uint8(46), np.uint8(101)


def _power_words(power: int) -> tuple[int, int]:
    """Return 10**power, rounded up to the 128 bits that it begins with, as two words."""
    shift = 127 - _floor_log2(power)
    if power >= 0:
        numerator, denominator = 10**power, 1
    else:
        numerator, denominator = 1, 10**-power
    if shift >= 0:
        numerator <<= shift
    else:
        denominator <<= -shift
    rounded = -(-numerator // denominator)
    return rounded >> 64, rounded & (1 << 64) - 1


def _floor_log2(power: int) -> int:
    return power * 1741647 >> 19


_POWERS = np.array([_power_words(p) for p in range(_POWER_MIN, _POWER_MAX + 1)], np.uint64)


@borrowing_step
def _round_to_odd(high, low, value):  # type: ignore[no-untyped-def]
    """Return the upper bits of a power times `value`; the last one says whether bits were lost."""
    middle = high * value
    carried = middle + multiply_high(low, value)
    top = multiply_high(high, value)
    if carried < middle:
        top += _ONE
    return top | _U64(carried > _ONE)


@borrowing_step
def _to_decimal(bits):  # type: ignore[no-untyped-def]
    """Return the digits, as an integer, and the power of ten of a positive finite float64."""
    fraction = bits & (_HIDDEN_BIT - _ONE)
    exponent = np.int64(bits >> _U64(_SIGNIFICAND_BITS))
    if exponent:
        significand, scale = fraction | _HIDDEN_BIT, exponent - _BIAS
        if -_SIGNIFICAND_BITS <= scale <= 0:
            whole = significand >> _U64(-scale)
            if whole << _U64(-scale) == significand:
                return whole, 0
    else:
        significand, scale = fraction, np.int64(1 - _BIAS)
    is_odd = significand & _ONE
    is_closer_below = fraction == _U64(0) and exponent > 1
    power = (scale * 1262611 - (524031 if is_closer_below else 0)) >> 22
    shift = _U64(scale + ((-power * 1741647) >> 19) + 1)
    high, low = _POWERS[-power - _POWER_MIN, 0], _POWERS[-power - _POWER_MIN, 1]
    middle = _round_to_odd(high, low, _FOUR * significand << shift)
    below = _FOUR * significand - _TWO + _U64(is_closer_below)
    lower = _round_to_odd(high, low, below << shift) + is_odd
    upper = _round_to_odd(high, low, (_FOUR * significand + _TWO) << shift) - is_odd
    digits = middle // _FOUR
    if digits >= _TEN:
        fewer = digits // _TEN
        down_fits = lower <= _FORTY * fewer
        up_fits = _FORTY * fewer + _FORTY <= upper
        if down_fits != up_fits:
            return fewer + _U64(up_fits), power + 1
    down_fits = lower <= _FOUR * digits
    up_fits = _FOUR * digits + _FOUR <= upper
    if down_fits != up_fits:
        return digits + _U64(up_fits), power
    half = _FOUR * digits + _TWO
    up = middle > half or (middle == half and digits & _ONE)
    return digits + _U64(up), power


@borrowing_step
def _count_digits(value):  # type: ignore[no-untyped-def]
    # Most floats have 15 to 17: no branch that is taken at random.
    count = _DIGITS_MAX - np.int64(value < _TENS[16]) - np.int64(value < _TENS[15])
    while count > 1 and value < _TENS[count - 1]:
        count -= 1
    return count


@borrowing_step
def _eight_digits(value):  # type: ignore[no-untyped-def]
    """Return the word of the text of eight digits: halves of it are cut in two at once."""
    fours = value // _U64(10_000) | value % _U64(10_000) << _U64(32)
    hundreds = (fours * _U64(10_486) >> _U64(20)) & _U64(0x7F0000007F)
    pairs = hundreds | (fours - hundreds * _U64(100)) << _U64(16)
    tens = (pairs * _U64(103) >> _U64(10)) & _U64(0x000F000F000F000F)
    return (tens | (pairs - tens * _TEN) << _U64(8)) + _ZEROS


@borrowing_step
def _put_decimal(out, at, value, count):  # type: ignore[no-untyped-def]
    """Write `count` digits, and return the word that they begin with.

    What stands behind them for 17 bytes may change.
    """
    value *= _TENS[_DIGITS_MAX - count]
    upper = value // _EIGHT_DIGITS
    first = upper // _EIGHT_DIGITS + _U64(_PLUS_ZERO)
    middle = _eight_digits(upper % _EIGHT_DIGITS)
    out[at] = np.uint8(first)
    put_word(out, at + 1, middle)
    put_word(out, at + 9, _eight_digits(value % _EIGHT_DIGITS))
    return first | middle << _U64(8)


@borrowing_step
def _put_decimal_with_point(out, at, value, count, point):  # type: ignore[no-untyped-def]
    """Write `count` digits with a point behind `point` of them, at most _FEW."""
    digits = _put_decimal(out, at + 1, value, count)
    # Those before the point stand one too far.
    before = (_ONE << _U64(8 * point)) - _ONE
    behind = ~(before << _U64(8) | _U64(255))
    word = digits & before | _U64(_POINT) << _U64(8 * point) | (digits << _U64(8)) & behind
    put_word(out, at, word)


@borrowing_step
def _put_zeros(out, at, count):  # type: ignore[no-untyped-def]
    for place in range(at, at + count):
        out[place] = _PLUS_ZERO
    return at + count


@borrowing_step
def _put_plain(out, at, digits, count, point):  # type: ignore[no-untyped-def]
    """Write digits with the point behind `point` of them."""
    if point >= count:
        _put_decimal(out, at, digits, count)
        at = _put_zeros(out, at + count, point - count)
        out[at], out[at + 1] = _POINT, _PLUS_ZERO
        return at + 2
    if point > _FEW:
        _put_decimal(out, at + 1, digits, count)
        for place in range(at, at + point):
            out[place] = out[place + 1]
        out[at + point] = _POINT
        return at + count + 1
    if point > 0:
        _put_decimal_with_point(out, at, digits, count, point)
        return at + count + 1
    out[at], out[at + 1] = _PLUS_ZERO, _POINT
    at = _put_zeros(out, at + 2, -point)
    _put_decimal(out, at, digits, count)
    return at + count


@borrowing_step
def _put_scientific(out, at, digits, count, exponent):  # type: ignore[no-untyped-def]
    """Write digits with the point behind the first, if there are more."""
    if count > 1:
        _put_decimal_with_point(out, at, digits, count, 1)
        at += 1
    else:
        _put_decimal(out, at, digits, count)
    at += count
    out[at] = _EXPONENT
    at += 1
    if exponent < 0:
        out[at] = _MINUS
        at += 1
        exponent = -exponent
    size = _count_digits(_U64(exponent))
    _put_decimal(out, at, _U64(exponent), size)
    return at + size


@borrowing_step
def put_float(out, at, word):  # type: ignore[no-untyped-def]
    """Write the float64 with these bits (int64); return where it ends: `at` if it is not finite.

    What stands behind it for SPARE_BYTES may change.
    """
    bits = _U64(word) & ~(_ONE << _U64(63))
    if np.int64(bits >> _U64(_SIGNIFICAND_BITS)) == _EXPONENT_MAX:
        return at
    out[at] = _MINUS
    at += np.int64(word < 0)
    if bits == _U64(0):
        return _put_plain(out, at, bits, 1, 1)
    digits, power = _to_decimal(bits)
    while digits % _TEN == _U64(0):
        digits //= _TEN
        power += 1
    count = _count_digits(digits)
    point = count + power
    if _POINT_MIN < point <= _POINT_MAX:
        return _put_plain(out, at, digits, count, point)
    return _put_scientific(out, at, digits, count, point - 1)
