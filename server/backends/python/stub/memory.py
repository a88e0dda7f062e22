"""Memory that a server and a model's process share, without a name: it ends with them.

Each has one to write into and one to read from. They grow and never shrink (the file is sealed
against it: a process that cuts its memory short must not end the other).
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import messages

Array = npt.NDArray[Any]

ALIGNMENT = 64
HEADER_BYTES = ALIGNMENT  # of the model's memory: how many of its messages the server copied
INITIAL_BYTES = 1 << 20
MEMORY_BYTES_MAX = 1 << 36
# Up to this size a tensor is copied once more rather than looked at through a view.
_SMALL_BYTES = 1 << 13
_COUNT = struct.Struct("<Q")
_LENGTH = struct.Struct("<I")

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("O"),
}
DATATYPES = {dtype: name for name, dtype in DTYPES.items()}


def aligned(size: int) -> int:
    """Return `size`, rounded up to where the next tensor may begin."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def new_memory() -> int:
    """Return the descriptor of new memory."""
    descriptor = os.memfd_create("headrace", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, INITIAL_BYTES)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return descriptor


class Memory:
    """One of the two, mapped."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        self._view = memoryview(self._map)

    @property
    def size(self) -> int:
        """How many bytes it has, as far as we know."""
        return len(self._view)

    def grow(self, size: int) -> None:
        """Make it at least so large."""
        if size > len(self._view):
            wanted = max(size, 2 * len(self._view))
            os.ftruncate(self._descriptor, -(-wanted // mmap.PAGESIZE) * mmap.PAGESIZE)
            self._remap()

    def _remap(self) -> None:
        # The old mapping lives as long as an array looks into it.
        self._map = mmap.mmap(self._descriptor, os.fstat(self._descriptor).st_size)
        self._view = memoryview(self._map)

    def write(self, offset: int, raw: Any) -> None:
        """Copy the bytes of a contiguous buffer to `offset`."""
        data = raw if isinstance(raw, bytes) else memoryview(raw).cast("B")
        if size := len(data):
            self._view[offset : offset + size] = data

    def read(self, offset: int, size: int) -> memoryview:
        """Return a view. Raises ValueError where there is no such place."""
        end = offset + size
        if offset < 0 or size < 0:
            raise ValueError("a place lies outside of the memory")
        if end > len(self._view):
            self._remap()
            if end > len(self._view):
                raise ValueError("a place lies outside of the memory")
        return self._view[offset:end]

    @property
    def count(self) -> int:
        """The number in the header."""
        return int(_COUNT.unpack_from(self._view)[0])

    @count.setter
    def count(self, value: int) -> None:
        _COUNT.pack_into(self._view, 0, value)

    def give_back(self) -> None:
        """Return the pages to the system; their content is lost, the header apart."""
        start = mmap.PAGESIZE
        self._map.madvise(mmap.MADV_REMOVE, start, len(self._view) - start)

    def close(self) -> None:
        """Close the descriptor; the mapping lives as long as an array looks into it."""
        os.close(self._descriptor)


def raw_of(array: Array) -> tuple[Any, int]:
    """Return the raw content of an array as a contiguous buffer, and its size in bytes."""
    if array.dtype.kind in "OSU":
        parts: list[bytes] = []
        for value in array.reshape(-1).tolist():
            data = value if isinstance(value, bytes) else str(value).encode()
            parts += (_LENGTH.pack(len(data)), data)
        joined = b"".join(parts)
        return joined, len(joined)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    size = array.nbytes
    if size <= _SMALL_BYTES:
        return array.tobytes(), size
    array = np.ascontiguousarray(array)
    # A view of bytes: not every dtype (float16, bool) can be cast by a memoryview.
    return array.reshape(-1).view(np.uint8), size


def datatype_of(array: Array) -> str:
    """Return the protocol's name of an array's type. Raises ValueError where it has none."""
    name = DATATYPES.get(array.dtype)
    if name is not None:
        return name
    if array.dtype.kind in "SU":
        return "BYTES"
    name = DATATYPES.get(array.dtype.newbyteorder("<"))
    if name is None:
        raise ValueError(f"an array of type {array.dtype} cannot be a tensor")
    return name


def array_of(place: messages.Place, memory: Memory) -> Array:
    """Return the tensor at a place: a view, but for BYTES. Raises ValueError for a wrong one."""
    shape = place.shape
    raw = memory.read(place.offset, place.size)
    dtype = DTYPES.get(place.datatype)
    if dtype is None or (shape and min(shape) < 0):
        raise ValueError("a tensor is of no known type or shape")
    count = math.prod(shape)
    if dtype.hasobject:
        return _strings(bytes(raw), count).reshape(shape)
    if count * dtype.itemsize != place.size:
        raise ValueError("a tensor's size is not that of its shape")
    return np.ndarray(shape, dtype, raw)


def _strings(raw: bytes, count: int) -> Array:
    if count * _LENGTH.size > len(raw):
        raise ValueError("a tensor of BYTES is cut off")
    values = np.empty(count, object)
    position = 0
    for index in range(count):
        start = position + _LENGTH.size
        if start > len(raw):
            raise ValueError("a tensor of BYTES is cut off")
        position = start + int(_LENGTH.unpack_from(raw, position)[0])
        values[index] = raw[start:position]
    if position != len(raw):
        raise ValueError("a tensor of BYTES is not what its lengths say")
    return values


def strings_in(raw: bytes) -> Array:
    """Return all elements of a tensor of BYTES. Raises ValueError where it is cut off."""
    count = position = 0
    while position < len(raw):
        if position + _LENGTH.size > len(raw):
            raise ValueError("a tensor of BYTES is cut off")
        position += _LENGTH.size + int(_LENGTH.unpack_from(raw, position)[0])
        count += 1
    return _strings(raw, count)


Named = tuple[str, str, Array]  # name, datatype, values


def sizes_of(tensors: Sequence[Named]) -> tuple[list[tuple[Any, int]], int]:
    """Return each tensor's raw content and size, and the size of all, laid out."""
    raws = [raw_of(array) for _, _, array in tensors]
    return raws, sum([aligned(size) for _, size in raws])


def lay_out(
    memory: Memory, offset: int, tensors: Sequence[Named], raws: Sequence[tuple[Any, int]]
) -> list[messages.Place]:
    """Write tensors from `offset` on; return where they are."""
    places = []
    for (name, datatype, array), (raw, size) in zip(tensors, raws, strict=True):
        memory.write(offset, raw)
        places.append(messages.Place(name, datatype, tuple(array.shape), offset, size))
        offset += aligned(size)
    return places
