"""DuckDB on one thread, with a spine in memory; in the environment of the peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def connected(folder: Path, name: str) -> Any:
    """Return a connection that knows the folder's spine by this name, its rows by their `place`."""
    import duckdb
    import pyarrow.parquet as pq

    spine = pq.read_table(folder / "spine.parquet")
    spine = spine.append_column("place", [range(spine.num_rows)])
    connection = duckdb.connect()
    connection.execute("SET threads = 1")
    connection.execute("SET preserve_insertion_order = false")
    connection.execute("SET enable_progress_bar = false")  # it writes to stdout
    connection.register(name, spine)
    return connection
