"""Packed rows and piles: round trips, garbage, and what a pile still knows."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.definitions import FeatureView
from features.row import (
    EXACT_LAG_US,
    ROWS_MAX,
    RowCodec,
    last_known,
    merge_pile,
    row_order,
    split_pile,
)
from features.sources import Entity, EventSource
from features.types import (
    Bool,
    Column,
    FeatureStatus,
    Field,
    Float32,
    Float64,
    Int64,
    String,
    Table,
    Timestamp,
)
from headrace.errors import InternalError
from tests.features import oracle
from tests.features.oracle import Event

FIELDS = [
    Field("n", Int64),
    Field("x", Float64),
    Field("y", Float32),
    Field("ok", Bool),
    Field("at", Timestamp),
    Field("name", String),
    Field("note", String),
]
CODEC = RowCodec(FIELDS, schema_id=9)
int64s = st.integers(-(2**63), 2**63 - 1)
VALUES = {
    "n": int64s,
    "x": st.floats(),
    "y": st.floats(width=32),
    "ok": st.booleans(),
    "at": int64s,
    "name": st.text(max_size=9),
    "note": st.text(max_size=9),
}
BLANK = {"n": 0, "x": 0.0, "y": 0.0, "ok": False, "at": 0, "name": "", "note": ""}


def table(rows: list[dict[str, object]]) -> Table:
    return {
        field.name: Column(
            np.array(
                [BLANK[field.name] if r[field.name] is None else r[field.name] for r in rows],
                dtype=field.dtype.numpy,
            ),
            np.array([r[field.name] is not None for r in rows], dtype=np.bool_),
        )
        for field in FIELDS
    }


def ints(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@given(
    st.lists(
        st.tuples(
            st.fixed_dictionaries({n: st.one_of(st.none(), s) for n, s in VALUES.items()}),
            int64s,
            int64s,
            int64s,
        ),
        max_size=6,
    )
)
@settings(deadline=None)
def test_rows_come_back_bit_for_bit(rows: list[tuple[dict[str, object], int, int, int]]) -> None:
    values = [row[0] for row in rows]
    times = [ints([row[i] for row in rows]) for i in (1, 2, 3)]
    packed = CODEC.pack(table(values), *times)
    assert [row_order(p) for p in packed] == [row[1:] for row in rows]
    back = CODEC.unpack([None, *packed])
    assert back.found.tolist() == [False] + [True] * len(rows)
    assert back.event_time_us.tolist()[1:] == times[0].tolist()
    assert back.created_time_us.tolist()[1:] == times[1].tolist()
    assert back.sequence.tolist()[1:] == times[2].tolist()
    for field in FIELDS:
        column = back.fields[field.name]
        assert not column.mask[0]
        for i, value in enumerate(values, start=1):
            wanted = value[field.name]
            assert column.mask[i] == (wanted is not None)
            if wanted is not None and field.dtype.is_float:
                assert struct.pack("<d", column.values[i]) == struct.pack("<d", wanted)
            elif wanted is not None:
                assert column.values[i] == wanted


def test_no_validity_mask_means_no_null() -> None:
    columns = {name: Column(column.values) for name, column in table([BLANK]).items()}
    packed = CODEC.pack(columns, ints([1]), ints([2]), ints([3]))
    assert all(c.mask.all() for c in CODEC.unpack(packed).fields.values())


@given(st.integers(0, 400))
def test_a_cut_row_is_refused(length: int) -> None:
    row = one_row(text="a text that is long enough to fill a few words of the tail")
    cut = row[: length % len(row)]
    with pytest.raises(InternalError, match="a stored row cannot be read"):
        CODEC.unpack([cut])


def one_row(text: str = "x", event: int = 0) -> bytes:
    values = {**BLANK, "name": text}
    return CODEC.pack(table([values]), ints([event]), ints([event]), ints([0]))[0]


def test_a_row_of_another_schema_id_is_refused() -> None:
    with pytest.raises(InternalError, match=r"schema id 8.*got schema id 9"):
        RowCodec(FIELDS, schema_id=8).unpack([one_row()])


def test_a_text_that_points_outside_or_is_no_text_is_refused() -> None:
    row = bytearray(one_row("äö"))
    at = len(row) - 8 - 16  # the words of the two texts stand before the tail of 8 bytes
    far = bytearray(row)
    far[at : at + 8] = struct.pack("<II", 7, 4000)
    with pytest.raises(InternalError, match="outside of its row"):
        CODEC.unpack([bytes(far)])
    row[at : at + 8] = struct.pack("<II", 1, 1)
    with pytest.raises(InternalError, match="no string"):
        CODEC.unpack([bytes(row)])


@given(st.binary(max_size=120))
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(InternalError):
        CODEC.unpack([garbage])
    if len(garbage) < 8:
        with pytest.raises(InternalError, match="do not add up"):
            split_pile(garbage)


@pytest.mark.parametrize("cut", [3, 8, 9, 20, 47, 60, -1])
def test_a_cut_pile_is_refused(cut: int) -> None:
    pile, _ = merge_pile(None, [one_row(event=1), one_row(event=2)])
    with pytest.raises(InternalError, match="do not add up"):
        split_pile(pile[:cut])
    with pytest.raises(InternalError, match="do not add up"):
        split_pile(pile + b"\0")


def test_a_row_in_a_pile_with_a_wrong_length_is_refused() -> None:
    pile = bytearray(merge_pile(None, [one_row()])[0])
    pile[12:16] = struct.pack("<I", 3)
    with pytest.raises(InternalError, match="do not add up"):
        split_pile(bytes(pile))


VIEW = FeatureView(
    "facts",
    Entity("e", ["k"]),
    EventSource("s", [Field("k", String), Field("v", Int64)]),
    ["v"],
    ttl="10min",
)
NARROW = RowCodec.of_view(VIEW, schema_id=1)
MINUTE_US = oracle.MINUTE_US


@st.composite
def streams(draw: st.DrawFn) -> list[Event]:
    count = draw(st.integers(0, 30))
    events = []
    for sequence in range(count):
        event_us = draw(st.integers(-40, 40)) * MINUTE_US + draw(st.integers(-1, 1))
        late_us = draw(
            st.sampled_from([0, 0, MINUTE_US, 30 * MINUTE_US, -MINUTE_US, -6 * MINUTE_US])
        )
        value = draw(st.one_of(st.none(), st.integers()))
        events.append(Event(event_us, event_us + late_us, sequence, {"v": value}))
    return sorted(events, key=lambda e: e.arrival)


def packed_rows(events: list[Event]) -> list[bytes]:
    values = [e.values["v"] for e in events]
    words = np.array([0 if v is None else v % 2**62 for v in values], dtype=np.int64)
    column = Column(words, np.array([v is not None for v in values], dtype=np.bool_))
    return NARROW.pack(
        {"v": column},
        ints([e.event_time_us for e in events]),
        ints([e.created_time_us for e in events]),
        ints([e.sequence for e in events]),
    )


@given(streams(), st.data())
@settings(deadline=None, max_examples=200)
def test_a_pile_knows_what_the_oracle_knows_or_says_that_it_does_not(
    events: list[Event], data: st.DataObject
) -> None:
    pile: bytes | None = None
    done = 0
    while done < len(events):
        step = data.draw(st.integers(1, len(events) - done))
        pile, _ = merge_pile(pile, packed_rows(events[done : done + step]))
        done += step
        again, _ = merge_pile(pile, packed_rows(events[done - step : done]))
        assert again == pile, "a replay changes nothing"
    newest = max((max(e.event_time_us, e.created_time_us) for e in events), default=0)
    for t in data.draw(st.lists(st.integers(-80, 90).map(lambda m: m * MINUTE_US), min_size=1)):
        (row,), status = last_known([pile], [t], VIEW.ttl_us)
        wanted = oracle.last_known(events, t, VIEW.ttl_us)
        if status[0] == FeatureStatus.UNAVAILABLE:
            assert t < newest - EXACT_LAG_US or len(split_pile(pile)[0]) == ROWS_MAX
        elif status[0] == FeatureStatus.PRESENT:
            assert isinstance(wanted, Event)
            assert row_order(row) == wanted.order
        else:
            assert wanted == {2: "not_found", 3: "expired"}[int(status[0])]


@given(streams())
@settings(deadline=None)
def test_a_pile_does_not_hang_on_batches(events: list[Event]) -> None:
    whole, quarantined = merge_pile(None, packed_rows(events))
    pile: bytes | None = None
    bad = 0
    for row in packed_rows(events):
        pile, n = merge_pile(pile, [row])
        bad += n
    assert bad == quarantined
    t = [max((e.created_time_us for e in events), default=0)]
    assert last_known([pile], t, None)[0] == last_known([whole], t, None)[0]


def test_a_pile_is_bounded_and_its_newest_rows_stay() -> None:
    rows = [one_row(event=i) for i in range(100)]
    pile, _ = merge_pile(None, rows)
    kept, dropped = split_pile(pile)
    assert [row_order(r)[0] for r in kept] == list(range(99, 99 - ROWS_MAX, -1))
    assert dropped
    assert last_known([pile, pile, None], [200, 3, 3], None)[1].tolist() == [0, 4, 2]


def test_age_equal_to_the_ttl_is_not_expired() -> None:
    pile, _ = merge_pile(None, [one_row(event=0)])
    assert last_known([pile, pile], [10, 11], 10)[1].tolist() == [0, 3]
    assert last_known([pile, pile], [0, 1], 0)[1].tolist() == [0, 3]
