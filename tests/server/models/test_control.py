"""Models that come, change and go: by request, and by what is in the folder."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from headrace.errors import (
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from server.execution.engine import Asked
from server.execution.threads import RunThreads
from server.models import control as control_module
from server.models.budget import MemoryBudget
from server.models.control import ModelControl, fingerprints
from server.models.loading import Overrides
from server.models.repository import ModelRepository
from tests.server.onnx_models import add_model, mlp_model, put
from tests.support.memory import anonymous_bytes


@pytest.fixture
def executor() -> Iterator[RunThreads]:
    with RunThreads(2, 1) as executor:
        yield executor


@pytest.fixture
def repository(tmp_path: Path, executor: RunThreads) -> ModelRepository:
    put(tmp_path, "add", add_model())
    put(tmp_path, "mlp", mlp_model())
    return ModelRepository(tmp_path, executor)


def states(repository: ModelRepository) -> dict[tuple[str, str], tuple[str, str]]:
    return {
        (entry.name, entry.version): (entry.state, entry.reason) for entry in repository.index()
    }


async def left(repository: ModelRepository, name: str, version: str) -> None:
    """Wait until nobody has a version any more: the thread that loaded it lets go last."""
    async with asyncio.timeout(20):
        while states(repository)[name, version] == ("UNLOADING", ""):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert states(repository)[name, version] == ("UNAVAILABLE", "unloaded")


async def test_nothing_is_loaded_until_it_is_asked_for(repository: ModelRepository) -> None:
    control = ModelControl(repository, "explicit")
    await control.start()
    assert states(repository) == {("add", ""): ("", ""), ("mlp", ""): ("", "")}
    with pytest.raises(NotFoundError, match="unknown model: 'add' is not found"):
        repository.get("add")
    await control.load("add")
    assert repository.get("add").version == "1"
    await control.unload("add")
    await left(repository, "add", "1")
    with pytest.raises(NotFoundError, match="'add' has no available versions"):
        repository.get("add")
    with pytest.raises(UnavailableError, match="'add' version 1 is not at ready state"):
        repository.get("add", "1")
    await control.load("add")
    assert states(repository)["add", "1"] == ("READY", "")


@pytest.mark.parametrize(("names", "loaded"), [(["mlp"], ["mlp"]), (["*"], ["add", "mlp"])])
async def test_what_explicit_loads_at_the_start(
    repository: ModelRepository, names: list[str], loaded: list[str]
) -> None:
    await ModelControl(repository, "explicit", at_start=names).start()
    assert [model.name for model in repository.models()] == loaded


@pytest.mark.parametrize("mode", ["none", "poll"])
async def test_requests_decide_nothing_in_other_modes(
    repository: ModelRepository, mode: str
) -> None:
    control = ModelControl(repository, mode, poll_s=3600)  # type: ignore[arg-type]
    await control.start()
    try:
        for change in (control.load("add"), control.unload("add")):
            with pytest.raises(UnavailableError, match="not allowed if polling is enabled"):
                await change
        assert repository.get("add").version == "1"
    finally:
        await control.stop()


@pytest.mark.parametrize("name", ["nope", "", "..", "../add", "add/1", ".hidden", "a" * 300, "\0"])
async def test_what_is_not_in_the_folder(repository: ModelRepository, name: str) -> None:
    with pytest.raises(InternalError, match=r"failed to load .*failed to poll from model repo"):
        await repository.load(name)
    assert {entry.name for entry in repository.index()} == {"add", "mlp"}
    await repository.unload(name)  # as Triton: nothing of it serves


async def test_a_broken_new_version_leaves_the_old_one_serving(
    repository: ModelRepository, tmp_path: Path
) -> None:
    await repository.load("add")
    before = repository.get("add")
    put(tmp_path, "add", add_model()[:50], 2)
    with pytest.raises(InternalError, match=r"failed to load 'add', version 2: .*serves on"):
        await repository.load("add")
    assert repository.get("add") is before
    assert states(repository)["add", "1"] == ("READY", "")
    put(tmp_path, "add", add_model()[:40], 1)
    with pytest.raises(InternalError):
        await repository.load("add")
    assert repository.get("add") is before
    state, reason = states(repository)["add", "2"]
    assert state == "UNAVAILABLE"
    assert "InvalidProtobuf" in reason
    put(tmp_path, "add", add_model(), 2)
    await repository.load("add")
    assert repository.get("add").version == "2"
    assert states(repository)["add", "2"] == ("READY", "")
    assert states(repository)["add", "1"] == ("UNLOADING", "")
    del before
    await left(repository, "add", "1")


async def test_what_was_replaced_answers_those_who_have_it_and_is_then_gone(
    repository: ModelRepository, tmp_path: Path
) -> None:
    await repository.load("mlp")
    old = repository.get("mlp")
    row = np.array([[1.0, 2.0, 3.0]], np.float32)
    before = (await old.infer([row], 1, Asked())).arrays[0]
    put(tmp_path, "mlp", mlp_model(seed=9))
    await repository.load("mlp")
    new = repository.get("mlp")
    assert (await new.infer([row], 1, Asked())).arrays[0] != before
    assert (await old.infer([row], 1, Asked())).arrays[0] == before
    gone = weakref.ref(old)
    del old
    gc.collect()
    assert gone() is None


async def test_memory_of_a_model_that_is_gone_goes_back_to_the_system(
    tmp_path: Path, executor: RunThreads
) -> None:
    """Ten loads of 40 MB each leave less behind than one of them."""
    put(tmp_path, "large", mlp_model(inputs=1_250_000))
    repository = ModelRepository(tmp_path, executor)
    for number in range(11):
        await repository.load("large")
        row = np.zeros((1, 1_250_000), np.float32)
        await repository.get("large").infer([row], 1, Asked())
        await repository.unload("large")
        gc.collect()
        await asyncio.sleep(0.5)
        if number == 0:
            before = anonymous_bytes(os.getpid())
    for _ in range(100):  # on a busy machine it goes back somewhat later
        gc.collect()
        left_bytes = anonymous_bytes(os.getpid()) - before
        if left_bytes < 40 << 20:
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"{left_bytes} bytes are left behind")


async def test_a_configuration_that_comes_with_the_request(repository: ModelRepository) -> None:
    await repository.load("add", Overrides('{"max_batch_size": 16}'))
    assert repository.get("add").max_batch_size == 16
    await repository.load("add")
    assert repository.get("add").max_batch_size == 4096
    for config in ("{", '{"max_batch_sise": 1}', '{"backend": "other"}', '"text"'):
        with pytest.raises(InternalError, match="failed to load 'add'"):
            await repository.load("add", Overrides(config))
    assert repository.get("add").max_batch_size == 4096


async def test_files_that_come_with_the_request(
    repository: ModelRepository, tmp_path: Path
) -> None:
    """Of a model that the folder does not have, too; nothing of them is written there."""
    for name in ("mlp", "new"):
        files = {"1/model.onnx": mlp_model(seed=7), "3/model.onnx": mlp_model(seed=8)}
        await repository.load(name, Overrides("{}", files))
        assert repository.versions(name) == ["3"]
        both = json.dumps({"version_policy": {"all": {}}})
        await repository.load(name, Overrides(both, files))
        assert repository.versions(name) == ["1", "3"]
    assert set(fingerprints(tmp_path)) == {"add", "mlp"}
    await repository.load("mlp")
    assert repository.versions("mlp") == ["1"]


@pytest.mark.parametrize(
    "path",
    ["A" * 256, "model.onnx", "1/../model.onnx", "/1/model.onnx", "1/a/b", "01/model.onnx", "x/y",
     "1/", "", "1/.hidden", "99999999999999999999/model.onnx"],
)  # fmt: skip
async def test_files_of_no_version(repository: ModelRepository, path: str) -> None:
    with pytest.raises(InternalError, match="failed to poll from model repository"):
        await repository.load("add", Overrides("{}", {path: b"a"}))


async def test_files_need_a_configuration(repository: ModelRepository) -> None:
    with pytest.raises(InternalError, match="give the parameter 'config', too"):
        await repository.load("add", Overrides(None, {"1/model.onnx": add_model()}))


@pytest.mark.parametrize(
    "overrides",
    [
        Overrides(" " * 200_000 + "{}"),
        Overrides("{}", {f"{number}/model.onnx": b"" for number in range(1, 100)}),
    ],
)
async def test_overrides_have_limits(repository: ModelRepository, overrides: Overrides) -> None:
    with pytest.raises(InternalError, match=r"failed to poll from model repository.*at most"):
        await repository.load("add", overrides)


async def test_the_folder_is_followed(repository: ModelRepository, tmp_path: Path) -> None:
    control = ModelControl(repository, "poll", poll_s=3600)
    await control.start()
    try:
        first = repository.get("add")
        await control.poll()
        assert repository.get("add") is first  # nothing changed
        put(tmp_path, "add", add_model(), 2)
        put(tmp_path, "late", mlp_model())
        shutil.rmtree(tmp_path / "mlp")
        await control.poll()
        assert repository.get("add").version == "2"
        assert repository.get("late").version == "1"
        with pytest.raises(NotFoundError):
            repository.get("mlp")
        put(tmp_path, "late", mlp_model()[:40])  # as a copy that is under way
        await control.poll()
        assert states(repository)["late", "1"][0] == "READY"
        put(tmp_path, "late", mlp_model(seed=4))
        before = repository.get("late")
        await control.poll()
        assert repository.get("late") is not before
    finally:
        await control.stop()


async def test_a_folder_that_is_gone_for_a_while(
    repository: ModelRepository, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    control = ModelControl(repository, "poll", poll_s=0.01)
    await control.start()
    try:
        looks: list[dict[str, Any]] = []

        def look(root: Path) -> dict[str, Any]:
            if not looks:
                looks.append({})
                raise OSError(errno.ESTALE, "a mount that is gone")
            return fingerprints(root)

        changed = asyncio.Event()
        repository.on_change.append(changed.set)
        with patch.object(control_module, "fingerprints", look):
            put(tmp_path, "late", mlp_model())
            await asyncio.wait_for(changed.wait(), 20)
        assert "a mount that is gone" in caplog.text
        assert repository.versions("late") == ["1"]
        assert repository.versions("add") == ["1"]
    finally:
        await control.stop()


async def test_changes_of_one_model_come_one_after_another(repository: ModelRepository) -> None:
    changes: list[list[str]] = []
    repository.on_change.append(lambda: changes.append(repository.versions("add")))
    await asyncio.gather(*(
        change for _ in range(5) for change in (repository.load("add"), repository.unload("add"))
    ))  # fmt: skip
    assert changes == [["1"], []] * 5


async def test_one_that_cannot_be_loaded_again_says_why_while_it_serves(
    repository: ModelRepository, tmp_path: Path
) -> None:
    await repository.load("add")
    put(tmp_path, "add", add_model()[:50])
    with pytest.raises(InternalError):
        await repository.load("add")
    state, reason = states(repository)["add", "1"]
    assert state == "READY"
    assert "InvalidProtobuf" in reason
    put(tmp_path, "add", add_model())
    await repository.load("add")
    assert states(repository)["add", "1"] == ("READY", "")


@pytest.mark.parametrize(
    "config",
    [
        "input { name: 'INPUT0' data_type: 99 dims: [4] }",
        "".join("input { name: 'INPUT0' data_type: TYPE_INT32 dims: [4] }" for _ in range(2)),
        "max_batch_size: 4 dynamic_batching { priority_levels: 2 }",
        "max_batch_size: 4 dynamic_batching { default_priority_level: 1 }",
    ],
)
async def test_whatever_is_wrong_with_one_model_stops_no_other(
    repository: ModelRepository, tmp_path: Path, config: str
) -> None:
    (tmp_path / "add" / "config.pbtxt").write_text(config)
    await ModelControl(repository, "none").start()
    assert [model.name for model in repository.models()] == ["mlp"]
    with pytest.raises(InternalError, match="failed to load 'add'"):
        await repository.load("add")


async def test_a_version_that_is_no_number(repository: ModelRepository) -> None:
    await repository.load("add")
    for version in ("9" * 5_000, "1.0", "-1", "one"):
        with pytest.raises(InvalidArgumentError, match="failed to get model version"):
            repository.get("add", version)


async def test_a_version_that_is_a_link_is_followed(
    repository: ModelRepository, tmp_path: Path
) -> None:
    control = ModelControl(repository, "poll", poll_s=3600)
    await control.start()
    try:
        store = tmp_path.with_name(tmp_path.name + "-store")
        put(store, "x", add_model(), 2)
        (tmp_path / "add" / "2").symlink_to(store / "x" / "2")
        await control.poll()
        assert repository.get("add").version == "2"
    finally:
        await control.stop()


async def test_the_index_says_what_happens(repository: ModelRepository) -> None:
    """LOADING while it loads, READY while it is replaced, UNLOADING while requests have it."""
    loading = asyncio.create_task(repository.load("add"))
    seen = []
    while not loading.done():
        await asyncio.sleep(0)
        seen.append({key: value for key, value in states(repository).items() if key[0] == "add"})
    assert ("LOADING", "") in seen[0].values()
    assert not repository.failing()
    prepared = await repository.prepare("add")
    assert states(repository)["add", "1"] == ("READY", "")
    prepared.take()
    kept = repository.get("add")
    await repository.unload("add")
    assert states(repository)["add", "1"] == ("UNLOADING", "")
    del kept
    await left(repository, "add", "1")


async def test_what_was_prepared_and_dropped_changes_nothing(
    repository: ModelRepository, tmp_path: Path
) -> None:
    await repository.load("add")
    before = repository.get("add")
    prepared = await repository.prepare("add")
    later = asyncio.create_task(repository.unload("add"))
    await asyncio.sleep(0)
    prepared.drop(UnavailableError("another had no room"))
    assert repository.get("add") is before
    assert states(repository)["add", "1"] == ("READY", "")
    assert states(repository)["add", ""] == ("UNAVAILABLE", "another had no room")
    await later
    with pytest.raises(NotFoundError):
        repository.get("add")


async def test_whether_all_are_ready(repository: ModelRepository, tmp_path: Path) -> None:
    assert repository.all_ready()
    await repository.load_all()
    assert repository.all_ready()
    put(tmp_path, "add", b"no model", 2)
    with pytest.raises(InternalError):
        await repository.load("add")
    assert not repository.all_ready()
    (tmp_path / "add" / "config.pbtxt").write_text("wrong")
    with pytest.raises(InternalError):
        await repository.load("add")
    assert repository.all_ready()  # as it serves, it is whole
    assert list(repository.failing()) == ["add"]
    await repository.unload("add")
    assert repository.all_ready()
    put(tmp_path, "new", b"no model")
    with pytest.raises(InternalError):
        await repository.load("new")
    assert not repository.all_ready()


async def test_several_repositories(tmp_path: Path, executor: RunThreads) -> None:
    put(tmp_path / "one", "add", add_model())
    put(tmp_path / "one", "both", add_model())
    put(tmp_path / "other", "both", add_model())
    put(tmp_path / "other", "mlp", mlp_model())
    repository = ModelRepository([tmp_path / "one", tmp_path / "other"], executor)
    control = ModelControl(repository, "poll", poll_s=3600)
    await control.start()
    try:
        assert [model.name for model in repository.models()] == ["add", "mlp"]
        assert "more than one repository" in states(repository)["both", ""][1]
        shutil.rmtree(tmp_path / "one" / "both")
        await control.poll()
        assert repository.get("both").version == "1"
    finally:
        await control.stop()
    with pytest.raises(NotFoundError, match="not a folder"):
        await ModelRepository([tmp_path / "one", tmp_path / "no"], executor).load_all()


async def test_what_failed_for_a_while_is_tried_again_ever_more_seldom(
    tmp_path: Path, executor: RunThreads
) -> None:
    put(tmp_path, "large", mlp_model(500_000))
    budget = MemoryBudget(1)
    repository = ModelRepository(tmp_path, executor, budget)
    control = ModelControl(repository, "poll", poll_s=3600)
    await control.start()
    tried: list[int] = []

    async def announce(name: str) -> None:
        tried.append(look)
        await control.refresh(name)

    control.announce = announce
    try:
        for look in range(1, 40):
            if look == 31:
                budget.limit_bytes = 1 << 40
            await control.poll()
        assert tried == [1, 3, 7, 15, 31]
        assert repository.get("large").version == "1"
    finally:
        await control.stop()


async def test_a_failed_upload_leaves_no_name_behind(repository: ModelRepository) -> None:
    with pytest.raises(InternalError):
        await repository.load("new", Overrides("{}", {"1/model.onnx": b"no model"}))
    assert {entry.name for entry in repository.index()} == {"add", "mlp"}
    assert not repository.knows("new")
