"""Where the history of a source lies: files that a team has, or a table of a database.

A location is plain data: names and options, no files are opened here. Its paths are relative to a
folder that whoever reads it names (the project), so that definitions which travel in a bundle hold
no path of a machine; and they are no part of what a view means: a table may move.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import PurePosixPath
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from features.checks import check_name
from headrace.errors import InvalidArgumentError


@dataclass(frozen=True, eq=False)
class _Location:
    """What the locations have in common.

    event_time, created_time: the columns that hold them; without a created time an event counts as
    created at its event time. Times are integers of UTC microseconds, timestamps of any unit, or
    ISO 8601 text; those without a zone are local times of `time_zone` (an IANA name), and refused
    without one. A local time that a clock change makes ambiguous is the later of the two, so that
    nothing is known too early; one that it skips is refused. columns: the column of a field that is
    called otherwise.
    """

    _: KW_ONLY
    event_time: str
    created_time: str | None = None
    time_zone: str | None = None
    columns: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """How an error names this location."""
        return f"{type(self).__name__}"

    def __post_init__(self) -> None:
        for name, column in (("event_time", self.event_time), ("created_time", self.created_time)):
            if column is not None and (not isinstance(column, str) or not column):
                raise InvalidArgumentError(
                    f"{name} must name a column", where=self.where, got=repr(column)
                )
        if self.time_zone is not None:
            self._check_zone(self.time_zone)
        if not all(isinstance(text, str) for pair in self.columns.items() for text in pair):
            raise InvalidArgumentError(
                "columns must be a dict",
                where=self.where,
                expected="such as {'field': 'column in the file'}",
                got=repr(self.columns),
            )

    def _check_zone(self, name: str) -> None:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError, TypeError) as error:
            raise InvalidArgumentError(
                f"unknown time zone {name!r}",
                where=self.where,
                expected="an IANA name such as 'Europe/Berlin'",
            ) from error

    def column(self, name: str) -> str:
        """Return what a field is called there."""
        return self.columns.get(name, name)


@dataclass(frozen=True, eq=False)
class _Files(_Location):
    """Files of one kind: a file, a folder (with all below it), or a pattern with `*` and `**`.

    Their order is that of their paths. Names that begin with `.` or `_` are left out. A folder
    called `key=value` gives a column `key` to the files below it that have none of that name.
    event_date: the key of such folders that hold one day of event times each (YYYY-MM-DD, of UTC or
    of `time_zone`): days that nobody asks for are not read.
    """

    path: str
    _: KW_ONLY
    event_date: str | None = None

    @property
    def where(self) -> str:
        """How an error names this location."""
        return f"{type(self).__name__}({self.path!r})"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_path(self.path, self.where)
        if self.event_date is not None:
            check_name(self.event_date, "a key of folders")


@dataclass(frozen=True, eq=False)
class ParquetFiles(_Files):
    """Parquet files. Parts whose statistics say that nobody asks for their times are not read."""

    suffixes = (".parquet",)


@dataclass(frozen=True, eq=False)
class CsvFiles(_Files):
    """CSV files with a header; an empty value is null, a quoted empty one is empty text."""

    suffixes = (".csv", ".csv.gz")


@dataclass(frozen=True, eq=False)
class JsonFiles(_Files):
    """Files of JSON objects, one a line; a value that is missing is null."""

    suffixes = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".ndjson.gz")


@dataclass(frozen=True, eq=False)
class SqlTable(_Location):
    """A table, a view or a query of a database that DuckDB opens, read-only.

    database: a DuckDB file, or a SQLite file where DuckDB's extension is installed; None: none, for
    queries over files (`SELECT … FROM 'payments/*.parquet'`). Paths in queries are relative to the
    same folder. One of `table` and `query` is given.
    """

    database: str | None = None
    table: str | None = None
    query: str | None = None

    @property
    def where(self) -> str:
        """How an error names this location."""
        return f"SqlTable({self.table or 'query'!r})"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.database is not None:
            check_path(self.database, self.where)
        if (self.table is None) == (self.query is None):
            raise InvalidArgumentError(
                "a table or a query is needed, not both",
                where=self.where,
                expected="table='payments', or query='SELECT …'",
            )


Files = ParquetFiles | CsvFiles | JsonFiles
Location = Files | SqlTable


def check_path(path: str, where: str) -> None:
    """Raise InvalidArgumentError unless the path stays below the folder it is relative to."""
    if isinstance(path, str) and path:
        parts = PurePosixPath(path)
        if not parts.is_absolute() and ".." not in parts.parts and "\0" not in path:
            return
    raise InvalidArgumentError(
        "a location has a path that is not usable",
        where=where,
        expected="one below the project's folder, such as 'data/payments'",
        got=repr(path),
        mend="name the folder when you read it, for example with --project",
    )
