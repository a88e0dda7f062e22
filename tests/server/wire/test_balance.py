"""The choice of the worker that takes a new connection, and the table that it is made from."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.wire.balance import WORD_BYTES, Table, choose, table_bytes


@pytest.mark.parametrize(
    ("counts", "own", "chosen"),
    [
        ([3], 0, None),  # alone
        ([3, 3], 0, None),  # as many as the other
        ([3, 4], 0, None),  # fewer
        ([4, 3], 0, 1),  # one more is enough, among few
        ([32, 31], 0, None),  # among many it is not …
        ([32, 29], 0, 1),  # … but a sixteenth is
        ([5, 3, 2, 4], 0, 2),  # the fewest
        ([5, 2, 2, 2], 2, None),
        ([5, 2, 5, 2], 2, 3),  # of equals the next one, so that not all choose the same
        ([5, 2, 5, 2], 0, 1),
        ([5, None, 5, None], 0, None),  # who takes none is never chosen
        ([None, 9, 7], 0, 2),  # who takes none passes on to others, however many they have
        ([None, None, None], 0, None),  # and keeps what nobody takes
    ],
)
def test_who_takes_a_connection(counts: list[int | None], own: int, chosen: int | None) -> None:
    assert choose(counts, own, counts[own]) == chosen


class Workers:
    """Workers over one table, and what is on its way between them."""

    def __init__(self, number: int, kinds: int = 1) -> None:
        words = memoryview(bytearray(table_bytes(number, kinds))).cast("q")
        self.tables = [Table(words, number, kinds, own) for own in range(number)]
        self.counts = [0] * number
        self.under_way: list[tuple[int, int]] = []
        for table in self.tables:
            table.enter(1)

    def accept(self, own: int) -> None:
        to = self.tables[own].choose(0)
        if to is None:
            self.take(own)
        else:
            self.tables[own].sent(0, to)
            self.under_way.append((own, to))

    def take(self, own: int) -> None:
        self.counts[own] += 1
        self.tables[own].set_count(0, self.counts[own])

    def arrive(self) -> None:
        for by, to in self.under_way:
            self.tables[to].received(0, by)
            self.take(to)
        self.under_way.clear()


@given(st.lists(st.integers(0, 3), max_size=14), st.integers(1, 20))
def test_few_connections_spread_evenly_whoever_accepts_them(
    accepted_by: list[int], burst: int
) -> None:
    """Bursts too: what is on its way counts as if it had arrived."""
    workers = Workers(4)
    for number, own in enumerate(accepted_by):
        workers.accept(own)
        if number % burst == 0:
            workers.arrive()
    workers.arrive()
    assert sum(workers.counts) == len(accepted_by)
    if burst == 1:
        assert max(workers.counts) - min(workers.counts) <= 1


def test_a_burst_at_one_worker_spreads_evenly() -> None:
    workers = Workers(4)
    for _ in range(8):
        workers.accept(2)
    assert len(workers.under_way) == 6
    workers.arrive()
    assert workers.counts == [2, 2, 2, 2]


def test_many_connections_are_within_an_eighth() -> None:
    workers = Workers(3)
    chance = random.Random(1)
    for _ in range(3000):
        workers.accept(0 if chance.random() < 0.8 else 1)
        workers.arrive()
    assert max(workers.counts) / 1000 < 1.125


def test_a_worker_that_left_gets_nothing_and_passes_on_what_still_comes() -> None:
    workers = Workers(2)
    workers.tables[1].leave()
    for _ in range(5):
        workers.accept(0)
    assert workers.under_way == []
    workers.accept(1)
    assert workers.under_way == [(1, 0)]


def test_a_worker_that_refused_is_asked_again_only_when_another_takes_its_place() -> None:
    workers = Workers(2)
    workers.take(0)
    assert workers.tables[0].choose(0) == 1
    workers.tables[0].refused(1)
    assert workers.tables[0].choose(0) is None
    workers.tables[1].enter(2)
    assert workers.tables[0].choose(0) == 1


def test_what_was_sent_to_an_earlier_run_is_not_counted_for_the_next() -> None:
    workers = Workers(2)
    for _ in range(4):
        workers.take(0)
    for _ in range(4):
        assert workers.tables[0].choose(0) == 1
        workers.tables[0].sent(0, 1)
    assert workers.tables[0].choose(0) is None  # as many are on their way as are here
    workers.tables[1].enter(2)
    assert workers.tables[0].choose(0) == 1


def test_kinds_of_ports_are_counted_apart() -> None:
    workers = Workers(2, kinds=2)
    workers.tables[0].set_count(0, 5)
    workers.tables[1].set_count(1, 5)
    assert workers.tables[0].choose(0) == 1
    assert workers.tables[0].choose(1) is None
    assert workers.tables[1].choose(1) == 0


def test_the_size_of_the_table() -> None:
    assert table_bytes(4, 2) == 4 * (1 + 2 * 5) * WORD_BYTES
