"""The events of a source in an order that stays, from a place on: for who reads them in parts.

First come those that were appended as a whole, then those that came by the stream, each in the
order of their sequence. A place counts the former and names the sequence of the latter, so that it
means the same after files were merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from features.offline.archive import streamed_files
from features.offline.source_rows import TIME_COLUMNS

ROWS_AT_ONCE = 2048


class Place(NamedTuple):
    """So many appended rows are behind it, and the streamed ones below a sequence."""

    appended: int
    sequence: int


def replayed(
    folder: Path, columns: Sequence[str], place: Place, until: int
) -> Iterator[tuple[pa.Table, Place]]:
    """Yield rows of a source from `place` on, with the place behind them.

    folder: of the source; columns: those that are wanted, the times come, too, and what a file does
    not have is null; until: streamed rows from this sequence on are left out.
    """
    reached = place
    while True:
        try:
            for table, behind in _rows(folder, columns, reached, until):
                reached = behind
                yield table, behind
            return
        except FileNotFoundError:
            continue  # merged since it was listed


def _rows(
    folder: Path, columns: Sequence[str], place: Place, until: int
) -> Iterator[tuple[pa.Table, Place]]:
    before = 0
    for path in sorted(folder.glob("[0-9]*.parquet")):
        rows = pq.read_metadata(path).num_rows
        if before + rows > place.appended:
            for table in _tables(path, columns, place.appended - before):
                place = place._replace(appended=place.appended + table.num_rows)
                yield table, place
        before += rows
    for file in streamed_files(folder):
        if file.next <= place.sequence or file.first >= until:
            continue
        for table in _tables(file.path, columns, 0):
            numbers = table["sequence"].to_numpy()
            first, end = numbers.searchsorted([place.sequence, until]).tolist()
            if first < end:
                place = place._replace(sequence=int(numbers[end - 1]) + 1)
                yield table.slice(first, end - first), place


def _tables(path: Path, columns: Sequence[str], skipped: int) -> Iterator[pa.Table]:
    """Yield what is behind the first `skipped` rows of a file."""
    with pq.ParquetFile(path) as file:
        held = set(file.schema_arrow.names)
        names = [name for name in (*columns, *TIME_COLUMNS) if name in held]
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=names):
            table = pa.Table.from_batches([batch])
            if skipped >= len(table):
                skipped -= len(table)
                continue
            table, skipped = table.slice(skipped), 0
            for name in columns:
                if name not in held:
                    table = table.append_column(name, pa.nulls(len(table)))
            yield table
