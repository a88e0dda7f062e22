"""Small ids of integer keys, made of a spine once for all its views.

Keys that lie close together, as those of a database do, are their distance from the least; others
are found in a compiled hash table. Only what the spine asks for gets an id, so that a history pays
a look-up a row and no more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.arrow import Arrow
from features.offline.keys import dense_keys, key_part
from features.sources import Entity
from headrace.compiled import kept, step

Int64s = NDArray[np.int64]

_FIRST_SLOTS = 1 << 12
# 2^64 divided by the golden ratio: neighbours land far apart (Knuth, TAOCP 6.4).
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class SpineKeys:
    """The entity keys of a spine, as ids that histories are looked up by."""

    def __init__(self, entity: Entity, spine: pa.Table) -> None:
        self._entity = entity
        self._spine = spine
        self._integers: _KeyIds | None = None

    def join(self, events: pa.Table, where: str) -> tuple[Int64s, Int64s]:
        """Return int64 ids of the events and of the spine's rows: equal where the keys are.

        Below 0: no key, or none that the spine has. Raises as `dense_keys` does.
        """
        entity = self._entity
        sides = [
            [key_part(table, name, entity.key_type(name), side) for name in entity.join_keys]
            for table, side in ((events, where), (self._spine, "spine"))
        ]
        if not all(pa.types.is_integer(part.type) for side in sides for part in side):
            event_ids, spine_ids, _ = dense_keys(self._entity, events, self._spine, where)
            return event_ids, spine_ids
        if self._integers is None:
            self._integers = _KeyIds(sides[1])
        return self._integers.find(sides[0]), self._integers.ids


class _KeyIds:
    """Ids of keys of one or more integer parts: each part is an id, and so are pairs of ids."""

    def __init__(self, parts: Sequence[Arrow]) -> None:
        self._tables: list[_IntegerIds] = []
        ids: Int64s | None = None
        for part in parts:
            own = _IntegerIds(*_values(part))
            self._tables.append(own)
            if ids is not None:
                pairs = _IntegerIds(*_pair(ids, own.ids, own.count))
                self._tables.append(pairs)
                own = pairs
            ids = own.ids
        assert ids is not None, "an entity has a join key"
        self.ids = ids

    def find(self, parts: Sequence[Arrow]) -> Int64s:
        """Return the ids of other keys; below 0 where there is none."""
        tables = iter(self._tables)
        ids: Int64s | None = None
        for part in parts:
            own = next(tables)
            found = own.find(*_values(part))
            if ids is not None:
                found = next(tables).find(*_pair(ids, found, own.count))
            ids = found
        assert ids is not None, "an entity has a join key"
        return ids


class _IntegerIds:
    """Ids of int64 values, from 0 and below `count`; -1 where they are not valid."""

    def __init__(self, values: Int64s, valid: NDArray[np.bool_]) -> None:
        there = values if valid.all() else values[valid]
        self._least = int(there.min()) if len(there) else 0
        span = int(there.max(initial=self._least)) - self._least + 1
        self._is_close = span <= max(2 * len(values), _FIRST_SLOTS)
        if self._is_close:
            self.count = span
            self.ids = self.find(values, valid)
            return
        self.ids = np.empty(len(values), np.int64)
        self._clear(_FIRST_SLOTS)
        row = 0
        while row < len(values):
            row = self._add(values, valid, self.ids, row)
            if row < len(values):
                known = self._known
                self._clear(4 * len(self._slots))
                self._add(known, np.ones(len(known), np.bool_), np.empty_like(known), 0)

    def _clear(self, slots: int) -> None:
        self._slots = np.full(slots, -1, np.int64)
        self._known = np.empty(slots // 2, np.int64)
        self.count = 0

    def _add(self, values: Int64s, valid: NDArray[np.bool_], ids: Int64s, row: int) -> int:
        """Give ids to values[row:] while there is room; return the row to go on with."""
        row, self.count = _add(values, valid, ids, row, self._slots, self._known, self.count)
        return row

    def find(self, values: Int64s, valid: NDArray[np.bool_]) -> Int64s:
        """Return the ids of other values; -1 where there is none."""
        if self._is_close:
            most = self._least + self.count - 1
            found = valid & (values >= self._least) & (values <= most)
            return np.where(found, values - self._least, -1)
        out = np.empty(len(values), np.int64)
        _find(values, valid, self._slots, self._known, out)
        return out


def _values(part: Arrow) -> tuple[Int64s, NDArray[np.bool_]]:
    values = part.cast(pa.int64())
    if not part.null_count:
        return np.asarray(values), np.ones(len(part), np.bool_)
    return np.asarray(values.fill_null(0)), np.asarray(part.is_valid())


def _pair(first: Int64s, second: Int64s, count: int) -> tuple[Int64s, NDArray[np.bool_]]:
    """Return one number for each pair of ids, the second of `count`."""
    return first * max(count, 1) + second, (first >= 0) & (second >= 0)


@step
def _slot(value, slots, known):  # type: ignore[no-untyped-def]
    """Return the slot of a value, or the free one in which it would be."""
    place = np.int64((np.uint64(value) * _GOLDEN) >> np.uint64(32)) & (slots.size - 1)
    while slots[place] >= 0 and known[slots[place]] != value:
        place = (place + 1) & (slots.size - 1)
    return place


@kept()
def _add(values, valid, ids, row, slots, known, count):  # type: ignore[no-untyped-def]
    """Give ids to values[row:] until `known` is full. Returns the row to go on with, and count."""
    while row < values.size:
        if not valid[row]:
            ids[row] = -1
        else:
            place = _slot(values[row], slots, known)
            if slots[place] < 0:
                if count == known.size:
                    return row, count
                slots[place] = count
                known[count] = values[row]
                count += 1
            ids[row] = slots[place]
        row += 1
    return row, count


@kept()
def _find(values, valid, slots, known, out):  # type: ignore[no-untyped-def]
    for row in range(values.size):
        out[row] = slots[_slot(values[row], slots, known)] if valid[row] else -1
