"""The plain oracle: windows and last known values by reading CONTRACTS §1 aloud, event by event.

It shares nothing with the engine but the definitions: Python integers and floats, no tiles.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

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
    if feature.column is None:
        return len(inside)
    values = [v for e in inside if (v := e.values[feature.column]) is not None]
    if feature.function == "count":
        return len(values)
    if not values:
        return None
    if feature.function in {"min", "max"} and any(v != v for v in values):
        return float("nan")
    if feature.function == "min":
        return min(values)
    if feature.function == "max":
        return max(values)
    total = sum(values) if not isinstance(values[0], float) else float_sum(values)
    return total if feature.function == "sum" else float(total) / len(values)


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
