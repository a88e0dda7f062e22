"""Universal Binary JSON (draft 12 of ubjson.org), as far as XGBoost writes it.

Read into the values that JSON would be read into, but arrays of numbers of one type, which become
NumPy arrays. Every value takes a byte of the file at least, so that no file of a few bytes is read
into many values; nesting has an end.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

_DEPTH_MAX = 64
_WHOLE = {
    b"i": struct.Struct(">b"), b"U": struct.Struct(">B"), b"I": struct.Struct(">h"),
    b"l": struct.Struct(">i"), b"L": struct.Struct(">q"),
}  # fmt: skip
_BROKEN = {b"d": struct.Struct(">f"), b"D": struct.Struct(">d")}
_NUMBERS = _WHOLE | _BROKEN
_DTYPES = {
    b"i": ">i1", b"U": ">u1", b"I": ">i2", b"l": ">i4", b"L": ">i8", b"d": ">f4", b"D": ">f8",
}  # fmt: skip
_PLAIN = {b"Z": None, b"T": True, b"F": False}


def is_ubjson(data: bytes) -> bool:
    """Return whether a file that holds an object is written so, and not as JSON."""
    return data[:1] == b"{" and data[1:2] in {*_WHOLE, b"#", b"$"}


def read_ubjson(data: bytes) -> Any:
    """Return the one value of a file. Raises ValueError for what is none, or holds more."""
    reader = _Reader(data)
    value = reader.value(reader.take(1), 0)
    if reader.position != len(data):
        raise ValueError("there is more behind the value")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        end = self.position + count
        if count < 0 or end > len(self._data):
            raise ValueError("the file ends within a value")
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def value(self, marker: bytes, depth: int) -> Any:
        """Return the value whose marker was taken."""
        if marker in _PLAIN:
            return _PLAIN[marker]
        if marker in _NUMBERS:
            return self._number(marker)
        if marker == b"S":
            return self._text()
        if depth >= _DEPTH_MAX:
            raise ValueError("values are nested too deeply")
        if marker == b"[":
            return self._array(depth + 1)
        if marker == b"{":
            return self._object(depth + 1)
        raise ValueError("a marker is unknown")

    def _number(self, marker: bytes) -> int | float:
        form = _NUMBERS[marker]
        number: int | float = form.unpack(self.take(form.size))[0]
        return number

    def _length(self) -> int:
        marker = self.take(1)
        if marker not in _WHOLE:
            raise ValueError("a length is no whole number")
        return int(self._number(marker))

    def _text(self) -> str:
        return self.take(self._length()).decode()

    def _peek(self) -> bytes:
        return self._data[self.position : self.position + 1]

    def _head(self) -> tuple[bytes, int | None]:
        """Return type (empty: each value says its own) and count (None: up to the end) of what is
        in a container."""
        kind = b""
        if self._peek() == b"$":
            self.take(1)
            kind = self.take(1)
            if kind not in _NUMBERS:
                raise ValueError("a container of this type is not supported")
            if self._peek() != b"#":
                raise ValueError("a container with a type has no count")
        if self._peek() != b"#":
            return kind, None
        self.take(1)
        count = self._length()
        if count < 0:
            raise ValueError("a count is negative")
        return kind, count

    def _array(self, depth: int) -> Any:
        kind, count = self._head()
        if kind and count is not None:
            dtype = np.dtype(_DTYPES[kind])
            values = np.frombuffer(self.take(count * dtype.itemsize), dtype)
            return values.astype(dtype.newbyteorder("="))
        found: list[Any] = []
        while count is None or len(found) < count:
            marker = self.take(1)
            if marker == b"]" and count is None:
                break
            found.append(self.value(marker, depth))
        return found

    def _object(self, depth: int) -> dict[str, Any]:
        kind, count = self._head()
        found: dict[str, Any] = {}
        taken = 0
        while count is None or taken < count:
            if count is None and self._peek() == b"}":
                self.take(1)
                break
            name = self._text()
            found[name] = self.value(kind or self.take(1), depth)
            taken += 1
        return found
