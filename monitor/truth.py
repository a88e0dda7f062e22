"""Truth that came back: an append-only log of records, durable before it is acknowledged.

`wal/truth-<n>.log` segments hold `HRTRUTH1`, then records: u32 little-endian length, u32 CRC-32 of
the payload, payload (msgpack). A crash can tear only what was never acknowledged; opening the log
cuts a torn end off (into a `.cut` file, so that nothing is destroyed) and starts a new segment.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)
from monitor.schema import TRUTH_SCHEMA

_MAGIC = b"HRTRUTH1"
_FRAME = struct.Struct("<II")
# A truth is some hundred bytes; a length beyond this is damage, not data.
_RECORD_BYTES_MAX = 64 * 1024
_SEGMENT_BYTES_MAX = 64 * 1024 * 1024


class Truth(msgspec.Struct, array_like=True, frozen=True):
    """What happened in the world to one prediction.

    `prediction_id` is 16 bytes, or None when `entity_key` (canonical bytes) and `event_time_us`
    name the prediction. `value` is finite. `event_time_us` is when it was so in the world,
    `created_time_us` when the system could first know it; both UTC microseconds.
    """

    prediction_id: bytes | None
    name: str
    value: float
    event_time_us: int
    created_time_us: int
    source: str = ""
    entity_key: bytes | None = None


class TruthRead(NamedTuple):
    """All truth: TRUTH_SCHEMA tables and what was odd about it."""

    latest: pa.Table  # one row per (prediction, name): the last created
    history: pa.Table  # every record, in the order of arrival
    duplicates: int  # records that repeat an earlier value of the same (prediction, name)
    conflicts: int  # records that differ from the one before for the same (prediction, name)
    damaged_bytes: int  # bytes of segments that are no whole record


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Truth)


class TruthLog:
    """The one writer of a truth log (the collector). Call `close` when done.

    Raises FailedPreconditionError when another process writes to the same folder.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise FailedPreconditionError(
                "the truth log is in use by another process",
                where="truth log",
                mend="stop the other collector of this data directory",
            ) from error
        segments = _segments(root)
        self.cut_bytes = _cut_torn_tail(segments[-1]) if segments else 0
        self._number = _number(segments[-1]) if segments else 0
        self._segment: int | None = None  # file descriptor
        self._size_bytes = 0

    def append(self, truths: list[Truth]) -> int:
        """Write `truths` and return their number once they are on disk: one write, one fsync.

        Raises InvalidArgumentError that names the first bad record, or UnavailableError when the
        disk refuses; in both cases nothing of this call is acknowledged and the log stays sound.
        """
        if not truths:
            return 0
        payloads = [_encode(number, truth) for number, truth in enumerate(truths)]
        data = b"".join(_FRAME.pack(len(p), zlib.crc32(p)) + p for p in payloads)
        try:
            self._write_durably(data)
        except OSError as error:
            self._abandon_segment()
            raise UnavailableError(
                "truth could not be made durable",
                where="truth log",
                got=error.strerror,
                mend="free space on the disk of the data directory and send it again",
            ) from error
        return len(truths)

    def close(self) -> None:
        """Close the segment and give up the lock."""
        if self._segment is not None:
            os.close(self._segment)
            self._segment = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _write_durably(self, data: bytes) -> None:
        if self._segment is not None and self._size_bytes + len(data) > _SEGMENT_BYTES_MAX:
            os.close(self._segment)
            self._segment = None
        if self._segment is None:
            self._open_segment()
        assert self._segment is not None
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._segment, rest) :]
        os.fsync(self._segment)
        self._size_bytes += len(data)

    def _open_segment(self) -> None:
        self._number += 1
        path = self._root / f"truth-{self._number:08d}.log"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._size_bytes = 0
        self._segment = os.open(path, flags, 0o600)
        self._size_bytes = os.write(self._segment, _MAGIC)
        directory = os.open(self._root, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)  # the new name must be as durable as what is written under it
        finally:
            os.close(directory)

    def _abandon_segment(self) -> None:
        """After a failed write or fsync the segment's end is unknown: never write to it again."""
        if self._segment is None:
            return
        # Drop the unacknowledged end; if even that fails, readers stop at the torn record.
        with contextlib.suppress(OSError):
            os.ftruncate(self._segment, self._size_bytes)
        with contextlib.suppress(OSError):
            os.close(self._segment)
        self._segment = None
        if self._size_bytes <= len(_MAGIC):  # a full disk must not fill with empty segments
            (self._root / f"truth-{self._number:08d}.log").unlink(missing_ok=True)


def read_truth(root: Path) -> TruthRead:
    """Return all truth under `root`; an absent folder is an empty log. Takes no lock."""
    records: list[Truth] = []
    damaged_bytes = 0
    for path in _segments(root):
        data = path.read_bytes()
        found, good_bytes = _records(data)
        records += found
        damaged_bytes += len(data) - good_bytes
    history = _table(records)
    latest, duplicates, conflicts = _latest(records)
    return TruthRead(history.take(latest), history, duplicates, conflicts, damaged_bytes)


