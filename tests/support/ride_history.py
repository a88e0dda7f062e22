"""The small world's events, as history keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from features.offline.store import OfflineStore
from features.online.payload import EventBatch
from tests.support.rides import DEFINITIONS


def history_of(root: Path, batches: Sequence[EventBatch]) -> OfflineStore:
    """Append batches, in their order, to a history in `root`."""
    store = OfflineStore(root)
    kinds = {"i": pa.int64(), "f": pa.float64(), "b": pa.bool_(), "O": pa.string()}
    for batch in batches:
        columns = {"event_time": pa.array(batch.event_times_us)}
        if batch.created_times_us is not None:
            columns["created_time"] = pa.array(batch.created_times_us)
        for name in DEFINITIONS.sources[batch.source].dtypes:
            column = batch.columns[name]
            values = column.values.tolist()
            shown = [v if ok else None for v, ok in zip(values, column.mask, strict=True)]
            columns[name] = pa.array(shown, kinds[column.values.dtype.kind])
        store.append(batch.source, pa.table(columns))
    return store
