"""Resources of runs: who gets them, in which turn, and that batches wait for them."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from headrace.errors import FailedPreconditionError
from server.execution.batcher import Batcher
from server.execution.rate_limiter import Claim, RateLimiter, claim_of
from server.execution.statistics import Statistics
from server.execution.threads import RunThreads


@dataclass(eq=False)
class Runner:
    """Has runs to do, and tries when it is told to."""

    claim: Claim
    left: int = 0
    running: int = 0
    told: bool = False
    done: int = 0

    def __post_init__(self) -> None:
        self.claim.owner = self

    @property
    def could_run(self) -> bool:
        return self.left > 0

    def go_on(self) -> None:
        self.told = True

    def attempt(self) -> bool:
        self.told = False
        if self.left and self.claim.take():
            self.left -= 1
            self.running += 1
            return True
        return False

    def end(self) -> None:
        self.running -= 1
        self.done += 1
        self.claim.give()


def runner(limiter: RateLimiter, left: int = 1, priority: int = 1, **needs: int) -> Runner:
    return Runner(limiter.claim(needs, priority), left)


def test_there_is_as_much_as_the_largest_need() -> None:
    limiter = RateLimiter({})
    large, small = runner(limiter, memory=4), runner(limiter, 9, memory=2)
    assert small.attempt()
    assert small.attempt()
    assert not small.attempt()
    assert not large.attempt()
    small.end()
    assert large.told  # and waits on: half is not enough
    assert not large.attempt()


def test_a_name_counts_in_any_case() -> None:
    limiter = RateLimiter({"R1": 1})
    first, second = runner(limiter, r1=1), runner(limiter, R1=1)
    assert first.attempt()
    assert not second.attempt()


def test_a_need_that_can_never_be_met_is_refused() -> None:
    limiter = RateLimiter({"r1": 1})
    with pytest.raises(FailedPreconditionError, match=r'"r1" is limited to 1 .* count is 4'):
        limiter.claim({"R1": 4}, 1)


def test_other_resources_are_not_in_the_way() -> None:
    limiter = RateLimiter({})
    first, waits, other = runner(limiter, a=1), runner(limiter, a=1), runner(limiter, b=1)
    assert first.attempt()
    assert not waits.attempt()
    assert other.attempt()


def test_small_needs_do_not_overtake_a_large_one_for_ever() -> None:
    limiter = RateLimiter({"a": 2})
    small, large = runner(limiter, 9, a=1), runner(limiter, a=2)
    assert small.attempt()
    assert not large.attempt()
    assert not small.attempt()  # one is free, and is kept for the large one
    small.end()
    assert not small.attempt()
    assert large.attempt()


def test_who_has_nothing_to_run_any_more_is_in_nobodys_way() -> None:
    limiter = RateLimiter({"a": 2})
    small, large = runner(limiter, 9, a=1), runner(limiter, a=2)
    assert small.attempt()
    assert not large.attempt()
    large.left = 0  # its callers left
    assert small.attempt()


@pytest.mark.parametrize(("priorities", "shares"), [((1, 2), (200, 100)), ((0, 3), (225, 75))])
def test_turns_are_by_priority(priorities: tuple[int, int], shares: tuple[int, int]) -> None:
    limiter = RateLimiter({})
    runners = [runner(limiter, 1000, priority, a=1) for priority in priorities]
    for _ in range(300):
        running = next(each for each in [*runners, *runners] if each.attempt())
        for other in runners:
            assert other is running or not other.attempt()
        running.end()
    assert [each.done for each in runners] == pytest.approx(shares, abs=2)


def test_who_was_idle_saves_up_no_turns() -> None:
    limiter = RateLimiter({})
    busy, late = runner(limiter, 1000, a=1), runner(limiter, 0, a=1)
    for _ in range(100):
        assert busy.attempt()
        busy.end()
    late.left = 1000
    for _ in range(10):
        for one, other in ((late, busy), (busy, late)):
            assert one.attempt()
            assert not other.attempt()
            assert not one.attempt()
            one.end()
    assert abs(busy.done - 100 - late.done) <= 1


class Others:
    """What other workers leave: `free` of each resource."""

    def __init__(self) -> None:
        self.free = Counter[str]()
        self.again: list[Callable[[], None]] = []
        self.gave_up = 0

    def take(
        self, needs: Mapping[str, int], counts: Mapping[str, int], again: Callable[[], None]
    ) -> bool:
        assert all(counts[name] >= count for name, count in needs.items())
        if any(self.free[name] < count for name, count in needs.items()):
            self.again.append(again)
            return False
        self.free.subtract(needs)
        return True

    def give(self, needs: Mapping[str, int]) -> None:
        self.free.update(needs)

    def give_up(self) -> None:
        self.gave_up += 1


def test_what_is_counted_together_is_asked_for_again() -> None:
    others = Others()
    limiter = RateLimiter({}, others)
    claim = limiter.claim({"A": 2, "b": 1}, 1, ["A"])
    assert claim.shared == {"a": 2}
    one, alone = Runner(claim, 2), runner(limiter, 1, c=1)
    assert alone.attempt()
    assert not one.attempt()
    others.free["a"] = 2
    others.again.pop()()
    assert one.told
    assert others.gave_up == 0
    assert one.attempt()
    assert others.free["a"] == 0
    assert not one.attempt()  # its own run holds it
    one.end()
    assert others.free["a"] == 2
    one.left = 0
    alone.end()
    assert others.gave_up == 1


NAMES = ("a", "b", "c")
NEEDS = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 3), min_size=1)


@given(st.lists(st.tuples(NEEDS, st.integers(0, 3)), min_size=1, max_size=5), st.integers())
def test_nothing_is_given_twice_and_all_that_waits_runs(models: Any, seed: int) -> None:
    chance = random.Random(seed)
    counts = dict.fromkeys(NAMES, 4)
    limiter = RateLimiter(counts)
    runners = [Runner(limiter.claim(*model), chance.randint(0, 4)) for model in models]
    wanted = [each.left for each in runners]
    for each in runners:
        each.told = True
    running: list[Runner] = []
    while running or any(each.told for each in runners):
        told = [each for each in runners if each.told]
        if told and (not running or chance.random() < 0.7):
            one = chance.choice(told)
            while one.attempt():
                running.append(one)
        else:
            running.pop(chance.randrange(len(running))).end()
        taken = Counter[str]()
        for each in running:
            taken.update(each.claim.needs)
        assert all(taken[name] <= count for name, count in counts.items())
    assert [each.done for each in runners] == wanted  # nobody is told too little


def config_of(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_the_configuration_s_words() -> None:
    config = config_of("""
        instance_group { rate_limiter {
            resources { name: "R1" count: 2 } resources { name: "R2" global: true count: 1 }
            priority: 3 } }
        instance_group { rate_limiter { resources { name: "r1" count: 5 } priority: 2 } }
    """)
    claim = claim_of(config, RateLimiter({}))
    assert claim is not None
    assert (claim.needs, claim.priority) == ({"r1": 5, "r2": 1}, 2)
    assert claim.shared == {"r2": 1}
    assert claim_of(config, None) is None
    assert claim_of(config_of("instance_group { count: 2 }"), RateLimiter({})) is None
    assert claim_of(config_of(""), RateLimiter({})) is None


# Batches.


@pytest.fixture
def threads() -> Iterator[RunThreads]:
    with RunThreads(4, 4) as threads:
        yield threads


class Model:
    """Doubles its input, where its gate is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.runs = 0

    def run(self, feeds: list[Any]) -> list[Any]:
        self.runs += 1
        assert self.gate.wait(30)
        return [feeds[0] * 2]

    def batcher(self, threads: RunThreads, claim: Claim | None, run_ns: int) -> Batcher:
        made = Batcher(self.run, 1, Statistics(), threads, name="m", runs_max=2, claim=claim)
        made.expect(1, run_ns)
        return made


