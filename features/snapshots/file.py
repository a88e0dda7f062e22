"""The file of a snapshot: an Arrow IPC file of one batch, mapped into memory when it is read.

    hash    uint64        the first 8 bytes of the key's BLAKE2b, little-endian; ascending
    key     large_binary  the row's key in the online store (`features.online.keys`)
    value   large_binary  what the store holds under it: a window state, or a pile of rows

One row is that of `hr:checkpoint`. The schema's metadata holds a head (JSON): the format, when it
was taken, the schema id of each view by the hash of its definition, and the digest of all of that
and of every byte of the columns. Everything is checked when a snapshot is opened, so that a cut or
changed file is refused, not misread.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features.arrow import Arrow
from features.online.keys import CHECKPOINT, Checkpoint
from headrace.digest import canonical_json
from headrace.errors import FailedPreconditionError, NotFoundError

if TYPE_CHECKING:
    from features.online.progress import Progress
    from features.online.row_keys import RowKeys

FORMAT: Final = 1
_HEAD_KEY: Final = b"headrace.snapshot"
_COLUMNS: Final[dict[str, pa.DataType]] = {
    "hash": pa.uint64(),
    "key": pa.large_binary(),
    "value": pa.large_binary(),
}
_SCHEMA: Final = pa.schema(_COLUMNS)


@dataclass(frozen=True)
class TakenRows:
    """What a snapshot is made of.

    rows: value by key, that of `hr:checkpoint` among them; schema_ids: by the view's hash;
    taken_at_us: everything that the system knew by then is in the rows.
    """

    rows: dict[bytes, bytes]
    schema_ids: dict[str, int]
    taken_at_us: int


class _Head(msgspec.Struct, frozen=True):
    format: int
    rows: int
    taken_at_us: int
    schema_ids: dict[str, int]
    digest: str = ""


class Snapshot:
    """An open snapshot: what `ServiceReader` reads in place of a store. Safe to share."""

    store_id: str | None = None  # as of `OnlineStore`: what the reader has seen

    def __init__(self, head: _Head, batch: pa.RecordBatch) -> None:
        self._head = head
        self._hashes = _numbers(batch.column(0))
        self._keys, self._values = _Texts(batch.column(1)), _Texts(batch.column(2))

    def __len__(self) -> int:
        """How many rows there are, the checkpoint not counted."""
        return self._head.rows - 1

    @property
    def digest(self) -> str:
        """`sha256:…` of all that is in it."""
        return self._head.digest

    @property
    def taken_at_us(self) -> int:
        """When it was taken, UTC microseconds: of what came later it may know nothing."""
        return self._head.taken_at_us

    @property
    def schema_ids(self) -> Mapping[str, int]:
        """The schema id of each view that it has rows of, by the hash of its definition."""
        return self._head.schema_ids

    @property
    def progress(self) -> Progress:
        """Raise FailedPreconditionError: nothing will come."""
        raise FailedPreconditionError(
            "a snapshot has no ingester to wait for", where="min_offset", mend="leave it out"
        )

    async def get_rows(self, keys: RowKeys) -> list[bytes | None]:
        """Return the checkpoint and the rows of `keys`, None where there is none."""
        return [self.get(key) for key in keys.listed()]

    def get(self, key: bytes) -> bytes | None:
        """Return the value of one key, None where there is none."""
        hashed = _hash_of(key)
        place = int(np.searchsorted(self._hashes, np.uint64(hashed)))
        while place < len(self._hashes) and self._hashes[place] == hashed:
            if self._keys[place] == key:
                return self._values[place]
            place += 1
        return None


class _Texts:
    """The elements of a binary column: `offsets` int64[n + 1] into `data`."""

    def __init__(self, column: Arrow) -> None:
        _, offsets, data = column.buffers()
        self.offsets: NDArray[np.int64] = np.frombuffer(offsets, np.int64, len(column) + 1)
        self.data = memoryview(b"" if data is None else data)[: int(self.offsets[-1])]

    def __getitem__(self, place: int) -> bytes:
        start, end = self.offsets[place : place + 2].tolist()
        return bytes(self.data[start:end])


def _numbers(column: Arrow) -> NDArray[np.uint64]:
    return np.frombuffer(column.buffers()[1], np.uint64, len(column))


def write_snapshot(path: Path, taken: TakenRows) -> str:
    """Write a snapshot and return its digest. The file appears whole and on disk, or not at all.

    It takes the place of one that is there: who has that open goes on with it. Raises
    FailedPreconditionError when the folder cannot be written.
    """
    assert CHECKPOINT in taken.rows, "rows without a checkpoint are no store's"
    entries = sorted((_hash_of(key), key, value) for key, value in taken.rows.items())
    arrays = [
        pa.array([entry[at] for entry in entries], kind.type) for at, kind in enumerate(_SCHEMA)
    ]
    head = _Head(FORMAT, len(entries), taken.taken_at_us, taken.schema_ids)
    head = msgspec.structs.replace(head, digest=_digest_of(head, arrays))
    schema = _SCHEMA.with_metadata({_HEAD_KEY: canonical_json(head)})
    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            with draft.open("wb") as out:
                with pa.ipc.new_file(pa.PythonFile(out, "w"), schema) as writer:
                    writer.write_batch(batch)
                out.flush()
                os.fsync(out.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise FailedPreconditionError(
            "the snapshot cannot be written", where=f"snapshot {path.name!r}", got=error.strerror
        ) from error
    return head.digest


def open_snapshot(path: Path) -> Snapshot:
    """Map a snapshot into memory and check every byte of it.

    Replace such a file, as `write_snapshot` does, and never write into it: whoever has it open
    reads from it. Raises NotFoundError when there is none, FailedPreconditionError for a file that
    is no snapshot, or not what it was.
    """
    where = f"snapshot {path.name!r}"
    if not path.is_file():
        raise NotFoundError("no such file", where=where, mend="check its path")
    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        head = msgspec.json.decode((file.schema.metadata or {})[_HEAD_KEY], type=_Head)
        if head.format != FORMAT:
            raise FailedPreconditionError(
                "the snapshot has another format",
                where=where,
                expected=FORMAT,
                got=head.format,
                mend="take it again with this version",
            )
        if file.schema.remove_metadata() != _SCHEMA or file.num_record_batches != 1:
            raise _broken(where)
        batch = file.get_batch(0)
        batch.validate(full=True)  # the offsets: they are not to lead out of the file
        if batch.num_rows != head.rows or any(column.null_count for column in batch.columns):
            raise _broken(where)
        found = _digest_of(msgspec.structs.replace(head, digest=""), batch.columns)
    except (pa.ArrowException, OSError, KeyError, ValueError, msgspec.MsgspecError) as error:
        raise _broken(where) from error
    if found != head.digest:
        raise _broken(where)
    snapshot = Snapshot(head, batch)
    checkpoint = snapshot.get(CHECKPOINT)
    if checkpoint is None:
        raise _broken(where)
    Checkpoint.decode(checkpoint)
    return snapshot


def _broken(where: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        "not a whole snapshot, or one that was changed", where=where, mend="copy or take it again"
    )


def _hash_of(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def _digest_of(head: _Head, columns: list[Arrow]) -> str:
    """Return the digest of a head without one, and of what the columns hold."""
    hasher = hashlib.sha256(canonical_json(head))
    hasher.update(_numbers(columns[0]).data)
    for texts in map(_Texts, columns[1:]):
        hasher.update(texts.offsets.data)
        hasher.update(texts.data)
    return f"sha256:{hasher.hexdigest()}"
