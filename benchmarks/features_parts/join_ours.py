"""Our point-in-time join, in a process of its own: see `join_part`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.features_parts import joined, ours
from features import definitions_from_source
from features.offline import OfflineStore


def answer(_name: str, source: str) -> None:
    """For each line of stdin (kind of history, file or null): join, and say what CPU it took.

    With a file the features are written to it, float64 [rows, features]; NaN: there is none.
    """
    folder = Path(source)
    spine = pq.read_table(folder / "spine.parquet")
    service = definitions_from_source(joined.DEFINITIONS).service("joined")
    for line in sys.stdin:
        kind, file = json.loads(line)
        said = ours.answered(spine, service, OfflineStore(folder / kind), service.columns, file)
        print(json.dumps(said), flush=True)
