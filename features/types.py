"""Types of features, and the columns in which they travel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import InvalidArgumentError

Words = NDArray[np.int64]
Statuses = NDArray[np.uint8]


class DType(Enum):
    """The type of a field. In a column: int64, float64, bool or object; see `Column`."""

    INT64 = "int64"
    FLOAT64 = "float64"
    FLOAT32 = "float32"
    BOOL = "bool"
    TIMESTAMP = "timestamp"
    STRING = "string"
    BYTES = "bytes"
    UUID = "uuid"
    INT64_ARRAY = "array(int64)"
    FLOAT64_ARRAY = "array(float64)"
    FLOAT32_ARRAY = "array(float32)"
    STRING_ARRAY = "array(string)"

    @property
    def is_float(self) -> bool:
        """Whether a value travels as the bits of a float64."""
        # By identity: hashing an enum is a call of Python, and this is asked for every column.
        return self is DType.FLOAT64 or self is DType.FLOAT32

    @property
    def is_feature(self) -> bool:
        """Whether a model can take it: a number or a bool."""
        return self is not DType.TIMESTAMP and not self.is_variable

    @property
    def is_variable(self) -> bool:
        """Whether its values are of any length: they have no word, but a cell (see `cells`)."""
        return self.numpy.kind == "O"

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The dtype of `Column.values`."""
        return _NUMPY[self]


Int64 = DType.INT64
Float64 = DType.FLOAT64
Float32 = DType.FLOAT32
Bool = DType.BOOL
Timestamp = DType.TIMESTAMP
String = DType.STRING
Bytes = DType.BYTES
Uuid = DType.UUID

_NUMPY: dict[DType, np.dtype[np.generic]] = {
    DType.INT64: np.dtype(np.int64),
    DType.FLOAT64: np.dtype(np.float64),
    DType.FLOAT32: np.dtype(np.float64),
    DType.BOOL: np.dtype(np.bool_),
    DType.TIMESTAMP: np.dtype(np.int64),
    DType.STRING: np.dtype(np.object_),
    DType.BYTES: np.dtype(np.object_),
    DType.UUID: np.dtype(np.object_),
    DType.INT64_ARRAY: np.dtype(np.object_),
    DType.FLOAT64_ARRAY: np.dtype(np.object_),
    DType.FLOAT32_ARRAY: np.dtype(np.object_),
    DType.STRING_ARRAY: np.dtype(np.object_),
}
_ARRAY_OF = {
    DType.INT64: DType.INT64_ARRAY,
    DType.FLOAT64: DType.FLOAT64_ARRAY,
    DType.FLOAT32: DType.FLOAT32_ARRAY,
    DType.STRING: DType.STRING_ARRAY,
}


ARRAYS = tuple(_ARRAY_OF.values())


def Array(item: DType) -> DType:  # noqa: N802 - a type, as the others
    """Return the type of lists of `item`: an embedding is an `Array(Float32)`.

    Raises InvalidArgumentError for an item that arrays cannot hold.
    """
    try:
        return _ARRAY_OF[item]
    except KeyError:
        raise InvalidArgumentError(
            "arrays cannot hold this type",
            expected="Int64, Float64, Float32 or String",
            got=getattr(item, "value", repr(item)),
        ) from None


class FeatureStatus:
    """What is known of one feature of one row; 4 bits in the log."""

    PRESENT = 0
    NULL = 1
    NOT_FOUND = 2
    EXPIRED = 3
    UNAVAILABLE = 4


STATUS_NAMES = ("present", "null", "not_found", "expired", "unavailable")


@dataclass(frozen=True)
class Field:
    """A named, typed column of a source, a request or an on-demand view."""

    name: str
    dtype: DType
    description: str = ""


@dataclass
class Column:
    """Values of one field, with a validity mask.

    values: int64 (Int64; Timestamp: UTC microseconds), float64 (Float64; Float32, rounded to it),
    bool, or object (String: str; Bytes: bytes; Uuid: str, as `uuid.UUID` writes it; an array of
    numbers: a 1-D array of them; an array of strings: a tuple of str), one per row;
    valid: bool, one per row, False where null, or None where every value is valid. What `values`
    holds at an invalid row is arbitrary.
    """

    values: NDArray[np.generic]
    valid: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The validity mask, made when there is none."""
        return np.ones(len(self.values), dtype=np.bool_) if self.valid is None else self.valid

    def blanked(self) -> Column:
        """The same with 0, False or None at every invalid row: nothing arbitrary is left."""
        if self.valid is None:
            return self
        blank: Any = None if self.values.dtype == np.object_ else self.values.dtype.type(0)
        return Column(np.where(self.valid, self.values, blank), self.valid)

    def take(self, rows: NDArray[np.int64]) -> Column:
        """The rows by index."""
        return Column(self.values[rows], None if self.valid is None else self.valid[rows])


Table = dict[str, Column]


def joined(columns: Sequence[Column]) -> Column:
    """Return columns of one type, one after the other."""
    values = np.concatenate([column.values for column in columns])
    if all(column.valid is None for column in columns):
        return Column(values)
    return Column(values, np.concatenate([column.mask for column in columns]))


def to_words(column: Column, dtype: DType) -> Words:
    """Return one int64 a value: the integer, 0/1, or the bits of the float64; 0 where null."""
    if dtype.is_float:
        floats = np.asarray(column.values, dtype=np.float64)
        if dtype is DType.FLOAT32:
            # An overflow to infinity is what float32 says of the value.
            with np.errstate(over="ignore"):
                floats = floats.astype(np.float32).astype(np.float64)
        words = np.ascontiguousarray(floats).view(np.int64)
    else:
        assert not dtype.is_variable, "what is of any length has no words"
        words = np.asarray(column.values, dtype=np.int64)
    if column.valid is not None:
        words = np.where(column.valid, words, 0)
    return words


def from_words(words: Words, valid: NDArray[np.bool_] | None, dtype: DType) -> Column:
    """Return the column whose words these are. The inverse of `to_words`."""
    words = np.ascontiguousarray(words)
    if dtype.is_float:
        return Column(words.view(np.float64), valid)
    if dtype is DType.BOOL:
        return Column(words != 0, valid)
    return Column(words, valid)


def row_count(table: Mapping[str, Column], where: str) -> int:
    """Return the number of rows of a table. Raises InvalidArgumentError when columns differ."""
    rows = -1
    for name, column in table.items():
        if rows < 0:
            rows = len(column)
        elif len(column) != rows:
            raise InvalidArgumentError(
                f"column {name!r} has another length than those before it",
                where=where,
                expected=f"{rows} rows",
                got=len(column),
            )
    return max(rows, 0)
