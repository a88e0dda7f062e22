"""Batches of events as bytes: the payload of an entry of the event log.

A payload is blocks back to back, one a batch. Everything lies on words of 8 bytes, little-endian,
so that the payloads of many entries, joined, are read as one array by one compiled pass:

    i64 format << 32 | bytes of the head, i64 words of the block, i64 events,
    the head: msgpack of [source, [[column, kind], …]], padded,
    flags, a bit each: whether created times are there, whether column c holds nulls; padded,
    event times, created times (if there),
    per column: a bit an event whether it is valid (if it holds nulls; padded); then a word an event
    (kinds i: int64, f: float64), or a bit an event (b: bool, padded), or a length an event and the
    cells of all of them (`variable`; s: text, y: bytes, I, F, E, S: arrays; padded).

Entries of one kind of pusher have equal heads, and what has an equal head is read at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from features.online import block_words
from features.online.block_words import FIXED_WORDS, FORMAT, KIND_BITS, KIND_CELLS, KIND_WORDS
from features.online.payload import EventBatch
from features.types import Column, DType
from features.variable import decode_cell, encode_cell
from headrace.errors import InvalidArgumentError

Words = NDArray[np.int64]

_WHERE = "event log entry"
# What holds values of any length, and the type whose cells they are. A Uuid travels as text.
_CELLS = {
    "s": DType.STRING,
    "y": DType.BYTES,
    "I": DType.INT64_ARRAY,
    "F": DType.FLOAT64_ARRAY,
    "E": DType.FLOAT32_ARRAY,
    "S": DType.STRING_ARRAY,
}
DTYPES = {"i": DType.INT64, "f": DType.FLOAT64, "b": DType.BOOL} | _CELLS
_KINDS = {"i": KIND_WORDS, "f": KIND_WORDS, "b": KIND_BITS} | dict.fromkeys(_CELLS, KIND_CELLS)
_KIND_OF_TYPE: dict[type, str] = {str: "s", bytes: "y", tuple: "S"}
_KIND_OF_ITEM = {np.dtype("<i8"): "I", np.dtype("<f8"): "F", np.dtype("<f4"): "E"}


class _Head(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    source: str
    columns: tuple[tuple[str, str], ...]


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Head)


class Arrived(NamedTuple):
    """The events of all blocks with one head, in their order.

    batch: with a created time for each event; places: int64[n], the place of each event among all
    events of the payloads.
    """

    batch: EventBatch
    places: NDArray[np.int64]


# Writing


def encode_payload(batches: Sequence[EventBatch]) -> bytes:
    """Return checked batches as one entry of the event log."""
    return b"".join([_encode_block(batch) for batch in batches])


def _encode_block(batch: EventBatch) -> bytes:
    kinds = tuple((name, kind_of(column.values)) for name, column in batch.columns.items())
    head, head_bytes = _encoded_head(_Head(batch.source, kinds))
    created = batch.created_times_us
    columns = list(batch.columns.values())
    flags = [created is not None, *(column.valid is not None for column in columns)]
    parts = [head, _bits(np.array(flags)), _words(batch.event_times_us)]
    if created is not None:
        parts.append(_words(created))
    for column, (_, kind) in zip(columns, kinds, strict=True):
        if column.valid is not None:
            parts.append(_bits(column.valid))
        if kind in _CELLS:
            cells = [encode_cell(value, _CELLS[kind]) for value in column.values.tolist()]
            parts.append(_words(np.fromiter(map(len, cells), np.int64, len(cells))))
            parts.append(_padded(b"".join(cells)))
        else:
            parts.append(_bits(column.values) if kind == "b" else _words(column.values))
    words = FIXED_WORDS + sum(map(len, parts)) // 8
    fixed = np.array([FORMAT << 32 | head_bytes, words, len(batch)], dtype="<i8")
    return b"".join([fixed.tobytes(), *parts])


def kind_of(values: NDArray[Any]) -> str:
    """Return the kind of a column's values; of none of any length: text."""
    if values.dtype.kind != "O":
        return values.dtype.kind
    first = values[0] if len(values) else ""
    if isinstance(first, np.ndarray):
        return _KIND_OF_ITEM[first.dtype]
    return _KIND_OF_TYPE[type(first)]


@lru_cache(maxsize=256)
def _encoded_head(head: _Head) -> tuple[bytes, int]:
    """Return a head, padded, and how long it is without that."""
    encoded = _ENCODER.encode(head)
    return _padded(encoded), len(encoded)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)


def _words(values: NDArray[Any]) -> bytes:
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def _bits(values: NDArray[Any]) -> bytes:
    return _padded(np.packbits(values, bitorder="little").tobytes())


# Reading


def count_events(payloads: Sequence[bytes]) -> NDArray[np.int64]:
    """Return how many events each payload says that it holds; 0 where it is not one of ours."""
    words, bounds = _joined(payloads)
    blocks, good = block_words.find_blocks(words, bounds)
    counts = np.bincount(blocks[:, 1], weights=blocks[:, 2], minlength=len(payloads))
    return np.where(good, counts.astype(np.int64), 0)


