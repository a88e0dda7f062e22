"""Which place each worker has among those that share tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import UnavailableError
from server.config import Settings
from server.processes.child import ChildSpec
from server.processes.layout import DataDir
from server.processes.workers import Workers

SETTINGS = Settings(workers=2, nursery=False)


class Supervisor:
    """Has the places of those that live by their role. A start fails where it is told so."""

    def __init__(self) -> None:
        self.living: dict[str, int] = {}
        self.fails: str | None = None

    async def start(self, specs: list[ChildSpec]) -> None:
        for spec in specs:
            self.living[spec.role] = place_of(spec)

    async def replace(self, spec: ChildSpec) -> None:
        place = place_of(spec)
        assert place not in self.living.values(), "two that live have one place"
        if spec.role == self.fails:
            raise UnavailableError(f"{spec.role} did not start")
        self.living[spec.role] = place


def place_of(spec: ChildSpec) -> int:
    config = json.loads(spec.command(None)[-1])
    assert 0 <= config["slot"] < config["slots"] == 4
    return int(config["slot"])


async def test_a_worker_that_does_not_start_leaves_the_older_one_its_place(tmp_path: Path) -> None:
    supervisor: Any = Supervisor()
    workers = Workers(
        supervisor, lambda _: {"model_repository": []}, {}, {}, DataDir(tmp_path), windows=False
    )
    await workers.start(SETTINGS)
    for fails in (None, "worker-1", None, "worker-1", "worker-1", "worker-0", None, None):
        supervisor.fails = fails
        if fails is None:
            await workers.reload(SETTINGS)
            await workers.replace(1)
            continue
        with pytest.raises(UnavailableError):
            await workers.reload(SETTINGS)
        with pytest.raises(UnavailableError):
            await workers.replace(int(fails[-1]))
    assert sorted(supervisor.living) == ["worker-0", "worker-1"]
