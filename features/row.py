"""The packed row of a last-known view, and the short pile of rows that the store keeps.

A row, little-endian:

    u32 schema id, u32 length of the whole row in bytes,
    i64 event time, i64 created time, i64 sequence,
    null bitmap (bit set: null), padded to 8 bytes,
    8 bytes a field: the word of a number, bool or time; else u32 offset, u32 length in the tail,
    tail: the cells (see `variable`) of the other fields, padded to 8 bytes.

A pile is rows back to back, the greatest (event_time, created_time, sequence) first. It keeps what
a query up to `EXACT_LAG_US` behind its newest times may ask for, so that a reader that is a little
behind the stream still sees what was known at its own time. Its first 8 bytes count the rows, and
bit 63 says that older rows were dropped.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.definitions import FUTURE_TOLERANCE_US, FeatureView
from features.types import (
    Column,
    DType,
    FeatureStatus,
    Field,
    Statuses,
    Table,
    from_words,
    to_words,
)
from features.variable import decode_cell, encode_cells
from headrace.errors import InternalError

_HEAD = struct.Struct("<IIqqq")
FIXED_WORDS = _HEAD.size // 8
_PILE = struct.Struct("<Q")
_CELL = struct.Struct("<II")
_DROPPED = 1 << 63

# A pile answers exactly this far behind its newest row, with at most so many rows.
EXACT_LAG_US = 15 * 60 * 1_000_000
ROWS_MAX = 16

# A view's TTL in microseconds, as compiled code is told that there is none.
NO_TTL = -1

Order = tuple[int, int, int]


@dataclass
class Rows:
    """Unpacked rows. Where `found` is False the other values are 0 and every field is null."""

    found: NDArray[np.bool_]
    event_time_us: NDArray[np.int64]
    created_time_us: NDArray[np.int64]
    sequence: NDArray[np.int64]
    fields: Table


class RowCodec:
    """Packs and unpacks the rows of one (view, schema id)."""

    def __init__(self, fields: Sequence[Field], schema_id: int = 0, where: str = "row") -> None:
        self.fields = list(fields)
        self.schema_id = schema_id
        self.where = where
        self._bitmap_bytes = (len(self.fields) + 63) // 64 * 8
        self.fixed_bytes = _HEAD.size + self._bitmap_bytes + 8 * len(self.fields)

    @classmethod
    def of_view(cls, view: FeatureView, schema_id: int = 0) -> RowCodec:
        """Return the codec of a view's rows."""
        fields = [Field(name, dtype) for name, dtype in view.feature_dtypes.items()]
        return cls(fields, schema_id, f"view {view.name!r}")

    def pack(
        self,
        table: Table,
        event_time_us: NDArray[np.int64],
        created_time_us: NDArray[np.int64],
        sequence: NDArray[np.int64],
    ) -> list[bytes]:
        """Return one packed row per row of the table, which has a column for every field."""
        rows = len(event_time_us)
        nulls = np.zeros((rows, self._bitmap_bytes * 8), dtype=np.uint8)
        words = np.zeros((rows, len(self.fields)), dtype=np.int64)
        tails: list[list[bytes]] = []
        offsets = np.zeros(rows, dtype=np.int64)
        for i, field in enumerate(self.fields):
            column = table[field.name]
            if column.valid is not None:
                nulls[:, i] = ~column.valid
            if field.dtype.is_variable:
                cells = encode_cells(column, field.dtype)
                lengths = np.fromiter(map(len, cells), dtype=np.int64, count=rows)
                words[:, i] = offsets | lengths << 32
                offsets += lengths
                tails.append(cells)
            else:
                words[:, i] = to_words(column, field.dtype)
        bitmap = np.packbits(nulls, axis=1, bitorder="little")
        fixed = np.concatenate(
            [bitmap, words.view(np.uint8).reshape(rows, 8 * len(self.fields))], axis=1
        )
        out = []
        times = zip(
            event_time_us.tolist(), created_time_us.tolist(), sequence.tolist(), strict=True
        )
        for row, (event, created, number) in enumerate(times):
            tail = b"".join(cells[row] for cells in tails)
            tail += bytes(-len(tail) % 8)
            length = self.fixed_bytes + len(tail)
            head = _HEAD.pack(self.schema_id, length, event, created, number)
            out.append(head + fixed[row].tobytes() + tail)
        return out

    def unpack(self, rows: Sequence[bytes | None]) -> Rows:
        """Return the rows as columns; None gives nulls.

        Raises InternalError for a row that is cut, or of another schema id.
        """
        found = np.array([row is not None for row in rows], dtype=np.bool_)
        blank = bytes(self.fixed_bytes)
        checked = [blank if row is None else self._checked(row) for row in rows]
        data = np.frombuffer(
            b"".join([row[: self.fixed_bytes] for row in checked]), dtype=np.uint8
        ).reshape(len(rows), self.fixed_bytes)
        times = np.ascontiguousarray(data[:, 8 : _HEAD.size]).view(np.int64)
        start = _HEAD.size + self._bitmap_bytes
        nulls = np.unpackbits(data[:, _HEAD.size : start], axis=1, bitorder="little")
        words = np.ascontiguousarray(data[:, start:]).view(np.int64)
        fields: Table = {}
        for i, field in enumerate(self.fields):
            valid = found & (nulls[:, i] == 0)
            if field.dtype.is_variable:
                values = self._unpack_cells(checked, words[:, i], valid, field.dtype)
                fields[field.name] = Column(values, valid)
            else:
                fields[field.name] = from_words(words[:, i], valid, field.dtype)
        return Rows(found, times[:, 0], times[:, 1], times[:, 2], fields)

    def _unpack_cells(
        self, rows: list[bytes], words: NDArray[np.int64], valid: NDArray[np.bool_], dtype: DType
    ) -> NDArray[np.object_]:
        values = np.full(len(rows), None, dtype=object)
        for i in np.flatnonzero(valid).tolist():
            offset, length = _CELL.unpack(struct.pack("<q", words[i]))
            begin = self.fixed_bytes + offset
            if begin + length > len(rows[i]):
                raise self._unreadable("a value that ends outside of its row")
            try:
                values[i] = decode_cell(rows[i][begin : begin + length], dtype)
            except ValueError as error:
                raise self._unreadable(f"bytes that are no {dtype.value}") from error
        return values

    def _checked(self, row: bytes) -> bytes:
        if len(row) < self.fixed_bytes:
            raise self._unreadable(f"{len(row)} bytes")
        schema_id, length = struct.unpack_from("<II", row)
        if schema_id != self.schema_id:
            raise self._unreadable(f"schema id {schema_id}")
        if length != len(row):
            raise self._unreadable(f"{len(row)} bytes of a row of {length}")
        return row

    def _unreadable(self, got: str) -> InternalError:
        return InternalError(
            "a stored row cannot be read",
            where=self.where,
            expected=f"at least {self.fixed_bytes} bytes of schema id {self.schema_id}",
            got=got,
            mend="was it cut, or written by another definition? Materialize the view again",
        )


