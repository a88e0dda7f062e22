"""Resources that several workers count together, by the file that they map."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.errors import UnavailableError
from server.execution.rate_limiter import RateLimiter
from server.execution.shared_resources import SharedResources
from tests.server.execution.test_rate_limiter import Runner

HOLDER = """
import sys
from pathlib import Path
from server.execution.shared_resources import SharedResources
resources = SharedResources(Path(sys.argv[1]), 3, 2)
assert resources.take({"a": 1}, {"a": 1}, print)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table"


@pytest.fixture
def workers(path: Path) -> Iterator[list[SharedResources]]:
    made = [SharedResources(path, 3, slot) for slot in range(2)]
    yield made
    for each in made:
        each.close()


async def test_whoever_waits_is_told_in_a_moment(workers: list[SharedResources]) -> None:
    one, other = workers
    told = asyncio.Event()
    assert one.take({"a": 1}, {"a": 1}, told.set)
    assert not other.take({"a": 1}, {"a": 1}, told.set)
    await asyncio.wait_for(told.wait(), 10)
    one.give({"a": 1})
    assert other.take({"a": 1}, {"a": 1}, told.set)


async def test_what_a_killed_worker_held_is_free(
    path: Path, workers: list[SharedResources]
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, str(path),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.readline() == b"held\n"
    assert not workers[0].take({"a": 1}, {"a": 1}, lambda: None)
    process.kill()
    await process.wait()
    assert workers[0].take({"a": 1}, {"a": 1}, lambda: None)


def test_a_place_is_one_workers(path: Path, workers: list[SharedResources]) -> None:
    with pytest.raises(UnavailableError, match="place 1 of the workers is taken"):
        SharedResources(path, 3, 1)
    workers[1].close()
    workers[1] = SharedResources(path, 3, 1)


async def test_limiters_of_two_workers_take_turns(workers: list[SharedResources]) -> None:
    limiters = [RateLimiter({"a": 1}, shared) for shared in workers]
    ended = asyncio.Event()
    order: list[int] = []
    holds: list[int] = []

    class Worker(Runner):
        def go_on(self) -> None:
            if not self.attempt():
                return
            place = runners.index(self)
            assert holds == [], "both hold it"
            holds.append(place)
            order.append(place)
            asyncio.get_running_loop().call_later(0.001, self._over)

        def _over(self) -> None:
            holds.clear()
            self.end()
            self.go_on()
            if not any(each.left or each.running for each in runners):
                ended.set()

    runners = [Worker(limiter.claim({"A": 1}, 1, ["A"]), 20) for limiter in limiters]
    for each in runners:
        each.go_on()
    await asyncio.wait_for(ended.wait(), 30)
    assert sorted(order) == [0] * 20 + [1] * 20
    assert max(len(run) for run in "".join(map(str, order[:30])).replace("01", "0 1")
               .replace("10", "1 0").split()) <= 5, "nobody has it for long"  # fmt: skip


async def test_what_is_not_global_each_worker_has(workers: list[SharedResources]) -> None:
    for shared in workers:
        assert RateLimiter({"a": 1}, shared).claim({"a": 1}, 1).take()


async def test_who_left_the_queue_holds_nobody_up(workers: list[SharedResources]) -> None:
    first, second = (RateLimiter({"a": 1}, shared) for shared in workers)
    holds = Runner(first.claim({"a": 1}, 1, ["a"]), 2)
    leaves = Runner(second.claim({"a": 1}, 1, ["a"]), 1)
    assert holds.attempt()
    assert not leaves.attempt()
    leaves.left = 0  # its callers left
    second.try_again()
    holds.end()
    assert holds.attempt()
