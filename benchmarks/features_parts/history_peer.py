"""The same history in DuckDB's SQL, in an environment of its own: see `history_part`.

There are three forms; whichever is the fastest on a tenth of the entities is taken for all:

- `join`: every spine row meets its entity's events, those of the longest window are aggregated;
- `days`: the same, but both sides are first cut into days, so that fewer of them meet;
- `frames`: spine rows among the events, and one window function for each aggregate.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.features_parts.duckdb_side import connected
from benchmarks.features_parts.trips import AGGREGATES, DAY_US, WINDOWS

FORMS = ("join", "days", "frames")
SAMPLE = 10  # every so manieth entity
_SQL = {"mean": "avg"}


def answer(_name: str, _source: str) -> None:
    """For each line of stdin (folder, file or null) do as `history_ours.answer` does.

    The first line about a folder chooses the form, which is not counted; `forms` says what each
    took.
    """
    taken: dict[str, dict[str, float]] = {}
    for line in sys.stdin:
        folder, file = json.loads(line)
        connection = opened(Path(folder))
        if folder not in taken:
            taken[folder] = {form: _timed(connection, sql(form, SAMPLE))[0] for form in FORMS}
        form = min(taken[folder], key=lambda each: taken[folder][each])
        cpu_s, wall_s, table = _timed(connection, sql(form))
        if file is not None:
            write(table, file)
        said = {"cpu_s": cpu_s, "wall_s": wall_s, "form": form, "forms": taken[folder]}
        print(json.dumps(said), flush=True)


def opened(folder: Path) -> Any:
    """Return a connection of one thread: the events are Parquet files, the spine is in memory."""
    connection = connected(folder, "asked")
    connection.execute(
        "CREATE VIEW events AS SELECT user_id, event_time, amount, minutes "
        f"FROM read_parquet('{folder}/trips/*.parquet')"
    )
    return connection


def _timed(connection: Any, query: str) -> tuple[float, float, Any]:
    start_s, cpu_start_s = time.perf_counter(), time.process_time()
    table = connection.sql(query).to_arrow_table()
    return time.process_time() - cpu_start_s, time.perf_counter() - start_s, table


def write(table: Any, file: str) -> None:
    """Write the features in the order of the spine, float64 [rows, features]; null is NaN."""
    import numpy as np

    order = np.argsort(table["place"].to_numpy())
    columns = [table[name].to_numpy() for name in table.column_names if name != "place"]
    np.save(file, np.stack([each.astype(np.float64)[order] for each in columns], axis=1))


# The SQL


def sql(form: str, sample: int = 1) -> str:
    """Return the query: `place` and a column for each feature, rows in any order.

    With `sample` it is about every so manieth entity only.
    """
    every = f"WHERE user_id % {sample} = 0"
    if form == "frames":
        return _frames(every)
    return _joined(every, by_day=form == "days")


def _lower(label: str, time_column: str) -> str:
    """Return where a window begins: its tail moves in steps of the hop."""
    length, hop = next((length, hop) for name, length, hop in WINDOWS if name == label)
    return f"(({time_column} - {length}) // {hop} * {hop})"


def _call(function: str, column: str | None) -> str:
    return f"{_SQL.get(function, function)}({column or 'event_time'})"


def _joined(every: str, *, by_day: bool) -> str:
    longest = max(WINDOWS, key=lambda each: each[1])[0]
    lowers = ", ".join(f"{_lower(label, 'event_time')} AS from_{label}" for label, _, _ in WINDOWS)
    spine = f"SELECT place, user_id, event_time AS t, {lowers} FROM asked {every}"
    features = ", ".join(
        f"{_call(function, (column and f'e.{column}') or 'e.event_time')} "
        + ("" if label == longest else f"FILTER (e.event_time >= from_{label})")
        for function, column in AGGREGATES
        for label, _, _ in WINDOWS
    )
    on = f"e.user_id = s.user_id AND e.event_time < t AND e.event_time >= from_{longest}"
    events = f"SELECT * FROM events {every}"
    if by_day:
        days = f"unnest(range(from_{longest} // {DAY_US}, t // {DAY_US} + 1)) AS day"
        spine = f"SELECT *, {days} FROM ({spine})"
        events = f"SELECT *, event_time // {DAY_US} AS day FROM events {every}"
        on += " AND e.day = s.day"
    return (
        f"SELECT place, {features} FROM ({spine}) s LEFT JOIN ({events}) e ON {on} GROUP BY place"
    )


def _frames(every: str) -> str:
    rows = (
        f"SELECT NULL AS place, user_id, event_time, amount, minutes, event_time AS happened "
        f"FROM events {every} UNION ALL "
        f"SELECT place, user_id, event_time, NULL, NULL, NULL FROM asked {every}"
    )
    frames = ", ".join(
        f"w_{label} AS (PARTITION BY user_id ORDER BY event_time RANGE BETWEEN "
        f"(event_time - {_lower(label, 'event_time')}) PRECEDING AND 1 PRECEDING)"
        for label, _, _ in WINDOWS
    )
    features = ", ".join(
        f"{_call(function, column or 'happened')} OVER w_{label}"
        for function, column in AGGREGATES
        for label, _, _ in WINDOWS
    )
    return f"SELECT place, {features} FROM ({rows}) WINDOW {frames} QUALIFY place IS NOT NULL"