def join_truth(log: pa.Table, latest: pa.Table, name: str | None = None) -> np.ndarray:
    """Return float64 [log rows]: each row's truth by prediction id, NaN where none came yet.

    `latest` is `TruthRead.latest`. Raises InvalidArgumentError when it holds several names for
    these predictions and `name` picks none of them.
    """
    keyed = latest.filter(pc.is_valid(latest["prediction_id"]))
    if name is not None:
        keyed = keyed.filter(pc.equal(keyed["name"], pa.scalar(name)))
    known = keyed["prediction_id"].combine_chunks()
    rows = pc.index_in(log["prediction_id"], value_set=known)
    if name is None:
        used = pc.is_in(keyed["prediction_id"], value_set=log["prediction_id"].combine_chunks())
        names = sorted(str(found) for found in pc.unique(keyed["name"].filter(used)).to_pylist())
        if len(names) > 1:
            raise InvalidArgumentError(
                "predictions have truth of several names",
                where="truth",
                expected="the name to join",
                got=", ".join(names),
            )
    values = keyed["value"].take(rows).to_numpy()
    return np.asarray(values, np.float64)


def count_names(log: pa.Table, latest: pa.Table) -> dict[str, int]:
    """Return how many of the predictions in `log` have truth of each name, by name.

    `latest` is `TruthRead.latest`; truth that is keyed by entity is of no prediction and left out.
    """
    ids = log["prediction_id"].combine_chunks()
    used = pc.is_in(latest["prediction_id"], value_set=ids, skip_nulls=True)
    counts = Counter(str(name) for name in latest["name"].filter(used).to_pylist())
    return dict(sorted(counts.items()))


def _encode(number: int, truth: Truth) -> bytes:
    keyed_by_id = truth.prediction_id is not None
    problem = None
    if keyed_by_id == (truth.entity_key is not None):
        problem = "expected either a prediction id or an entity key"
    elif keyed_by_id and len(truth.prediction_id or b"") != 16:
        problem = f"expected a prediction id of 16 bytes, got {len(truth.prediction_id or b'')}"
    elif not truth.name:
        problem = "expected a name"
    elif not np.isfinite(truth.value):
        problem = f"expected a finite value, got {truth.value}"
    elif max(abs(truth.event_time_us), abs(truth.created_time_us)) >= 2**62:
        problem = "expected times in microseconds since 1970"
    if problem is None:
        try:
            payload = _ENCODER.encode(truth)
            _DECODER.decode(payload)  # what is acknowledged must be readable later
        except (TypeError, msgspec.MsgspecError) as error:
            raise InvalidArgumentError(
                "a value of the wrong type", where=f"truth record {number}"
            ) from error
        if len(payload) <= _RECORD_BYTES_MAX:
            return payload
        problem = f"expected at most {_RECORD_BYTES_MAX} bytes, got {len(payload)}"
    raise InvalidArgumentError(problem, where=f"truth record {number}")


def _segments(root: Path) -> list[Path]:
    return sorted(root.glob("truth-*.log"))


def _number(segment: Path) -> int:
    return int(segment.stem.removeprefix("truth-"))


def _records(data: bytes) -> tuple[list[Truth], int]:
    """Return the whole records at the start of a segment, and how many bytes they take."""
    if not data.startswith(_MAGIC):
        return [], 0
    records = []
    at = len(_MAGIC)
    while at + _FRAME.size <= len(data):
        length, checksum = _FRAME.unpack_from(data, at)
        end = at + _FRAME.size + length
        payload = data[at + _FRAME.size : end]
        if length > _RECORD_BYTES_MAX or end > len(data) or zlib.crc32(payload) != checksum:
            break
        try:
            records.append(_DECODER.decode(payload))
        except msgspec.DecodeError:
            break
        at = end
    return records, at


def _cut_torn_tail(segment: Path) -> int:
    """Cut what follows the last whole record of `segment`; return how many bytes that was."""
    data = segment.read_bytes()
    _, good_bytes = _records(data)
    cut_bytes = len(data) - good_bytes
    if cut_bytes:
        # Kept aside: after damage to the medium there may be good records beyond the bad one.
        segment.with_suffix(f".cut-{good_bytes}").write_bytes(data[good_bytes:])
        os.truncate(segment, good_bytes)
    return cut_bytes


def _latest(records: list[Truth]) -> tuple[np.ndarray, int, int]:
    """Return the row of the last created truth of each (prediction, name), in order of arrival."""
    best: dict[tuple[object, ...], int] = {}
    duplicates = conflicts = 0
    for row, truth in enumerate(records):
        key: tuple[object, ...] = (
            (truth.entity_key, truth.event_time_us, truth.name)
            if truth.prediction_id is None
            else (truth.prediction_id, truth.name)
        )
        before = best.get(key)
        if before is None:
            best[key] = row
            continue
        if records[before].value == truth.value:
            duplicates += 1
        else:
            conflicts += 1
        if truth.created_time_us >= records[before].created_time_us:
            best[key] = row
    return np.array(sorted(best.values()), np.int64), duplicates, conflicts


def _table(records: list[Truth]) -> pa.Table:
    columns: list[list[Any]] = [
        [t.prediction_id for t in records],
        [t.entity_key for t in records],
        [t.name for t in records],
        [t.value for t in records],
        [t.event_time_us for t in records],
        [t.created_time_us for t in records],
        [t.source for t in records],
    ]
    arrays: list[Any] = [
        pa.array(values, field.type) for values, field in zip(columns, TRUTH_SCHEMA, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=TRUTH_SCHEMA)
