"""What events do to the rows of the stored views. No store, no clock: rows in, rows out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.definitions import (
    FUTURE_TOLERANCE_US,
    FeatureView,
    StoredView,
    StreamFeatureView,
)
from features.entity_key import entity_keys
from features.loading import Definitions
from features.online.keys import row_key, row_suffix
from features.online.payload import EventBatch
from features.row import RowCodec, merge_pile
from features.sources import Entity
from features.types import Table, joined
from features.windows.engine import WindowEngine
from features.windows.events import event_words
from headrace.errors import FailedPreconditionError
from headrace.times import DAY_US

# How long a row stays in the store after what it was last written for: a view's TTL, or the longest
# reach of its windows. The times themselves are judged when a row is read; this is only so that
# gone entities do not stay for ever, and generous because a replay's clock may stand still
# for days.
STORAGE_SLACK_US = 7 * DAY_US

Rows = Mapping[bytes, bytes | None]
Int64s = NDArray[np.int64]


@dataclass
class Events:
    """Events of one source that have a key of one entity, in the order of the log.

    entities: the distinct keys; index: int64[n], the place of each event's entity among them.
    """

    columns: Table
    event_time_us: Int64s
    created_time_us: Int64s
    sequence: Int64s
    entities: list[bytes]
    index: Int64s


class Step(NamedTuple):
    """One view, the events for it, and the keys of the rows that they change or append to."""

    applier: _ViewApplier
    events: Events
    keys: list[bytes]


@dataclass
class Plan:
    """Which rows some events change, and the events that do it."""

    steps: list[Step]

    @property
    def keys(self) -> list[bytes]:
        """The keys of all rows that must be read to be changed, each once."""
        return [key for step in self.steps if not step.applier.appends for key in step.keys]


class Changes(NamedTuple):
    """New values of rows of one view, or what is appended to them.

    keys, values: one a row; ttl_ms: for how long the store keeps them, 0 for ever; compact_step: 0
    for new values, else the rows are appended to, and one had better be compacted when its length
    passes a multiple of this.
    """

    keys: list[bytes]
    values: list[bytes]
    ttl_ms: int
    compact_step: int = 0

    def apply_to(self, rows: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """Change the rows; return those that had better be compacted."""
        long: dict[bytes, bytes] = {}
        if not self.compact_step:
            rows.update(zip(self.keys, self.values, strict=True))
            return long
        for key, value in zip(self.keys, self.values, strict=True):
            row = rows[key] = rows.get(key, b"") + value
            if len(row) % self.compact_step < len(value):
                long[key] = row
        return long


class Applier:
    """Applies events to the rows of every stored view of the definitions."""

    def __init__(self, definitions: Definitions, schema_ids: Mapping[str, int]) -> None:
        self._by_source: dict[str, dict[Entity, list[_ViewApplier]]] = {}
        self._counts: dict[str, int] = {}
        self._by_suffix: dict[bytes, WindowEngine] = {}
        for name, view in definitions.stored_views.items():
            if name not in schema_ids:
                raise FailedPreconditionError(
                    f"view {name!r} has no schema id",
                    where="ingester",
                    mend="apply the definitions first",
                )
            applier: _ViewApplier
            if isinstance(view, StreamFeatureView):
                applier = _WindowApplier(view, schema_ids[name])
                self._by_suffix[applier.suffix] = applier.engine
            else:
                applier = _LastKnownApplier(view, schema_ids[name])
            by_entity = self._by_source.setdefault(view.source.name, {})
            by_entity.setdefault(view.entity, []).append(applier)

    def plan(self, parts: Sequence[tuple[EventBatch, Int64s]]) -> Plan:
        """Return what events change.

        parts: batches with created times, and the sequence of each of their events; in each they
        ascend.
        """
        by_source: dict[str, list[tuple[EventBatch, Int64s]]] = {}
        for batch, sequence in parts:
            by_source.setdefault(batch.source, []).append((batch, sequence))
        steps = []
        for source, mine in by_source.items():
            arrived = _joined(mine)
            ahead_us = arrived.event_time_us - arrived.created_time_us
            self._count("future_stamped", int((ahead_us > FUTURE_TOLERANCE_US).sum()))
            for entity, appliers in self._by_source.get(source, {}).items():
                events, keyless = _of_entity(arrived, entity)
                self._count("keyless", keyless)
                if events.entities:
                    steps += [Step(a, events, a.row_keys(events)) for a in appliers]
        return Plan(steps)

    def apply(self, plan: Plan, rows: Rows) -> list[Changes]:
        """Return what becomes of rows, given those of `plan.keys` (None: there is none)."""
        changes = []
        for applier, events, keys in plan.steps:
            more, too_late = applier.apply(events, keys, rows)
            self._count("too_late", too_late)
            if more.keys:
                changes.append(more)
        return changes

    def compacted(self, rows: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """Return those of the rows, that were appended to, which are better kept otherwise."""
        by_engine: dict[bytes, list[bytes]] = {}
        for key in rows:
            # An entity may hold any bytes; the names of views hold no brace.
            by_engine.setdefault(key[key.rindex(b"}") :], []).append(key)
        found = {}
        for suffix, keys in by_engine.items():
            states = self._by_suffix[suffix].compact_many([rows[key] for key in keys])
            for key, state in zip(keys, states, strict=True):
                value = state.tobytes()
                if value != rows[key]:
                    found[key] = value
        return found

    def take_counts(self) -> dict[str, int]:
        """Return what was counted since the last call, by the names of `IngestCounters`."""
        counts, self._counts = self._counts, {}
        return counts

    def _count(self, name: str, more: int) -> None:
        self._counts[name] = self._counts.get(name, 0) + more


class _ViewApplier(ABC):
    """What the two kinds of stored views have in common: where their rows are."""

    appends = False
    # From the write, not from the event: a replay of old events would expire at once by the store's
    # clock, which is today's. Each accepted write starts it anew.
    ttl_ms = 0

    def __init__(self, view: StoredView, schema_id: int) -> None:
        self.suffix = row_suffix(view.name, schema_id)

    def row_keys(self, events: Events) -> list[bytes]:
        """Return the key of each entity's row."""
        return [row_key(entity, self.suffix) for entity in events.entities]

    @abstractmethod
    def apply(self, events: Events, keys: list[bytes], rows: Rows) -> tuple[Changes, int]:
        """Return what becomes of the rows, and how many events came too late to count."""


