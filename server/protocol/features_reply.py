"""A GetFeatures reply, written by compiled code: the bytes that protobuf makes of the message.

Fifty features are fifty `Column` messages, each with a value or a few: making them one by one took
most of the time of the call.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features import CompiledService, DType, FeatureBatch
from features.types import FeatureStatus
from headrace import raw_bytes
from headrace.compiled import borrowing_step, kept
from headrace.raw_bytes import put_word
from server.pb import headrace_pb2 as pb
from server.protocol.columns import KINDS, message_of_column

PRESENT = FeatureStatus.PRESENT
# How a column's values are written; the field of `Column` that holds them.
INT64S, DOUBLES, BOOLS = 2, 3, 5
_FIELDS = {
    DType.INT64: INT64S,
    DType.TIMESTAMP: INT64S,
    DType.FLOAT32: DOUBLES,
    DType.FLOAT64: DOUBLES,
    DType.BOOL: BOOLS,
}
_FEATURES, _STATUS, _PACKED = 0x12, 0x1A, 0x22  # tags of GetFeaturesReply
_VALUES, _NULLS = 0x0A, 0x3A  # tags of the packed values, and of Column.nulls
_VARINT_BYTES_MAX = 10
_TEMPLATE_ROWS_MAX = 128

Ints = NDArray[np.int64]
_SIGNATURE = (
    "uint8[::1](int64[:, :], uint8[:, :], uint8[::1], uint8[::1], int64[::1], int64[::1], "
    "int64[::1], int64[::1])"
)
_FILL_SIGNATURE = (
    "boolean(int64[:, :], uint8[:, :], uint8[::1], int64[::1], int64[::1], int64[::1])"
)


def encode_reply(name: str, batch: FeatureBatch) -> bytes:
    """Return the reply with a column for each feature. name: of the service as it was asked for."""
    if batch.variables:
        return _encode_mixed(name, batch, batch.service.columns, b"")
    return bytes(encode_replies(name, batch, _all_rows(batch))[0])


def encode_packed_reply(name: str, batch: FeatureBatch) -> bytes:
    """Return the reply with all features as one string of bytes."""
    if batch.variables:
        words = np.ascontiguousarray(batch.words).astype("<i8", copy=False)
        return _encode_mixed(name, batch, list(batch.variables), words.tobytes())
    return encode_packed_replies(name, batch, _all_rows(batch))[0]


def encode_replies(name: str, batch: FeatureBatch, ends: Ints) -> list[memoryview]:
    """Return the reply of each call, whose rows are batch[ends[i]:ends[i + 1]]."""
    rows = int(ends[1])
    if rows <= _TEMPLATE_ROWS_MAX and len(batch) == rows * (len(ends) - 1):
        template = _template(name, batch.service, rows)  # most calls have one row
        if template is not None:
            text = template.text * (len(ends) - 1)
            out = np.frombuffer(text, np.uint8)
            if fill_replies(batch.words, batch.status, out, *template[1:], ends):
                view, size = memoryview(text), len(template.text)
                return [view[at : at + size] for at in range(0, len(text), size)]
    starts = np.empty(len(ends), np.int64)
    layout = _columns_of(batch.service)
    start = np.frombuffer(bytearray(_service(name)), np.uint8)
    view = write_replies(batch.words, batch.status, start, *layout, ends, starts).data
    return [view[at:end] for at, end in pairwise(starts.tolist())]


class _Template(NamedTuple):
    """A reply in which all features are present; where each column's first value stands."""

    text: bytearray
    places: Ints
    fields: Ints


