"""What one worker was asked to change, told to all: with workers that are no processes."""

from __future__ import annotations

import json
from typing import Any

from server.processes.live_settings import CHANGED, LiveSettings


class Worker:
    def __init__(self) -> None:
        self.lines: list[Any] = []

    def send_line(self, line: bytes) -> None:
        self.lines.append(json.loads(line))


class Workers:
    def __init__(self, *workers: Worker) -> None:
        self.workers = list(workers)

    def taking(self) -> Any:
        return self.workers


def test_all_are_told_in_one_order_and_who_comes_later_begins_with_it() -> None:
    workers = Workers(Worker(), Worker())
    live = LiveSettings(workers)
    asked: Any = workers.workers[1]
    live.hear(asked, {"event": "ready"})
    for name, value in (("logging", {"log_info": False}), ("tracing", {"": {"trace_rate": 5}}),
                        ("logging", {"log_error": False}), ("tracing", {"": {}})):  # fmt: skip
        live.hear(asked, {"event": CHANGED, "name": name, "value": value})
    for worker in workers.workers:
        assert worker.lines == [
            {CHANGED: {"logging": {"log_info": False}}},
            {CHANGED: {"tracing": {"": {"trace_rate": 5}}}},
            {CHANGED: {"logging": {"log_error": False}}},
            {CHANGED: {"tracing": {"": {}}}},
        ]
    assert live.changed == {
        "logging": {"log_info": False, "log_error": False}, "tracing": {"": {}},
    }  # fmt: skip
