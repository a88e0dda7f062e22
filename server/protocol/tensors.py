"""Tensors of the Open Inference Protocol: datatypes, raw bytes to arrays and back.

Raw content is little endian and row major. BOOL is one byte an element; BYTES is a four-byte length
and the bytes for each element. A BYTES tensor is an object array of `bytes` on the protocol's side
and of `str` in an onnxruntime session.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.errors import InvalidArgumentError

Array = npt.NDArray[Any]


class Datatype(NamedTuple):
    """One OIP datatype: its numpy dtype, onnxruntime's name of it, and the `contents` field."""

    dtype: np.dtype[Any]
    onnxruntime: str
    contents: str  # of InferTensorContents; "" where the protocol has none (raw only)


DATATYPES: dict[str, Datatype] = {
    "BOOL": Datatype(np.dtype("?"), "tensor(bool)", "bool_contents"),
    "UINT8": Datatype(np.dtype("u1"), "tensor(uint8)", "uint_contents"),
    "UINT16": Datatype(np.dtype("<u2"), "tensor(uint16)", "uint_contents"),
    "UINT32": Datatype(np.dtype("<u4"), "tensor(uint32)", "uint_contents"),
    "UINT64": Datatype(np.dtype("<u8"), "tensor(uint64)", "uint64_contents"),
    "INT8": Datatype(np.dtype("i1"), "tensor(int8)", "int_contents"),
    "INT16": Datatype(np.dtype("<i2"), "tensor(int16)", "int_contents"),
    "INT32": Datatype(np.dtype("<i4"), "tensor(int32)", "int_contents"),
    "INT64": Datatype(np.dtype("<i8"), "tensor(int64)", "int64_contents"),
    "FP16": Datatype(np.dtype("<f2"), "tensor(float16)", ""),
    # NumPy has none: its two bytes travel as they are.
    "BF16": Datatype(np.dtype("<u2"), "tensor(bfloat16)", ""),
    "FP32": Datatype(np.dtype("<f4"), "tensor(float)", "fp32_contents"),
    "FP64": Datatype(np.dtype("<f8"), "tensor(double)", "fp64_contents"),
    "BYTES": Datatype(np.dtype("O"), "tensor(string)", "bytes_contents"),
}
# What JSON does not carry, in either direction.
NOT_IN_JSON = frozenset({"FP16", "BF16"})
FROM_ONNXRUNTIME = {kind.onnxruntime: name for name, kind in DATATYPES.items()}
_NESTING_MAX = 100  # as Triton's
_LENGTH = struct.Struct("<I")


# Of a tensor whose elements are still to be read.
UNREAD: Array = np.empty(0)


