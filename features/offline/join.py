"""The point-in-time join of last-known views.

A row can be seen from max(event_time, created_time) on. So a key's rows are put in that order, the
greatest (event_time, created_time, sequence) so far is carried along, and a query is one binary
search, however late the rows were: walking back from the event time would take every late row once
more for every query.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from features.definitions import FUTURE_TOLERANCE_US


def last_known_rows(
    keys: NDArray[np.int64],
    event_time_us: NDArray[np.int64],
    created_time_us: NDArray[np.int64],
    sequence: NDArray[np.int64],
    query_keys: NDArray[np.int64],
    query_t_us: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return for each query the row that is last known at its time, int64[queries]; -1: none.

    keys, query_keys: int64 ids, below 0: no key. Rows stamped more than 5 minutes ahead of their
    created time are quarantined, as in the stream.
    """
    usable = (keys >= 0) & (event_time_us - FUTURE_TOLERANCE_US <= created_time_us)
    rows = np.flatnonzero(usable)
    if rows.size == 0:
        return np.full(len(query_keys), -1, dtype=np.int64)
    rank = np.empty(rows.size, dtype=np.int64)
    rank[np.lexsort((sequence[rows], created_time_us[rows], event_time_us[rows]))] = np.arange(
        rows.size
    )
    visible_us = np.maximum(event_time_us[rows], created_time_us[rows])
    order = np.lexsort((visible_us, keys[rows]))
    moments = np.unique(visible_us)
    # (key, time) as one integer: times become their place among all the moments.
    stride = moments.size + 1
    place = keys[rows][order] * stride + np.searchsorted(moments, visible_us[order], "right")
    # The greatest rank so far, restarted at every key because a greater key outweighs any rank.
    best = np.maximum.accumulate(keys[rows][order] * rows.size + rank[order])
    found = np.searchsorted(
        place, query_keys * stride + np.searchsorted(moments, query_t_us, "right"), "right"
    )
    candidate = best[np.maximum(found - 1, 0)]
    hit = (found > 0) & (query_keys >= 0) & (candidate // rows.size == query_keys)
    by_rank = np.empty(rows.size, dtype=np.int64)
    by_rank[rank] = rows
    return np.where(hit, by_rank[candidate % rows.size], -1)
