"""A snapshot's rows out of the online store."""

from __future__ import annotations

from collections.abc import Sequence

from features.definitions import StoredView
from features.online.keys import CATALOG, CHECKPOINT, ROW_PREFIX, row_suffix, schema_ids_of
from features.online.store import OnlineStore
from features.snapshots.file import TakenRows
from headrace.errors import FailedPreconditionError

_SCANNED_AT_ONCE = 1000
_READ_AT_ONCE = 256


async def rows_of_store(
    store: OnlineStore, views: Sequence[StoredView], now_us: int, timeout_s: float = 10.0
) -> TakenRows:
    """Return the rows of these views.

    They have seen all that the ingester had applied when this began, and of what it applies
    meanwhile perhaps a part. `now_us` is the time of that, `timeout_s` is for each question.
    Raises FailedPreconditionError for a view that the store does not have, and what
    `OnlineStore.execute` raises.
    """
    checkpoint = await store.execute("GET", CHECKPOINT, timeout_s=timeout_s)
    catalog = await store.execute("HGETALL", CATALOG, timeout_s=timeout_s)
    schema_ids = schema_ids_of(catalog, [view.hash for view in views])
    missing = [view.name for view in views if view.hash not in schema_ids]
    if checkpoint is None or missing:
        raise FailedPreconditionError(
            "the store has not what the bundle's features are made of",
            where="online store",
            got=f"no view {missing[0]!r} as it is defined there" if missing else "an empty store",
            mend="apply the bundle's definitions, and let an ingester run",
        )
    suffixes = tuple(row_suffix(view.name, schema_ids[view.hash]) for view in views)
    rows = {CHECKPOINT: checkpoint}
    cursor = b"0"
    while True:
        cursor, keys = await store.execute(
            *("SCAN", cursor, "MATCH", ROW_PREFIX + b"*", "COUNT", _SCANNED_AT_ONCE),
            timeout_s=timeout_s,
        )
        wanted = [key for key in keys if key.endswith(suffixes) and key not in rows]
        for start in range(0, len(wanted), _READ_AT_ONCE):
            part = wanted[start : start + _READ_AT_ONCE]
            values = await store.execute("MGET", *part, timeout_s=timeout_s)
            rows.update((k, v) for k, v in zip(part, values, strict=True) if v is not None)
        if cursor == b"0":
            return TakenRows(rows, schema_ids, now_us)
