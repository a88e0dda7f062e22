"""GetFeatures requests of the plain form, read by compiled code: a whole tick's in one call.

The plain form is what a generated class writes of: the service, a column of integers or of ASCII
text for each join key, each with as many values as the others and no nulls, and perhaps an event
time and `packed`. Whatever is written in another way is left to the generated class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features import entity_key
from features.entity_key import PART_BYTES_MAX, PART_HEADER_BYTES
from features.online import row_keys
from features.online.row_keys import KeyParts, put_integer_part, put_part_header
from headrace.compiled import borrowing_step, kept
from server.pb import headrace_pb2 as pb

NOT_PLAIN = -1
NO_TIME = -1
# Kinds of requests of a tick.
ODD, TIMED, PACKED, COLUMNS = 1, 2, 4, 8
GRPC_PREFIX_BYTES = 5
# Tags (field number and wire type) of GetFeaturesRequest …
_INPUTS, _EVENT_TIME, _PACKED = 0x12, 0x18, 0x28
# … of Column, and of the values in it.
_NAME, _INT64S, _STRINGS = 0x0A, 0x12, 0x22
_VALUES = 0x0A
# A part of a key is longer than what stands for it in a message, at most so many times.
_GROWTH_MAX = 8

_SIGNATURE = (
    "Tuple((int64[:, ::1], uint8[::1], int64[:, ::1], int64[:, ::1], int64))"
    "(uint8[::1], int64[::1], uint8[::1], uint8[::1], int64[::1])"
)


class Requests(NamedTuple):
    """What a tick's requests to one service ask for.

    rows, event_times_us, packed: an element a request; rows is NOT_PLAIN of one that is not plain,
    event_times_us NO_TIME where there is none, packed 0 or 1. parts: of all plain requests' rows.
    seen: what kinds of requests there are, ODD, TIMED, PACKED and COLUMNS.
    """

    rows: NDArray[np.int64]
    event_times_us: NDArray[np.int64]
    packed: NDArray[np.int64]
    parts: KeyParts
    seen: int


class RequestForm:
    """Reads the plain requests to a service, that is plain (`features_read.is_plain`)."""

    def __init__(self, service: str, join_keys: Sequence[str]) -> None:
        start = pb.GetFeaturesRequest(service=service).SerializeToString()
        self._start = np.frombuffer(bytearray(start), np.uint8)
        names = [name.encode() for name in join_keys]
        self._names = np.frombuffer(bytearray().join(names), np.uint8)
        self._name_ends = np.cumsum([0, *map(len, names)], dtype=np.int64)

    def read(self, bodies: Sequence[bytes]) -> Requests:
        """Return what these messages, each with gRPC's prefix, ask for."""
        lengths = np.fromiter(map(len, bodies), np.int64, len(bodies))
        data = np.frombuffer(bytearray().join(bodies), np.uint8)
        found, text, begins, ends, seen = read_requests(
            data, lengths, self._start, self._names, self._name_ends
        )
        rows, times_us, packed = found
        return Requests(rows, times_us, packed, KeyParts(text, begins, ends), seen)


def service_of(body: bytes) -> bytes:
    """Return the service's name in a message with gRPC's prefix, if it may be of the plain form."""
    at = GRPC_PREFIX_BYTES + 2
    return body[at : at + body[at - 1]] if len(body) > at else b""


@borrowing_step
def _read_varint(data, at, end):  # type: ignore[no-untyped-def]
    """Return a varint and where it ends, -1 where it is cut or of more than 64 bits."""
    if at < end and data[at] < 128:  # most are one byte
        return np.int64(data[at]), at + 1
    value = np.uint64(0)
    for place in range(10):
        if at >= end:
            break
        byte = np.uint64(data[at])
        at += 1
        if place == 9 and byte > np.uint64(1):
            break
        value |= (byte & np.uint64(127)) << np.uint64(7 * place)
        if byte < np.uint64(128):
            return np.int64(value), at
    return np.int64(0), -1


@borrowing_step
def _read_length(data, at, end, tag):  # type: ignore[no-untyped-def]
    """Return where what stands under a tag begins and ends; -1: there is none, or it is cut."""
    if at >= end or data[at] != tag:
        return -1, -1
    length, at = _read_varint(data, at + 1, end)
    if at < 0 or length < 0 or length > end - at:
        return -1, -1
    return at, at + length


@borrowing_step
def _starts_with(data, at, end, text, first, last):  # type: ignore[no-untyped-def]
    """Whether data[at:end] begins with text[first:last]."""
    same = end - at >= last - first
    for i in range(last - first if same else 0):
        same &= data[at + i] == text[first + i]
    return same


@borrowing_step
def _put_integers(data, at, end, out, used, begins, ends, column, row):  # type: ignore[no-untyped-def]
    """Write the parts of packed varints; return how many, and how much is used; -1: bad ones."""
    count = 0
    while at < end:
        value, at = _read_varint(data, at, end)
        if at < 0:
            return -1, used
        begins[column, row + count] = used
        used = put_integer_part(out, used, value)
        ends[column, row + count] = used
        count += 1
    return count, used


