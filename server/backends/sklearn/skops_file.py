"""Files of skops: a zip of a tree of nodes (`schema.json`) and of arrays (`.npy`).

skops itself makes objects of the types that a file names. Here no type is ever looked up: a node is
data under a name, read where it is asked for, and what nobody asks for is not looked at.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import FailedPreconditionError

Array = npt.NDArray[Any]
_BYTES_MAX = 1 << 28  # of all that is in a file, unpacked
_SCHEMA_BYTES_MAX = 1 << 26  # of its nodes, that take twenty times as much when they are read
# Of arrays that are asked for: who names one for each of many trees has more than memory.
_ASKED_BYTES_MAX = 2 * _BYTES_MAX
_HEADER_BYTES_MAX = 10_000
_SCHEMA = "schema.json"
_PROTOCOLS = range(3)  # that are known
_DEPTH_MAX = 64


class Saved:
    """An object as it was saved: what its type is called, and its attributes."""

    def __init__(self, file: SkopsFile, node: dict[str, Any]) -> None:
        self._file = file
        self.module = str(node["__module__"])
        self.name = str(node["__class__"])
        state = node["content"]
        self._state: dict[str, Any] = state["content"] if isinstance(state, dict) else {}

    def __contains__(self, attribute: str) -> bool:
        return attribute in self._state

    def get(self, attribute: str) -> Any:
        """Return an attribute: what JSON has, lists of such, an array, or what was `Saved`.

        Raises KeyError or ValueError where there is none that can be read.
        """
        return self._file.value(self._state[attribute])

    def array(self, attribute: str, dimensions: int | None = None) -> npt.NDArray[np.float64]:
        """Return an attribute that holds numbers, finite ones, as float64 of so many dimensions
        (None: of any)."""
        array = np.asarray(self.get(attribute))
        if array.dtype.kind not in "iuf" or dimensions not in {None, array.ndim}:
            raise ValueError(f"{attribute} is no array of {dimensions} dimensions")
        values = array.astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError(f"{attribute} holds NaN or infinity")
        return values


class SkopsFile:
    """One file, whose arrays are read as they are asked for."""

    def __init__(self, data: bytes) -> None:
        """Raises ValueError for what is no such file."""
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise ValueError("no zip") from error
        infos = self._zip.infolist()
        if sum(info.file_size for info in infos) > _BYTES_MAX:
            raise _too_large()
        if self._zip.getinfo(_SCHEMA).file_size > _SCHEMA_BYTES_MAX:
            raise _too_large()
        schema = json.loads(self._read(_SCHEMA))
        if schema.get("protocol") not in _PROTOCOLS:
            raise ValueError("a protocol that is not known")
        self._arrays: dict[str, Array] = {}
        self._asked_bytes = 0
        self.root = self.value(schema)

    def value(self, node: dict[str, Any], depth: int = 0) -> Any:
        """Return what a node stands for; see `Saved.get`."""
        if depth > _DEPTH_MAX:
            raise ValueError("nodes are nested too deeply")
        loader = node["__loader__"]
        if loader == "JsonNode":
            return json.loads(node["content"])
        if loader in {"ListNode", "TupleNode"}:
            return [self.value(each, depth + 1) for each in node["content"]]
        if loader == "NdArrayNode":
            # An array of objects is a list of nodes, and its shape.
            if node["type"] == "json":
                return [self.value(each, depth + 1) for each in node["content"]]
            return self._array(str(node["file"]))
        if loader in {"ObjectNode", "TreeNode"}:
            return Saved(self, node)
        raise ValueError(f"a node {str(loader)[:32]} is not read")

    def _array(self, name: str) -> Array:
        if name not in self._arrays:
            self._arrays[name] = _from_npy(self._read(name))
        found = self._arrays[name]
        self._asked_bytes += found.nbytes
        if self._asked_bytes > _ASKED_BYTES_MAX:
            raise _too_large()
        return found

    def _read(self, name: str) -> bytes:
        info = self._zip.getinfo(name)
        if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise ValueError("another compression than deflate")
        try:
            # Never more than is told, which was counted above.
            with self._zip.open(info) as opened:
                return opened.read(info.file_size)
        except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
            raise ValueError("an entry that is damaged") from error


def _too_large() -> FailedPreconditionError:
    return FailedPreconditionError(
        "the file is too large",
        expected=f"at most {_BYTES_MAX} bytes, unpacked",
        mend="convert it to ONNX",
    )


def _from_npy(data: bytes) -> Array:
    """Return an array of `.npy` bytes. Raises ValueError; pickled objects are none."""
    stream = io.BytesIO(data)
    try:
        shape, is_fortran, dtype = _header(stream)
    except (SyntaxError, TokenError, TypeError, OverflowError) as error:  # NumPy lets them through
        raise ValueError("a header that is none") from error
    if dtype.hasobject:
        raise ValueError("an array of pickles")
    count = math.prod(shape)
    if count * dtype.itemsize != len(data) - stream.tell():
        raise ValueError("an array of another size than its file")
    flat = np.frombuffer(data, dtype, count, stream.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C")


def _header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream, _HEADER_BYTES_MAX)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream, _HEADER_BYTES_MAX)
    raise ValueError("another version of .npy")
