"""Our point-in-time join, in a process of its own: see `join_part`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.features_parts import joined
from features import FeatureBatch, definitions_from_source
from features.offline import OfflineStore, get_historical_features


def answer(_name: str, source: str) -> None:
    """For each line of stdin (kind of history, file or null): join, and say what CPU it took.

    With a file the features are written to it, float64 [rows, features]; NaN: there is none.
    """
    folder = Path(source)
    spine = pq.read_table(folder / "spine.parquet")
    service = definitions_from_source(joined.DEFINITIONS).service("joined")
    for line in sys.stdin:
        kind, file = json.loads(line)
        store = OfflineStore(folder / kind)
        start_s, cpu_start_s = time.perf_counter(), time.process_time()
        batch = get_historical_features(spine, service, store)
        cpu_s, wall_s = time.process_time() - cpu_start_s, time.perf_counter() - start_s
        if file is not None:
            np.save(file, values(batch))
        print(json.dumps({"cpu_s": cpu_s, "wall_s": wall_s}), flush=True)


def values(batch: FeatureBatch) -> Any:
    """Return every feature as float64 [rows, features]; NaN: there is none."""
    columns = []
    for name in batch.service.columns:
        column = batch.column(name)
        columns.append(np.where(column.mask, column.values.astype(np.float64), np.nan))
    return np.array(columns).T
