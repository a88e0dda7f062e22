"""Which event times of a source can matter to a training set: everything else need not be read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.definitions import StoredView, StreamFeatureView
from features.sources import Source


class Reach(NamedTuple):
    """Event times from `low_us` to `high_us`, both included, in UTC microseconds."""

    low_us: int
    high_us: int


# Leaves room for margins in int64.
EVERYTHING = Reach(-(1 << 62), 1 << 62)
NOTHING = Reach(0, -1)


def reach_of(source: Source, views: Iterable[StoredView], times_us: NDArray[np.int64]) -> Reach:
    """Return what those of the views that are of a source see at these times.

    Of a location, what had expired before the first of them is not seen: such a value is then
    reported as not found in place of expired.
    """
    if not len(times_us):
        return NOTHING
    first_us, last_us = int(times_us.min()), int(times_us.max())
    low_us = EVERYTHING.high_us
    for view in views:
        if view.source is not source:
            continue
        if isinstance(view, StreamFeatureView):
            low_us = min(low_us, first_us - view.reach_us)
        elif view.ttl_us is None or source.history is None:
            low_us = EVERYTHING.low_us
        else:
            low_us = min(low_us, first_us - view.ttl_us)
    return Reach(low_us, last_us)


def within(times_us: NDArray[np.int64], reach: Reach) -> NDArray[np.bool_]:
    """Return which of the times are in reach."""
    return (times_us >= reach.low_us) & (times_us <= reach.high_us)
