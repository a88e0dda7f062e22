"""Our history of windowed aggregates, in a process of its own: see `history_part`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.features_parts import ours, trips
from features import definitions_from_source
from features.offline.store import OfflineStore

NAMES = [f"travel:{name}" for name in trips.feature_names()]


def write(root: Path, events: trips.Trips, asked: trips.Spine) -> None:
    """Write a history as we keep it, and its spine beside it."""
    OfflineStore(root).append("trips", pa.table(events._asdict()))
    pq.write_table(pa.table(asked._asdict()), root / "spine.parquet")


def answer(_name: str, _source: str) -> None:
    """For each line of stdin (folder, file or null) say what CPU it took to compute the features.

    With a file they are written to it, float64 [rows, features]; NaN: there is none.
    """
    service = definitions_from_source(trips.definitions()).service("travelled")
    for line in sys.stdin:
        folder, file = json.loads(line)
        spine = pq.read_table(Path(folder) / "spine.parquet")
        said = ours.answered(spine, service, OfflineStore(Path(folder)), NAMES, file)
        print(json.dumps(said), flush=True)
