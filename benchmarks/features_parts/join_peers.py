"""The point-in-time joins of DuckDB and of Polars, in an environment of their own: see `join_part`.

Neither takes created time: DuckDB's ASOF has one inequality, Polars' one column.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.features_parts.duckdb_side import connected
from benchmarks.features_parts.joined import FIELDS, KEY, TTL_US, VIEWS


def answer(name: str, source: str) -> None:
    """For each line of stdin (kind of history, file or null): join, and say what CPU it took.

    With a file the features are written to it, float64 [rows, features]; NaN: there is none.
    """
    os.environ["POLARS_MAX_THREADS"] = "1"
    import numpy as np

    folder = Path(source)
    prepare = {"DuckDB": _duckdb, "Polars": _polars}[name]
    join = prepare(folder)
    for line in sys.stdin:
        kind, file = json.loads(line)
        start_s, cpu_start_s = time.perf_counter(), time.process_time()
        result = join(folder / kind)
        cpu_s, wall_s = time.process_time() - cpu_start_s, time.perf_counter() - start_s
        if file is not None:
            np.save(file, _values(result))
        print(json.dumps({"cpu_s": cpu_s, "wall_s": wall_s}), flush=True)


def _duckdb(folder: Path) -> Any:
    connection = connected(folder, "spine")

    def join(root: Path) -> Any:
        # Rows may come in any order: `place` says which one each is.
        columns = ", ".join(
            f"CASE WHEN s.event_time - {view}.event_time <= {TTL_US} THEN {view}.{field} END"
            f" AS {view}_{field}"
            for view in VIEWS
            for field in FIELDS
        )
        joins = " ".join(
            f"ASOF LEFT JOIN (SELECT {KEY}, event_time, {', '.join(FIELDS)}"
            f" FROM read_parquet('{root}/{view}/*.parquet')) {view}"
            f" ON s.{KEY} = {view}.{KEY} AND s.event_time >= {view}.event_time"
            for view in VIEWS
        )
        return connection.sql(f"SELECT s.place, {columns} FROM spine s {joins}").to_arrow_table()

    return join


def _polars(folder: Path) -> Any:
    import polars as pl

    spine = pl.read_parquet(folder / "spine.parquet").with_row_index("place")
    # It is written in the order of its times, and so are the views: nobody has to sort.
    spine = spine.set_sorted("event_time")

    def join(root: Path) -> Any:
        found = spine.lazy()
        for view in VIEWS:
            names = {field: f"{view}_{field}" for field in FIELDS}
            right = (
                pl.scan_parquet(f"{root}/{view}/*.parquet")
                .select(KEY, "event_time", *(pl.col(old).alias(new) for old, new in names.items()))
                .set_sorted("event_time")
            )
            found = found.join_asof(
                right, on="event_time", by=KEY, strategy="backward", tolerance=TTL_US,
                check_sortedness=False,
            )  # fmt: skip
        return found.collect().to_arrow()

    return join


def _values(table: Any) -> Any:
    import numpy as np

    order = np.argsort(table["place"].to_numpy(), kind="stable")
    columns = [
        table[f"{view}_{field}"].to_numpy().astype(np.float64)[order]
        for view in VIEWS
        for field in FIELDS
    ]
    return np.array(columns).T
