"""The part of the history that a store needs to answer from some moment on as if it had it all.

That is, for each source: what lies within reach of its longest window, and the last event of each
entity before that (it is the last known value, and it tells an entity with an empty window from one
that was never seen).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

from features import FeatureView, StreamFeatureView
from headrace.times import HOUR_US

# A window's tail is floored to its hop, and late events may sort behind others: room for both.
_SLACK_US = 2 * HOUR_US


def recent_events(
    events: Mapping[str, pa.Table],
    views: Iterable[FeatureView | StreamFeatureView],
    from_us: int,
) -> dict[str, pa.Table]:
    """Return each source's events without those that no question at or after `from_us` can see.

    `events` are ordered by event time; their order is kept.
    """
    views = list(views)
    return {
        name: _recent(table, [v for v in views if v.source.name == name], from_us)
        for name, table in events.items()
    }


def _recent(
    table: pa.Table, views: list[FeatureView | StreamFeatureView], from_us: int
) -> pa.Table:
    event_us = table.column("event_time").to_numpy()
    keep = event_us >= from_us - max(map(_reach_us, views), default=0) - _SLACK_US
    # What becomes known later stays too, however old it says that it is.
    keep |= table.column("created_time").to_numpy() >= from_us
    numbered = table.append_column("row", pa.array(np.arange(table.num_rows)))
    for keys in {tuple(view.entity.join_keys) for view in views}:
        old = numbered.filter(pa.array(~keep))
        last = old.group_by(list(keys)).aggregate([("row", "max")]).column("row_max")
        kept_later = np.zeros(table.num_rows, bool)
        kept_later[last.to_numpy()] = True
        keep = keep | kept_later
    return table.filter(pa.array(keep))


def _reach_us(view: FeatureView | StreamFeatureView) -> int:
    """How far back a question can look, besides each entity's last event."""
    if isinstance(view, FeatureView):
        return 0
    windows = [window for each in view.aggregations for window in each.windows]
    return max(window.length_us + window.hop_us for window in windows)
