"""The compiled reading of piles does what the plain one does, and refuses what that refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features.last_known import joined_piles, read_piles
from features.row import NO_TTL, RowCodec, last_known, merge_pile
from features.types import Bool, Column, FeatureStatus, Field, Float64, Int64, to_words
from headrace.errors import HeadraceError

MINUTE_US = 60_000_000
FIELDS = [Field(f"f{i}", (Int64, Float64, Bool)[i % 3]) for i in range(70)]
CODEC = RowCodec(FIELDS, schema_id=9)
TARGETS = np.array([i - 1 if i % 4 else -1 for i in range(70)], dtype=np.int64)

minutes = st.integers(-3, 40).map(lambda m: m * MINUTE_US)


def packed(event_us: int, created_us: int, sequence: int, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    table = {
        field.name: Column(
            rng.integers(0, 2, 1).astype(field.dtype.numpy), np.array([rng.random() < 0.7])
        )
        for field in FIELDS
    }
    times = (np.array([t]) for t in (event_us, created_us, sequence))
    return CODEC.pack(table, *times)[0]


@st.composite
def piles(draw: st.DrawFn) -> bytes | None:
    rows = draw(st.lists(st.tuples(minutes, minutes, st.integers(0, 3)), max_size=4))
    pile = None
    for number, (event_us, late_us, sequence) in enumerate(rows):
        row = packed(event_us, event_us + abs(late_us), sequence, number)
        pile, _ = merge_pile(pile, [row])
    return pile


def plainly(
    found: list[bytes | None], times: list[int], ttl: int | None
) -> tuple[np.ndarray, np.ndarray]:
    rows, outcome = last_known(found, times, ttl)
    fields = CODEC.unpack(rows).fields
    words = np.full((len(found), 70), -7, dtype=np.int64)
    status = np.full((len(found), 70), 9, dtype=np.uint8)
    for i, field in enumerate(FIELDS):
        target = TARGETS[i]
        if target >= 0:
            column = fields[field.name]
            words[:, target] = to_words(column, field.dtype)
            of_value = np.where(column.mask, FeatureStatus.PRESENT, FeatureStatus.NULL)
            status[:, target] = np.where(outcome == 0, of_value, outcome)
    return words, status


def compiled(
    found: list[bytes | None], places: list[int], times: list[int], ttl: int | None
) -> tuple[int, np.ndarray, np.ndarray]:
    words = np.full((len(places), 70), -7, dtype=np.int64)
    status = np.full((len(places), 70), 9, dtype=np.uint8)
    bad = read_piles(
        *joined_piles(found), np.array(places, np.int64), np.array(times, np.int64),
        NO_TTL if ttl is None else ttl, 9, TARGETS, words, status,
    )  # fmt: skip
    return int(bad), words, status


@given(
    st.lists(piles(), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(-1, 3), minutes), min_size=1, max_size=6),
    st.sampled_from([None, 0, 10 * MINUTE_US]),
)
@settings(max_examples=60)
def test_it_reads_what_the_plain_way_reads(
    found: list[bytes | None], asked: list[tuple[int, int]], ttl: int | None
) -> None:
    places = [min(place, len(found) - 1) for place, _ in asked]
    times = [t for _, t in asked]
    bad, words, status = compiled(found, places, times, ttl)
    assert bad == -1
    each = [None if place < 0 else found[place] for place in places]
    wanted_words, wanted_status = plainly(each, times, ttl)
    assert words.tolist() == wanted_words.tolist()
    assert status.tolist() == wanted_status.tolist()


@given(piles().filter(bool), st.data())
@settings(max_examples=100)
def test_a_broken_pile_is_refused_or_read_within_its_bounds(
    pile: bytes, data: st.DataObject
) -> None:
    broken = bytearray(pile)
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(broken[: data.draw(st.integers(1, len(broken)))])
    bad, _, status = compiled([cut, pile], [0, 1], [20 * MINUTE_US] * 2, None)
    assert bad in {-1, 0}
    if bad < 0:
        assert set(status[:, 0].tolist()) <= {0, 1, 2, 3, 4}
    try:
        plainly([cut], [20 * MINUTE_US], None)
    except HeadraceError:
        return


@given(st.binary(min_size=1, max_size=300))
@example(b"\1" + bytes(7))
def test_garbage_is_refused(garbage: bytes) -> None:
    bad, words, _ = compiled([garbage], [0], [0], None)
    if bad < 0:  # it says that it holds no row
        assert int.from_bytes(garbage[:8], "little") & (2**63 - 1) == 0
        assert len(garbage) % 8 == 0
        assert words[0, 0] == 0


def test_a_row_of_another_schema_id_is_refused() -> None:
    pile, _ = merge_pile(None, [RowCodec(FIELDS, schema_id=8).pack(
        {f.name: Column(np.zeros(1, f.dtype.numpy)) for f in FIELDS}, *[np.zeros(1, np.int64)] * 3
    )[0]])  # fmt: skip
    assert compiled([None, pile], [0, 1], [5, 5], None)[0] == 1
    with pytest.raises(HeadraceError, match="schema id 8"):
        plainly([pile], [5], None)
