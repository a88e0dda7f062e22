"""Values of any length: checked, brought to one form, and as the bytes of a cell.

A cell holds the UTF-8 of a String, the bytes of Bytes, the 16 bytes of a Uuid, the little-endian
numbers of an array of numbers; of an array of strings it holds, per string, its length as u32
and its UTF-8. Images and documents are kept elsewhere: a feature holds their URI, a String.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.types import Column, DType
from headrace.errors import InvalidArgumentError

ITEMS: dict[DType, np.dtype[Any]] = {
    DType.INT64_ARRAY: np.dtype("<i8"),
    DType.FLOAT64_ARRAY: np.dtype("<f8"),
    DType.FLOAT32_ARRAY: np.dtype("<f4"),
}
_EMPTY: dict[DType, Any] = {DType.STRING: "", DType.BYTES: b"", DType.UUID: str(uuid.UUID(int=0))}
_LENGTH = struct.Struct("<I")


def nothing(dtype: DType) -> Any:
    """Return what lies under a null of a variable type: the empty value."""
    if dtype in ITEMS:
        return np.empty(0, ITEMS[dtype])
    return _EMPTY.get(dtype, ())


def canonical(value: object, dtype: DType) -> Any:
    """Return a value as columns hold it. Raises ValueError or TypeError for what is none.

    A Uuid may come as `uuid.UUID`, its 16 bytes, or text that `uuid.UUID` reads; an array of
    numbers as any sequence of them in which no value would change; its items are never null.
    """
    if dtype is DType.STRING:
        return _text(value)
    if dtype is DType.BYTES:
        return bytes(_of_type(value, bytes | bytearray | memoryview))
    if dtype is DType.UUID:
        return _uuid_text(value)
    if dtype is DType.STRING_ARRAY:
        return tuple(_text(item) for item in _of_type(value, list | tuple | np.ndarray))
    return _numbers(value, ITEMS[dtype])


def canonical_column(
    values: Sequence[Any], valid: NDArray[np.bool_] | None, dtype: DType, what: str, where: str
) -> Column:
    """Return a column of values in their one form, the empty value under each null.

    Raises InvalidArgumentError that names `what` and the row.
    """
    checked = np.empty(len(values), np.object_)
    empty = nothing(dtype)
    for row, value in enumerate(values):
        if valid is not None and not valid[row]:
            checked[row] = empty
            continue
        try:
            checked[row] = canonical(value, dtype)
        except (ValueError, TypeError, OverflowError):
            raise InvalidArgumentError(
                f"{what} does not hold {dtype.value} in row {row}",
                where=where,
                expected=_EXPECTED[dtype],
                got=type(value).__name__,
            ) from None
    return Column(checked, valid)


_EXPECTED = {
    DType.STRING: "string (Unicode)",
    DType.BYTES: "bytes",
    DType.UUID: "a UUID: text such as 0190163d-8694-739b-aea5-966c26f8ad91, or 16 bytes",
    DType.INT64_ARRAY: "a list of whole numbers that int64 holds",
    DType.FLOAT64_ARRAY: "a list of numbers",
    DType.FLOAT32_ARRAY: "a list of numbers",
    DType.STRING_ARRAY: "a list of strings",
}


def encode_cell(value: Any, dtype: DType) -> bytes:
    """Return the bytes of a value that is in its one form."""
    if dtype is DType.STRING:
        return bytes(value.encode())
    if dtype is DType.BYTES:
        return bytes(value)
    if dtype is DType.UUID:
        return uuid.UUID(value).bytes
    if dtype is DType.STRING_ARRAY:
        texts = [item.encode() for item in value]
        return b"".join(_LENGTH.pack(len(text)) + text for text in texts)
    return bytes(value.tobytes())


def decode_cell(cell: bytes, dtype: DType) -> Any:
    """Return the value of a cell. Raises ValueError for bytes that are none."""
    if dtype is DType.STRING:
        return cell.decode()
    if dtype is DType.BYTES:
        return cell
    if dtype is DType.UUID:
        return str(uuid.UUID(bytes=cell))
    if dtype is DType.STRING_ARRAY:
        return _decode_texts(cell)
    return np.frombuffer(cell, ITEMS[dtype])


def encode_cells(column: Column, dtype: DType) -> list[bytes]:
    """Return the cell of each row, empty where null."""
    values = column.values.tolist()
    if column.valid is None:
        return [encode_cell(value, dtype) for value in values]
    return [
        encode_cell(value, dtype) if there else b""
        for value, there in zip(values, column.valid.tolist(), strict=True)
    ]


def _of_type(value: object, kinds: Any) -> Any:
    if not isinstance(value, kinds):
        raise TypeError
    return value


def _text(value: object) -> str:
    text: str = _of_type(value, str)
    text.encode()  # a lone surrogate has no UTF-8
    return text


def _uuid_text(value: object) -> str:
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, bytes):
        return str(uuid.UUID(bytes=value))
    return str(uuid.UUID(_of_type(value, str)))


def _numbers(value: object, item: np.dtype[Any]) -> NDArray[Any]:
    given = np.asarray(_of_type(value, list | tuple | np.ndarray))
    if given.size == 0 and given.ndim == 1:
        return np.empty(0, item)
    if given.ndim != 1 or given.dtype.kind not in ("iu" if item.kind == "i" else "iuf"):
        raise TypeError
    if given.dtype == np.uint64 and item.kind == "i" and given.max() > np.iinfo(np.int64).max:
        raise OverflowError
    with np.errstate(over="ignore"):
        return given.astype(item)


def _decode_texts(cell: bytes) -> tuple[str, ...]:
    texts = []
    at = 0
    while at < len(cell):
        if at + _LENGTH.size > len(cell):
            raise ValueError
        (length,) = _LENGTH.unpack_from(cell, at)
        at += _LENGTH.size
        if at + length > len(cell):
            raise ValueError
        texts.append(cell[at : at + length].decode())
        at += length
    return tuple(texts)
