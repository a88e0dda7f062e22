"""What the parts of a large join gave, on disk, until a chunk of the spine is put together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import ipc

from features.arrow import Arrow, arrow_of_column, column_from_arrow
from features.service import Assembly, ServiceView
from features.types import Column

_OPTIONS = ipc.IpcWriteOptions(compression="lz4")


class Results:
    """Filled columns of some views, by rows of the spine; written once, then read by chunk."""

    def __init__(self, path: Path, views: list[ServiceView], chunk_rows: int) -> None:
        self._path = str(path)
        self._chunk_rows = chunk_rows
        self._columns = np.concatenate([view.filled for view in views])
        self._variables = {
            f"{view.view.name}:{name}": view.view.feature_dtypes[name]
            for view in views
            for name in view.variables
        }
        self._batches: dict[int, list[int]] = {}
        self._written = 0
        self._writer: ipc.RecordBatchFileWriter | None = None
        self._reader: ipc.RecordBatchFileReader | None = None

    def append(self, rows: NDArray[np.int64], assembly: Assembly) -> None:
        """Keep an assembly, whose row i is the spine's row rows[i]; these ascend."""
        words = np.ascontiguousarray(assembly.words[:, self._columns])
        status = np.ascontiguousarray(assembly.status[:, self._columns])
        columns: dict[str, Arrow] = {"row": pa.array(rows)}
        columns["words"] = _binary(words.view(np.uint8))
        columns["status"] = _binary(status)
        for name, dtype in self._variables.items():
            columns[name] = arrow_of_column(assembly.variables[name], dtype)
        batch = pa.record_batch(columns)
        if self._writer is None:
            self._writer = ipc.new_file(self._path, batch.schema, options=_OPTIONS)
        chunks = rows // self._chunk_rows
        starts = np.flatnonzero(np.diff(chunks, prepend=-1)).tolist()
        for first, end in zip(starts, [*starts[1:], len(rows)], strict=True):
            self._writer.write_batch(batch.slice(first, end - first))
            self._batches.setdefault(int(chunks[first]), []).append(self._written)
            self._written += 1

    def finish_writing(self) -> None:
        """From now on it is read."""
        if self._writer is not None:
            self._writer.close()
            self._reader = ipc.open_file(self._path)

    def close(self) -> None:
        """Close the file, which may then be removed."""
        if self._writer is not None:
            self._writer.close()
        self._reader = None

    def put_chunk(self, chunk: int, assembly: Assembly) -> None:
        """Fill the columns of these views for a chunk of the spine."""
        count, width = len(assembly.words), len(self._columns)
        variables = {name: np.full(count, None, np.object_) for name in self._variables}
        for number in self._batches.get(chunk, []):
            assert self._reader is not None
            part = pa.Table.from_batches([self._reader.get_batch(number)])
            rows = np.asarray(part["row"]) - chunk * self._chunk_rows
            places = np.ix_(rows, self._columns)
            assembly.words[places] = _values(part["words"].chunk(0), np.int64, width)
            assembly.status[places] = _values(part["status"].chunk(0), np.uint8, width)
            for name, dtype in self._variables.items():
                held = column_from_arrow(part, name, dtype, "training set").blanked()
                variables[name][rows] = held.values
        for name, values in variables.items():
            valid = np.array([value is not None for value in values], np.bool_)
            assembly.variables[name] = Column(values, valid)


def _binary(values: NDArray[np.uint8]) -> Arrow:
    """Return each row of a matrix as one value."""
    count, width = values.shape
    buffers: list[pa.Buffer | None] = [None, pa.py_buffer(values.tobytes())]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), count, buffers)


def _values(column: Arrow, dtype: type[np.generic], width: int) -> NDArray[np.generic]:
    data = column.buffers()[1]
    values = np.frombuffer(b"" if data is None else data, dtype)
    return values[column.offset * width :][: len(column) * width].reshape(len(column), width)
