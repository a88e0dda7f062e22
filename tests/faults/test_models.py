"""The rows of the fault table about models, where a process of its own is enough."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.onnx_models import add_model, mlp_model, put

pytestmark = pytest.mark.slow

LOAD = """
import asyncio, json, resource, sys
from pathlib import Path
import numpy as np
from headrace.errors import HeadraceError
from server.execution.engine import Asked
from server.execution.threads import RunThreads
from server.models.repository import ModelRepository
{limit}

async def main():
    repository = ModelRepository(Path(sys.argv[1]), RunThreads(1, 1))
    await repository.load("add")
    before = resource.getrlimit(resource.{name})
    resource.setrlimit(resource.{name}, (room(), before[1]))
    said = []
    for name in sys.argv[2:]:
        try:
            await repository.load(name)
            said.append("")
        except HeadraceError as error:
            said.append(error.message)
    resource.setrlimit(resource.{name}, before)
    row = np.ones((1, 4), np.int32)
    outputs = await repository.get("add").infer([row, row], 1, Asked())
    await repository.load(sys.argv[2])
    states = {{entry.name: entry.state for entry in repository.index()}}
    print(json.dumps([said, outputs.arrays[0].tolist(), states]))

asyncio.run(main())
"""
ADDRESS_SPACE = """
def room():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize() + (24 << 20)
"""


def run(script: str, *arguments: str) -> tuple[list[str], list[list[int]], dict[str, str]]:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said, answer, states = json.loads(done.stdout)
    return said, answer, states


def test_no_memory_at_the_load(tmp_path: Path) -> None:
    """The address space ends: the load fails, what serves goes on, and later it loads."""
    put(tmp_path, "add", add_model())
    put(tmp_path, "large", mlp_model(2_000_000))  # 61 MiB
    script = LOAD.format(limit=ADDRESS_SPACE, name="RLIMIT_AS")
    said, answer, states = run(script, str(tmp_path), "large", "large")
    assert all("failed to load 'large'" in text for text in said)
    assert len(said) == 2
    assert answer == [[2, 2, 2, 2]]
    assert states == {"add": "READY", "large": "READY"}


MIRROR = """
import json, resource, sys
from pathlib import Path
from headrace.errors import HeadraceError
from server.models.sources import Mirror

mirror = Mirror(sys.argv[1], Path(sys.argv[2]))
mirror.sync(None)
Path(sys.argv[3]).write_bytes(bytes(1 << 20))
before = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
said = []
try:
    mirror.sync({"add"})
except HeadraceError as error:
    said.append(error.message)
resource.setrlimit(resource.RLIMIT_FSIZE, before)
sizes = [path.stat().st_size for path in Path(sys.argv[2]).rglob("model.onnx")]
mirror.sync({"add"})
served = (mirror.root / "add" / "1" / "model.onnx").stat().st_size
print(json.dumps([said, [sizes, [served]], {}]))
"""


def test_a_disk_that_is_full_while_a_model_is_fetched(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    there = put(tmp_path / "there", "add", add_model()) / "1" / "model.onnx"
    url = f"file://{tmp_path}/there"
    said, (sizes, served), _ = run(MIRROR, url, str(tmp_path / "here"), str(there))
    assert len(said) == 1
    assert "a disk that is full" in said[0]
    assert sizes == [len(add_model())]  # what was there, and no half of the new one
    assert served == [1 << 20]
