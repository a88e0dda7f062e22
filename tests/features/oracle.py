"""The plain oracle: windows and last known values by reading CONTRACTS §1 aloud, event by event.

It shares nothing with the engine but the definitions: Python integers and floats, no tiles.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache

from features.aggregations import LifetimeWindow, SessionWindow, TumblingWindow
from features.checks import duration_us
from features.definitions import StreamFeatureView

MINUTE_US = 60_000_000
TOLERANCE_US = 5 * MINUTE_US


@dataclass(frozen=True)
class Event:
    """One event: times in UTC microseconds, values by column (None: null)."""

    event_time_us: int
    created_time_us: int
    sequence: int
    values: dict[str, int | float | bool | str | None]

    @property
    def arrival(self) -> tuple[int, int, int]:
        return self.created_time_us, self.event_time_us, self.sequence

    @property
    def order(self) -> tuple[int, int, int]:
        return self.event_time_us, self.created_time_us, self.sequence


def visible(events: Sequence[Event], t_us: int) -> list[Event]:
    """What is known at t and not quarantined, in the order in which it became known."""
    return sorted(
        (
            e
            for e in events
            if e.created_time_us <= t_us and e.event_time_us <= e.created_time_us + TOLERANCE_US
        ),
        key=lambda e: e.arrival,
    )


def windows(view: StreamFeatureView, events: Sequence[Event], t_us: int) -> list[object]:
    """Every output of the view at t, in its order; None where null."""
    return [_window(view, feature, visible(events, t_us), t_us) for feature in view.features]


def _window(view, feature, known, t_us):  # type: ignore[no-untyped-def]
    if view.allowed_lateness is not None:
        late = duration_us(view.allowed_lateness, "allowed_lateness", "oracle")
        known = [e for e in known if e.created_time_us - e.event_time_us <= late]
    inside = in_window(feature.window, known, t_us, t_us + view.includes_now)
    if feature.where is not None:
        inside = [e for e in inside if holds(feature.where.meaning(), e.values)]
    if feature.column is not None:
        inside = [e for e in inside if e.values[feature.column] is not None]
    if feature.function == "count":
        return len(inside)
    if feature.function == "rate":
        start, end = span(feature.window, t_us)
        return len(inside) * 1e6 / (end - start) if end > start else None
    if feature.half_life_us:
        return decayed(feature, inside, t_us)
    if not inside:
        return None
    if feature.function == "seconds_since_last":
        return (t_us - max(e.event_time_us for e in inside)) / 1e6
    values = [e.values[feature.column] for e in inside]
    if feature.function in {"first", "last"}:
        choose = min if feature.function == "first" else max
        # NaN sorts behind all.
        return choose(
            (e.event_time_us, e.created_time_us, v != v, 0 if v != v else v, v)
            for e, v in zip(inside, values, strict=True)
        )[-1]
    if feature.function in {"variance", "stddev"}:
        found = variance([float(v) for v in values])
        return found if found is None or feature.function == "variance" else math.sqrt(found)
    if feature.function in {"min", "max"} and any(v != v for v in values):
        return float("nan")
    if feature.function == "min":
        return min(values)
    if feature.function == "max":
        return max(values)
    total = sum(values) if not isinstance(values[0], float) else float_sum(values)
    return total if feature.function == "sum" else float(total) / len(values)


def variance(values: Sequence[float]) -> float | None:
    """The sample variance, exact and rounded once; of what spans less than 2^43."""
    if len(values) < 2:
        return None
    if any(math.isnan(v) or math.isinf(v) for v in values):
        return math.nan
    exact = [Fraction(v) for v in values]
    mean = sum(exact) / len(exact)
    found = sum((v - mean) ** 2 for v in exact) / (len(exact) - 1)
    try:
        return found.numerator / found.denominator
    except OverflowError:
        return math.inf


def decayed(feature, inside, t_us):  # type: ignore[no-untyped-def]
    """What decays, by the definition of the engine: weights that do not depend on t."""
    h = feature.half_life_us
    weight_of_t, power_of_t = weight(t_us, h)

    def total(values):  # type: ignore[no-untyped-def]
        # All by one power of two, so that the oracle's sum of doubles is exact.
        terms = []
        for event, value in zip(inside, values, strict=True):
            w, power = weight(event.event_time_us, h)
            terms.append((float(value) * w, power))
        return scaled_sum(terms, power_of_t) / weight_of_t

    if feature.function == "decayed_count":
        return total([1.0] * len(inside))
    if not inside:
        return None
    found = total([e.values[feature.column] for e in inside])
    return (
        found if feature.function == "decayed_sum" else divided(found, total([1.0] * len(inside)))
    )


def divided(one: float, other: float) -> float:
    """IEEE 754's quotient."""
    if other:
        return one / other
    return math.nan if one == 0 or one != one else math.copysign(math.inf, one)


