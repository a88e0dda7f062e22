"""Resources over workers: nothing is held twice, and whoever waits gets its turn."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.execution.resource_table import ROWS, STALE_NS, WORD_BYTES, ResourceTable, table_bytes

SLOTS = 3
POLL_NS = 2_000_000


class World:
    """Workers at one table. `now_ns` goes on by each attempt."""

    def __init__(self, counts: dict[str, int]) -> None:
        self.counts = counts
        self.words = memoryview(bytearray(table_bytes(SLOTS))).cast("q")
        self.workers = [self.begin(slot) for slot in range(SLOTS)]
        self.dead: set[int] = set()
        self.now_ns = 1_000_000_000

    def begin(self, slot: int) -> ResourceTable:
        table = ResourceTable(self.words, SLOTS, slot)
        table.enter()
        return table

    def take(self, slot: int, **needs: int) -> bool:
        self.now_ns += POLL_NS
        return self.workers[slot].take(needs, self.counts, self.now_ns, self._lives)

    def _lives(self, slot: int) -> bool:
        return slot not in self.dead


def test_what_one_holds_no_other_has() -> None:
    world = World({"a": 3, "b": 1})
    assert world.take(0, a=2)
    assert not world.take(1, a=2)
    assert world.take(2, b=1)
    world.workers[0].give({"a": 2})
    assert not world.take(2, a=2)  # the other has waited longer
    assert world.take(1, a=2)
    assert not world.take(0, b=1)


def test_all_or_nothing_is_taken() -> None:
    world = World({"a": 1, "b": 1})
    assert world.take(0, b=1)
    assert not world.take(1, a=1, b=1)
    world.workers[1].give_up()
    assert world.take(2, a=1)


def test_workers_take_turns() -> None:
    world = World({"a": 1})
    holder, done = None, Counter[int]()
    for _ in range(300):
        for slot in range(SLOTS):
            if holder == slot:
                done[slot] += 1
                world.workers[slot].give({"a": 1})
                holder = None
            if world.take(slot, a=1):
                assert holder is None
                holder = slot
    assert max(done.values()) - min(done.values()) <= 1
    assert len(done) == SLOTS


def test_whoever_says_no_more_that_it_waits_is_passed_over() -> None:
    world = World({"a": 1})
    assert world.take(0, a=1)
    assert not world.take(1, a=1)
    world.workers[0].give({"a": 1})
    assert not world.take(0, a=1)
    world.now_ns += STALE_NS
    assert world.take(0, a=1)


@pytest.mark.parametrize("restarted", [False, True])
def test_what_the_dead_held_is_free(restarted: bool) -> None:
    world = World({"a": 2})
    assert world.take(0, a=2)
    assert not world.take(1, a=1)
    if restarted:
        world.workers[0] = world.begin(0)
    else:
        world.dead.add(0)
    assert world.take(1, a=2)
    assert not world.take(2, a=1)


def test_what_the_table_has_no_room_for_nobody_counts() -> None:
    world = World({f"r{at}": 1 for at in range(ROWS + 1)})
    for at in range(ROWS):
        assert world.take(0, **{f"r{at}": 1})
        assert not world.take(1, **{f"r{at}": 1})
    for slot in range(SLOTS):
        assert world.take(slot, **{f"r{ROWS}": 1})
        world.workers[slot].give({f"r{ROWS}": 1})
    assert len(world.words) * WORD_BYTES == table_bytes(SLOTS)


NEEDS = st.dictionaries(st.sampled_from("abc"), st.integers(1, 2), min_size=1)


@given(st.lists(st.tuples(st.integers(0, SLOTS - 1), NEEDS), min_size=1, max_size=12),
       st.integers())  # fmt: skip
def test_nothing_is_held_twice_and_all_that_waits_has_its_turn(wanted: Any, seed: int) -> None:
    chance = random.Random(seed)
    world = World(dict.fromkeys("abc", 2))
    waiting, running = list(wanted), list[Any]()
    for _ in range(400):
        chance.shuffle(waiting)
        for one in waiting.copy():
            if world.take(one[0], **one[1]):
                waiting.remove(one)
                running.append(one)
        held = Counter[str]()
        for _, needs in running:
            held.update(needs)
        assert all(count <= 2 for count in held.values())
        if running:
            slot, needs = running.pop(chance.randrange(len(running)))
            world.workers[slot].give(needs)
        if not waiting:
            return
    raise AssertionError(f"{waiting} never had a turn")
