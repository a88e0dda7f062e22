"""The history of every source, as Parquet: `<root>/<source>/<first sequence>-<rows>.parquet`.

A file is written whole under another name and then renamed, so a reader never sees half of one; the
name holds the sequence numbers, so the next number is known without reading anything.
What came by the stream lies beside it (`archive`). One process appends, any may read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.arrow import Arrow, arrow_column, column_from_arrow, times_from_arrow
from features.checks import check_name
from features.locations import ParquetFiles
from features.offline.archive import streamed_files
from features.offline.files import HistoryFile
from features.offline.reach import EVERYTHING, Reach
from features.offline.source_rows import TIME_COLUMNS, read_rows, row_schema
from features.sources import Source
from features.types import DType
from headrace.errors import (
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
)
from headrace.files import whole_file


class OfflineStore:
    """The Parquet history under a folder. Holds no open files.

    project: the folder that the locations of sources are relative to.
    """

    def __init__(self, root: Path, project: Path | None = None) -> None:
        self.root = root
        self.project = project

    def append(self, source_name: str, table: pa.Table) -> int:
        """Append rows in their order and return the sequence number after the last.

        table: the source's fields, `event_time` (int64 UTC microseconds or a timestamp with a
        zone) and optionally `created_time`; where that is missing or null it is the event time.
        Raises InvalidArgumentError for columns without a place, and for naive or missing times.
        """
        check_name(source_name, "a source")
        where = f"history of source {source_name!r}"
        if "sequence" in table.column_names:
            raise InvalidArgumentError(
                "column 'sequence' is given by the store", where=where, mend="leave it out"
            )
        event = times_from_arrow(table, "event_time", where)
        created = event
        if "created_time" in table.column_names:
            column = column_from_arrow(table, "created_time", DType.TIMESTAMP, where)
            created = np.where(column.mask, column.values.astype(np.int64), event)
        files = self._appended(source_name)
        first = sum(_first_and_rows(files[-1])) if files else 0
        if table.num_rows == 0 and files:
            return first
        columns: dict[str, Arrow] = {
            name: arrow_column(table, name, where)
            for name in table.column_names
            if name not in TIME_COLUMNS
        }
        sequence = np.arange(first, first + len(event), dtype=np.int64)
        for name, values in zip(TIME_COLUMNS, (event, created, sequence), strict=True):
            columns[name] = pa.array(values, type=pa.int64())
        out = pa.table(columns)
        folder = self.root / source_name
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{first:020d}-{len(event)}.parquet"
        # Read often and at once: LZ4 takes a third of zstd's time. Floats seldom repeat.
        repeats: Arrow = [f.name for f in out.schema if not pa.types.is_floating(f.type)]
        with whole_file(target) as file:
            pq.write_table(out, file, compression="lz4", use_dictionary=repeats)
        return first + len(event)

    def sources(self) -> list[str]:
        """Return the names of the sources that have a history."""
        if not self.root.is_dir():
            return []
        return sorted(
            f.name for f in self.root.iterdir() if f.is_dir() and any(f.glob("*.parquet"))
        )

    def read(self, source_name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the whole history, or some of its columns, in the order of the sequence.

        The time columns always come. Raises NotFoundError when there is no history,
        InvalidArgumentError for an unknown column, InternalError when a file cannot be read.
        """
        files = self._check_has(source_name)
        parts = []
        for file in files:
            try:
                part = pq.read_table(file, partitioning=None)
            except (pa.ArrowInvalid, OSError) as error:
                raise InternalError(
                    f"file {file.name!r} of the history cannot be read",
                    where=f"source {source_name!r}",
                    mend="restore it from a backup, or append the history anew",
                ) from error
            if columns is not None:
                names = [*columns, *TIME_COLUMNS]
                where = f"history of source {source_name!r}"
                picked: dict[str, Arrow] = {n: arrow_column(part, n, where) for n in names}
                part = pa.table(picked)
            parts.append(part)
        return pa.concat_tables(parts, promote_options="permissive")

    def batches(
        self, source: Source, names: Sequence[str], reach: Reach = EVERYTHING
    ) -> Iterator[pa.Table]:
        """Yield the history of a source, wherever it lies: fields and times (see `source_rows`).

        Rows whose event time is beyond `reach` are left out; little of them is read.
        Raises NotFoundError when there is no history, FailedPreconditionError when it cannot be
        read, InvalidArgumentError for what does not fit the source.
        """
        if source.history is None:
            own = ParquetFiles(source.name, event_time="event_time", created_time="created_time")
            files = [HistoryFile(each.name, each, {}) for each in self._check_has(source.name)]
            return read_rows(source, own, self.root, names, reach, files)
        if self.project is None:
            raise FailedPreconditionError(
                f"source {source.name!r} lies at a location, but below which folder is not said",
                mend="give the project's folder: OfflineStore(root, project), or --project",
            )
        return read_rows(source, source.history, self.project, names, reach)

    def rows(self, source: Source, names: Sequence[str], reach: Reach = EVERYTHING) -> pa.Table:
        """Return what `batches` yields as one table."""
        parts = list(self.batches(source, names, reach))
        return pa.concat_tables(parts) if parts else row_schema(source, names).empty_table()

    def _check_has(self, source_name: str) -> list[Path]:
        check_name(source_name, "a source")
        files = self._files(source_name)
        if not files:
            raise NotFoundError(
                f"source {source_name!r} has no history",
                mend="append its events to the offline store, or check the data directory",
            )
        return files

    def _files(self, source_name: str) -> list[Path]:
        streamed = streamed_files(self.root / source_name)
        return [*self._appended(source_name), *(file.path for file in streamed)]

    def _appended(self, source_name: str) -> list[Path]:
        return sorted((self.root / source_name).glob("[0-9]*.parquet"))


def _first_and_rows(file: Path) -> tuple[int, int]:
    first, rows = file.stem.split("-")
    return int(first), int(rows)
