"""What is joined: a spine and three views of last-known values, once with created times that lag.

Written as our history keeps them; the peers read the same Parquet files, and these names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

VIEWS = ("first", "second", "third")
FIELDS = ("a", "b", "c", "d")
KEY = "user"
TTL_DAYS = 7
SEED = 8
ROWS_A_KEY = 10
DAY_US = 86_400_000_000
TTL_US = TTL_DAYS * DAY_US
SPAN_US = 30 * DAY_US
START_US = 1_714_521_600_000_000  # 2024-05-01
LAG_US = 3_600_000_000  # created times are up to so much later
# Where created times lag, and where each is the event time: what the peers can join.
LAGGING, PLAIN = "lagging", "plain"

DEFINITIONS = f"""
from features import Entity, EventSource, FeatureService, FeatureView, Field, Float64, Int64

user = Entity("user", ["{KEY}"])
views = []
for name in {VIEWS!r}:
    source = EventSource(name, [Field("{KEY}", Int64), *(Field(f, Float64) for f in {FIELDS!r})])
    views.append(FeatureView(f"{{name}}_known", user, source, {list(FIELDS)!r}, "{TTL_DAYS}d"))
    globals()[f"source_{{name}}"], globals()[f"view_{{name}}"] = source, views[-1]
joined = FeatureService("joined", 1, views)
""".encode()


def write(folder: Path, spine_rows: int, view_rows: int) -> None:
    """Write both histories and `spine.parquet`, which is in the order of its times."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from features.offline.store import OfflineStore

    random = np.random.default_rng(SEED)
    keys = max(view_rows // ROWS_A_KEY, 1)
    for view in VIEWS:
        columns = _rows(random, view_rows, keys)
        columns |= {field: random.normal(size=view_rows) for field in FIELDS}
        lag_us = random.integers(0, LAG_US, view_rows)
        for kind, created in ((PLAIN, 0), (LAGGING, lag_us)):
            table = pa.table(columns | {"created_time": columns["event_time"] + created})
            OfflineStore(folder / kind).append(view, table)
    pq.write_table(pa.table(_rows(random, spine_rows, keys)), folder / "spine.parquet")


def _rows(random: Any, count: int, keys: int) -> dict[str, Any]:
    times = START_US + random.integers(0, SPAN_US, count)
    times.sort()
    return {KEY: random.integers(0, keys, count), "event_time": times}