class _WindowApplier(_ViewApplier):
    appends = True

    def __init__(self, view: StreamFeatureView, schema_id: int) -> None:
        super().__init__(view, schema_id)
        self.engine = WindowEngine(view, schema_id)
        self._view = view
        if view.forgets:
            self.ttl_ms = (view.reach_us + STORAGE_SLACK_US) // 1000

    def apply(self, events: Events, keys: list[bytes], rows: Rows) -> tuple[Changes, int]:
        words, valid = event_words(self._view, events.columns, len(events.index))
        records, refused = self.engine.records(
            events.index, len(keys), events.event_time_us, events.created_time_us, words, valid
        )
        if any(refused):
            keys = [key for key, value in zip(keys, records, strict=True) if value]
            records = [value for value in records if value]
        step = self.engine.compact_step_bytes
        return Changes(keys, records, self.ttl_ms, step), refused.late


class _LastKnownApplier(_ViewApplier):
    def __init__(self, view: FeatureView, schema_id: int) -> None:
        super().__init__(view, schema_id)
        self._codec = RowCodec.of_view(view, schema_id)
        if view.ttl_us is not None:
            self.ttl_ms = max(1, (view.ttl_us + STORAGE_SLACK_US) // 1000)

    def apply(self, events: Events, keys: list[bytes], rows: Rows) -> tuple[Changes, int]:
        packed = self._codec.pack(
            events.columns, events.event_time_us, events.created_time_us, events.sequence
        )
        current = [rows[key] for key in keys]
        piles = list(current)
        # One at a time: what a pile drops must not hang on how many rows came together, or a replay
        # after a crash would leave other bytes.
        for row, place in zip(packed, events.index.tolist(), strict=True):
            piles[place] = merge_pile(piles[place], [row])[0]
        changed = Changes([], [], self.ttl_ms)
        for key, pile, before in zip(keys, piles, current, strict=True):
            if pile is not None and pile != before:
                changed.keys.append(key)
                changed.values.append(pile)
        return changed, 0


class _Joined(NamedTuple):
    """Events of one source, in the order of the log."""

    columns: Table
    event_time_us: Int64s
    created_time_us: Int64s
    sequence: Int64s


def _of_entity(joined: _Joined, entity: Entity) -> tuple[Events, int]:
    """Return the events that have a key of this entity, and how many have none."""
    keys = entity_keys(entity, joined.columns)
    keyless = keys.count(None)
    if keyless:
        kept = np.array([i for i, key in enumerate(keys) if key is not None], dtype=np.int64)
        joined = _Joined(
            {name: column.take(kept) for name, column in joined.columns.items()},
            joined.event_time_us[kept],
            joined.created_time_us[kept],
            joined.sequence[kept],
        )
    places: dict[bytes, int] = {}
    index = [places.setdefault(key, len(places)) for key in keys if key is not None]
    return Events(*joined, list(places), np.array(index, dtype=np.int64)), keyless


def _joined(parts: list[tuple[EventBatch, Int64s]]) -> _Joined:
    """Return batches of one source as one, in the order of the log."""
    arrived = [_with_sequence(*part) for part in parts]
    if len(arrived) == 1:
        return arrived[0]
    # They were read by their forms; who applies them must not see that.
    sequence = np.concatenate([one.sequence for one in arrived])
    order = np.argsort(sequence)
    names = arrived[0].columns
    return _Joined(
        {name: joined([one.columns[name] for one in arrived]).take(order) for name in names},
        np.concatenate([one.event_time_us for one in arrived])[order],
        np.concatenate([one.created_time_us for one in arrived])[order],
        sequence[order],
    )


def _with_sequence(batch: EventBatch, sequence: Int64s) -> _Joined:
    created = batch.created_times_us
    assert created is not None
    return _Joined(batch.columns, batch.event_times_us, created, sequence)
