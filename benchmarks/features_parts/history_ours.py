"""Our history of windowed aggregates, in a process of its own: see `history_part`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.features_parts import trips
from features import FeatureBatch, definitions_from_source
from features.offline.history import get_historical_features
from features.offline.store import OfflineStore


def write(root: Path, events: trips.Trips, asked: trips.Spine) -> None:
    """Write a history as we keep it, and its spine beside it."""
    OfflineStore(root).append("trips", pa.table(events._asdict()))
    pq.write_table(pa.table(asked._asdict()), root / "spine.parquet")


def values(batch: FeatureBatch) -> Any:
    """Return every feature as float64 [rows, features]; NaN: there is none."""
    columns = [batch.column(f"travel:{name}") for name in trips.feature_names()]
    found = [np.where(each.mask, each.values.astype(np.float64), np.nan) for each in columns]
    return np.stack(found, axis=1)


def answer(_name: str, _source: str) -> None:
    """For each line of stdin (folder, file or null) say what CPU it took to compute the features.

    With a file they are written to it, float64 [rows, features]; NaN: there is none.
    """
    service = definitions_from_source(trips.definitions()).service("travelled")
    for line in sys.stdin:
        folder, file = json.loads(line)
        spine = pq.read_table(Path(folder) / "spine.parquet")
        start_s, cpu_start_s = time.perf_counter(), time.process_time()
        batch = get_historical_features(spine, service, OfflineStore(Path(folder)))
        cpu_s, wall_s = time.process_time() - cpu_start_s, time.perf_counter() - start_s
        if file is not None:
            columns = [batch.column(f"travel:{name}") for name in trips.feature_names()]
            found = [
                np.where(each.mask, each.values.astype(np.float64), np.nan) for each in columns
            ]
            np.save(file, np.stack(found, axis=1))
        print(json.dumps({"cpu_s": cpu_s, "wall_s": wall_s}), flush=True)
