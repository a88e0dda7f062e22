"""A worker among others: it changes when all are ready, and not when one is not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import InternalError, ResourceExhaustedError, UnavailableError
from server.execution.threads import RunThreads
from server.models.control import ModelControl
from server.models.loading import Overrides
from server.models.repository import ModelRepository
from server.processes.model_commands import DO, DROP, PREPARE, TAKE
from server.shared_control import SharedControl
from tests.server.onnx_models import add_model, put


@pytest.fixture
def executor() -> Iterator[RunThreads]:
    with RunThreads(2, 1) as executor:
        yield executor


class World:
    """One worker's control; the test is its supervisor."""

    def __init__(self, folder: Path, executor: RunThreads, mode: Any = "explicit") -> None:
        self.models = folder / "models"
        put(self.models, "add", add_model())
        self.repository = ModelRepository(self.models, executor)
        self.local = ModelControl(self.repository, mode, poll_s=3600.0)
        self.said: list[dict[str, Any]] = []
        self.control = SharedControl(
            self.local, self.said.append, folder / "standing", folder / "files"
        )
        self._number = 0

    async def step(self, step: str, op: str, *, new: bool = False, error: str = "") -> Any:
        self._number += new
        await self.control.take_command(
            {"op": op, "name": "add", "number": self._number, "step": step, "error": error}
        )
        done = self.said.pop()
        assert (done["number"], done["step"]) == (self._number, step)
        return done["error"]

    def serves(self) -> list[str]:
        return self.repository.versions("add")


@pytest.fixture
async def world(tmp_path: Path, executor: RunThreads) -> World:
    world = World(tmp_path, executor)
    await world.control.start()
    return world


async def test_what_is_prepared_serves_when_all_take_it(world: World) -> None:
    assert await world.step(PREPARE, "load", new=True) is None
    assert world.serves() == []
    assert await world.step(TAKE, "load") is None
    assert world.serves() == ["1"]
    assert await world.step(PREPARE, "unload", new=True) is None
    assert world.serves() == ["1"]
    assert await world.step(TAKE, "unload") is None
    assert world.serves() == []
    assert await world.step(DO, "load", new=True) is None
    assert world.serves() == ["1"]


async def test_what_another_could_not_load_is_dropped_with_its_reason(world: World) -> None:
    assert await world.step(PREPARE, "load", new=True) is None
    assert await world.step(DROP, "load", error="no memory") is None
    assert world.serves() == []
    (entry,) = world.repository.index()
    assert "another worker could not load it: no memory" in entry.reason
    assert await world.step(DO, "load", new=True) is None
    assert world.repository.index()[0].reason == ""


async def test_one_that_fails_has_nothing_to_drop(world: World) -> None:
    put(world.models, "add", b"no model")
    assert "failed to load 'add'" in await world.step(PREPARE, "load", new=True)
    assert await world.step(DROP, "load", error="mine") is None
    put(world.models, "add", add_model())
    assert await world.step(DO, "load", new=True) is None


async def test_a_supervisor_that_goes_leaves_nothing_locked(world: World) -> None:
    assert await world.step(PREPARE, "load", new=True) is None
    asked = asyncio.create_task(world.control.load("add"))
    while not world.said:  # noqa: ASYNC110 - it is another task that says so
        await asyncio.sleep(0.001)
    world.control.leave_alone()
    with pytest.raises(UnavailableError, match="the supervisor is gone"):
        await asked
    assert world.serves() == []
    await asyncio.wait_for(world.repository.load("add"), 20)
    assert world.serves() == ["1"]


async def test_what_the_folder_has_is_loaded_by_all_once(
    tmp_path: Path, executor: RunThreads
) -> None:
    world = World(tmp_path, executor, "poll")
    await world.control.start()
    try:
        first = world.repository.get("add")
        put(world.models, "add", add_model("N"))
        polled = asyncio.create_task(world.local.poll())
        while not world.said:  # noqa: ASYNC110 - it is another task that says so
            await asyncio.sleep(0.001)
        asked = world.said.pop()
        assert asked["command"] == {"op": "refresh", "name": "add"}
        assert await world.step(PREPARE, "refresh", new=True) is None
        assert world.repository.get("add") is first
        assert await world.step(TAKE, "refresh") is None
        second = world.repository.get("add")
        assert second is not first
        world.control.take_outcome({"id": asked["id"], "error": None})
        await polled
        # Another worker saw the same change a moment later.
        assert await world.step(PREPARE, "refresh", new=True) is None
        assert await world.step(TAKE, "refresh") is None
        assert world.repository.get("add") is second
        await world.local.poll()
        assert world.said == []
        world.control.leave_alone()
        put(world.models, "add", add_model())
        await world.local.poll()  # alone, it follows by itself
        assert world.repository.get("add") is not second
    finally:
        await world.local.stop()


async def test_files_that_cannot_be_kept(world: World, tmp_path: Path) -> None:
    (tmp_path / "files").write_text("in the way")
    with pytest.raises(ResourceExhaustedError, match="its files cannot be kept"):
        await world.control.load("add", Overrides("{}", {"1/model.onnx": add_model()}))
    files = {f"{number}/model.onnx": b"" for number in range(1, 100)}
    with pytest.raises(InternalError, match="too many files"):
        await world.control.load("add", Overrides("{}", files))
    assert world.said == []
