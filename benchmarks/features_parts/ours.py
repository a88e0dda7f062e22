"""Features of our history, timed: what `history_ours` and `join_ours` do with a spine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from features import CompiledService, FeatureBatch
from features.offline import OfflineStore, get_historical_features


def answered(
    spine: pa.Table,
    service: CompiledService,
    store: OfflineStore,
    names: Sequence[str],
    file: str | None,
) -> dict[str, float]:
    """Compute the features of a spine, and say what time it took; with a file write the values."""
    start_s, cpu_start_s = time.perf_counter(), time.process_time()
    batch = get_historical_features(spine, service, store)
    cpu_s, wall_s = time.process_time() - cpu_start_s, time.perf_counter() - start_s
    if file is not None:
        np.save(file, values(batch, names))
    return {"cpu_s": cpu_s, "wall_s": wall_s}


def values(batch: FeatureBatch, names: Sequence[str]) -> Any:
    """Return these features as float64 [rows, features]; NaN: there is none."""
    columns = [batch.column(name) for name in names]
    found = [np.where(each.mask, each.values.astype(np.float64), np.nan) for each in columns]
    return np.stack(found, axis=1)
