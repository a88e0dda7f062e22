"""The keys of the rows that a read needs, written by compiled code: the body of one MGET.

It makes the keys of `entity_key` and `row_key`. Each distinct entity is asked for once: rows of a
read often share a route or a carrier, and a large state is not worth reading twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features import entity_key
from features.entity_key import PART_HEADER_BYTES, TAG_ID, key_columns, key_part, naming, values_of
from features.online import keys as key_layout
from features.online.keys import CHECKPOINT, ROW_PREFIX
from features.sources import Entity
from features.types import Column
from headrace.compiled import borrowing_step, kept, step

NO_KEY = -1
_DIGITS_MAX = 20
# What stands around a key in a command: a dollar sign, its length, two ends of a line.
_FRAME_BYTES = 1 + _DIGITS_MAX + 4
_PREFIX = np.frombuffer(ROW_PREFIX, np.uint8)
_MGET = b"$4\r\nMGET\r\n$%d\r\n%b\r\n" % (len(CHECKPOINT), CHECKPOINT)
# Who chooses ids to meet in the table gains no more than that one is asked for twice.
_PROBES_MAX = 32
_HASH_START, _HASH_FACTOR = np.uint64(14695981039346656037), np.uint64(1099511628211)  # FNV-1a

_SIGNATURE = (
    "Tuple((uint8[::1], int64))(uint8[::1], int64[:, :], int64[:, :], int64[::1], uint8[::1], "
    "int64[::1], int64[::1])"
)


class KeyParts(NamedTuple):
    """The parts of entity keys, a column each, and an element a row.

    text: uint8[bytes]; begins, ends: int64[columns, rows], where a part (as in `entity_key`)
    stands in it. A part that begins below 0 is null.
    """

    text: NDArray[np.uint8]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]


@dataclass(slots=True)
class RowKeys:
    """What is to be read: the checkpoint, then each entity's rows, view by view.

    places: of each entity int64[rows], its place among the distinct ones, or NO_KEY; counts: how
    many distinct ones each has; bodies: their keys as they stand in a command.
    """

    keys: int
    places: list[NDArray[np.int64]]
    counts: list[int]
    bodies: list[NDArray[np.uint8]]

    def command(self) -> bytes:
        """Return the MGET in the store's protocol (RESP)."""
        head = b"*%d\r\n%b" % (self.keys + 2, _MGET)
        return b"".join([head, *(body.data for body in self.bodies)])

    def listed(self) -> list[bytes]:
        """Return the keys."""
        command = self.command()
        at, found = command.index(b"\nMGET"), []
        while (at := command.find(b"$", at)) >= 0:
            start = command.index(b"\n", at) + 1
            at = start + int(command[at + 1 : start])
            found.append(command[start:at])
        return found


class EntityRows(NamedTuple):
    """Which rows an entity has: one for each of its views.

    columns: of `KeyParts`, those that its key is made of; suffixes[ends[v]:ends[v + 1]] follows in
    the key of a row of view v.
    """

    columns: NDArray[np.int64]
    suffixes: NDArray[np.uint8]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, columns: Sequence[int], suffixes: Sequence[bytes]) -> EntityRows:
        """Return the rows under these suffixes (`keys.row_suffix`)."""
        ends = np.cumsum([0, *map(len, suffixes)], dtype=np.int64)
        text = np.frombuffer(bytearray().join(suffixes), np.uint8)
        return cls(np.array(columns, np.int64), text, ends)


def row_keys(parts: KeyParts, entities: Sequence[EntityRows]) -> RowKeys:
    """Return the keys of the rows of these entities."""
    found = RowKeys(0, [], [], [])
    rows = parts.begins.shape[1]
    for entity in entities:
        places = np.empty(rows, np.int64)
        body, count = write_keys(*parts, *entity, places)
        found.keys += count * (len(entity.ends) - 1)
        found.places.append(places)
        found.counts.append(count)
        found.bodies.append(body)
    return found


def key_parts(entities: Sequence[Entity], inputs: Mapping[str, Column]) -> KeyParts:
    """Return the parts of the entities' keys, a column for each distinct join key, in order.

    Raises InvalidArgumentError as `entity_keys`.
    """
    columns: dict[str, tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]] = {}
    for entity in entities:
        found = key_columns(entity, inputs)
        with naming(entity):
            for name, column in zip(entity.join_keys, found, strict=True):
                if name not in columns:
                    columns[name] = _parts_of(column)
    if len(columns) == 1:
        ((text, begins, ends),) = columns.values()
        return KeyParts(text, begins[None], ends[None])
    texts, starts, stops = zip(*columns.values(), strict=True)
    shifts = np.cumsum([0, *map(len, texts[:-1])], dtype=np.int64)[:, None]
    begins = np.stack(starts)
    return KeyParts(
        np.concatenate(texts), np.where(begins < 0, begins, begins + shifts), stops + shifts
    )


def _parts_of(column: Column) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    begins = np.empty(len(column), np.int64)
    ends = np.empty(len(column), np.int64)
    if column.values.dtype.kind == "i":
        text = integer_parts(column.values.astype(np.int64), begins, ends)
    else:
        values = values_of(column)
        parts = [b"" if value is None else key_part(value) for value in values]
        text = np.frombuffer(bytearray().join(parts), np.uint8)
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        np.cumsum(lengths, out=ends)
        np.subtract(ends, lengths, out=begins)
    if column.valid is not None:
        begins[~column.valid] = NO_KEY
    return text, begins, ends