@borrowing_step
def _put_texts(data, at, end, out, used, begins, ends, column, row):  # type: ignore[no-untyped-def]
    """As `_put_integers`, of texts."""
    count = 0
    while at < end:
        at, stop = _read_length(data, at, end, _VALUES)
        if at < 0 or stop - at > PART_BYTES_MAX:
            return -1, used
        begins[column, row + count] = used
        put_part_header(out, used, stop - at)
        used += PART_HEADER_BYTES
        for place in range(at, stop):
            if data[place] > 127:  # UTF-8 is to be checked
                return -1, used
            out[used] = data[place]
            used += 1
        ends[column, row + count] = used
        count += 1
        at = stop
    return count, used


@borrowing_step
def _read_column(data, at, end, names, name_ends, seen, out, used, begins, ends, row):  # type: ignore[no-untyped-def]
    """Read a column; return which one it is (-1: it is not plain), its rows, and what is used."""
    name_at, name_end = _read_length(data, at, end, _NAME)
    found = -1
    for column in range(name_ends.size - 1):
        first, last = name_ends[column], name_ends[column + 1]
        if name_end - name_at == last - first and _starts_with(
            data, name_at, name_end, names, first, last
        ):
            found = column
    if name_at < 0 or found < 0 or (seen >> found) & 1 or name_end >= end:
        return -1, 0, used
    tag = data[name_end]
    at, stop = _read_length(data, name_end, end, tag)
    if at < 0 or stop != end:
        return -1, 0, used
    count = -1
    if tag == _INT64S:
        at, stop = _read_length(data, at, end, _VALUES)
        if at >= 0 and stop == end:
            count, used = _put_integers(data, at, end, out, used, begins, ends, found, row)
    elif tag == _STRINGS:
        count, used = _put_texts(data, at, end, out, used, begins, ends, found, row)
    return found if count > 0 else -1, count, used


@borrowing_step
def _is_framed(data, at, end):  # type: ignore[no-untyped-def]
    """Whether gRPC's prefix says: not compressed, and of this length."""
    if end - at < GRPC_PREFIX_BYTES or data[at] != 0:
        return False
    length = np.int64(0)
    for i in range(1, GRPC_PREFIX_BYTES):
        length = length << 8 | np.int64(data[at + i])
    return length == end - at - GRPC_PREFIX_BYTES


@borrowing_step
def _read_options(data, at, end):  # type: ignore[no-untyped-def]
    """Return whether what follows the columns is plain, the event time, and `packed`."""
    time_us, packed = NO_TIME, False
    if at < end and data[at] == _EVENT_TIME:
        time_us, at = _read_varint(data, at + 1, end)
        if at < 0 or time_us < 0:
            return False, time_us, packed
    if end - at == 2 and data[at] == _PACKED and data[at + 1] == 1:
        packed = True
        at = end
    return at == end, time_us, packed


@kept(entity_key, row_keys, signature=_SIGNATURE)
def read_requests(data, lengths, start, names, name_ends):  # type: ignore[no-untyped-def]
    """Read requests that follow each other in `data`: see `Requests`, whose columns it returns.

    start: how a message to the service begins; names[name_ends[c]:name_ends[c + 1]] is join key c.
    Returns rows, event times and packed as int64[3, requests], then the parts, and the kinds seen.
    """
    columns = name_ends.size - 1
    found = np.empty((3, lengths.size), np.int64)
    out = np.empty(_GROWTH_MAX * data.size, np.uint8)
    begins = np.empty((columns, data.size), np.int64)
    stops = np.empty((columns, data.size), np.int64)
    row = used = end = kinds = 0
    for request in range(lengths.size):
        found[0, request], found[1, request], found[2, request] = NOT_PLAIN, NO_TIME, 0
        at, end = end, end + lengths[request]
        framed = _is_framed(data, at, end)
        at += GRPC_PREFIX_BYTES
        if not framed or not _starts_with(data, at, end, start, 0, start.size):
            kinds |= ODD
            continue
        at += start.size
        used_before, seen, count = used, 0, -1
        while at < end and data[at] == _INPUTS:
            first, last = _read_length(data, at, end, _INPUTS)
            if first < 0:
                break
            column, column_rows, used = _read_column(
                data, first, last, names, name_ends, seen, out, used, begins, stops, row
            )
            if column < 0 or (count >= 0 and column_rows != count):
                break
            seen |= 1 << column
            count = column_rows
            at = last
        plain, time_us, is_packed = _read_options(data, at, end)
        if plain and seen == (1 << columns) - 1:
            found[0, request], found[1, request] = count, time_us
            found[2, request] = 1 if is_packed else 0
            kinds |= PACKED if is_packed else COLUMNS
            kinds |= TIMED if time_us != NO_TIME else 0
            row += count
        else:
            kinds |= ODD
            used = used_before
    return found, out[:used], begins[:, :row].copy(), stops[:, :row].copy(), kinds
