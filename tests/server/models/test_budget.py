"""Memory for models: estimates, refusals, and what is measured."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InternalError, ResourceExhaustedError
from server.execution.threads import RunThreads
from server.models.budget import MemoryBudget, available_bytes, share_of_machine
from server.models.integrity import VersionFiles
from server.models.repository import ModelRepository
from tests.server.onnx_models import add_model, mlp_model, put

MIB = 1 << 20


@pytest.fixture
def executor() -> Iterator[RunThreads]:
    with RunThreads(2, 1) as executor:
        yield executor


async def test_a_load_above_the_budget_is_refused_and_harms_nothing(
    tmp_path: Path, executor: RunThreads
) -> None:
    put(tmp_path, "mlp", mlp_model())
    repository = ModelRepository(tmp_path, executor, MemoryBudget(150 * MIB))
    await repository.load("mlp")
    before = repository.get("mlp")
    put(tmp_path, "mlp", mlp_model(2_000_000), 2)  # 61 MiB
    with pytest.raises(InternalError, match=r"expected at most \d+ MiB of 150 MiB, got an estima"):
        await repository.load("mlp")
    assert repository.get("mlp") is before
    (entry, refused) = repository.index()
    assert (entry.state, entry.reason) == ("READY", "")
    assert "--model-memory-mib" in refused.reason
    put(tmp_path, "add", add_model())
    await repository.load("add")


async def test_what_a_model_took_is_measured_and_the_next_estimate_is_less(
    tmp_path: Path, executor: RunThreads
) -> None:
    put(tmp_path, "large", mlp_model(1_250_000))  # 38 MiB
    repository = ModelRepository(tmp_path, executor, MemoryBudget(2000 * MIB))
    await repository.load("large")
    size = (tmp_path / "large" / "1" / "model.onnx").stat().st_size
    files = VersionFiles(size, 0, has_trees=False)
    assert size * 0.9 < repository.get("large").memory_bytes < 3.5 * size + 16 * MIB
    unknown = repository.budget.estimate("other/1", files)
    known = repository.budget.estimate("large/1", files)
    assert repository.get("large").memory_bytes < known <= unknown


async def test_memory_of_an_unloaded_model_is_there_for_the_next(
    tmp_path: Path, executor: RunThreads
) -> None:
    """Ten loads that fit one at a time; nobody waits for memory to be given back."""
    put(tmp_path, "large", mlp_model(1_250_000))
    repository = ModelRepository(tmp_path, executor, MemoryBudget(200 * MIB))
    for _ in range(10):
        await repository.load("large")
        await repository.unload("large")
        gc.collect()


def test_loads_under_way_share_what_is_left() -> None:
    budget = MemoryBudget(100 * MIB)
    files = VersionFiles(10 * MIB, 0, has_trees=False)  # 51 MiB
    with (
        budget.reserve("one/1", files),
        pytest.raises(ResourceExhaustedError),
        budget.reserve("two/1", files),
    ):
        raise AssertionError
    with budget.reserve("two/1", files):
        pass


def test_a_load_that_fails_gives_its_room_back() -> None:
    budget = MemoryBudget(100 * MIB)
    files = VersionFiles(20 * MIB, 0, has_trees=False)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), budget.reserve("one/1", files):
            raise ZeroDivisionError


@given(st.lists(st.integers(0, 1 << 30), min_size=1, max_size=20), st.booleans())
def test_estimates_never_grow_with_less_kept(kept: list[int], has_trees: bool) -> None:
    """Of equal files; and never beyond what the files allow."""
    budget = MemoryBudget(1 << 40)
    files = VersionFiles(50 * MIB, 10 * MIB, has_trees)
    bound = budget.estimate("m/1", files)
    for number in range(len(kept)):
        budget._remember("m/1", files, kept[number])
        assert max(kept[: number + 1]) <= budget.estimate("m/1", files) or bound < max(kept)
        assert budget.estimate("m/1", files) <= bound


def test_a_budget_forgets_what_is_long_ago() -> None:
    budget = MemoryBudget(1 << 40)
    for number in range(5_000):
        budget._remember(f"m/{number}", VersionFiles(1, 0, has_trees=False), 1)
    assert len(budget._kept) == 1024


MEMINFO = "MemTotal: 9000 kB\nMemAvailable:    4096 kB\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 4096 * 1024),
        ({"memory.max": "max", "memory.current": "5", "memory.stat": ""}, 4096 * 1024),
        ({"memory.max": "3000", "memory.current": "500", "memory.stat": ""}, 2500),
        ({"memory.max": "3000", "memory.current": "500", "memory.stat": "inactive_file 100"}, 2600),
        ({"memory.max": "30", "memory.current": "500", "memory.stat": ""}, 0),
        ({"memory/memory.limit_in_bytes": "3000", "memory/memory.usage_in_bytes": "10",
          "memory/memory.stat": "total_inactive_file 4"}, 2994),
    ],
)  # fmt: skip
def test_what_is_left_of_a_machine_or_a_container(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(MEMINFO)
    for name, text in files.items():
        path = tmp_path / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert available_bytes(tmp_path) == expected


def test_workers_share_the_machine() -> None:
    assert 0 < 4 * share_of_machine(4) <= available_bytes() * 1.5


def test_behind_the_fence_an_allocation_fails_and_the_process_goes_on() -> None:
    script = (
        "from server.models.budget import fence\n"
        "import numpy as np\n"
        "fence(64 << 20)\n"
        "small = np.ones(1 << 20)\n"
        "try:\n"
        "    np.ones(4 << 30, np.uint8)\n"
        "except MemoryError:\n"
        "    print('refused', int(small.sum()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["refused", str(1 << 20)]
