from __future__ import annotations

import asyncio
import threading
from functools import partial

from headrace.errors import (
    HeadraceError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from server.processes.truth_commits import PENDING_MAX, TruthCommits


class Disk:
    """An append that waits for leave, as an fsync does."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.leave = threading.Semaphore(0)
        self.appended: list[list[int]] = []

    def append(self, records: list[int]) -> None:
        self.begun.release()
        assert self.leave.acquire(timeout=10)
        if -1 in records:
            raise InvalidArgumentError("bad record")
        if -2 in records:
            raise UnavailableError("disk full")
        self.appended.append(list(records))


async def test_no_answer_before_the_disk_and_one_append_for_all_that_came_meanwhile() -> None:
    disk = Disk()
    commits = TruthCommits(disk.append)
    running = asyncio.create_task(commits.run())
    answers: list[tuple[int, HeadraceError | None]] = []

    def note(number: int, error: HeadraceError | None) -> None:
        answers.append((number, error))

    commits.submit([1], partial(note, 1))
    await asyncio.to_thread(disk.begun.acquire)
    for number in (2, 3, 4):
        commits.submit([number], partial(note, number))
    assert answers == []
    disk.leave.release()
    await asyncio.to_thread(disk.begun.acquire)
    assert answers == [(1, None)]
    disk.leave.release()
    commits.close()
    await running
    assert disk.appended == [[1], [2, 3, 4]]
    assert answers == [(1, None), (2, None), (3, None), (4, None)]
    assert (commits.accepted, commits.refused) == (4, 0)


async def test_one_bad_call_does_not_refuse_its_group() -> None:
    disk = Disk()
    for _ in range(10):
        disk.leave.release()
    commits = TruthCommits(disk.append)
    answers: dict[int, HeadraceError | None] = {}
    for number in (1, -1, 2):
        commits.submit([number], partial(answers.__setitem__, number))
    commits.close()
    await commits.run()
    assert disk.appended == [[1], [2]]
    assert answers[1] is answers[2] is None
    assert isinstance(answers[-1], InvalidArgumentError)


async def test_a_full_disk_refuses_all_and_the_next_group_is_tried_afresh() -> None:
    disk = Disk()
    for _ in range(10):
        disk.leave.release()
    commits = TruthCommits(disk.append)
    running = asyncio.create_task(commits.run())
    results: asyncio.Queue[HeadraceError | None] = asyncio.Queue()
    commits.submit([-2], results.put_nowait)
    assert isinstance(await results.get(), UnavailableError)
    commits.submit([5], results.put_nowait)
    assert await results.get() is None
    commits.close()
    await running


async def test_what_waits_is_bounded() -> None:
    commits: TruthCommits[int] = TruthCommits(lambda _records: None)
    answers: list[HeadraceError | None] = []
    commits.submit([0] * PENDING_MAX, answers.append)
    commits.submit([0], answers.append)
    assert len(answers) == 1
    assert isinstance(answers[0], ResourceExhaustedError)
    commits.close()
    await commits.run()
    assert answers[1:] == [None]
