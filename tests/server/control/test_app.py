"""Control's background tasks."""

from __future__ import annotations

import asyncio

import pytest

from server.control import app
from server.control.app import BackgroundTask
from tests.server.control.conftest import LiveControl
from tests.server.processes.running import TIMEOUT_S


def test_health_tells_of_the_tasks(control: LiveControl) -> None:
    well = {"state": "running", "failures": 0, "error": None}
    assert control.client.health()["tasks"] == {"monitor": well, "expiry": well}


async def test_a_task_that_fails_is_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_RESTART_BASE_S", 0.001)
    begun: asyncio.Queue[int] = asyncio.Queue()
    states: list[object] = []

    async def work() -> None:
        states.append(task.status()["state"])
        begun.put_nowait(len(states))
        if len(states) < 3:
            raise ValueError("secret")
        await asyncio.Event().wait()

    task = BackgroundTask("odd", work)
    async with asyncio.timeout(TIMEOUT_S):
        while await begun.get() < 3:
            pass
    assert task.status() == {"state": "running", "failures": 2, "error": "ValueError"}
    assert states == ["running"] * 3
    await task.stop()
