"""Events in the log's bytes: as they went in, many payloads at once, and no bytes do harm."""

from __future__ import annotations

import struct
from functools import partial
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.online.block_words import FORMAT
from features.online.blocks import Arrived, count_events, decode_payloads, encode_payload
from features.online.payload import EventBatch
from features.types import Column
from headrace.errors import InvalidArgumentError

Row = tuple[Any, ...]


def held(values: list[Any]) -> np.ndarray[Any, Any]:
    array = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        array[row] = value
    return array


_ARRAYS: dict[str, Any] = {"i": np.int64, "f": np.float64, "b": np.bool_}
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "i": st.integers(-(2**63), 2**63 - 1),
    "f": st.floats(width=64),
    "b": st.booleans(),
    "s": _TEXT,
    "y": st.binary(max_size=9),
    "S": st.lists(_TEXT, max_size=3).map(tuple),
    "I": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3).map(partial(np.array, dtype="<i8")),
    "F": st.lists(st.floats(width=64), max_size=3).map(partial(np.array, dtype="<f8")),
    "E": st.lists(st.floats(width=32), max_size=3).map(partial(np.array, dtype="<f4")),
}
_FORMS = [
    ("rides", (("driver", "i"), ("fare", "f"), ("night", "b"), ("zone", "s"))),
    ("rides", (("driver", "i"), ("zone", "s"), ("fare", "f"), ("night", "b"))),
    ("cells", (("a", "y"), ("b", "S"), ("c", "I"), ("d", "F"), ("e", "E"), ("f", "s"))),
    ("ticks", ()),
    ("wide", tuple((f"c{i}", "if"[i % 2]) for i in range(70))),
]


@st.composite
def batches(draw: st.DrawFn) -> EventBatch:
    source, columns = draw(st.sampled_from(_FORMS))
    rows = draw(st.integers(0, 70) if draw(st.booleans()) else st.integers(0, 2))
    times = st.lists(st.integers(-(2**60), 2**60), min_size=rows, max_size=rows)
    made = {}
    for name, kind in columns:
        if kind in "if" and source == "wide":
            values: list[Any] = [draw(_VALUES[kind])] * rows
        else:
            values = draw(st.lists(_VALUES[kind], min_size=rows, max_size=rows))
        array = held(values) if kind not in _ARRAYS else np.array(values, dtype=_ARRAYS[kind])
        valid = None
        if draw(st.integers(0, 3)) == 0:
            flags = st.lists(st.booleans(), min_size=rows, max_size=rows)
            valid = np.array(draw(flags), dtype=np.bool_)
        made[name] = Column(array, valid)
    created = np.array(draw(times), dtype=np.int64) if draw(st.booleans()) else None
    return EventBatch(source, made, np.array(draw(times), dtype=np.int64), created)


def rows_of(batch: EventBatch) -> list[Row]:
    """The events one by one, floats by their bits, null as None."""
    created = batch.event_times_us if batch.created_times_us is None else batch.created_times_us
    columns = []
    for column in batch.columns.values():
        values = column.values
        shown = values.view(np.int64) if values.dtype == np.float64 else values
        plain = [v.tobytes() if isinstance(v, np.ndarray) else v for v in shown.tolist()]
        columns.append(
            [v if ok else None for v, ok in zip(plain, column.mask.tolist(), strict=True)]
        )
    names = tuple(batch.columns)
    times = zip(batch.event_times_us.tolist(), created.tolist(), strict=True)
    return [
        (batch.source, names, *time, *(column[i] for column in columns))
        for i, time in enumerate(times)
    ]


def in_order(arrived: list[Arrived]) -> list[Row]:
    placed: dict[int, Row] = {}
    for batch, places in arrived:
        placed.update(zip(places.tolist(), rows_of(batch), strict=True))
    assert sorted(placed) == list(range(len(placed)))
    return [placed[i] for i in range(len(placed))]


def strings(cell: bytes) -> tuple[str, ...]:
    found = []
    while cell:
        length = int.from_bytes(cell[:4], "little")
        found.append(cell[4 : 4 + length].decode())
        cell = cell[4 + length :]
    return tuple(found)


_READ: dict[str, Any] = {"s": bytes.decode, "S": strings}


def read_by_hand(payload: bytes) -> list[Row]:
    """The format as its page says it, value by value: the oracle."""
    rows: list[Row] = []
    while payload:
        words = struct.unpack_from("<q", payload, 8)[0]
        rows += read_block(payload[: words * 8])
        payload = payload[words * 8 :]
    return rows


