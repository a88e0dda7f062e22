"""Ids of integer keys: equal where the keys are, close together or far apart."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from features import Entity
from features.offline.integer_ids import SpineKeys

ENDS = [-(2**63), 2**63 - 1, -(2**63) + 1, 0, 1]
close = st.one_of(st.none(), st.integers(-3, 3))
far = st.one_of(st.none(), st.sampled_from(ENDS), st.integers(-(2**63), 2**63 - 1))
shifted = st.one_of(st.none(), st.integers(2**63 - 4, 2**63 - 1), st.sampled_from(ENDS))
parts = st.one_of(close, far, shifted)


Key = tuple[int | None, ...]


def table(rows: list[Key], names: list[str]) -> pa.Table:
    columns = [pa.array([row[i] for row in rows], pa.int64()) for i in range(len(names))]
    return pa.table(dict(zip(names, columns, strict=True)))


def check(spine: list[Key], events: list[Key], width: int) -> None:
    names = ["a", "b", "c"][:width]
    keys = SpineKeys(Entity("thing", names), table(spine, names))
    for _ in range(2):  # the second history of the same spine
        event_ids, spine_ids = keys.join(table(events, names), "test")
        known: dict[Key, int] = {}
        for row, number in zip(spine, spine_ids.tolist(), strict=True):
            assert (number < 0) == (None in row)
            assert None in row or known.setdefault(row, number) == number
        assert len(set(known.values())) == len(known)
        for row, number in zip(events, event_ids.tolist(), strict=True):
            if row in known:
                assert number == known[row]
            else:
                # Any id that is nobody's will do.
                assert number not in known.values()


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Key], list[Key], int]:
    width = draw(st.integers(1, 3))
    keys = st.lists(st.tuples(*[parts] * width), max_size=25)
    return draw(keys), draw(keys), width


@given(worlds())
def test_ids_are_equal_where_keys_are(
    world: tuple[list[Key], list[Key], int],
) -> None:
    check(*world)


def test_many_keys_far_apart_are_told_apart() -> None:
    rng = np.random.default_rng(1)
    values = np.unique(rng.integers(-(2**63), 2**63 - 1, 50_000))
    rng.shuffle(values)
    spine = pa.table({"a": np.concatenate([values[:30_000], values[:30_000][::-1]])})
    events, ids = SpineKeys(Entity("thing", ["a"]), spine).join(pa.table({"a": values}), "test")
    assert np.array_equal(ids[:30_000], ids[30_000:][::-1])
    assert np.array_equal(np.sort(ids[:30_000]), np.arange(30_000))
    assert np.array_equal(events[:30_000], ids[:30_000])
    assert (events[30_000:] == -1).all()
