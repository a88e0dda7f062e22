"""Exponential decay without an order: what an event weighs depends on its own time alone.

At t, an event at e counts 2^(−(t − e)/h) for a half-life h. With e = q·h + r that is 2^(r/h) · 2^q
over the same of t, so it is enough to sum v · 2^(r/h) · 2^q. The factor 2^q only moves limbs of
`sums`: they may lie anywhere, as a cell keeps the four greatest that it has seen. What is 2⁹⁶
times less than the greatest is dropped, whatever the order; the sum is rounded when it is read.

2^x is calculated here by +, × and a table, which give the same bits on every machine.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

from features.windows.bits import bits_of_float, float_of_bits
from features.windows.sums import rounded_sum
from headrace.compiled import apart, step

# Keeps the powers of 2 positive: times end below 2⁶¹ µs, half-lives begin at 1 ms.
SCALE_BASE = 1 << 53
_STEPS = 32


def _halves() -> tuple[float, ...]:
    """Return 2^(k/32 − 1) for k up to 32, each the nearest double."""
    with localcontext() as context:
        context.prec = 40
        return tuple(float(Decimal(2) ** (Decimal(k) / _STEPS - 1)) for k in range(_STEPS + 1))


_HALVES = _halves()
_LN_2 = 0.6931471805599453


@apart
def weight_of(time, half_life):  # type: ignore[no-untyped-def]
    """Return (w, q): an event at `time` weighs w · 2^q, with w between a half and 1."""
    scale = time // half_life
    share = float(time - scale * half_life) / float(half_life)
    nearest_step = int(share * _STEPS + 0.5)
    x = (share - nearest_step / _STEPS) * _LN_2  # at most 0.011
    power = 1.0 + x * (1 / 6)
    power = 1.0 + x * (1 / 5) * power
    power = 1.0 + x * (1 / 4) * power
    power = 1.0 + x * (1 / 3) * power
    return _HALVES[nearest_step] * (1.0 + x * (1.0 + x * 0.5 * power)), scale + SCALE_BASE


@step
def weighted(word, weight):  # type: ignore[no-untyped-def]
    """Return the bits of a double, by its bits, times a weight."""
    value: Any = float_of_bits(word)  # type: ignore[call-arg]
    return bits_of_float(value * weight)


@apart
def decayed_sum(cells, at, t, half_life):  # type: ignore[no-untyped-def]
    """Return the sum that a cell of decayed numbers is at time t."""
    weight, scale = weight_of(t, half_life)
    return rounded_sum(cells, at, scale) / weight
