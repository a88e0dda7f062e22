"""The rows of a training set before their features: in memory, or Parquet that need not fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from features.checks import did_you_mean
from headrace.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

CHUNK_ROWS = 1 << 16
_BUFFER_BYTES = 1 << 20


class Spine:
    """A spine that can be gone through several times, always in the same chunks.

    source: a table, a Parquet file or a folder of them, which are taken in the order of their
    paths and must have one schema.
    """

    def __init__(self, source: pa.Table | Path, chunk_rows: int = CHUNK_ROWS) -> None:
        self._source = source
        self.chunk_rows = chunk_rows
        self._files: list[Path] = []
        if isinstance(source, pa.Table):
            self.schema = source.schema
            self.rows = source.num_rows
            return
        self._files = sorted(source.rglob("*.parquet")) if source.is_dir() else [source]
        if not self._files or not self._files[0].is_file():
            raise NotFoundError(
                f"there is no spine {source.name!r}", expected="a Parquet file, or a folder of them"
            )
        metadata = [_open(file).metadata for file in self._files]
        self.rows = sum(one.num_rows for one in metadata)
        schemas = [one.schema.to_arrow_schema() for one in metadata]
        self.schema = schemas[0].remove_metadata()
        for file, schema in zip(self._files, schemas, strict=True):
            if not schema.equals(self.schema):
                raise InvalidArgumentError(
                    f"the spine's file {file.name!r} has another schema than the first",
                    where="spine",
                    expected=", ".join(f"{f.name} {f.type}" for f in self.schema),
                    got=", ".join(f"{f.name} {f.type}" for f in schema),
                )

    def chunks(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows in their order, some or all columns; each chunk but the last is full.

        Raises InvalidArgumentError for a column that is missing.
        """
        names = self.schema.names if columns is None else list(dict.fromkeys(columns))
        for name in names:
            if name not in self.schema.names:
                raise InvalidArgumentError(
                    f"column {name!r} is missing",
                    where="spine",
                    mend=did_you_mean(name, self.schema.names),
                )
        return _full(self._parts(names), self.chunk_rows)

    def _parts(self, names: list[str]) -> Iterator[pa.Table]:
        if isinstance(self._source, pa.Table):
            yield self._source.select(names)
            return
        for path in self._files:
            with _open(path) as file:
                for batch in file.iter_batches(self.chunk_rows, columns=names):
                    yield pa.Table.from_batches([batch]).select(names)


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise FailedPreconditionError(
            f"the spine's file {path.name!r} cannot be read", where="spine"
        ) from error


def _full(parts: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Cut tables anew: how a file is cut may hang on which of its columns are read."""
    held: list[pa.Table] = []
    count = 0
    for part in parts:
        at = 0
        while count + part.num_rows - at >= rows:
            more = part.slice(at, rows - count)
            at += more.num_rows
            yield pa.concat_tables([*held, more])
            held, count = [], 0
        held.append(part.slice(at))
        count += part.num_rows - at
    if count:
        yield pa.concat_tables(held)