def read_block(block: bytes) -> list[Row]:
    fixed, _, events = struct.unpack_from("<3q", block)
    source, columns = msgspec.msgpack.decode(block[24 : 24 + (fixed & 0xFFFF_FFFF)])
    at = 24 + ((fixed & 0xFFFF_FFFF) + 7) // 8 * 8

    def take(count: int, code: str) -> list[Any]:
        nonlocal at
        found = list(struct.unpack_from(f"<{count}{code}", block, at))
        at += 8 * count
        return found

    def bits(count: int) -> list[int]:
        found = take((count + 63) // 64, "Q")
        return [found[i // 64] >> (i % 64) & 1 for i in range(count)]

    def cells(lengths: list[int]) -> list[bytes]:
        nonlocal at
        joined = block[at : at + sum(lengths)]
        at += (len(joined) + 7) // 8 * 8
        ends = np.cumsum([0, *lengths]).tolist()
        return [joined[a:b] for a, b in pairwise(ends)]

    has_created, *has_nulls = bits(1 + len(columns))
    event_times = take(events, "q")
    created_times = take(events, "q") if has_created else event_times
    made = []
    for (_, kind), nulls in zip(columns, has_nulls, strict=True):
        valid = bits(events) if nulls else [1] * events
        values = [bool(bit) for bit in bits(events)] if kind == "b" else take(events, "q")
        if kind not in "ifb":
            values = [_READ.get(kind, bytes)(cell) for cell in cells(values)]
        made.append([v if ok else None for v, ok in zip(values, valid, strict=True)])
    assert at == len(block)
    names = tuple(name for name, _ in columns)
    times = zip(event_times, created_times, strict=True)
    return [(source, names, *t, *(c[i] for c in made)) for i, t in enumerate(times)]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.lists(batches(), min_size=1, max_size=3), min_size=1, max_size=5))
def test_events_come_back_as_they_went_in(pushes: list[list[EventBatch]]) -> None:
    payloads = [encode_payload(push) for push in pushes]
    expected = [row for push in pushes for batch in push for row in rows_of(batch)]
    assert in_order(decode_payloads(payloads)) == expected
    assert [row for payload in payloads for row in read_by_hand(payload)] == expected
    counts = [sum(map(len, push)) for push in pushes]
    assert count_events(payloads).tolist() == counts


def test_alike_payloads_are_read_at_once() -> None:
    push = [EventBatch("rides", {"driver": Column(np.array([i]))}, np.array([i])) for i in range(9)]
    (arrived,) = decode_payloads([encode_payload([batch]) for batch in push])
    assert arrived.batch.columns["driver"].values.tolist() == list(range(9))


def block(head: bytes, body: list[int], events: int = 1, fixed: int = FORMAT) -> bytes:
    padded = head + bytes(-len(head) % 8)
    words = 3 + len(padded) // 8 + len(body)
    start = struct.pack("<3q", fixed << 32 | len(head), words, events)
    return start + padded + struct.pack(f"<{len(body)}q", *body)


_ONE = b"\x92\xa5rides\x91\x92\xa1a\xa1%b"
HEAD = msgspec.msgpack.encode(["rides", [["driver", "i"], ["zone", "s"]]])
WORD = int.from_bytes(b"Ulm", "little")
GOOD = block(HEAD, [0, 10, 7, 3, WORD])


def test_the_form_of_the_damaged_ones_is_right_when_whole() -> None:
    assert read_by_hand(GOOD) == [("rides", ("driver", "zone"), 10, 10, 7, "Ulm")]
    assert in_order(decode_payloads([GOOD])) == read_by_hand(GOOD)


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"", "cannot be decoded.*got 0 bytes"),
        (b"no words", "cannot be decoded"),
        (GOOD[:-3], "cannot be decoded"),
        (GOOD[:-8], "cannot be decoded"),
        (GOOD + bytes(24), "cannot be decoded"),
        (block(HEAD, [0, 10, 7, 3, WORD], fixed=FORMAT + 1), "another format.*expected"),
        (block(HEAD, [0, 10, 7, 3, WORD], events=-1), "cannot be decoded"),
        (block(HEAD, [0, 10, 7, 3, WORD], events=1 << 40), "cannot be decoded"),
        (block(HEAD, [0, 10, 7, 3, WORD], events=2), "cut short"),
        (block(HEAD, [1, 10, 7, 3, WORD]), "source 'rides'.*cut short"),
        (block(HEAD, [2, 10, 7, 3, WORD]), "cut short"),
        (block(HEAD, [0, 10, 7, 9, WORD]), "cut short"),
        (block(HEAD, [0, 10, 7, -1, WORD]), "cut short"),
        (block(HEAD, [0, 10, 7, 1 << 62, WORD]), "cut short"),
        (block(HEAD, [0, 10, 7, 3]), "cut short"),
        (block(HEAD, [], events=0), "cut short"),
        (block(HEAD, [0, 10, 7, 3, 0xFF]), "a value is not string"),
        (block(_ONE % b"I", [0, 10, 3, WORD]), "a value is not array.int64"),
        (block(_ONE % b"S", [0, 10, 3, WORD]), "a value is not array.string"),
        (block(b"\xc1" + HEAD, [0, 10, 7, 3, WORD]), "the head cannot be decoded"),
        (block(msgspec.msgpack.encode(["r", [["a", "x"]]]), [0, 1, 1]), "no known kind"),
        (block(msgspec.msgpack.encode(["r", [["a", "i"]] * 2]), [0, 1, 1, 1]), "twice"),
    ],
)
def test_what_is_not_whole_is_refused_by_name(payload: bytes, says: str) -> None:
    for payloads in ([payload], [GOOD, payload]):
        with pytest.raises(InvalidArgumentError, match=says):
            decode_payloads(payloads)


@given(st.binary(max_size=200))
def test_no_bytes_can_do_more_than_be_refused(payload: bytes) -> None:
    assert count_events([payload]).tolist() == [0]
    with pytest.raises(InvalidArgumentError):
        decode_payloads([payload])


@settings(deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_a_flipped_byte_is_refused_or_is_an_event(at: int, value: int) -> None:
    damaged = GOOD[:at] + bytes([value]) + GOOD[at + 1 :]
    try:
        arrived = decode_payloads([GOOD, damaged])
    except InvalidArgumentError:
        return
    assert in_order(arrived) == read_by_hand(GOOD) + read_by_hand(damaged)
