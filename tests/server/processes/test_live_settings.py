"""What one worker was asked to change, told to all: with workers that are no processes."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

from server.processes.live_settings import CHANGED, DONE, OUTCOME, LiveSettings

CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("logging", {"log_info": False}),
    ("tracing", {"": {"trace_rate": 5}}),
    ("logging", {"log_error": False}),
    ("tracing", {"": {}}),
]


class Worker:
    """`hangs`: it takes lines and says nothing."""

    def __init__(self, pid: int, *, ready: bool = True, hangs: bool = False) -> None:
        self.pid = pid
        self.spec = SimpleNamespace(role=f"worker-{pid}")
        self.ready = {"grpc": "x"} if ready else {}
        self.hangs = hangs
        self.live: LiveSettings
        self.lines: asyncio.Queue[Any] = asyncio.Queue()
        self.ended = asyncio.Event()

    def send_line(self, line: bytes) -> None:
        said = json.loads(line)
        self.lines.put_nowait(said)
        if CHANGED in said and self.ready and not self.hangs:
            self.say({"event": DONE, "number": said[CHANGED]["number"]})

    def say(self, event: dict[str, Any]) -> None:
        this: Any = self
        asyncio.get_running_loop().call_soon(self.live.hear, this, event)

    async def wait(self) -> None:
        await self.ended.wait()


class Workers:
    def __init__(self, *workers: Worker) -> None:
        self.workers = list(workers)
        self.live = LiveSettings(self)
        for worker in workers:
            worker.live = self.live

    def taking(self) -> Any:
        return self.workers


def changes(*pairs: tuple[str, dict[str, Any]], begin: int = 1) -> list[Any]:
    return [
        {CHANGED: {"number": number, "settings": {name: value}}}
        for number, (name, value) in enumerate(pairs, begin)
    ]


async def lines(worker: Worker, count: int) -> list[Any]:
    return [await worker.lines.get() for _ in range(count)]


async def test_all_are_told_in_one_order_and_who_comes_later_begins_with_it() -> None:
    workers = Workers(Worker(1), Worker(2), Worker(3, ready=False))
    live, asked = workers.live, workers.workers[1]
    asked.say({"event": "ready"})
    for name, value in CHANGES:
        workers.workers[0].say({"event": CHANGED, "name": name, "value": value, "id": 1})
    for worker in workers.workers[1:]:
        assert await lines(worker, 4) == changes(*CHANGES)
    assert live.changed == {
        "logging": {"log_info": False, "log_error": False}, "tracing": {"": {}},
    }  # fmt: skip


async def test_whoever_asks_hears_of_it_when_all_that_live_have_it() -> None:
    workers = Workers(Worker(1), Worker(2, hangs=True))
    asked, other = workers.workers
    change = ("logging", {"log_info": False})
    asked.say({"event": CHANGED, "name": change[0], "value": change[1], "id": 7})
    assert await lines(asked, 1) == await lines(other, 1) == changes(change)
    assert asked.lines.empty()
    other.say({"event": DONE, "number": 1})
    assert await lines(asked, 1) == [{OUTCOME: {"id": 7, "error": None}}]
    asked.say({"event": CHANGED, "name": change[0], "value": change[1], "id": 8})
    assert await lines(asked, 1) == await lines(other, 1) == changes(change, begin=2)
    other.ended.set()  # its successor begins with it
    assert await lines(asked, 1) == [{OUTCOME: {"id": 8, "error": None}}]