@dataclass(slots=True)
class Tensor:
    """One named input as it came: `array` has the shape that the caller stated."""

    name: str
    datatype: str
    array: Array


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as Triton prints it: `[-1,16]`."""
    return f"[{','.join(map(str, shape))}]"


def datatype_of(name: str, where: str) -> Datatype:
    """Return the datatype called `name`. Raises InvalidArgumentError naming the input `where`."""
    kind = DATATYPES.get(name)
    if kind is None:
        raise InvalidArgumentError(
            f"unknown datatype {name!r} for {where}", expected=", ".join(DATATYPES)
        )
    return kind


def datatype_of_array(array: Array, configured: str) -> str:
    """Return the datatype of an array: what is configured, unless a model made something else."""
    dtype = array.dtype
    if dtype == DATATYPES[configured].dtype:
        return configured
    return next((name for name, kind in DATATYPES.items() if kind.dtype == dtype), configured)


_DIMENSIONS_MAX = 32
_ELEMENTS_MAX = 1 << 48


def element_count(shape: Sequence[int], where: str) -> int:
    """Return how many elements a shape holds. Raises InvalidArgumentError for one that none has."""
    # NumPy minds the other dimensions even where one of them is 0.
    fits = len(shape) <= _DIMENSIONS_MAX
    if fits and any(size < 0 for size in shape):
        raise InvalidArgumentError(f"the shape of {where} is negative", got=shape_text(shape))
    if not fits or math.prod(filter(None, shape)) > _ELEMENTS_MAX:
        raise InvalidArgumentError(
            f"the shape of {where} is too large",
            expected=f"at most {_DIMENSIONS_MAX} dimensions and {_ELEMENTS_MAX} elements",
        )
    return math.prod(shape)


def from_raw(raw: bytes | memoryview, datatype: str, shape: Sequence[int], where: str) -> Array:
    """Return the array of raw content: a view over it, but for BYTES and where that is unaligned.

    Raises InvalidArgumentError when the size does not fit the shape, or a BOOL is neither 0 nor 1.
    """
    kind = datatype_of(datatype, where)
    count = element_count(shape, where)
    if datatype == "BYTES":
        return _strings_from_raw(raw, count, where).reshape(shape)
    expected = count * kind.dtype.itemsize
    if len(raw) != expected:
        raise InvalidArgumentError(
            f"input byte size mismatch for {where}. Expected {expected}, got {len(raw)}"
        )
    if datatype == "BOOL" and raw and max(raw) > 1:
        raise InvalidArgumentError(f"a BOOL of {where} is neither 0 nor 1", got=max(raw))
    array = np.frombuffer(raw, kind.dtype).reshape(shape)
    # Compiled kernels may take for granted that an element stands at a multiple of its size.
    return array if array.flags.aligned else array.copy()


def _strings_from_raw(raw: bytes | memoryview, count: int, where: str) -> Array:
    if count * _LENGTH.size > len(raw):  # before anything of that size is made
        raise InvalidArgumentError(
            f"input byte size mismatch for {where}. Expected at least {count * _LENGTH.size} "
            f"for {count} BYTES elements, got {len(raw)}"
        )
    values = np.empty(count, object)
    data = bytes(raw)
    position = 0
    for index in range(count):
        start = position + _LENGTH.size
        if start > len(data):
            raise InvalidArgumentError(f"{where} ends within element {index} of {count}")
        position = start + _LENGTH.unpack_from(data, position)[0]
        if position > len(data):
            raise InvalidArgumentError(f"{where} ends within element {index} of {count}")
        values[index] = data[start:position]
    if position != len(data):
        raise InvalidArgumentError(
            f"{where} has {len(data) - position} bytes after its {count} BYTES elements"
        )
    return values


def to_raw(array: Array, datatype: str) -> bytes:
    """Return the raw content of an array; strings become UTF-8."""
    if datatype != "BYTES":
        dtype = DATATYPES[datatype].dtype
        return np.ascontiguousarray(array, dtype).tobytes()
    parts: list[bytes] = []
    for value in array.reshape(-1):
        data = value if isinstance(value, bytes) else str(value).encode()
        parts += (_LENGTH.pack(len(data)), data)
    return b"".join(parts)


def from_values(values: Sequence[Any], datatype: str, shape: Sequence[int], where: str) -> Array:
    """Return the array of listed values (flat, or nested as the shape says).

    Raises InvalidArgumentError naming `where` when a value is of another kind, does not fit its
    datatype, or the count does not fit the shape.
    """
    kind = datatype_of(datatype, where)
    count = element_count(shape, where)
    flat = _flatten(values, where)
    if len(flat) != count:
        raise InvalidArgumentError(
            f"{where} has {len(flat)} values for shape {shape_text(shape)}", expected=count
        )
    if datatype == "BYTES":
        strings = np.empty(count, object)
        for index, value in enumerate(flat):
            if not isinstance(value, str | bytes):
                raise InvalidArgumentError(f"a value of {where} is not text", got=_kind(value))
            strings[index] = value.encode() if isinstance(value, str) else value
        return strings.reshape(shape)
    _check_values(flat, datatype, kind.dtype, where)
    try:
        with np.errstate(over="ignore"):  # a float too large for FP32 is an infinity, as in C
            return np.array(flat, kind.dtype).reshape(shape)
    except OverflowError:
        raise InvalidArgumentError(f"a value of {where} does not fit {datatype}") from None


def _flatten(values: Sequence[Any], where: str) -> list[Any]:
    """Return nested lists flat, in order, without recursion (the nesting is the caller's)."""
    flat = list(values)
    depth = 1
    while any(isinstance(value, list) for value in flat):
        depth += 1
        if depth > _NESTING_MAX:
            raise InvalidArgumentError(
                f"JSON nesting depth exceeds maximum allowed limit ({_NESTING_MAX})", where=where
            )
        flat = [item for value in flat for item in (value if isinstance(value, list) else (value,))]
    return flat


def _check_values(flat: list[Any], datatype: str, dtype: np.dtype[Any], where: str) -> None:
    if dtype.kind == "b":
        wrong = next((value for value in flat if not isinstance(value, bool)), None)
        if wrong is not None:
            raise InvalidArgumentError(f"a value of {where} is not a bool", got=_kind(wrong))
        return
    numbers = (int,) if dtype.kind in "iu" else (int, float)
    for value in flat:
        if isinstance(value, bool) or not isinstance(value, numbers):
            raise InvalidArgumentError(f"a value of {where} is not {datatype}", got=_kind(value))
    if dtype.kind in "iu" and flat:
        limits = np.iinfo(dtype)
        worst = min(flat) if min(flat) < limits.min else max(flat)
        if not limits.min <= worst <= limits.max:
            raise InvalidArgumentError(f"a value of {where} does not fit {datatype}", got=worst)


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


def bytes_from_session(array: Array) -> Array:
    """Return the `str` elements of onnxruntime as the protocol has them."""
    found = np.empty(array.size, object)
    for index, value in enumerate(array.reshape(-1)):
        found[index] = value if isinstance(value, bytes) else str(value).encode()
    return found.reshape(array.shape)


def strings_for_session(array: Array, where: str) -> Array:
    """Return a BYTES array as `str` elements. Raises InvalidArgumentError when not UTF-8."""
    decoded = np.empty(array.size, object)
    for index, value in enumerate(array.reshape(-1)):
        try:
            decoded[index] = value.decode()
        except UnicodeDecodeError:
            raise InvalidArgumentError(f"element {index} of {where} is not UTF-8") from None
    return decoded.reshape(array.shape)
