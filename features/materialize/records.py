"""What has been pushed of a location, as it stands in the store beside the event log.

A record changes in the same script that appends the rows to the log, and only from the value that
its writer saw: a kill leaves both or neither, and a push that is repeated changes nothing.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import TypeVar

import msgspec

from features.offline.reach import EVERYTHING
from headrace.errors import InternalError

_Record = TypeVar("_Record")
_PARQUET_TAIL = struct.Struct("<I4s")


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first `rows` rows of a file are pushed; `rows_sum` says which rows those were.

    version: of the file when it was read to its end; None before.
    """

    rows: int = 0
    rows_sum: str = ""
    version: str | None = None


class TableRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All rows created by `created_us` are pushed, `rows` in all.

    kept_from_us: of rows created from then on it is known which were pushed.
    """

    created_us: int = EVERYTHING.low_us
    kept_from_us: int = EVERYTHING.low_us
    rows: int = 0
    rows_sum: str = ""


def encode(record: FileRecord | TableRecord) -> bytes:
    """Return the stored form."""
    return msgspec.json.encode(record)


def decode_file(value: bytes | None) -> FileRecord:
    """Read the stored form; nothing is pushed of what has none."""
    return FileRecord() if value is None else _decoded(value, FileRecord)


def decode_table(value: bytes | None) -> TableRecord:
    """Read the stored form; nothing is pushed of what has none."""
    return TableRecord() if value is None else _decoded(value, TableRecord)


def _decoded(value: bytes, kind: type[_Record]) -> _Record:
    try:
        return msgspec.json.decode(value, type=kind)
    except msgspec.DecodeError as error:
        raise InternalError(
            "the record of what was materialized cannot be read",
            where="online store",
            mend="it was written by something else than a materialize, or by a newer version",
        ) from error


def file_version(path: Path) -> str:
    """Return what changes when a file does: size and time, and the footer of Parquet."""
    status = path.stat()
    text = f"{status.st_size}:{status.st_mtime_ns}"
    with path.open("rb") as file:
        if status.st_size > _PARQUET_TAIL.size and path.suffix == ".parquet":
            file.seek(-_PARQUET_TAIL.size, 2)
            length, _ = _PARQUET_TAIL.unpack(file.read())
            file.seek(-min(length + _PARQUET_TAIL.size, status.st_size), 2)
            text += f":{hashlib.sha256(file.read()).hexdigest()[:16]}"
    return text
