"""A random world from a seed: definitions, events, and a plan of what happens to whom when."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from features.online.payload import EventBatch
from features.types import Column
from tests.sim.oracle import MINUTE_US, Event, Value, ViewSpec, WindowSpec

SECOND_US = 1_000_000
HOUR_US = 60 * MINUTE_US
NOON_US = 1_363_348_800 * SECOND_US  # 2013-03-15 12:00 UTC
FIELDS = {
    "trips": {"rider": "Int64", "city": "String", "minutes": "Int64", "fare": "Float64"},
    "shifts": {"rider": "Int64", "seats": "Int64", "rating": "Float64", "night": "Bool"},
}
KINDS = {"Int64": np.int64, "Float64": np.float64, "Bool": np.bool_, "String": np.object_}
CITIES = ("Ulm", "Bonn", "Zürich")
RIDERS = 5
FUNCTIONS = ("count", "sum", "mean", "min", "max")
# (length, hop) by levels that divide one another.
LEVELS = (
    (("20s", 20, "10s", 10), ("1min", 60, "10s", 10)),
    (("5min", 300, "1min", 60), ("1h", 3600, "1min", 60), ("3min", 180, "1min", 60)),
    (("2h", 7200, "10min", 600), ("30min", 1800, "10min", 600)),
    (("7d", 604_800, "1h", 3600), ("6h", 21_600, "1h", 3600)),
)
# Late by so much; below 0: stamped ahead, at the last one by a broken clock.
LATE_US = (0, 0, 0, 0, SECOND_US, 2 * MINUTE_US, 20 * MINUTE_US, 5 * HOUR_US, 80 * HOUR_US,
           -MINUTE_US, -5 * MINUTE_US, -HOUR_US)  # fmt: skip
# Sums of these are exact in any order: the contract leaves the order of float sums to the engine.
FARES = (0.0, -0.0, 0.25, 7.5, -3.75, 1024.0, float("nan"))


@dataclass(frozen=True)
class Step:
    """One thing that happens; `kind` says which of the others count."""

    kind: str
    wait_s: float
    client: int = 0
    # push
    batches: tuple[tuple[tuple[Event, ...], bool], ...] = ()
    tries: int = 1
    # read
    rows: tuple[tuple[Value, Value], ...] = ()
    times_us: tuple[int, ...] = ()
    barrier: str = ""
    within_s: float = 0.0
    cancel_after_s: float | None = None
    # faults
    amount: float = 0.0
    for_s: float = 0.0

    def __str__(self) -> str:
        if self.kind == "push":
            parts = [
                f"{e.source} {list(e.values.values())} at {_at(e.event_time_us)}"
                + (f" known {_at(e.created_time_us)}" if told else "")
                for events, told in self.batches
                for e in events
            ]
            return f"push by {self.client}: " + "; ".join(parts)
        if self.kind == "read":
            asked = [f"{row} at {_at(t)}" for row, t in zip(self.rows, self.times_us, strict=True)]
            given_up = "" if self.cancel_after_s is None else f", cancel {self.cancel_after_s:.4f}"
            barrier = f" {self.barrier}, within {self.within_s:.3f} s{given_up}"
            return f"read by {self.client}{barrier}: " + "; ".join(asked)
        return f"{self.kind} {self.amount:.3f} for {self.for_s:.3f} s"


def _at(time_us: int) -> str:
    return f"{(time_us - NOON_US) / SECOND_US:+.6f}"


@dataclass
class World:
    views: list[ViewSpec]
    source: str
    plan: list[Step]
    # How much may wait in the event log.
    backlog_bytes_max: int
    cache_bytes_max: int
    wiped_at_the_end: bool


def make_world(seed: int) -> World:
    rng = random.Random(seed)
    views = [_window_view(rng, f"view_{i}") for i in range(rng.choice([2, 2, 3]))]
    ttl_us = rng.choice([MINUTE_US, HOUR_US, 30 * HOUR_US, None])
    fields = tuple(rng.sample(["seats", "rating", "night"], rng.randint(1, 3)))
    views.append(ViewSpec("last_shift", "shifts", ("rider",), fields=fields, ttl_us=ttl_us))
    # Every fifth world is calm: nothing goes wrong, so that no error is allowed at all.
    plan = _plan(rng, calm=seed % 5 == 0)
    return World(
        views,
        _source_text(views),
        plan,
        rng.choice([64 << 20, 64 << 20, 3000]),
        rng.choice([256 << 20, 256 << 20, 3000, 0]),
        rng.random() < 0.25,
    )


def _window_view(rng: random.Random, name: str) -> ViewSpec:
    source = rng.choice(["trips", "trips", "shifts"])
    keys = ("rider",)
    if source == "trips":
        keys = rng.choice([("rider",), ("city", "rider")])
    columns = [
        field for field, dtype in FIELDS[source].items() if dtype != "String" and field != "rider"
    ]
    aggregations = []
    levels = sorted(rng.sample(range(len(LEVELS)), rng.randint(1, 3)))
    for column in rng.sample([None, *columns], rng.randint(1, 3)):
        pairs = [rng.choice(LEVELS[level]) for level in levels]
        windows = tuple(WindowSpec(n, s * SECOND_US, h * SECOND_US) for n, s, _, h in pairs)
        functions = FUNCTIONS if column in {"minutes", "fare", "seats", "rating"} else ("count",)
        functions = tuple(rng.sample(functions, rng.randint(1, len(functions))))
        aggregations.append((column, ("count",) if column is None else functions, windows))
    return ViewSpec(name, source, keys, tuple(aggregations))


def _source_text(views: list[ViewSpec]) -> str:
    lines = ["from features import *  # noqa: F403", 'rider = Entity("rider", ["rider"])']
    lines.append('city_rider = Entity("city_rider", ["city", "rider"])')
    for name, fields in FIELDS.items():
        listed = ", ".join(f'Field("{field}", {dtype})' for field, dtype in fields.items())
        lines.append(f'{name} = EventSource("{name}", [{listed}])')
    for view in views:
        head = f'"{view.name}", {"_".join(view.keys)}, {view.source}'
        if view.fields:
            ttl = None if view.ttl_us is None else f"{view.ttl_us // SECOND_US}s"
            lines.append(f"{view.name} = FeatureView({head}, {list(view.fields)}, {ttl!r})")
            continue
        parts = []
        for column, functions, windows in view.aggregations:
            listed = ", ".join(f'Window("{w.label}", "{w.hop_us // SECOND_US}s")' for w in windows)
            parts.append(f"Aggregation({column!r}, {list(functions)}, [{listed}])")
        lines.append(f"{view.name} = StreamFeatureView({head}, [{', '.join(parts)}])")
    names = ", ".join(view.name for view in views)
    lines.append(f'service = FeatureService("service", 1, [{names}])')
    return "\n".join(lines) + "\n"


def _plan(rng: random.Random, *, calm: bool) -> list[Step]:
    now_us = NOON_US
    seen: list[Event] = []
    plan = []
    kinds = ["push"] * 8 + ["read"] * 9 + ["poison"]
    if not calm:
        kinds += ["crash", "crash", "newer", "older", "same", "flaky", "flaky", "stall", "down"]
        kinds += ["cut", "memory", "forget"]
    for _ in range(rng.randint(20, 70)):
        kind = rng.choice(kinds)
        wait_s = rng.choice([0.0, 0.001, 0.005, 0.02, 0.3, 1.5]) * rng.random()
        client = rng.randrange(2)
        if kind == "push":
            now_us += rng.choice([0, SECOND_US, 30 * SECOND_US, 7 * MINUTE_US, 50 * MINUTE_US,
                                  5 * HOUR_US])  # fmt: skip
            batches = tuple(_batch(rng, now_us, seen) for _ in range(rng.choice([1, 1, 2])))
            tries = rng.choice([1, 1, 5])
            plan.append(Step(kind, wait_s, client, batches=batches, tries=tries))
        elif kind == "read":
            plan.append(_read(rng, wait_s, client, now_us))
        else:
            amount = rng.choice([0.02, 0.1, 0.4]) if kind == "flaky" else rng.random()
            for_s = rng.choice([0.01, 0.2, 1.0, 3.0]) * rng.random()
            if kind == "stall" and rng.random() < 0.3:
                for_s = 12.0  # longer than even a write waits
            plan.append(Step(kind, wait_s, client, amount=amount, for_s=for_s))
    return plan


def _batch(rng: random.Random, now_us: int, seen: list[Event]) -> tuple[tuple[Event, ...], bool]:
    """Events of one source, and whether their created times are told."""
    source = rng.choice(["trips", "trips", "shifts"])
    told = rng.random() < 0.8
    events = []
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        again = [e for e in seen if e.source == source]
        if again and rng.random() < 0.1:
            event = rng.choice(again)
        else:
            created_us = now_us - rng.choice([0, 0, 1, rng.randrange(60 * SECOND_US)])
            event_us = created_us - rng.choice(LATE_US)
            event = Event(source, event_us, created_us, _values(rng, source))
        if not told:
            event = Event(source, event.event_time_us, event.event_time_us, event.values)
        seen.append(event)
        events.append(event)
    rng.shuffle(events)
    return tuple(events), told


def _values(rng: random.Random, source: str) -> dict[str, Value]:
    def maybe(value: Value, nothing: float = 0.1) -> Value:
        return None if rng.random() < nothing else value

    values: dict[str, Value] = {"rider": maybe(rng.randrange(RIDERS), 0.05)}
    if source == "trips":
        values["city"] = maybe(rng.choice(CITIES), 0.05)
        values["minutes"] = maybe(rng.randint(-5, 90))
        values["fare"] = maybe(rng.choice(FARES))
    else:
        values["seats"] = maybe(rng.randint(1, 9))
        values["rating"] = maybe(rng.choice(FARES))
        values["night"] = maybe(rng.random() < 0.5)
    return values


def _read(rng: random.Random, wait_s: float, client: int, now_us: int) -> Step:
    rows, times = [], []
    for _ in range(rng.randint(1, 4)):
        rider = None if rng.random() < 0.05 else rng.randrange(RIDERS + 1)
        rows.append((rider, None if rng.random() < 0.05 else rng.choice(CITIES)))
        behind = rng.choice([0, 0, -1, -rng.randrange(2 * HOUR_US), rng.randrange(10 * MINUTE_US),
                             rng.randrange(9 * HOUR_US)])  # fmt: skip
        times.append(now_us - behind)
    return Step(
        "read",
        wait_s,
        client,
        rows=tuple(rows),
        times_us=tuple(times),
        barrier=rng.choice(["none", "none", "newest", "newest", "any", "beyond"]),
        within_s=rng.choice([0.0, 0.003, 0.1, 1.0, 5.0]),
        cancel_after_s=rng.random() * 0.02 if rng.random() < 0.2 else None,
    )


def columns_of(source: str, events: tuple[Event, ...]) -> dict[str, Column]:
    table = {}
    for field, dtype in FIELDS[source].items():
        values = [event.values[field] for event in events]
        table[field] = column(values, dtype)
    return table


def column(values: list[Value], dtype: str) -> Column:
    blank: Value = "" if dtype == "String" else 0
    array = np.empty(len(values), dtype=KINDS[dtype])
    array[:] = [blank if value is None else value for value in values]
    valid = np.array([value is not None for value in values], dtype=np.bool_)
    return Column(array, None if valid.all() else valid)


def event_batch(events: tuple[Event, ...], *, told: bool) -> EventBatch:
    source = events[0].source
    created = np.array([e.created_time_us for e in events], dtype=np.int64) if told else None
    times = np.array([e.event_time_us for e in events], dtype=np.int64)
    return EventBatch(source, columns_of(source, events), times, created)