@functools.lru_cache(maxsize=64)
def _template(name: str, service: CompiledService, rows: int) -> _Template | None:
    """Return the template of calls of so many rows; None where lengths depend on values."""
    fields = _columns_of(service)[2]
    if (fields == INT64S).any():
        return None
    columns = len(fields)
    words = np.zeros((rows, columns), np.int64)
    status = np.full((rows, columns), PRESENT, np.uint8)
    start = np.frombuffer(bytearray(_service(name)), np.uint8)
    ends, starts = np.array([0, rows], np.int64), np.empty(2, np.int64)
    text = write_replies(words, status, start, *_columns_of(service), ends, starts)
    message = pb.GetFeaturesReply.FromString(text.tobytes())
    # The values are what a column ends with.
    lengths = np.array([column.ByteSize() for column in message.features])
    heads = np.array([len(_field_head(_FEATURES, length)) for length in lengths.tolist()])
    widths = rows * np.where(fields == DOUBLES, 8, 1)
    places = start.size + np.cumsum(heads + lengths) - widths
    return _Template(bytearray(text), places, fields)


def encode_packed_replies(name: str, batch: FeatureBatch, ends: Ints) -> list[bytes]:
    """As `encode_replies`, of `encode_packed_reply`."""
    words = np.ascontiguousarray(batch.words).astype("<i8", copy=False)
    status = np.ascontiguousarray(batch.status)
    start = _service(name)
    return [
        b"".join([
            start, _field_head(_STATUS, status[at:end].size), status[at:end].data,
            _field_head(_PACKED, words[at:end].nbytes), words[at:end].data,
        ])
        for at, end in pairwise(ends.tolist())
    ]  # fmt: skip


def _all_rows(batch: FeatureBatch) -> Ints:
    return np.array([0, len(batch)], np.int64)


@functools.lru_cache(maxsize=1024)
def _field_head(tag: int, size: int) -> bytes:
    """Return what stands before so many bytes of a field."""
    out = np.empty(1 + _VARINT_BYTES_MAX, np.uint8)
    at = _put_varint.py_func(out, 1, size)
    out[0] = tag
    return out[:at].tobytes()


def _encode_mixed(name: str, batch: FeatureBatch, columns: Sequence[str], packed: bytes) -> bytes:
    """Return the reply of a service with values of any length, which are seldom many."""
    kinds = dict(zip(batch.service.columns, batch.service.dtypes, strict=True))
    features = [message_of_column(each, batch.column(each), KINDS[kinds[each]]) for each in columns]
    status = batch.status.tobytes()
    reply = pb.GetFeaturesReply(service=name, features=features, status=status, packed=packed)
    return bytes(reply.SerializeToString())


@functools.lru_cache(maxsize=1024)
def _service(name: str) -> bytes:
    return bytes(pb.GetFeaturesReply(service=name).SerializeToString())


@functools.lru_cache(maxsize=1024)
def _columns_of(service: CompiledService) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each column's name as its message begins, where each begins, and its field."""
    parts = [pb.Column(name=name).SerializeToString() for name in service.columns]
    offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    fields = np.array([_FIELDS.get(dtype, 0) for dtype in service.dtypes], dtype=np.int64)
    return np.frombuffer(bytearray().join(parts), np.uint8), offsets, fields


@borrowing_step
def _varint_bytes(value):  # type: ignore[no-untyped-def]
    left = np.uint64(value)
    size = 1
    while left > np.uint64(127):
        left >>= np.uint64(7)
        size += 1
    return size


@borrowing_step
def _put_varint(out, at, value):  # type: ignore[no-untyped-def]
    left = np.uint64(value)
    while left > np.uint64(127):
        out[at] = np.uint8(left & np.uint64(127) | np.uint64(128))
        left >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(left)
    return at + 1


@borrowing_step
def _put_value(out, at, word, field):  # type: ignore[no-untyped-def]
    if field == INT64S:
        return _put_varint(out, at, word)
    if field == BOOLS:
        out[at] = word != 0
        return at + 1
    put_word(out, at, word)
    return at + 8


@borrowing_step
def _put_bytes(out, at, data, first, end):  # type: ignore[no-untyped-def]
    for i in range(first, end):
        out[at] = data[i]
        at += 1
    return at


