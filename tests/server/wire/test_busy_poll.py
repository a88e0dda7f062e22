"""Busy polling: awake through short gaps only."""

import asyncio
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from server.wire import busy_poll
from server.wire.busy_poll import BusyPoll

SPIN_NS = 100_000


class Loop(asyncio.AbstractEventLoop):
    """Counts rounds; each takes `round_ns` of a clock of its own."""

    def __init__(self) -> None:
        self.now_ns = 10 * SPIN_NS
        self.due: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:  # type: ignore[override]
        self.due.append(partial(callback, *args))

    def rounds(self, round_ns: int = 10_000) -> int:
        """Run until the loop would sleep; return how many rounds that took."""
        count = 0
        while self.due:
            count += 1
            self.now_ns += round_ns
            due, self.due = self.due, []
            for callback in due:
                callback()
        return count


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    loop = Loop()
    monkeypatch.setattr(busy_poll, "time", SimpleNamespace(monotonic_ns=lambda: loop.now_ns))
    return loop


def test_a_sparse_load_never_spins(loop: Loop) -> None:
    poll = BusyPoll(loop, SPIN_NS)
    for _ in range(5):
        loop.now_ns += SPIN_NS
        poll.tick_over(loop.now_ns)
        assert loop.rounds() == 0


def test_after_a_short_gap_the_loop_stays_awake_for_one_more(loop: Loop) -> None:
    poll = BusyPoll(loop, SPIN_NS)
    poll.tick_over(loop.now_ns)
    loop.now_ns += SPIN_NS // 2
    poll.tick_over(loop.now_ns)
    assert loop.rounds() == 10  # then it sleeps


def test_ticks_go_on_while_it_is_awake_and_one_callback_is_enough(loop: Loop) -> None:
    poll = BusyPoll(loop, SPIN_NS)
    poll.tick_over(loop.now_ns)
    for _ in range(5):
        loop.now_ns += SPIN_NS // 2
        poll.tick_over(loop.now_ns)
        assert len(loop.due) == 1
    assert loop.rounds() == 10


class Threads:
    """Runs that need every core, or not; notes the rests."""

    def __init__(self, rest_ns: float) -> None:
        self.for_ns = rest_ns
        self.rests: list[float] = []

    def crowded(self) -> bool:
        return self.for_ns > 0

    def rest_ns(self) -> float:
        return self.for_ns

    def rest(self, for_ns: float) -> None:
        self.rests.append(for_ns)


def test_it_rests_where_threads_need_the_core(loop: Loop) -> None:
    threads = Threads(300)
    poll = BusyPoll(loop, SPIN_NS, threads)
    poll.tick_over(loop.now_ns)
    loop.now_ns += SPIN_NS  # too long a gap: nothing is gained
    poll.tick_over(loop.now_ns)
    assert loop.rounds() == 0
    loop.now_ns += SPIN_NS // 2
    poll.tick_over(loop.now_ns)
    poll.tick_over(loop.now_ns)  # one rest is enough
    assert loop.rounds() == 1
    assert threads.rests == [300]


def test_it_stops_spinning_when_they_come(loop: Loop) -> None:
    threads = Threads(0)
    poll = BusyPoll(loop, SPIN_NS, threads)
    poll.tick_over(loop.now_ns)
    poll.tick_over(loop.now_ns)
    threads.for_ns = 300
    assert loop.rounds() == 1
    assert threads.rests == []


def test_what_came_during_a_rest_may_have_come_at_its_start(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = Threads(300)
    poll = BusyPoll(loop, SPIN_NS, threads)
    poll.tick_over(loop.now_ns)
    poll.tick_over(loop.now_ns)

    def rest(for_ns: float) -> None:
        loop.now_ns += 250

    monkeypatch.setattr(threads, "rest", rest)
    loop.rounds()
    assert poll.came_ns(loop.now_ns, loop.now_ns) == loop.now_ns - 250
    assert poll.came_ns(loop.now_ns, loop.now_ns) == loop.now_ns  # that was before the last look


def test_what_is_read_while_threads_have_every_core_may_be_as_old_as_the_last_look(
    loop: Loop,
) -> None:
    threads = Threads(300)
    poll = BusyPoll(loop, SPIN_NS, threads)
    poll.came_ns(loop.now_ns, loop.now_ns)
    loop.now_ns += 3_000_000
    assert poll.came_ns(loop.now_ns, loop.now_ns) == loop.now_ns - 3_000_000
    loop.now_ns += 3_600_000_000_000  # nothing came for an hour: it was not kept waiting so long
    assert loop.now_ns - poll.came_ns(loop.now_ns, loop.now_ns) == 5_000_000
    threads.for_ns = 0
    loop.now_ns += 3_000_000
    assert poll.came_ns(loop.now_ns, loop.now_ns) == loop.now_ns


def test_what_a_tick_reads_right_behind_another_came_during_that(loop: Loop) -> None:
    poll = BusyPoll(loop, SPIN_NS)
    began_ns = loop.now_ns
    poll.came_ns(began_ns, began_ns)
    loop.now_ns += 9_000_000  # a long tick
    poll.tick_over(began_ns)
    loop.now_ns += SPIN_NS // 2
    woken_ns = loop.now_ns
    loop.now_ns += 2_000_000  # to read much takes its time
    assert poll.came_ns(woken_ns, loop.now_ns) == began_ns
    poll.tick_over(loop.now_ns)
    loop.now_ns += SPIN_NS  # it slept
    assert poll.came_ns(loop.now_ns, loop.now_ns) == loop.now_ns
