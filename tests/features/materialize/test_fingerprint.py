"""Fingerprints: equal rows have one, others another, however a table is cut."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from features.materialize.fingerprint import row_hashes, sum_of

CELLS = st.tuples(
    st.sampled_from([None, 0, 1, -1, 2**63 - 1]),
    st.sampled_from([None, 0.0, -0.0, 1.0]),
    st.sampled_from([None, False, True]),
    st.sampled_from([None, "", "0", "a", "ab"]),
    st.sampled_from([None, "", "b", "bc"]),
)
KINDS = [pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.string()]


def table(rows: list[tuple[object, ...]]) -> pa.Table:
    columns = [pa.array([row[i] for row in rows], kind) for i, kind in enumerate(KINDS)]
    return pa.table(dict(zip("abcde", columns, strict=True)))


@given(st.lists(CELLS, max_size=30))
def test_rows_are_told_apart_by_what_they_hold(rows: list[tuple[object, ...]]) -> None:
    hashes = [tuple(one) for one in row_hashes(table(rows)).tolist()]
    for row, one in zip(rows, hashes, strict=True):
        for other, two in zip(rows, hashes, strict=True):
            assert (repr(row) == repr(other)) == (one == two)
    assert all(one[0] != one[1] for one in hashes)


@given(st.lists(CELLS, min_size=1, max_size=20), st.data())
def test_a_sum_hangs_on_rows_and_places_and_not_on_the_cut(
    rows: list[tuple[object, ...]], data: st.DataObject
) -> None:
    hashes = row_hashes(table(rows))
    cut = data.draw(st.integers(0, len(rows)))
    whole = sum_of(hashes)
    parts = pa.concat_tables([table(rows)[:cut], table(rows)[cut:]])
    assert sum_of(hashes[cut:], cut, sum_of(hashes[:cut])) == whole == sum_of(row_hashes(parts))
    order = data.draw(st.permutations(range(len(rows))))
    if [repr(rows[i]) for i in order] != list(map(repr, rows)):
        assert sum_of(hashes[list(order)]) != whole


def test_a_fingerprint_is_the_same_in_every_process_and_version() -> None:
    assert (
        sum_of(row_hashes(table([(1, 0.5, True, "ü", None)]))) == "d0dfed0f836f4007a83cd233cb7c8ecd"
    )
