"""The point-in-time join: a table of traps, and random worlds against the plain oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.offline.join import last_known_rows, order_rows
from tests.features import oracle
from tests.features.oracle import TOLERANCE_US, Event


def join(events: list[tuple[int, int, int, int]], queries: list[tuple[int, int]]) -> list[int]:
    """Rows found for queries (key, t) among events (key, event, created, sequence)."""
    columns = np.array(events, dtype=np.int64).reshape(len(events), 4).T
    keys, t_us = np.array(queries, dtype=np.int64).reshape(len(queries), 2).T
    groups = int(max(columns[0].max(initial=-1), keys.max(initial=-1))) + 1
    return last_known_rows(order_rows(*columns, groups), keys, t_us).tolist()


TRAPS = [
    ("event at t is seen", [(0, 5, 5, 0)], (0, 5), 0),
    ("event after t is not", [(0, 5, 5, 0)], (0, 4), -1),
    ("created at t is seen", [(0, 1, 5, 0)], (0, 5), 0),
    ("created after t is not", [(0, 1, 5, 0)], (0, 4), -1),
    ("behind a row not yet created lies an older one", [(0, 1, 1, 0), (0, 2, 9, 1)], (0, 5), 0),
    ("a late row does not beat a later event", [(0, 1, 9, 1), (0, 2, 2, 0)], (0, 10), 1),
    ("a correction of the same event wins", [(0, 1, 1, 0), (0, 1, 3, 1)], (0, 3), 1),
    ("a correction is not seen early", [(0, 1, 1, 0), (0, 1, 3, 1)], (0, 2), 0),
    ("of three, the last created", [(0, 1, 3, 0), (0, 1, 9, 1), (0, 1, 5, 2)], (0, 8), 2),
    (
        "equal times: the last of the sequence",
        [(0, 1, 1, 4), (0, 1, 1, 7), (0, 1, 1, 5)],
        (0, 1),
        1,
    ),
    ("another key is another world", [(1, 1, 1, 0)], (0, 5), -1),
    ("the key before has the greater rank", [(0, 9, 9, 0), (1, 1, 1, 1)], (1, 5), 1),
    ("the key after does not leak", [(0, 1, 1, 0), (1, 2, 2, 1)], (0, 5), 0),
    ("no key finds nothing", [(-1, 1, 1, 0)], (-1, 5), -1),
    ("a row without a key is nobody's", [(-1, 1, 1, 0), (0, 0, 0, 1)], (0, 5), 1),
    ("before 1970", [(0, -9, -9, 0), (0, -5, -5, 1)], (0, -6), 0),
    ("a broken clock is left out", [(0, 1, 1, 0), (0, TOLERANCE_US + 3, 2, 1)], (0, 10**9), 0),
    ("the tolerance is kept", [(0, 1, 1, 0), (0, TOLERANCE_US + 2, 2, 1)], (0, 10**9), 1),
    ("no rows at all", [], (0, 5), -1),
]


@pytest.mark.parametrize(
    ("events", "query", "row"), [t[1:] for t in TRAPS], ids=[t[0] for t in TRAPS]
)
def test_traps(events: list[tuple[int, int, int, int]], query: tuple[int, int], row: int) -> None:
    assert join(events, [query]) == [row]


def test_queries_keep_their_order_and_number() -> None:
    events = [(0, 1, 1, 0), (1, 2, 2, 1)]
    queries = [(1, 5), (0, 5), (1, 5), (0, 0), (2, 5)]
    assert join(events, queries) == [1, 0, 1, -1, -1]
    assert join(events, []) == []


small = st.integers(-6, 6)


@given(
    st.lists(st.tuples(st.integers(-1, 2), small, small.map(abs), st.booleans()), max_size=25),
    st.lists(st.tuples(st.integers(-1, 3), st.integers(-8, 16)), min_size=1, max_size=10),
)
@settings(deadline=None, max_examples=300)
def test_random_worlds_are_joined_as_the_oracle_says(
    rows: list[tuple[int, int, int, bool]], queries: list[tuple[int, int]]
) -> None:
    events = [
        (key, event + (TOLERANCE_US + 20 if broken else 0), event + late, sequence)
        for sequence, (key, event, late, broken) in enumerate(rows)
    ]
    found = join(events, queries)
    for (key, t), row in zip(queries, found, strict=True):
        world = [Event(e, c, s, {}) for k, e, c, s in events if k == key and key >= 0]
        wanted = oracle.last_known(world, t, None)
        if isinstance(wanted, Event):
            assert events[row][3] == wanted.sequence
        else:
            assert row == -1
