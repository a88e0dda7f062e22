"""What rows of the online store say, however their windows' states are laid out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from features.definitions import StreamFeatureView
from features.loading import Definitions
from features.online.keys import row_suffix
from features.windows.engine import WindowEngine

MINUTE_US = 60_000_000
# From the newest event on: its window is whole, loses what it has tile by tile, and is empty.
AHEAD_US = [1, *(MINUTE_US * m for m in (1, 7, 20, 45, 90, 200, 400, 1500, 5000, 20_000))]


def meaning(
    rows: Mapping[bytes, bytes], definitions: Definitions, schema_ids: Mapping[str, int], t_us: int
) -> dict[bytes, object]:
    """The rows, and for the state of windows its answers at t_us and at times after that.

    When a state is compacted hangs on how many events came together; what it answers does not.
    """
    engines = {
        row_suffix(name, schema_ids[name]): WindowEngine(view, schema_ids[name])
        for name, view in definitions.stored_views.items()
        if isinstance(view, StreamFeatureView)
    }
    found: dict[bytes, object] = {}
    times = np.array([t_us + ahead for ahead in AHEAD_US], dtype=np.int64)
    for key, row in rows.items():
        engine = engines.get(key[key.rindex(b"}") :])
        if engine is None:
            found[key] = row
        else:
            words, status = engine.query([row] * len(times), times)
            assert status.max() <= 1, "a state that cannot answer now"
            found[key] = (words.tolist(), status.tolist())
    return found
