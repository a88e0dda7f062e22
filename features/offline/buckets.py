"""Rows cut into buckets by their entity, on disk: what a join needs at once fits into memory.

An entity's events and the spine's rows of it fall into one bucket, however either was typed: what
is hashed is the text of the id (FNV-1a), as in `entity_key`. Rows with a null in the key fall into
none: nothing is known of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import ipc

from features.arrow import Arrow
from features.offline.keys import key_part
from features.sources import Entity
from headrace.compiled import kept

BUCKETS = 128
_OPTIONS = ipc.IpcWriteOptions(compression="lz4")
_OFFSET_BASIS = np.uint64(0xCBF29CE484222325)
_PRIME = np.uint64(0x100000001B3)
# Between the parts of a key; UTF-8 has no such byte.
_SEPARATOR = np.uint64(0xFF)


class Buckets:
    """Tables of one schema, cut by entity into `BUCKETS` Arrow files in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self.rows = [0] * BUCKETS
        self.size_bytes = [0] * BUCKETS

    def fill(
        self, entity: Entity, tables: Iterable[pa.Table], where: str, buffer_bytes: int
    ) -> None:
        """Write all rows of the tables, holding about `buffer_bytes` of them at a time."""
        writers: dict[int, ipc.RecordBatchFileWriter] = {}
        held: list[pa.Table] = []
        held_bytes = 0
        try:
            for table in tables:
                held.append(table)
                held_bytes += table.nbytes
                if held_bytes >= buffer_bytes:
                    self._write(entity, pa.concat_tables(held), where, writers)
                    held, held_bytes = [], 0
            if held:
                self._write(entity, pa.concat_tables(held), where, writers)
        finally:
            for writer in writers.values():
                writer.close()

    def _write(
        self,
        entity: Entity,
        table: pa.Table,
        where: str,
        writers: dict[int, ipc.RecordBatchFileWriter],
    ) -> None:
        number = bucket_numbers(entity, table, where)
        order = np.argsort(number, kind="stable")
        bounds = np.searchsorted(number[order], np.arange(BUCKETS + 1)).tolist()
        table = table.take(order).combine_chunks()
        for bucket in range(BUCKETS):
            first, end = bounds[bucket], bounds[bucket + 1]
            if first == end:
                continue
            part = table.slice(first, end - first)
            if bucket not in writers:
                path = self._path(bucket)
                writers[bucket] = ipc.new_file(path, table.schema, options=_OPTIONS)
            writers[bucket].write_table(part)
            self.rows[bucket] += part.num_rows
            self.size_bytes[bucket] += part.nbytes

    def read(self, first: int, end: int) -> Iterator[pa.Table]:
        """Yield the tables of the buckets [first, end), each in the order of its rows."""
        for bucket in range(first, end):
            if self.rows[bucket]:
                with ipc.open_file(self._path(bucket)) as reader:
                    yield reader.read_all()

    def _path(self, bucket: int) -> str:
        return str(self._folder / f"{bucket}.arrow")


def bucket_numbers(entity: Entity, table: pa.Table, where: str) -> NDArray[np.int64]:
    """Return the bucket of each row; `BUCKETS` for a row with a null in its key.

    Raises InvalidArgumentError when a join key is missing or of another type than its key's.
    """
    hashes = np.full(table.num_rows, _OFFSET_BASIS, np.uint64)
    valid = np.ones(table.num_rows, np.bool_)
    for name in entity.join_keys:
        part = key_part(table, name, entity.key_type(name), where)
        if part.null_count:
            valid &= np.asarray(part.is_valid())
        _add_part(part, hashes)
    mixed = (hashes ^ (hashes >> np.uint64(32))) % np.uint64(BUCKETS)
    return np.where(valid, mixed.astype(np.int64), BUCKETS)


def _add_part(part: Arrow, hashes: NDArray[np.uint64]) -> None:
    """Hash one part of every key into `hashes`."""
    if pa.types.is_integer(part.type):
        _add_integers(np.asarray(part.cast(pa.int64()).fill_null(0)), hashes)
        return
    hash_texts(part, hashes)


def hash_texts(texts: Arrow, hashes: NDArray[np.uint64] | None = None) -> NDArray[np.uint64]:
    """Hash the UTF-8 of each text, or bytes, on top of `hashes`, in place; a null like nothing."""
    if hashes is None:
        hashes = np.full(len(texts), _OFFSET_BASIS, np.uint64)
    at = 0
    for chunk in texts.cast(pa.large_binary()).chunks:
        filled = chunk.fill_null(b"")
        _, offsets, data = filled.buffers()
        places = np.frombuffer(offsets, np.int64)[filled.offset :][: len(filled) + 1]
        held = b"\0" if data is None or data.size == 0 else data
        _add_texts(np.frombuffer(held, np.uint8), places, hashes[at : at + len(filled)])
        at += len(filled)
    return hashes


@kept()
def _add_integers(values, hashes):  # type: ignore[no-untyped-def]
    """Hash the decimal text of each integer."""
    digits = np.empty(20, np.uint8)
    for row in range(values.size):
        value = values[row]
        # The least integer has no positive twin in int64.
        rest = np.uint64(value) if value >= 0 else np.uint64(0) - np.uint64(value)
        length = 0
        while length == 0 or rest:
            digits[length] = np.uint8(48 + rest % np.uint64(10))
            rest //= np.uint64(10)
            length += 1
        found = (hashes[row] ^ _SEPARATOR) * _PRIME
        if value < 0:
            found = (found ^ np.uint64(45)) * _PRIME
        for i in range(length - 1, -1, -1):
            found = (found ^ np.uint64(digits[i])) * _PRIME
        hashes[row] = found


@kept()
def _add_texts(data, places, hashes):  # type: ignore[no-untyped-def]
    for row in range(hashes.size):
        found = (hashes[row] ^ _SEPARATOR) * _PRIME
        for i in range(places[row], places[row + 1]):
            found = (found ^ np.uint64(data[i])) * _PRIME
        hashes[row] = found


def parts_of(costs: Sequence[int], cost_max: int) -> list[tuple[int, int]]:
    """Return ranges [first, end) of buckets, each as long as its costs stay within `cost_max`.

    A bucket that costs more stands alone.
    """
    parts: list[tuple[int, int]] = []
    first, total = 0, 0
    for bucket, cost in enumerate(costs):
        if bucket > first and total + cost > cost_max:
            parts.append((first, bucket))
            first, total = bucket, 0
        total += cost
    return [*parts, (first, len(costs))]
