"""The features of some rows, as a model gets them and as the log keeps them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from features.types import (
    STATUS_NAMES,
    Column,
    DType,
    FeatureStatus,
    Statuses,
    Table,
    Words,
    from_words,
)
from features.variable import decode_cell, encode_cells
from headrace.errors import FailedPreconditionError, InvalidArgumentError

if TYPE_CHECKING:
    import pyarrow as pa

    from features.service import CompiledService

_HEAD = struct.Struct("<II")
# A training set is worked on in parts, so that it is not copied whole.
_CHUNK_ROWS = 16384


@dataclass
class FeatureBatch:
    """Rows of a service: words int64[rows, F] and status uint8[rows, F], in the service's order.

    A word is the integer, 0/1 of a bool, or the bits of a float64; 0 where the status (see
    `types.FeatureStatus`) is not present. variables: by name the columns whose values are of any
    length (their words are 0), None where the status is not present.
    """

    service: CompiledService
    words: Words
    status: Statuses
    variables: Table = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.words)

    def take(self, rows: NDArray[np.int64] | list[int] | slice) -> FeatureBatch:
        """Return some of the rows, by index."""
        variables = {
            name: Column(column.values[rows], column.mask[rows])
            for name, column in self.variables.items()
        }
        return FeatureBatch(self.service, self.words[rows], self.status[rows], variables)

    def matrix(self) -> NDArray[np.float32]:
        """Return float32[rows, F], C-contiguous: what a model gets. What is not there is NaN.

        Raises FailedPreconditionError where a feature is neither a number nor a bool.
        """
        self.service.check_is_numeric()
        out = np.empty(self.words.shape, dtype=np.float32)
        floats, integers = self.service.float_columns, self.service.integer_columns
        for start in range(0, len(out), _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            words = np.ascontiguousarray(self.words[rows])
            # Straight to float32, not by way of float64: one rounding. Overflow is infinity.
            with np.errstate(over="ignore", invalid="ignore"):
                out[rows, integers] = words[:, integers]
                out[rows, floats] = words.view(np.float64)[:, floats]
            out[rows][self.status[rows] != FeatureStatus.PRESENT] = np.nan
        return out

    def column(self, name: str) -> Column:
        """Return one feature with its own type. Raises InvalidArgumentError for an unknown one."""
        i = self.service.column_index(name)
        if name in self.variables:
            return self.variables[name]
        valid = self.status[:, i] == FeatureStatus.PRESENT
        return from_words(self.words[:, i], valid, self.service.dtypes[i])

    def to_arrow(self, *, statuses: bool = False) -> pa.Table:
        """Return a column a feature with its own type, null where it is not present.

        With `statuses` there is a column `NAME:status` after each, of `STATUS_NAMES`.
        NaN is a value, null is none.
        """
        # Serving makes no tables, and starts sooner without this.
        import pyarrow as pa

        from features.arrow import arrow_of_column

        columns: dict[str, Any] = {}
        for i, (name, dtype) in enumerate(
            zip(self.service.columns, self.service.dtypes, strict=True)
        ):
            columns[name] = arrow_of_column(self.column(name), dtype)
            if statuses:
                indices = self.status[:, i].astype(np.int8)
                names = pa.DictionaryArray.from_arrays(indices, pa.array(STATUS_NAMES))
                columns[f"{name}:status"] = names
        return pa.table(columns)

    def to_pandas(self, *, statuses: bool = False) -> Any:
        """Return `to_arrow` as a DataFrame of nullable dtypes: an integer with nulls stays one.

        Raises FailedPreconditionError where pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise FailedPreconditionError(
                "pandas is not installed", where="to_pandas", mend="install it, or use to_arrow()"
            ) from error
        return self.to_arrow(statuses=statuses).to_pandas(types_mapper=pd.ArrowDtype)

    def pack(self, schema_id: int = 0) -> list[bytes]:
        """Return one packed row each: what is logged and compared bit for bit.

        Little-endian: u32 schema id (of the service), u32 F, null bitmap (bit set: not present)
        padded to 8 bytes, F words. Where values are of any length, their words are u32 offset, u32
        length in what follows: their cells, see `variable`.
        """
        rows, columns = self.words.shape
        words, tails = self._words_and_tails()
        head = np.frombuffer(_HEAD.pack(schema_id, columns), dtype=np.uint8)
        bitmap_bytes = _bitmap_bytes(columns)
        out = np.zeros((rows, _HEAD.size + bitmap_bytes + 8 * columns), dtype=np.uint8)
        out[:, : _HEAD.size] = head
        nulls = np.packbits(self.status != FeatureStatus.PRESENT, axis=1, bitorder="little")
        out[:, _HEAD.size : _HEAD.size + nulls.shape[1]] = nulls
        bits = np.ascontiguousarray(words).view(np.uint8).reshape(rows, 8 * columns)
        out[:, _HEAD.size + bitmap_bytes :] = bits
        packed = _split(out)
        if not self.variables:
            return packed
        return [row + tail for row, tail in zip(packed, tails, strict=True)]

    def _words_and_tails(self) -> tuple[Words, list[bytes]]:
        """Return the words with the places of cells among them, and each row's cells."""
        if not self.variables:
            return self.words, []
        words = self.words.copy()
        offsets = np.zeros(len(words), np.int64)
        cells = []
        for i in self.service.variable_columns:
            column = self.variables[self.service.columns[i]]
            cells.append(encode_cells(column, self.service.dtypes[i]))
            lengths = np.fromiter(map(len, cells[-1]), np.int64, len(words))
            words[:, i] = np.where(column.mask, offsets | lengths << 32, 0)
            offsets += lengths
        return words, [b"".join(parts) for parts in zip(*cells, strict=True)]

    def pack_status(self) -> list[bytes]:
        """Return one byte string a row: 4 bits a feature, the first in the low half."""
        rows, columns = self.status.shape
        nibbles = np.zeros((rows, (columns + 1) // 2 * 2), dtype=np.uint8)
        nibbles[:, :columns] = self.status
        return _split(nibbles[:, 0::2] | nibbles[:, 1::2] << 4)

    @staticmethod
    def unpack(
        service: CompiledService,
        rows: Sequence[bytes],
        schema_id: int = 0,
        status: Sequence[bytes] | None = None,
    ) -> FeatureBatch:
        """Return the batch that `pack` (and `pack_status`) made.

        Without `status`, what is not present counts as null.
        Raises InvalidArgumentError for a row that is cut or of another schema id.
        """
        columns = len(service.columns)
        size = _HEAD.size + _bitmap_bytes(columns) + 8 * columns
        head = _HEAD.pack(schema_id, columns)
        fixed = rows if not service.variable_columns else [row[:size] for row in rows]
        for i, row in enumerate(fixed):
            if len(row) != size or row[: _HEAD.size] != head:
                expected = f"{size} bytes, schema id {schema_id}"
                raise _not_of(service, i, expected, _describe(rows[i]))
        data = np.frombuffer(b"".join(fixed), dtype=np.uint8).reshape(len(rows), size)
        start = size - 8 * columns
        words = np.array(data[:, start:], order="C").view(np.int64).reshape(len(rows), columns)
        nulls = np.unpackbits(data[:, _HEAD.size : start], axis=1, bitorder="little")
        statuses = nulls[:, :columns] * np.uint8(FeatureStatus.NULL)
        if status is not None:
            statuses = _unpack_status(status, columns)
        variables = {}
        for i in service.variable_columns:
            valid = statuses[:, i] == FeatureStatus.PRESENT
            values = _unpack_cells(service, i, rows, words[:, i], valid, size)
            variables[service.columns[i]] = Column(values, valid)
            words[:, i] = 0
        return FeatureBatch(service, words, statuses, variables)


def _unpack_cells(
    service: CompiledService,
    column: int,
    rows: Sequence[bytes],
    places: Words,
    valid: NDArray[np.bool_],
    start: int,
) -> NDArray[np.object_]:
    """Return the values whose places in rows[r][start:] are given, None where not valid."""
    dtype = service.dtypes[column]
    values = np.full(len(rows), None, np.object_)
    for row in np.flatnonzero(valid).tolist():
        place = int(places[row])
        begin, length = start + (place & 0xFFFF_FFFF), place >> 32
        try:
            if length < 0 or begin + length > len(rows[row]):
                raise ValueError
            values[row] = decode_cell(rows[row][begin : begin + length], dtype)
        except ValueError:
            name = service.columns[column]
            raise _not_of(service, row, f"{dtype.value} in {name!r}", "other bytes") from None
    return values


def _not_of(service: CompiledService, row: int, expected: str, got: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"packed row {row} is not one of service {service.name!r}",
        expected=f"{expected}, {len(service.columns)} features",
        got=got,
    )


def _bitmap_bytes(columns: int) -> int:
    return (columns + 63) // 64 * 8


def _split(data: NDArray[np.uint8]) -> list[bytes]:
    """Return each row of a matrix as bytes."""
    joined = data.tobytes()
    size = data.shape[1]
    return [joined[i * size : (i + 1) * size] for i in range(data.shape[0])]


def _describe(row: bytes) -> str:
    if len(row) < _HEAD.size:
        return f"{len(row)} bytes"
    schema_id, columns = _HEAD.unpack_from(row)
    return f"{len(row)} bytes, schema id {schema_id}, {columns} features"


def _unpack_status(rows: Sequence[bytes], columns: int) -> Statuses:
    size = (columns + 1) // 2
    for i, row in enumerate(rows):
        if len(row) != size:
            raise InvalidArgumentError(
                f"packed status {i} has a wrong length", expected=f"{size} bytes", got=len(row)
            )
    data = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), size)
    out = np.empty((len(rows), 2 * size), dtype=np.uint8)
    out[:, 0::2] = data & 0x0F
    out[:, 1::2] = data >> 4
    return np.ascontiguousarray(out[:, :columns])


def dtype_columns(dtypes: Sequence[DType]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the float columns and of the others."""
    is_float = np.array([dtype.is_float for dtype in dtypes], dtype=np.bool_)
    return np.flatnonzero(is_float), np.flatnonzero(~is_float)