@borrowing_step
def _put_column(out, at, words, status, first, end, column, names, offsets, field):  # type: ignore[no-untyped-def]
    """Write the message of one column for the rows from `first` to `end`."""
    value_bytes = null_bytes = 0
    for row in range(first, end):
        if status[row, column] != PRESENT:
            null_bytes += _varint_bytes(row - first)
        if field == INT64S:
            value_bytes += _varint_bytes(words[row, column])
        else:
            value_bytes += 8 if field == DOUBLES else 1
    values_bytes = 1 + _varint_bytes(value_bytes) + value_bytes
    size = offsets[column + 1] - offsets[column]
    size += 1 + _varint_bytes(values_bytes) + values_bytes
    if null_bytes:
        size += 1 + _varint_bytes(null_bytes) + null_bytes
    out[at] = _FEATURES
    at = _put_varint(out, at + 1, size)
    at = _put_bytes(out, at, names, offsets[column], offsets[column + 1])
    out[at] = field << 3 | 2
    at = _put_varint(out, at + 1, values_bytes)
    out[at] = _VALUES
    at = _put_varint(out, at + 1, value_bytes)
    for row in range(first, end):
        at = _put_value(out, at, words[row, column], field)
    if null_bytes:
        out[at] = _NULLS
        at = _put_varint(out, at + 1, null_bytes)
        for row in range(first, end):
            if status[row, column] != PRESENT:
                at = _put_varint(out, at, row - first)
    return at


@kept(raw_bytes, signature=_SIGNATURE)
def write_replies(words, status, start, names, offsets, fields, ends, starts):  # type: ignore[no-untyped-def]
    """Return the replies to calls: words int64[rows, F], status uint8[rows, F] of all their rows.

    start: how each reply begins; names[offsets[f]:offsets[f + 1]] is the start of column f's
    message, fields[f] the field that its values stand in; ends[c]:ends[c + 1] are the rows of call
    c. A null's value is 0. Writes where each reply begins, and the last ends.
    """
    rows, columns = words.shape
    # A column's own bytes: its name, then four lengths and tags, a value and a null each row.
    calls = ends.size - 1
    room = calls * (start.size + names.size + columns * (4 * _VARINT_BYTES_MAX + 4) + 16)
    room += rows * columns * (2 * _VARINT_BYTES_MAX + 1)
    out = np.empty(room, np.uint8)
    at = 0
    for call in range(calls):
        starts[call] = at
        first, end = ends[call], ends[call + 1]
        at = _put_bytes(out, at, start, 0, start.size)
        for column in range(columns):
            at = _put_column(
                out, at, words, status, first, end, column, names, offsets, fields[column]
            )
        out[at] = _STATUS
        at = _put_varint(out, at + 1, (end - first) * columns)
        for row in range(first, end):
            for column in range(columns):
                out[at] = status[row, column]
                at += 1
    starts[calls] = at
    return out[:at]


@kept(raw_bytes, signature=_FILL_SIGNATURE)
def fill_replies(words, status, out, places, fields, ends):  # type: ignore[no-untyped-def]
    """Write the values into the calls' replies: a template for each, one after another.

    Column f's first value stands at places[f]. Returns False where a feature is not present, or
    where one call has more rows than another: these replies have another form.
    """
    calls, rows = ends.size - 1, ends[1]
    for call in range(calls):
        if ends[call + 1] - ends[call] != rows:
            return False
    for row in range(words.shape[0]):
        for column in range(words.shape[1]):
            if status[row, column] != PRESENT:
                return False
    for call in range(calls):
        start = call * (out.size // calls)
        for column in range(words.shape[1]):
            at = start + places[column]
            if fields[column] == DOUBLES:
                for row in range(call * rows, (call + 1) * rows):
                    put_word(out, at, words[row, column])
                    at += 8
            else:
                for row in range(call * rows, (call + 1) * rows):
                    out[at] = words[row, column] != 0
                    at += 1
    return True