SHORT_NS, LONG_NS = 1_000, 50_000_000  # runs in the loop; in threads


async def answers(*batchers: Batcher) -> list[float]:
    feeds = [np.array([[float(at)]], np.float32) for at in range(20)]
    asked = [batcher.submit([feed], 1, None) for feed in feeds for batcher in batchers]
    return [float(arrays[0][0, 0]) for arrays, _ in await asyncio.gather(*asked)]


@pytest.mark.parametrize("run_ns", [SHORT_NS, LONG_NS])
async def test_all_get_their_turn(threads: RunThreads, run_ns: int) -> None:
    limiter, models = RateLimiter({}), (Model(), Model())
    batchers = [each.batcher(threads, limiter.claim({"x": 1}, 1), run_ns) for each in models]
    expected = [at * 2 for at in range(20) for _ in models]
    assert await asyncio.wait_for(answers(*batchers), 30) == expected
    assert [each.runs for each in models] == [20, 20]


@pytest.mark.parametrize("limited", [True, False])
async def test_a_run_waits_for_what_another_holds(threads: RunThreads, limited: bool) -> None:
    limiter, models = RateLimiter({}), (Model(), Model())
    one, other = (
        each.batcher(threads, limiter.claim({"x": 1}, 1) if limited else None, LONG_NS)
        for each in models
    )
    for model in models:
        model.gate.clear()
    feed = [np.ones((1, 1), np.float32)]
    first = asyncio.ensure_future(one.submit(feed, 1, None))
    second = asyncio.ensure_future(other.submit(feed, 1, None))
    for _ in range(5):
        await asyncio.sleep(0)
    assert (one.running, other.running) == (1, 0 if limited else 1)
    for model in models:
        model.gate.set()
    await asyncio.wait_for(asyncio.gather(first, second), 30)
    assert models[1].runs == 1


async def test_callers_that_left_hold_nothing(threads: RunThreads) -> None:
    limiter, model = RateLimiter({}), Model()
    one, other = (model.batcher(threads, limiter.claim({"x": 1}, 1), SHORT_NS) for _ in range(2))
    blocker = limiter.claim({"x": 1}, 1)
    assert blocker.take()
    left = asyncio.ensure_future(one.submit([np.zeros((1, 1), np.float32)], 1, None))
    stays = asyncio.ensure_future(other.submit([np.ones((1, 1), np.float32)], 1, None))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.sleep(0)
    assert model.runs == 0
    blocker.give()
    arrays, _ = await asyncio.wait_for(stays, 30)
    assert arrays[0].tolist() == [[2.0]]
    assert model.runs == 1
    await asyncio.sleep(0)
    assert blocker.take()
