"""Reads the table of a location by DuckDB, which is needed for nothing else here."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from features.checks import did_you_mean
from features.locations import SqlTable
from features.offline.files import BATCH_ROWS, Wanted
from features.offline.reach import EVERYTHING, Reach
from headrace.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from headrace.times import DAY_US, SECOND_US, from_us, to_us

_SQLITE = b"SQLite format 3\0"
# The same for all: DuckDB shares a database in a process, and refuses to with other settings.
# Nothing is fetched from anywhere: what is not on this machine is not there.
_CONFIG = {
    "autoinstall_known_extensions": "false",
    "memory_limit": "1GB",
    "temp_directory": tempfile.gettempdir(),
}
_FIRST_US, _LAST_US = (to_us(datetime(year, 1, 1, tzinfo=UTC)) for year in (2, 9998))


def read_table(
    location: SqlTable, root: Path, wanted: Wanted, reach: Reach, by: str | None = None
) -> Iterator[pa.Table]:
    """Yield the wanted columns of the table, in its own order.

    Rows whose event time is beyond `reach` may come. With a time column `by` that one is meant, and
    the order is its own. Raises InvalidArgumentError for a column that is missing,
    NotFoundError for a database that is, FailedPreconditionError for what DuckDB cannot do.
    """
    duckdb = _duckdb(location)
    with contextlib.ExitStack() as stack:
        try:
            connection = stack.enter_context(_connect(duckdb, location, root))
            relation = connection.sql(f"FROM {_from(location)}")
            types = dict(zip(relation.columns, map(str, relation.types), strict=True))
            _check(location, wanted, types)
            query = f"FROM {_from(location)} SELECT {', '.join(map(quoted, wanted))}"
            time = by or location.event_time
            bounds = _bounds(time, types[time], reach)
            if bounds:
                query += f" WHERE {bounds}"
            if by is not None:
                _check_ordered(location, by, types[by])
                query += f" ORDER BY {quoted(by)}"
            for batch in connection.sql(query).to_arrow_reader(BATCH_ROWS):
                yield pa.Table.from_batches([batch])
        except duckdb.Error as error:
            raise FailedPreconditionError(
                "DuckDB cannot read it",
                where=location.where,
                got=str(error).splitlines()[0].replace(str(root), "."),
                mend="check the database, the table and the query",
            ) from error


def quoted(name: str) -> str:
    """Return a name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def _from(location: SqlTable) -> str:
    if location.query is not None:
        return f"({location.query.strip().rstrip(';')})"
    return ".".join(map(quoted, str(location.table).split(".")))


def _duckdb(location: SqlTable) -> Any:
    try:
        import duckdb
    except ImportError as error:
        raise FailedPreconditionError(
            "DuckDB is not installed", where=location.where, mend="install the extra 'sql'"
        ) from error
    return duckdb


def _connect(duckdb: Any, location: SqlTable, root: Path) -> Any:
    path = None if location.database is None else root / location.database
    if path is not None and not path.is_file():
        raise NotFoundError(
            f"there is no database {location.database!r}",
            where=location.where,
            mend="check the path, and the folder that it is relative to (--project)",
        )
    is_sqlite = path is not None and _starts(path) == _SQLITE
    if path is None or is_sqlite:
        connection = duckdb.connect(":memory:", config=_CONFIG)
    else:
        connection = duckdb.connect(str(path), read_only=True, config=_CONFIG)
    connection.execute("SET TimeZone = 'UTC'")
    # Else a name could mean a variable of this process.
    connection.execute("SET python_enable_replacements = false")
    connection.execute(f"SET file_search_path = '{_escaped(str(root))}'")
    if is_sqlite:
        _attach_sqlite(duckdb, connection, location, path)
    return connection


def _attach_sqlite(duckdb: Any, connection: Any, location: SqlTable, path: Path | None) -> None:
    try:
        connection.execute("LOAD sqlite")
    except duckdb.Error as error:
        connection.close()
        raise FailedPreconditionError(
            "a SQLite file needs DuckDB's extension 'sqlite', which is not installed here",
            where=location.where,
            mend="run INSTALL sqlite in DuckDB once, or copy the table into a DuckDB file",
        ) from error
    connection.execute(f"ATTACH '{_escaped(str(path))}' AS history (TYPE sqlite, READ_ONLY)")
    connection.execute("USE history")


def _starts(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(_SQLITE))


def _escaped(text: str) -> str:
    return text.replace("'", "''")


def _check(location: SqlTable, wanted: Wanted, types: dict[str, str]) -> None:
    for name in wanted:
        if name not in types:
            raise InvalidArgumentError(
                f"column {name!r} is missing",
                where=location.where,
                mend=did_you_mean(name, types),
            )


def _check_ordered(location: SqlTable, column: str, kind: str) -> None:
    if kind != "BIGINT" and not kind.startswith("TIMESTAMP"):
        raise InvalidArgumentError(
            f"column {column!r} cannot tell what is new",
            where=location.where,
            expected="TIMESTAMP, or BIGINT (UTC microseconds)",
            got=kind,
        )


def _bounds(column: str, kind: str, reach: Reach) -> str:
    """Return the condition that keeps at least the rows in reach; none for other types."""
    bounds = []
    for bound_us, sign in ((reach.low_us, -1), (reach.high_us, 1)):
        if bound_us in EVERYTHING:
            continue
        if kind == "BIGINT":
            literal = str(bound_us)
        elif kind.startswith("TIMESTAMP"):
            aware = "TIME ZONE" in kind
            shifted_us = bound_us + sign * (SECOND_US if aware else DAY_US)
            if not _FIRST_US < shifted_us < _LAST_US:
                continue
            text = from_us(shifted_us).isoformat()
            literal = f"TIMESTAMPTZ '{text}'" if aware else f"TIMESTAMP '{text[:-6]}'"
        else:
            continue
        bounds.append(f"{quoted(column)} {'>=' if sign < 0 else '<='} {literal}")
    # A row without a time is to be refused, not to be left out.
    return f"{' AND '.join(bounds)} OR {quoted(column)} IS NULL" if bounds else ""