@borrowing_step
def put_digits(out, at, value):  # type: ignore[no-untyped-def]
    """Write a uint64 in decimal; return where it ends."""
    digits = 1
    left = value // np.uint64(10)
    while left > np.uint64(0):
        left //= np.uint64(10)
        digits += 1
    for place in range(at + digits - 1, at - 1, -1):
        out[place] = np.uint8(48) + np.uint8(value % np.uint64(10))
        value //= np.uint64(10)
    return at + digits


@borrowing_step
def put_integer_part(out, at, value):  # type: ignore[no-untyped-def]
    """Write the part of an entity's key that is an int64; return where it ends."""
    start = at + PART_HEADER_BYTES
    end = start
    magnitude = np.uint64(value)
    if value < 0:
        out[end] = np.uint8(45)  # a minus
        end += 1
        magnitude = np.uint64(0) - magnitude
    end = put_digits(out, end, magnitude)
    put_part_header(out, at, end - start)
    return end


@borrowing_step
def put_part_header(out, at, length):  # type: ignore[no-untyped-def]
    """Write what stands before a part's text."""
    out[at] = np.uint8(TAG_ID)
    for i in range(PART_HEADER_BYTES - 1):
        out[at + 1 + i] = np.uint8(length >> (8 * i) & 0xFF)


@kept(entity_key, signature="uint8[::1](int64[::1], int64[::1], int64[::1])")
def integer_parts(values, begins, ends):  # type: ignore[no-untyped-def]
    """Return the parts of int64[rows], and write where each begins and ends."""
    out = np.empty(values.size * (PART_HEADER_BYTES + _DIGITS_MAX), np.uint8)
    at = 0
    for row in range(values.size):
        begins[row] = at
        at = put_integer_part(out, at, values[row])
        ends[row] = at
    return out[:at]


@borrowing_step
def _hash(text, begins, ends, columns, row):  # type: ignore[no-untyped-def]
    found = _HASH_START
    for column in columns:
        for at in range(begins[column, row], ends[column, row]):
            found = (found ^ np.uint64(text[at])) * _HASH_FACTOR
    return found ^ (found >> np.uint64(32))


@borrowing_step
def _are_equal(text, begins, ends, columns, row, other):  # type: ignore[no-untyped-def]
    for column in columns:
        size = ends[column, row] - begins[column, row]
        if ends[column, other] - begins[column, other] != size:
            return False
        for i in range(size):
            if text[begins[column, row] + i] != text[begins[column, other] + i]:
                return False
    return True


@step
def _find_distinct(text, begins, ends, columns, places):  # type: ignore[no-untyped-def]
    """Write each row's place; return the row that stands first for each place."""
    rows = places.size
    size = 4
    while size < 2 * rows:
        size *= 2
    slots = np.full(size, -1, np.int64)
    firsts = np.empty(rows, np.int64)
    count = 0
    for row in range(rows):
        places[row] = NO_KEY
        is_null = False
        for column in columns:
            is_null |= begins[column, row] < 0
        if is_null:
            continue
        slot = np.int64(_hash(text, begins, ends, columns, row) & np.uint64(size - 1))
        place = count
        for _ in range(_PROBES_MAX):
            if slots[slot] < 0:
                slots[slot] = count
            if slots[slot] == count or _are_equal(
                text, begins, ends, columns, row, firsts[slots[slot]]
            ):
                place = slots[slot]
                break
            slot = (slot + 1) & (size - 1)
        if place == count:
            firsts[count] = row
            count += 1
        places[row] = place
    return firsts[:count]


@borrowing_step
def _put(out, at, text, begin, end):  # type: ignore[no-untyped-def]
    for i in range(begin, end):
        out[at] = text[i]
        at += 1
    return at


@kept(entity_key, key_layout, signature=_SIGNATURE)
def write_keys(text, begins, ends, columns, suffixes, suffix_ends, places):  # type: ignore[no-untyped-def]
    """Return the keys of one entity's rows as they stand in a command, and how many are distinct.

    columns: of the parts; suffixes[suffix_ends[v]:suffix_ends[v + 1]] follows in the keys of view
    v. Writes places int64[rows].
    """
    firsts = _find_distinct(text, begins, ends, columns, places)
    views = suffix_ends.size - 1
    room = firsts.size * (views * (_FRAME_BYTES + _PREFIX.size) + suffixes.size)
    for row in firsts:
        for column in columns:
            room += views * (ends[column, row] - begins[column, row])
    out = np.empty(room, np.uint8)
    at = 0
    for view in range(views):
        first, end = suffix_ends[view], suffix_ends[view + 1]
        for row in firsts:
            size = _PREFIX.size + end - first
            for column in columns:
                size += ends[column, row] - begins[column, row]
            out[at] = np.uint8(36)  # a dollar sign
            at = put_digits(out, at + 1, np.uint64(size))
            out[at], out[at + 1] = np.uint8(13), np.uint8(10)
            at = _put(out, at + 2, _PREFIX, 0, _PREFIX.size)
            for column in columns:
                at = _put(out, at, text, begins[column, row], ends[column, row])
            at = _put(out, at, suffixes, first, end)
            out[at], out[at + 1] = np.uint8(13), np.uint8(10)
            at += 2
    return out[:at], firsts.size
