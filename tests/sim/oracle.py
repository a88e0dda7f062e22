"""What a read has to answer: CONTRACTS §1 written out, event by event, over the whole log.

It knows nothing of tiles, piles, states or the definitions' own classes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

Value = int | float | bool | str | None
MINUTE_US = 60_000_000
FUTURE_TOLERANCE_US = 5 * MINUTE_US
# How far back the two kinds of stored state promise to answer, and how many rows a pile holds.
EXACT_LAG_US = 15 * MINUTE_US
PILE_ROWS_MAX = 16

PRESENT, NULL, NOT_FOUND, EXPIRED, UNAVAILABLE = range(5)


@dataclass(frozen=True)
class Event:
    source: str
    event_time_us: int
    created_time_us: int
    values: dict[str, Value]
    sequence: int = -1

    @property
    def quarantined(self) -> bool:
        return self.event_time_us - FUTURE_TOLERANCE_US > self.created_time_us

    @property
    def order(self) -> tuple[int, int, int]:
        return self.event_time_us, self.created_time_us, self.sequence


@dataclass(frozen=True)
class WindowSpec:
    label: str
    length_us: int
    hop_us: int


@dataclass(frozen=True)
class ViewSpec:
    """A view: `aggregations` of (column or None, functions, windows), or `fields` with a TTL."""

    name: str
    source: str
    keys: tuple[str, ...]
    aggregations: tuple[tuple[str | None, tuple[str, ...], tuple[WindowSpec, ...]], ...] = ()
    fields: tuple[str, ...] = ()
    ttl_us: int | None = None


Cell = tuple[int, int]  # status and word


def cell(value: Value) -> Cell:
    if value is None:
        return NULL, 0
    if isinstance(value, float):
        return PRESENT, int.from_bytes(struct.pack("<d", value), "little", signed=True)
    assert isinstance(value, int)
    return PRESENT, int(value)


def answers(
    view: ViewSpec, events: Sequence[Event], key: tuple[Value, ...], t_us: int
) -> dict[str, Cell]:
    """The view's features for one entity at t, given all events of the log so far."""
    names = [name for name, *_ in _features(view)]
    if None in key:
        return dict.fromkeys(names, (NOT_FOUND, 0))
    known = [e for e in of_entity(view, events, key) if e.created_time_us <= t_us]
    if view.fields:
        return _last_known(view, known, t_us)
    out = {}
    for name, column, function, window in _features(view):
        assert window is not None
        start_us = (t_us - window.length_us) // window.hop_us * window.hop_us
        inside = [e for e in known if start_us <= e.event_time_us < t_us]
        if column is None:
            out[name] = cell(len(inside))
        else:
            values = [v for e in inside if (v := e.values[column]) is not None]
            out[name] = cell(_aggregate(function, values))
    return out


def may_be_unavailable(
    view: ViewSpec, events: Sequence[Event], key: tuple[Value, ...], t_us: int
) -> bool:
    """Whether the store may have forgotten what it takes to answer at t."""
    mine = of_entity(view, events, key)
    newest_us = max((max(e.event_time_us, e.created_time_us) for e in mine), default=t_us)
    return t_us <= newest_us - EXACT_LAG_US or (bool(view.fields) and len(mine) >= PILE_ROWS_MAX)


def of_entity(view: ViewSpec, events: Sequence[Event], key: tuple[Value, ...]) -> list[Event]:
    return [
        e
        for e in events
        if e.source == view.source
        and not e.quarantined
        and tuple(e.values[name] for name in view.keys) == key
    ]


def _features(view: ViewSpec) -> list[tuple[str, str | None, str, WindowSpec | None]]:
    if view.fields:
        return [(field, field, "last", None) for field in view.fields]
    return [
        (
            f"count_{window.label}" if column is None else f"{column}_{function}_{window.label}",
            column,
            function,
            window,
        )
        for column, functions, windows in view.aggregations
        for function in functions
        for window in windows
    ]


def _aggregate(function: str, values: list[Value]) -> Value:
    if function == "count":
        return len(values)
    if not values:
        return None
    numbers: list[int | float] = [v for v in values if isinstance(v, int | float)]
    if function in {"min", "max"} and any(v != v for v in numbers):
        return float("nan")
    # Plus 0: a window has one zero, while a last known value is what the source had.
    if function == "min":
        return min(numbers) + 0
    if function == "max":
        return max(numbers) + 0
    total = sum(numbers) + 0
    return total if function == "sum" else float(total) / len(numbers)


def _last_known(view: ViewSpec, known: list[Event], t_us: int) -> dict[str, Cell]:
    candidates = [e for e in known if e.event_time_us <= t_us]
    if not candidates:
        return dict.fromkeys(view.fields, (NOT_FOUND, 0))
    last = max(candidates, key=lambda e: e.order)
    if view.ttl_us is not None and t_us - last.event_time_us > view.ttl_us:
        return dict.fromkeys(view.fields, (EXPIRED, 0))
    return {field: cell(last.values[field]) for field in view.fields}