@cache
def weight(time_us: int, half_life_us: int) -> tuple[float, int]:
    """(w, q): an event at this time weighs w · 2^q. The steps are the engine's, in Python."""
    q, r = divmod(time_us, half_life_us)
    share = r / half_life_us
    k = int(share * 32 + 0.5)
    x = (share - k / 32) * 0.6931471805599453
    series = 1.0 + x * (1 / 6)
    for n in (5, 4, 3):
        series = 1.0 + x * (1 / n) * series
    with localcontext() as context:
        context.prec = 50
        half = float(Decimal(2) ** (Decimal(k) / 32 - 1))
    return half * (1.0 + x * (1.0 + x * 0.5 * series)), q


def scaled_sum(terms: Sequence[tuple[float, int]], power: int) -> float:
    """The sum of v · 2^q over 2^power, as `float_sum` has it for numbers of any magnitude."""
    values = [v for v, _ in terms]
    if any(math.isnan(v) or math.isinf(v) for v in values):
        return float_sum(values)
    # Each number as whole · 2^place; the limbs are multiples of 32 from 2^-1074.
    wholes = []
    for v, q in terms:
        if v:
            place = max(math.frexp(v)[1], -1021) - 53
            wholes.append((int(math.ldexp(v, -place)), place + q))
    if not wholes:
        return 0.0
    lowest = (max(place + 53 + 1074 - 1 for _, place in wholes) // 32 - 3) * 32 - 1074
    total = sum(
        whole << place - lowest
        if place >= lowest
        else (abs(whole) >> lowest - place) * (1 if whole > 0 else -1)
        for whole, place in wholes
    )
    found = Fraction(total) * Fraction(2) ** (lowest - power)
    try:
        return found.numerator / found.denominator
    except OverflowError:
        return math.inf if total > 0 else -math.inf


def span(window, t_us: int) -> tuple[int, int]:  # type: ignore[no-untyped-def]
    """From when to when a window reaches."""
    hop, length = window.hop_us, window.length_us
    match window:
        case TumblingWindow(previous=True):
            return (t_us // hop - 1) * hop, t_us // hop * hop
        case TumblingWindow():
            return t_us // hop * hop, t_us
    return (t_us - length) // hop * hop, t_us


def in_window(window, known, t_us, end):  # type: ignore[no-untyped-def]
    """The events of a window at t; those before `end` can be seen."""
    known = [e for e in known if e.event_time_us < end]
    hop, length = window.hop_us, window.length_us
    match window:
        case LifetimeWindow():
            return known
        case TumblingWindow(previous=True):
            period = t_us // hop - 1
            return [e for e in known if e.event_time_us // hop == period]
        case TumblingWindow():
            return [e for e in known if e.event_time_us // hop >= t_us // hop]
    inside = [e for e in known if e.event_time_us >= (t_us - length) // hop * hop]
    if not isinstance(window, SessionWindow):
        return inside
    reached, session = t_us, []
    for event in sorted(inside, key=lambda e: -e.event_time_us):
        if reached - event.event_time_us > hop:
            break
        reached = event.event_time_us
        session.append(event)
    return session


def holds(asked, values):  # type: ignore[no-untyped-def]
    """What a filter, by its meaning, says of an event: True, False or None (SQL's unknown)."""
    match asked:
        case ["not", [*inner]]:
            said = holds(inner, values)
            return None if said is None else not said
        case ["and", [*one], [*other]]:
            both = holds(one, values), holds(other, values)
            return False if False in both else None if None in both else True
    name, operator, *wanted = asked
    value = values[name]
    if operator == "is null":
        return value is None
    if value is None:
        return None
    if operator == "in":
        return value in wanted
    (other,) = wanted
    return {
        "==": value == other, "!=": value != other,
        "<": value < other, "<=": value <= other, ">": value > other, ">=": value >= other,
    }[operator]  # fmt: skip


def float_sum(values: Sequence[float]) -> float:
    """A float sum as the engine defines it: exact but for what is 2^96 times less than the greatest
    number, rounded once."""
    infinities = {v for v in values if math.isinf(v)}
    if any(v != v for v in values) or len(infinities) == 2:
        return math.nan
    if infinities:
        return infinities.pop()
    units = [abs(Fraction(v)) * 2**1074 for v in values if v]
    if not units:
        return 0.0
    # In limbs of 32 bits, by where the 53 bits of the greatest number end.
    top = max((max(int(unit).bit_length(), 53) - 1) // 32 for unit in units)
    limb = Fraction(2) ** (32 * (top - 3) - 1074)
    total = sum(math.trunc(Fraction(v) / limb) for v in values) * limb
    try:
        return total.numerator / total.denominator
    except OverflowError:
        return math.inf if total > 0 else -math.inf


def last_known(events: Sequence[Event], t_us: int, ttl_us: int | None) -> Event | str:
    """The last event known at t, or "not_found" or "expired"."""
    candidates = [e for e in visible(events, t_us) if e.event_time_us <= t_us]
    if not candidates:
        return "not_found"
    last = max(candidates, key=lambda e: e.order)
    if ttl_us is not None and t_us - last.event_time_us > ttl_us:
        return "expired"
    return last


def word(value: object) -> int:
    """The int64 that a batch holds for a value."""
    if isinstance(value, float):
        # One NaN and one zero.
        value = float("nan") if value != value else value + 0.0
        return int.from_bytes(struct.pack("<d", value), "little", signed=True)
    assert isinstance(value, int)
    return int(value)
