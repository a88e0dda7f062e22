"""A GetFeatures reply, written by compiled code: the bytes that protobuf makes of the message.

Fifty features are fifty `Column` messages, each with a value or a few: making them one by one took
most of the time of the call.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from features import CompiledService, DType, FeatureBatch
from features.types import FeatureStatus
from headrace.compiled import kept, step
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
_FEATURES = 0x12  # tag of GetFeaturesReply.features
_VALUES, _NULLS = 0x0A, 0x3A  # tags of the packed values, and of Column.nulls
_VARINT_BYTES_MAX = 10

_SIGNATURE = "uint8[::1](int64[:, :], uint8[:, :], uint8[::1], int64[::1], int64[::1])"


def encode_reply(name: str, batch: FeatureBatch) -> bytes:
    """Return the reply with a column for each feature. name: of the service as it was asked for."""
    if batch.variables:
        return _encode_mixed(name, batch)
    names, offsets, fields = _columns_of(batch.service)
    columns = encode_columns(batch.words, batch.status, names, offsets, fields)
    status = pb.GetFeaturesReply(status=batch.status.tobytes())
    return b"".join((_service(name), columns.tobytes(), status.SerializeToString()))


def encode_packed_reply(name: str, batch: FeatureBatch) -> bytes:
    """Return the reply with all features as one string of bytes."""
    values = np.ascontiguousarray(batch.words).astype("<i8", copy=False)
    rest = pb.GetFeaturesReply(
        features=[_variable(batch, i) for i in batch.service.variable_columns],
        status=batch.status.tobytes(),
        packed=values.tobytes(),
    )
    return _service(name) + bytes(rest.SerializeToString())


def _encode_mixed(name: str, batch: FeatureBatch) -> bytes:
    """Do the same where values of any length stand between the others."""
    names, offsets, fields = _columns_of(batch.service)
    parts = [_service(name)]
    for i, dtype in enumerate(batch.service.dtypes):
        if dtype.is_variable:
            features = [_variable(batch, i)]
            parts.append(bytes(pb.GetFeaturesReply(features=features).SerializeToString()))
            continue
        one = slice(i, i + 1)
        start = names[offsets[i] : offsets[i + 1]]
        ends = np.array([0, start.size])
        column = encode_columns(batch.words[:, one], batch.status[:, one], start, ends, fields[one])
        parts.append(column.tobytes())
    status = pb.GetFeaturesReply(status=batch.status.tobytes())
    return b"".join((*parts, status.SerializeToString()))


def _variable(batch: FeatureBatch, i: int) -> Any:
    """Return the message of a column whose values are of any length."""
    name = batch.service.columns[i]
    kind = KINDS[batch.service.dtypes[i]]
    return message_of_column(name, batch.variables[name], kind)


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


@step
def _varint_bytes(value):  # type: ignore[no-untyped-def]
    left = np.uint64(value)
    size = 1
    while left > np.uint64(127):
        left >>= np.uint64(7)
        size += 1
    return size


@step
def _put_varint(out, at, value):  # type: ignore[no-untyped-def]
    left = np.uint64(value)
    while left > np.uint64(127):
        out[at] = np.uint8(left & np.uint64(127) | np.uint64(128))
        left >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(left)
    return at + 1


@step
def _put_value(out, at, word, field):  # type: ignore[no-untyped-def]
    if field == INT64S:
        return _put_varint(out, at, word)
    if field == BOOLS:
        out[at] = word != 0
        return at + 1
    for _ in range(8):
        out[at] = np.uint8(word & 0xFF)
        word >>= 8
        at += 1
    return at


@kept(signature=_SIGNATURE)
def encode_columns(words, status, names, offsets, fields):  # type: ignore[no-untyped-def]
    """Return the `features` of a reply: words int64[rows, F] and status uint8[rows, F].

    names[offsets[f]:offsets[f + 1]] is the start of column f's message, fields[f] the field that
    its values stand in. A null's value is 0.
    """
    rows, columns = words.shape
    # A column's own bytes: its name, then four lengths and tags, a value and a null each row.
    room = names.size + columns * (4 * _VARINT_BYTES_MAX + 4 + 2 * rows * _VARINT_BYTES_MAX)
    out = np.empty(room, np.uint8)
    at = 0
    for column in range(columns):
        value_bytes = null_bytes = 0
        for row in range(rows):
            if status[row, column] != PRESENT:
                null_bytes += _varint_bytes(row)
            if fields[column] == INT64S:
                value_bytes += _varint_bytes(words[row, column])
            else:
                value_bytes += 8 if fields[column] == DOUBLES else 1
        values_bytes = 1 + _varint_bytes(value_bytes) + value_bytes
        size = offsets[column + 1] - offsets[column]
        size += 1 + _varint_bytes(values_bytes) + values_bytes
        if null_bytes:
            size += 1 + _varint_bytes(null_bytes) + null_bytes
        out[at] = _FEATURES
        at = _put_varint(out, at + 1, size)
        for i in range(offsets[column], offsets[column + 1]):
            out[at] = names[i]
            at += 1
        out[at] = fields[column] << 3 | 2
        at = _put_varint(out, at + 1, values_bytes)
        out[at] = _VALUES
        at = _put_varint(out, at + 1, value_bytes)
        for row in range(rows):
            at = _put_value(out, at, words[row, column], fields[column])
        if null_bytes:
            out[at] = _NULLS
            at = _put_varint(out, at + 1, null_bytes)
            for row in range(rows):
                if status[row, column] != PRESENT:
                    at = _put_varint(out, at, row)
    return out[:at]
