"""Commands about models, with workers that are no processes: what is waited for, what stands."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from server.processes.model_commands import ASKED, COMMAND, DONE, OUTCOME, REFRESH, ModelCommands

LOAD = {"op": "load", "name": "m"}


@dataclass
class _Spec:
    role: str = "worker-0"


@dataclass(eq=False)
class Worker:
    """Answers commands as the test says: by `error`, by its end, or not at all."""

    pid: int
    error: str | None = None
    dies: bool = False
    ready: dict[str, Any] = field(default_factory=lambda: {"event": "ready"})
    spec: _Spec = field(default_factory=_Spec)
    commands: Any = None
    lines: list[dict[str, Any]] = field(default_factory=list)
    outcomes: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def send_line(self, line: bytes) -> None:
        said = json.loads(line)
        if OUTCOME in said:
            self.outcomes.put_nowait(said[OUTCOME])
            return
        self.lines.append(said)
        if COMMAND not in said or not self.ready:
            return
        if self.dies:
            self.ended.set()
            return
        number, step = said[COMMAND]["number"], said[COMMAND]["step"]
        event = {"event": DONE, "number": number, "step": step, "error": self.error}
        asyncio.get_running_loop().call_soon(self.commands.hear, self, event)

    async def wait(self) -> int:
        await self.ended.wait()
        return -9


class World:
    """Commands over some workers; the first one is asked."""

    def __init__(self, folder: Path, *workers: Worker) -> None:
        self.workers = list(workers)
        self.standing = folder / "models.json"
        self.commands = ModelCommands(self, self.standing, folder / "files")  # type: ignore[arg-type]
        for worker in workers:
            worker.commands = self.commands

    def taking(self) -> list[Worker]:
        return self.workers

    async def ask(self, command: dict[str, Any], request_id: int = 1) -> str | None:
        asker = self.workers[0]
        self.commands.hear(asker, {"event": ASKED, "id": request_id, "command": command})  # type: ignore[arg-type]
        outcome = await asyncio.wait_for(asker.outcomes.get(), 10)
        assert outcome["id"] == request_id
        error: str | None = outcome["error"]
        return error

    def steps(self) -> list[list[str]]:
        return [[line[COMMAND]["step"] for line in worker.lines] for worker in self.workers]

    def kept(self) -> Any:
        return json.loads(self.standing.read_text()) if self.standing.is_file() else None


async def test_all_are_asked_and_what_stands_is_written_down(tmp_path: Path) -> None:
    world = World(tmp_path, Worker(1), Worker(2))
    assert await world.ask(LOAD) is None
    assert await world.ask({"op": "unload", "name": "n"}, 2) is None
    assert world.kept() == [LOAD, {"op": "unload", "name": "n"}]
    assert [line[COMMAND]["number"] for line in world.workers[1].lines] == [1, 1, 2, 2]
    assert world.steps() == [["prepare", "take"] * 2] * 2


async def test_an_error_is_everybodys(tmp_path: Path) -> None:
    world = World(tmp_path, Worker(1), Worker(2, error="no memory"))
    assert await world.ask(LOAD) == "no memory"
    assert world.kept() is None
    assert world.steps() == [["prepare", "drop"]] * 2  # and both serve what they did
    assert world.workers[0].lines[-1][COMMAND]["error"] == "no memory"


async def test_what_kills_whoever_does_it_does_not_stand(tmp_path: Path) -> None:
    """Found by a review: each successor would have done it, and died."""
    world = World(tmp_path, Worker(1, dies=True), Worker(2, dies=True))
    assert await world.ask(LOAD) == "failed to load 'm', the worker that tried it ended"
    assert world.kept() is None


async def test_one_that_dies_while_another_does_it_is_no_failure(tmp_path: Path) -> None:
    world = World(tmp_path, Worker(1), Worker(2, dies=True))
    assert await world.ask(LOAD) is None
    assert world.kept() == [LOAD]


async def test_one_that_starts_meanwhile_is_told_and_not_waited_for(tmp_path: Path) -> None:
    starting = Worker(2, ready={})
    world = World(tmp_path, Worker(1), starting)
    assert await world.ask(LOAD) is None
    assert world.steps() == [["prepare", "take"], ["do"]]


async def test_one_that_starts_is_not_told_what_others_could_not_do(tmp_path: Path) -> None:
    world = World(tmp_path, Worker(1, error="no model"), Worker(2, ready={}))
    assert await world.ask(LOAD) == "no model"
    assert world.steps() == [["prepare", "drop"], []]


async def test_what_the_folder_says_is_not_written_down(tmp_path: Path) -> None:
    world = World(tmp_path, Worker(1), Worker(2))
    assert await world.ask({"op": REFRESH, "name": "m"}) is None
    assert world.steps() == [["prepare", "take"]] * 2
    assert world.kept() is None


async def test_a_disk_that_is_full_is_an_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path, Worker(1))
    with patch.object(Path, "write_bytes", side_effect=OSError(28, "no space")):
        assert await world.ask(LOAD) == "failed to load 'm', the log has the cause"
    assert "no space" in caplog.text
    assert world.steps() == [["prepare", "drop"]]
    assert await world.ask(LOAD, 2) is None


async def test_files_of_another_start_are_gone(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "old").write_bytes(b"x")
    (tmp_path / "models.json").write_text("[]")
    world = World(tmp_path, Worker(1))
    assert not (tmp_path / "files").exists()
    assert world.kept() is None
