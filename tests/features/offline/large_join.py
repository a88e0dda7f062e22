"""A large training set in a process of its own: what memory it takes.

Arguments: rows of the spine, events, MiB for the join. Says how much its peak memory grew, in MiB.
`make long` runs it at a size that no machine of ours would hold otherwise.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features import definitions_from_source
from features.offline import OfflineStore, write_historical_features

SPAN_US = 30 * 86_400_000_000
PART_ROWS = 500_000
SOURCE = b"""
from features import (
    Aggregation, Entity, EventSource, FeatureService, FeatureView, Field, Float64, Int64,
    ParquetFiles, StreamFeatureView, Window,
)

user = Entity("user", ["user_id"])
fields = [Field("user_id", Int64), Field("a", Float64), Field("b", Int64)]
events = EventSource("events", fields,
    history=ParquetFiles("events", event_time="at", created_time="loaded"))
known = FeatureView("known", user, events, ["a", "b"], "7d")
windows = [Window("1d", "1h"), Window("7d", "1h")]
sums = StreamFeatureView("sums", user, events, [Aggregation("b", ["count", "sum"], windows)])
large = FeatureService("large", 1, [known, sums])
"""


def write_world(root: Path, rows: int, events: int) -> None:
    """Write a spine of so many rows, and so many events of a tenth as many users."""
    rng = np.random.default_rng(1)
    users = max(events // 10, 1)
    (root / "events").mkdir()
    for number, count in enumerate(_parts(events)):
        at = rng.integers(0, SPAN_US, count)
        table = {"user_id": rng.integers(0, users, count), "a": rng.normal(size=count), "at": at}
        table |= {"b": rng.integers(0, 100, count), "loaded": at + rng.integers(0, 1 << 32, count)}
        pq.write_table(pa.table(table), root / "events" / f"{number:05d}.parquet")
    (root / "spine").mkdir()
    for number, count in enumerate(_parts(rows)):
        table = {"user_id": rng.integers(0, users, count), "label": rng.random(count) < 0.5}
        table |= {"event_time": rng.integers(0, SPAN_US, count)}
        pq.write_table(pa.table(table), root / "spine" / f"{number:05d}.parquet")


def _parts(rows: int) -> list[int]:
    whole, rest = divmod(rows, PART_ROWS)
    return [PART_ROWS] * whole + ([rest] if rest else [])


def peak_mib() -> int:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def main(rows: int, events: int, memory_mib: int) -> None:
    """Say how much the peak grew, and check that every row is there."""
    service = definitions_from_source(SOURCE).service("large")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_world(root, rows, events)
        before = peak_mib()
        written = write_historical_features(
            root / "spine", service, OfflineStore(root / "none", root), root / "out.parquet",
            memory_bytes=memory_mib << 20,
        )  # fmt: skip
        found = pq.ParquetFile(root / "out.parquet").metadata
        assert written == found.num_rows == rows
        sys.stdout.write(f"{peak_mib() - before}\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
