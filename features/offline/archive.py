"""The part of the history that came by the stream: which events of the event log are in it.

Beside the files that were appended as a whole (`store`) a source's folder holds
`stream-<first>-<next>.parquet`: its events with first ≤ sequence < next, numbered as the stream has
numbered them, over all sources. `archive.json` says up to which entry of the log everything is
there. It is written after the files, so that a kill in between leaves rows that are met again: they
are known by their sequence, and not written twice.

Small files are merged. A merged file has the sequences of those that it replaces; until they are
gone, what lies within another is not read (`streamed_files`).
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.errors import InternalError
from headrace.files import whole_file

_END = "archive.json"
_LOCK = "archive.lock"
_STREAMED = re.compile(r"stream-(\d{20})-(\d{20})")
# So many files of less than so many bytes, one after the other and the last ones, become one. The
# sizes are those of 5 s and of 3 min of a busy stream.
MERGED_AT = 32
KEPT_S = 600.0
MERGE_BYTES = (1 << 20, 32 << 20)


class ArchiveEnd(NamedTuple):
    """Up to where the log is archived: everything up to and including entry `offset` of the store
    `store_id`; `sequence` is that of the next event."""

    store_id: str
    offset: str
    sequence: int


class StreamFile(NamedTuple):
    """One file of streamed events: those with first ≤ sequence < next."""

    first: int
    next: int
    path: Path


class Archive:
    """The streamed events under the root of an offline store. One process writes: see `lock`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def lock(self) -> IO[bytes] | None:
        """Return what holds the archive until it is closed, or the process ends; None if taken."""
        self._root.mkdir(parents=True, exist_ok=True)
        file = (self._root / _LOCK).open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    def end(self) -> ArchiveEnd | None:
        """Return up to where the log is archived; None where it never was."""
        try:
            data = (self._root / _END).read_bytes()
        except FileNotFoundError:
            return None
        try:
            return msgspec.json.decode(data, type=ArchiveEnd)
        except msgspec.DecodeError as error:
            raise InternalError(
                f"{_END} of the history cannot be read",
                where="archive",
                mend="restore the history from a backup",
            ) from error

    def next_sequence(self) -> int:
        """Return what a stream that begins anew has to begin with: what no event here has."""
        ends = [files[-1].next for folder in self._folders() if (files := streamed_files(folder))]
        return max(ends, default=0)

    @property
    def root(self) -> Path:
        """The root of the offline store that it is part of."""
        return self._root

    def has_events(self, source: str) -> bool:
        """Whether there is any history of a source, streamed or appended."""
        return any((self._root / source).glob("*.parquet"))

    def append(self, tables: Mapping[str, pa.Table], end: ArchiveEnd) -> None:
        """Keep events, by source, that reach up to `end`; those that are there already stay.

        The tables have a column `sequence`, which ascends. When this returns, all is on disk.
        """
        for source, table in tables.items():
            folder = self._root / source
            folder.mkdir(parents=True, exist_ok=True)
            streamed = streamed_files(folder)
            known = streamed[-1].next if streamed else 0
            sequence = table["sequence"].to_numpy()
            new = table.slice(int(sequence.searchsorted(known)))
            if new.num_rows:
                first, last = int(new["sequence"][0].as_py()), int(new["sequence"][-1].as_py())
                with whole_file(_stream_file(folder, first, last + 1)) as file:
                    pq.write_table(new, file, compression="zstd")
        with whole_file(self._root / _END) as file:
            file.write_bytes(msgspec.json.encode(end))

    def merge(self, now_s: float) -> int:
        """Merge small files where there are many; return how many are gone.

        Those that were merged stay until `KEPT_S` after it: somebody may be reading them. now_s:
        seconds since 1970.
        """
        gone = 0
        for folder in self._folders():
            files = streamed_files(folder)
            for size_bytes in MERGE_BYTES:
                small = _small_at_end(files, size_bytes)
                if len(small) >= MERGED_AT:
                    _merge(folder, small)
                    break
            for path in _replaced(folder, now_s - KEPT_S):
                path.unlink(missing_ok=True)
                gone += 1
        return gone

    def _folders(self) -> list[Path]:
        if not self._root.is_dir():
            return []
        return [path for path in self._root.iterdir() if path.is_dir()]


def _all_files(folder: Path) -> list[StreamFile]:
    found = []
    for path in folder.glob("stream-*.parquet"):
        match = _STREAMED.fullmatch(path.stem)
        if match is not None:
            found.append(StreamFile(int(match[1]), int(match[2]), path))
    return found


def _replaced(folder: Path, before_s: float) -> list[Path]:
    """Return the files within another that is from before a time; what a kill left, too."""
    kept = streamed_files(folder)
    whole = {file.path for file in kept}
    old = [path for path in folder.glob("stream-*") if path.suffix != ".parquet"]
    replaced = [path for path in old if path.stat().st_mtime <= before_s]
    for file in _all_files(folder):
        if file.path not in whole:
            by = next(each for each in kept if each.first <= file.first and file.next <= each.next)
            if by.path.stat().st_mtime <= before_s:
                replaced.append(file.path)
    return replaced


def streamed_files(folder: Path) -> list[StreamFile]:
    """Return the files of streamed events in a source's folder, without those within another."""
    found = _all_files(folder)
    kept: list[StreamFile] = []
    for file in sorted(found, key=lambda file: (file.first, -file.next)):
        if not kept or file.next > kept[-1].next:
            kept.append(file)
    return kept


def _stream_file(folder: Path, first: int, next_: int) -> Path:
    return folder / f"stream-{first:020d}-{next_:020d}.parquet"


def _small_at_end(files: list[StreamFile], size_bytes: int) -> list[StreamFile]:
    """Return the last files that are small and have the same columns."""
    at = len(files)
    while at and files[at - 1].path.stat().st_size < size_bytes:
        at -= 1
    small = files[at:]
    if len(small) < MERGED_AT:
        return []
    schemas = [pq.read_schema(file.path) for file in small]
    same = next((i for i, one in enumerate(reversed(schemas)) if one != schemas[-1]), len(small))
    return small[len(small) - same :]


def _merge(folder: Path, files: list[StreamFile]) -> None:
    with (
        whole_file(_stream_file(folder, files[0].first, files[-1].next)) as out,
        pq.ParquetWriter(out, pq.read_schema(files[0].path), compression="zstd") as writer,
    ):
        for file in files:
            writer.write_table(pq.read_table(file.path, partitioning=None))