def decode_payloads(payloads: Sequence[bytes]) -> list[Arrived]:
    """Return the events of all payloads, those with one head together.

    Raises InvalidArgumentError that says what is wrong with the first payload that is not whole.
    """
    words, bounds = _joined(payloads)
    blocks, good = block_words.find_blocks(words, bounds)
    if not good.all():
        raise _malformed(payloads[int(good.argmin())])
    starts, events = blocks[:, 0].copy(), blocks[:, 2].copy()
    firsts = np.cumsum(events) - events
    left = np.arange(len(starts))
    arrived = []
    while len(left):
        alike = block_words.alike(words, starts[left])
        mine, left = left[alike], left[~alike]
        arrived.append(_decode_alike(words, starts[mine], events[mine], firsts[mine]))
    return arrived


def _joined(payloads: Sequence[bytes]) -> tuple[Words, Words]:
    """Return payloads as one array of words, and where each begins and the last ends."""
    lengths = np.fromiter(map(len, payloads), np.int64, len(payloads))
    if (lengths & 7).any():
        payloads = [b"" if len(payload) & 7 else payload for payload in payloads]
        lengths[lengths & 7 != 0] = 0
    bounds = np.zeros(len(payloads) + 1, dtype=np.int64)
    np.cumsum(lengths >> 3, out=bounds[1:])
    return np.frombuffer(bytearray().join(payloads), dtype="<i8"), bounds


def _decode_alike(words: Words, starts: Words, events: Words, firsts: Words) -> Arrived:
    head = _decoded_head(words, int(starts[0]))
    kinds = np.array([_KINDS[kind] for _, kind in head.columns], dtype=np.int64)
    cell_bytes = np.zeros(len(kinds), dtype=np.int64)
    body = starts + FIXED_WORDS + ((int(words[starts[0]]) & 0xFFFF_FFFF) + 7) // 8
    ends = starts + words[starts + 1]
    if not block_words.measure(words, body, ends, events, kinds, cell_bytes):
        raise InvalidArgumentError(
            "a column is cut short", where=f"{_WHERE}, source {head.source!r}"
        )
    total = int(events.sum())
    times = np.empty((3, total), dtype=np.int64)
    values = np.zeros((len(kinds), total), dtype=np.int64)
    valid = np.ones((len(kinds), total), dtype=np.bool_)
    cells = np.empty(int(cell_bytes.sum()), dtype=np.uint8)
    block_words.fill(
        words, words.view(np.uint8), body, events, firsts, kinds, cell_bytes, times, values, valid,
        cells,
    )  # fmt: skip
    columns = {}
    cell_ends = np.cumsum(cell_bytes).tolist()
    for c, (name, kind) in enumerate(head.columns):
        column: NDArray[Any] = values[c]
        if kind in _CELLS:
            joined = cells[cell_ends[c] - int(cell_bytes[c]) : cell_ends[c]].tobytes()
            column = _values(joined, column, _CELLS[kind], f"{_WHERE}, source {head.source!r}")
        elif kind == "f":
            column = column.view(np.float64)
        elif kind == "b":
            column = column != 0
        columns[name] = Column(column, None if valid[c].all() else valid[c])
    return Arrived(EventBatch(head.source, columns, times[0], times[1]), times[2])


def _decoded_head(words: Words, start: int) -> _Head:
    length = int(words[start]) & 0xFFFF_FFFF
    at = start + FIXED_WORDS
    try:
        head = _DECODER.decode(words[at : at + (length + 7) // 8].tobytes()[:length])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgumentError(
            "the head cannot be decoded", where=_WHERE, got=str(error)
        ) from error
    names = {name for name, _ in head.columns}
    if len(names) != len(head.columns) or any(kind not in _KINDS for _, kind in head.columns):
        raise InvalidArgumentError(
            "the head names a column twice, or one of no known kind",
            where=f"{_WHERE}, source {head.source!r}",
        )
    return head


def _values(joined: bytes, lengths: Words, dtype: DType, where: str) -> NDArray[np.object_]:
    """Return the values of cells that lie joined."""
    bounds = [0, *np.cumsum(lengths).tolist()]
    values = np.empty(len(lengths), dtype=np.object_)
    try:
        if dtype is DType.STRING and joined.isascii():
            text = joined.decode("ascii")
            values[:] = [text[a:b] for a, b in pairwise(bounds)]
            return values
        for row, (a, b) in enumerate(pairwise(bounds)):
            values[row] = decode_cell(joined[a:b], dtype)
    except ValueError as error:
        raise InvalidArgumentError(
            f"a value is not {dtype.value}", where=where, got=str(error)
        ) from error
    return values


def _malformed(payload: bytes) -> InvalidArgumentError:
    found = int.from_bytes(payload[4:8], "little")
    if len(payload) >= 8 * FIXED_WORDS and found != FORMAT:
        return InvalidArgumentError(
            "the payload has another format", where=_WHERE, expected=FORMAT, got=found
        )
    return InvalidArgumentError(
        "the payload cannot be decoded",
        where=_WHERE,
        expected="whole blocks",
        got=f"{len(payload)} bytes",
    )
