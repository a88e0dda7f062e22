"""The rows of a source out of its location, in one form whatever they lie in.

A batch has the fields that are asked for, in the types of their source, and `event_time`,
`created_time` and `sequence` as int64. The sequence counts rows as they come: files in the order of
their paths, rows in that of their file or query. It decides between rows of equal times.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.arrow import Arrow, arrow_column, typed_column
from features.locations import CsvFiles, Files, JsonFiles, Location, SqlTable
from features.offline.event_times import utc_us
from features.offline.files import HistoryFile, Wanted, day_of, list_files, read_file
from features.offline.reach import Reach, within
from features.offline.sql import read_table
from features.sources import Source
from features.types import DType
from headrace.errors import InvalidArgumentError

TIME_COLUMNS = ("event_time", "created_time", "sequence")


def row_schema(source: Source, names: Sequence[str]) -> pa.Schema:
    """Return the schema of the batches of some fields of a source."""
    nothing = pa.table({name: pa.nulls(0) for name in names})
    fields = [(n, typed_column(nothing, n, source.dtypes[n], "schema").type) for n in names]
    return pa.schema([*fields, *((name, pa.int64()) for name in TIME_COLUMNS)])


def read_rows(
    source: Source,
    location: Location,
    root: Path,
    names: Sequence[str],
    reach: Reach,
    files: Sequence[HistoryFile] | None = None,
) -> Iterator[pa.Table]:
    """Yield the rows of a source in reach, of the fields `names`; location paths are below `root`.

    files: those of the location, where somebody else knows which there are.

    Raises what reading raises (see `files` and `sql`), and InvalidArgumentError for a value that is
    not of its field's type, for a row without an event time, and for a time without a zone.
    """
    sequence = 0
    for table in _parts(source, location, root, names, reach, files):
        kept = within(np.asarray(table["event_time"]), reach)
        rows = table if kept.all() else table.filter(pa.array(kept))
        if rows.num_rows:
            numbers = np.arange(sequence, sequence + rows.num_rows)
            sequence += rows.num_rows
            yield rows.append_column("sequence", pa.chunked_array([numbers]))


def _parts(
    source: Source,
    location: Location,
    root: Path,
    names: Sequence[str],
    reach: Reach,
    files: Sequence[HistoryFile] | None,
) -> Iterator[pa.Table]:
    if reach.low_us > reach.high_us:
        return
    wanted = wanted_columns(source, location, names)
    if isinstance(location, SqlTable):
        for table in read_table(location, root, wanted, reach):
            yield in_one_form(table, source, location, names)
        return
    for file in list_files(location, root) if files is None else files:
        day = day_of(file, location)
        if day.high_us >= reach.low_us and day.low_us <= reach.high_us:
            yield from file_rows(source, location, file, names, reach)


def file_rows(
    source: Source, location: Files, file: HistoryFile, names: Sequence[str], reach: Reach
) -> Iterator[pa.Table]:
    """Yield the rows of one file, without a sequence; those beyond reach may be among them."""
    day = day_of(file, location)
    for raw in read_file(file, location, wanted_columns(source, location, names), reach):
        table = in_one_form(raw, source, location, names)
        outside = ~within(np.asarray(table["event_time"]), day)
        if outside.any():
            raise InvalidArgumentError(
                f"file {file.name!r} holds a row of another day than its folder",
                where=location.where,
                got=table["event_time"][int(outside.argmax())].as_py(),
                mend="event_date is for folders of the day of the event; else leave it out",
            )
        yield table


def wanted_columns(source: Source, location: Location, names: Sequence[str]) -> Wanted:
    """Return the columns to read for some fields, and what they are; None: a time."""
    wanted: dict[str, DType | None] = {location.column(n): source.dtypes[n] for n in names}
    wanted[location.event_time] = None
    if location.created_time is not None:
        wanted[location.created_time] = None
    return wanted


def in_one_form(
    raw: pa.Table, source: Source, location: Location, names: Sequence[str]
) -> pa.Table:
    """Return raw rows in the source's names and types, without a sequence."""
    where = f"history of source {source.name!r}"
    columns = {name: _field(raw, source, location, name, where) for name in names}
    event = _time(raw, location, location.event_time, where)
    if event.null_count:
        raise InvalidArgumentError(
            f"column {location.event_time!r} holds a null",
            where=where,
            expected="a time in every row",
        )
    created = event
    if location.created_time is not None:
        created = pc.coalesce(_time(raw, location, location.created_time, where), event)
    return pa.table(columns | {"event_time": event, "created_time": created})


def _field(raw: pa.Table, source: Source, location: Location, name: str, where: str) -> Arrow:
    column, dtype = location.column(name), source.dtypes[name]
    if dtype is DType.TIMESTAMP:
        return _time(raw, location, column, where)
    if dtype is DType.BYTES and isinstance(location, CsvFiles | JsonFiles):
        raw = _from_base64(raw, column, where)
    return typed_column(raw, column, dtype, where)


def _time(raw: pa.Table, location: Location, name: str, where: str) -> Arrow:
    return utc_us(arrow_column(raw, name, where), location.time_zone, name, where)


def _from_base64(raw: pa.Table, name: str, where: str) -> pa.Table:
    """Return the table with the bytes that a column of text stands for."""
    cells: list[bytes | None] = []
    for text in arrow_column(raw, name, where).to_pylist():
        try:
            cells.append(None if text is None else base64.b64decode(text, validate=True))
        except ValueError:
            raise InvalidArgumentError(
                f"column {name!r} does not hold base64", where=where, got=f"{text!r:.60}"
            ) from None
    place = raw.column_names.index(name)
    return raw.set_column(place, name, pa.chunked_array([pa.array(cells, pa.binary())]))
