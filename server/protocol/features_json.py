"""A GetFeatures reply as JSON, written by compiled code: the bytes that `msgspec` makes of it.

{"service": name, "features": {feature: [values…]}, "status": {feature: [names…]}}
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from features import CompiledService, DType, FeatureBatch
from features import types as feature_types
from features.online import row_keys
from features.online.row_keys import put_digits
from features.types import STATUS_NAMES, FeatureStatus
from features.values import json_of_table
from headrace import raw_bytes
from headrace.compiled import borrowing_step, kept
from server.protocol import float_text
from server.protocol.float_text import SPARE_BYTES, TEXT_BYTES_MAX, put_float

PRESENT = FeatureStatus.PRESENT
INTEGERS, FLOATS, BOOLS = 0, 1, 2
_WORDS = np.frombuffer(bytearray(b"nulltruefalse"), np.uint8)
_NULL, _TRUE, _FALSE = (0, 4), (4, 8), (8, 13)
_STATUSES = [b'"%b"' % name.encode() for name in STATUS_NAMES]
_STATUS_TEXT = np.frombuffer(bytearray().join(_STATUSES), np.uint8)
_STATUS_ENDS = np.cumsum([0, *map(len, _STATUSES)], dtype=np.int64)
_STATUS_BYTES_MAX = max(map(len, _STATUSES))
_PRESENT_MAX = 1 << 15  # values of a call whose statuses are remembered
_COMMA, _MINUS = np.uint8(44), np.uint8(45)
_END_OF_LIST = np.uint8(93)

Ints = NDArray[np.int64]
Text = NDArray[np.uint8]
_SIGNATURE = (
    "uint8[::1](int64[:, :], uint8[:, :], uint8[::1], int64[::1], uint8[::1], int64[::1], "
    "int64[::1], int64[::1], int64[::1])"
)


def json_replies(name: str, batch: FeatureBatch, ends: Ints) -> list[memoryview]:
    """Return the body of each call's reply: its rows are batch[ends[i]:ends[i + 1]].

    name: of the service as it was asked for. NaN and the infinities, which JSON lacks, are null.
    """
    starts = np.empty(len(ends), np.int64)
    frame = _frame_of(name)
    rows = int(ends[1])
    few = rows * batch.words.shape[1] <= _PRESENT_MAX and len(batch) == rows * (len(ends) - 1)
    if few and not batch.status.any() and bool((np.diff(ends) == rows).all()):
        frame = _frame_of_present(name, batch.service, rows)
    columns = _columns_of(batch.service)
    view = write_json(batch.words, batch.status, *frame, *columns, ends, starts).data
    return [view[at:end] for at, end in pairwise(starts.tolist())]


def json_reply(name: str, batch: FeatureBatch) -> memoryview:
    """Return the body of a reply of all rows."""
    if batch.variables:
        return memoryview(_mixed_reply(name, batch))
    return json_replies(name, batch, np.array([0, len(batch)], np.int64))[0]


def _mixed_reply(name: str, batch: FeatureBatch) -> bytes:
    """Return the body where features have values of any length, which are seldom many."""
    columns = batch.service.columns
    status = {
        each: [STATUS_NAMES[value] for value in batch.status[:, place].tolist()]
        for place, each in enumerate(columns)
    }
    features = json_of_table({each: batch.column(each) for each in columns})
    return msgspec.json.encode({"service": name, "features": features, "status": status})


class _Columns(NamedTuple):
    """How each column begins, and the kind of its values."""

    names: Text
    ends: Ints
    kinds: Ints


def _joined(parts: list[bytes]) -> tuple[Text, Ints]:
    return (
        np.frombuffer(bytearray().join(parts), np.uint8),
        np.cumsum([0, *map(len, parts)], dtype=np.int64),
    )


@functools.lru_cache(maxsize=1024)
def _frame_of(name: str) -> tuple[Text, Ints]:
    """Return what stands before the features, between them and the status, and behind that."""
    start = msgspec.json.encode({"service": name})[:-1] + b',"features":{'
    return _joined([start, b'},"status":{', b"}}"])


@functools.lru_cache(maxsize=32)
def _frame_of_present(name: str, service: CompiledService, rows: int) -> tuple[Text, Ints]:
    """Return what stands before and behind the features where all of them are present: their status
    is always the same."""
    text, ends = _frame_of(name)
    names = (msgspec.json.encode(name) for name in service.columns)
    words = b"[%b]" % b",".join([_STATUSES[PRESENT]] * rows)
    statuses = b",".join(b"%b:%b" % (name, words) for name in names)
    end = text[ends[1] : ends[2]].tobytes() + statuses + text[ends[2] :].tobytes()
    return _joined([text[: ends[1]].tobytes(), end])


@functools.lru_cache(maxsize=1024)
def _columns_of(service: CompiledService) -> _Columns:
    names = [msgspec.json.encode(name) + b":[" for name in service.columns]
    kinds = [
        FLOATS if dtype.is_float else BOOLS if dtype is DType.BOOL else INTEGERS
        for dtype in service.dtypes
    ]
    return _Columns(*_joined(names), np.array(kinds, np.int64))


@borrowing_step
def _put(out, at, text, first, end):  # type: ignore[no-untyped-def]
    for place in range(first, end):
        out[at] = text[place]
        at += 1
    return at


@borrowing_step
def _put_value(out, at, word, kind):  # type: ignore[no-untyped-def]
    if kind == FLOATS:
        end = put_float(out, at, word)
        return end if end > at else _put(out, at, _WORDS, *_NULL)
    if kind == BOOLS:
        return _put(out, at, _WORDS, *_TRUE) if word else _put(out, at, _WORDS, *_FALSE)
    out[at] = _MINUS
    at += np.int64(word < 0)
    return put_digits(out, at, np.uint64(-word if word < 0 else word))


@borrowing_step
def _put_values(out, at, words, status, first, end, column, kind):  # type: ignore[no-untyped-def]
    for row in range(first, end):
        if status[row, column] == PRESENT:
            at = _put_value(out, at, words[row, column], kind)
        else:
            at = _put(out, at, _WORDS, *_NULL)
        out[at] = _COMMA
        at += 1
    out[at - 1] = _END_OF_LIST
    return at


@borrowing_step
def _put_statuses(out, at, status, first, end, column):  # type: ignore[no-untyped-def]
    for row in range(first, end):
        name = status[row, column]
        at = _put(out, at, _STATUS_TEXT, _STATUS_ENDS[name], _STATUS_ENDS[name + 1])
        out[at] = _COMMA
        at += 1
    out[at - 1] = _END_OF_LIST
    return at


@kept(raw_bytes, float_text, row_keys, feature_types, signature=_SIGNATURE)
def write_json(words, status, frame, frame_ends, names, name_ends, kinds, ends, starts):  # type: ignore[no-untyped-def]
    """Return the replies to calls, one after another: words int64[rows, F], status uint8[rows, F].

    frame and names are joined texts that end at frame_ends and name_ends; between those of the
    frame stand the values, and, where there is a third, the statuses. ends[c]:ends[c + 1] are the
    rows of call c, of which there is one at least. Writes where each reply begins, and the last
    ends.
    """
    columns, calls, parts = kinds.size, ends.size - 1, frame_ends.size - 2
    a_value = TEXT_BYTES_MAX + 1 + (parts - 1) * (_STATUS_BYTES_MAX + 1)
    room = (
        SPARE_BYTES
        + calls * (frame.size + 2 * names.size + 4 * columns)
        + words.shape[0] * columns * a_value
    )
    out = np.empty(room, np.uint8)
    at = 0
    for call in range(calls):
        starts[call] = at
        first, end = ends[call], ends[call + 1]
        for part in range(parts):
            at = _put(out, at, frame, frame_ends[part], frame_ends[part + 1])
            for column in range(columns):
                at = _put(out, at, names, name_ends[column], name_ends[column + 1])
                if part == 0:
                    at = _put_values(out, at, words, status, first, end, column, kinds[column])
                else:
                    at = _put_statuses(out, at, status, first, end, column)
                out[at] = _COMMA
                at += 1
            at -= 1  # no comma behind the last
        at = _put(out, at, frame, frame_ends[parts], frame_ends[parts + 1])
    starts[calls] = at
    return out[:at]
