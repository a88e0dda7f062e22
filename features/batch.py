"""The features of some rows, as a model gets them and as the log keeps them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from features.types import (
    STATUS_NAMES,
    Column,
    DType,
    FeatureStatus,
    Statuses,
    Words,
    from_words,
)
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
    `types.FeatureStatus`) is not present.
    """

    service: CompiledService
    words: Words
    status: Statuses

    def __len__(self) -> int:
        return len(self.words)

    def matrix(self) -> NDArray[np.float32]:
        """Return float32[rows, F], C-contiguous: what a model gets. What is not there is NaN."""
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
        valid = self.status[:, i] == FeatureStatus.PRESENT
        return from_words(self.words[:, i], valid, self.service.dtypes[i])

    def to_arrow(self, *, statuses: bool = False) -> pa.Table:
        """Return a column a feature with its own type (int64, double, float, bool), null where it
        is not present; with `statuses` a column `NAME:status` after each, of `STATUS_NAMES`.

        NaN is a value, null is none.
        """
        # Serving makes no tables, and starts sooner without this.
        import pyarrow as pa

        columns: dict[str, Any] = {}
        for i, (name, dtype) in enumerate(
            zip(self.service.columns, self.service.dtypes, strict=True)
        ):
            column = self.column(name)
            kind = pa.float32() if dtype is DType.FLOAT32 else None
            columns[name] = pa.array(column.values, kind, mask=~column.mask, from_pandas=False)
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
        padded to 8 bytes, F words.
        """
        rows, columns = self.words.shape
        head = np.frombuffer(_HEAD.pack(schema_id, columns), dtype=np.uint8)
        bitmap_bytes = _bitmap_bytes(columns)
        out = np.zeros((rows, _HEAD.size + bitmap_bytes + 8 * columns), dtype=np.uint8)
        out[:, : _HEAD.size] = head
        bits = np.packbits(self.status != FeatureStatus.PRESENT, axis=1, bitorder="little")
        out[:, _HEAD.size : _HEAD.size + bits.shape[1]] = bits
        words = np.ascontiguousarray(self.words).view(np.uint8).reshape(rows, 8 * columns)
        out[:, _HEAD.size + bitmap_bytes :] = words
        return _split(out)

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
        for i, row in enumerate(rows):
            if len(row) != size or row[: _HEAD.size] != head:
                raise InvalidArgumentError(
                    f"packed row {i} is not one of service {service.name!r}",
                    expected=f"{size} bytes, schema id {schema_id}, {columns} features",
                    got=_describe(row),
                )
        data = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), size)
        start = size - 8 * columns
        words = np.ascontiguousarray(data[:, start:]).view(np.int64).reshape(len(rows), columns)
        nulls = np.unpackbits(data[:, _HEAD.size : start], axis=1, bitorder="little")
        statuses = nulls[:, :columns] * np.uint8(FeatureStatus.NULL)
        if status is not None:
            statuses = _unpack_status(status, columns)
        return FeatureBatch(service, words, statuses)


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
