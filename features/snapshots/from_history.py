"""A snapshot's rows out of history: what an ingester would have made of it by some time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from features.definitions import StoredView
from features.ingest.apply import Applier
from features.loading import Definitions
from features.offline.history import History
from features.offline.store import OfflineStore
from features.online.keys import CHECKPOINT, START, Checkpoint
from features.online.payload import EventBatch, check_batch
from features.snapshots.file import TakenRows
from features.sources import Source
from features.types import Column, DType
from features.variable import canonical_column

# As a stream brings them: an entry of the event log has no more.
_EVENTS_AT_ONCE = 10_000


def rows_of_history(store: OfflineStore, views: Sequence[StoredView], until_us: int) -> TakenRows:
    """Return the rows of these views after all events that were known at `until_us`.

    Raises NotFoundError for a source without history, InvalidArgumentError for one whose columns
    are not the source's.
    """
    named = {view.name: view for view in views}
    numbers = {name: number for number, name in enumerate(named, 1)}
    applier = Applier(Definitions(b"", views=dict(named)), numbers)
    rows: dict[bytes, bytes] = {}
    sequence = 0
    for source in {view.source.name: view.source for view in views}.values():
        read_by = [view for view in views if view.source is source]
        events = _events(store, source, read_by, until_us)
        for start in range(0, len(events), _EVENTS_AT_ONCE):
            part = np.arange(start, min(start + _EVENTS_AT_ONCE, len(events)))
            plan = applier.plan([(_taken(events, part), sequence + part)])
            for changes in applier.apply(plan, {key: rows.get(key) for key in plan.keys}):
                rows.update(applier.compacted(changes.apply_to(rows)))
        sequence += len(events)
    rows[CHECKPOINT] = Checkpoint("history", 0, START, sequence).encode()
    return TakenRows(rows, {view.hash: numbers[view.name] for view in views}, until_us)


def _events(
    store: OfflineStore, source: Source, views: Sequence[StoredView], until_us: int
) -> EventBatch:
    """Return a source's events in the order in which a stream would have brought them."""
    needed = {name for view in views for name in view.entity.join_keys}
    for view in views:
        needed.update(view.fields)
    history = History(source, store.rows(source, sorted(needed)))
    event_us, created_us = history.event_time_us, history.created_time_us
    order = np.lexsort((history.sequence, event_us, created_us))
    order = order[created_us[order] <= until_us]
    read = history.table(sorted(needed))
    columns = {
        name: read[name].take(order) if name in needed else _nulls(dtype, len(order))
        for name, dtype in source.dtypes.items()
    }
    batch = EventBatch(source.name, columns, event_us[order], created_us[order])
    return check_batch(batch, {source.name: source})


def _nulls(dtype: DType, rows: int) -> Column:
    """Return what stands for a column that no view reads."""
    absent = np.zeros(rows, np.bool_)
    if dtype.is_variable:
        return canonical_column([None] * rows, absent, dtype, "column", "history")
    return Column(np.zeros(rows, dtype.numpy), absent)


def _taken(batch: EventBatch, rows: NDArray[np.int64]) -> EventBatch:
    assert batch.created_times_us is not None
    return EventBatch(
        batch.source,
        {name: column.take(rows) for name, column in batch.columns.items()},
        batch.event_times_us[rows],
        batch.created_times_us[rows],
    )