def row_order(row: bytes) -> Order:
    """Return (event_time, created_time, sequence): the greatest row of an entity is its last."""
    _, _, event, created, sequence = _HEAD.unpack_from(row)
    return event, created, sequence


def merge_pile(pile: bytes | None, rows: Sequence[bytes]) -> tuple[bytes, int]:
    """Return the pile with packed rows added, and how many were quarantined.

    A row that is stamped more than 5 minutes ahead of its created time is quarantined; a row with
    the order of one that is there replaces it, so that a replay changes nothing.
    Raises InternalError when the pile is cut.
    """
    old, dropped = split_pile(pile)
    by_order = {row_order(row): row for row in old}
    quarantined = 0
    for row in rows:
        order = row_order(row)
        if order[0] - FUTURE_TOLERANCE_US > order[1]:
            quarantined += 1
        else:
            by_order[order] = row
    orders = sorted(by_order, reverse=True)
    if orders:
        event_from = orders[0][0] - EXACT_LAG_US
        created_from = max(created for _, created, _ in orders) - EXACT_LAG_US
        for kept, (event, created, _) in enumerate(orders, start=1):
            # Whoever asks from here on sees this row or a greater one.
            if kept < len(orders) and (
                kept == ROWS_MAX or (event <= event_from and created <= created_from)
            ):
                orders = orders[:kept]
                dropped = True
                break
    head = _PILE.pack(len(orders) | (_DROPPED if dropped else 0))
    return head + b"".join([by_order[order] for order in orders]), quarantined


def split_pile(pile: bytes | None) -> tuple[list[bytes], bool]:
    """Return the rows of a pile, greatest first, and whether older ones were dropped."""
    if pile is None:
        return [], False
    rows = list(_rows_of(pile))
    if _PILE.size + sum(map(len, rows)) != len(pile):
        raise _cut_pile(len(pile))
    return rows, _has_dropped(pile)


def _rows_of(pile: bytes) -> Iterator[bytes]:
    """Yield the rows as they are needed: a reader seldom looks past the first."""
    if len(pile) < _PILE.size:
        raise _cut_pile(len(pile))
    (head,) = _PILE.unpack_from(pile)
    at = _PILE.size
    for _ in range(head & ~_DROPPED):
        if at + _HEAD.size > len(pile):
            raise _cut_pile(len(pile))
        (length,) = struct.unpack_from("<I", pile, at + 4)
        if length < _HEAD.size or at + length > len(pile):
            raise _cut_pile(len(pile))
        yield pile[at : at + length]
        at += length


def _has_dropped(pile: bytes) -> bool:
    return bool(_PILE.unpack_from(pile)[0] & _DROPPED)


def _cut_pile(got: int) -> InternalError:
    return InternalError(
        "the stored rows of an entity cannot be read",
        got=f"{got} bytes that do not add up",
        mend="materialize the view again",
    )


def last_known(
    piles: Sequence[bytes | None], t_us: Sequence[int], ttl_us: int | None
) -> tuple[list[bytes | None], Statuses]:
    """Return for every pile the last row known at t, and the status that the rule gives it.

    The row is the greatest with event_time ≤ t and created_time ≤ t. Statuses uint8[rows]:
    PRESENT, NOT_FOUND, EXPIRED when t − event_time > ttl, UNAVAILABLE when it was dropped.
    Only a PRESENT one comes with a row.
    """
    rows: list[bytes | None] = []
    status = np.zeros(len(piles), dtype=np.uint8)
    for i, (pile, t) in enumerate(zip(piles, t_us, strict=True)):
        row = None
        status[i] = FeatureStatus.NOT_FOUND
        for candidate in () if pile is None else _rows_of(pile):
            event, created, _ = row_order(candidate)
            if event <= t and created <= t:
                row = candidate
                break
        if row is not None:
            expired = ttl_us is not None and t - event > ttl_us
            status[i] = FeatureStatus.EXPIRED if expired else FeatureStatus.PRESENT
        elif pile is not None and _has_dropped(pile):
            status[i] = FeatureStatus.UNAVAILABLE
        rows.append(row if status[i] == FeatureStatus.PRESENT else None)
    return rows, status
