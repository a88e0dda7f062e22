"""The distribution alone: built, installed into an empty environment, weighed, and used."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.onnx_models import mlp_model, put
from tests.server.serving import start_worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SOURCE = Path(__file__).resolve().parents[3] / "client"
BYTES_MAX = 20_000_000
ASK = """
import sys
from array import array
from importlib.util import find_spec
from headrace_client import Client, UnavailableError

assert not find_spec("numpy") and not find_spec("server")
with Client(sys.argv[1]) as client:
    rows = memoryview(array("f", range(6))).cast("B").cast("f", (2, 3))
    (tensor,) = client.infer("mlp", {"features": rows}).values()
    print(tensor.datatype, tensor.shape, *tensor.values.tolist())
"""


def pip(python: Path | str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "-q", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def weigh(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Installed:
    """An environment with the client and what it needs."""

    def __init__(self, folder: Path) -> None:
        source = folder / "source"
        shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__", "build"))
        build = pip(
            sys.executable, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source
        )
        assert build.returncode == 0, build.stderr
        (self.wheel,) = folder.glob("headrace_client-*.whl")
        subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True, timeout=120)
        self.python = folder / "env/bin/python"
        if pip(self.python, "install", "--dry-run", "grpcio").returncode:
            pytest.skip("no package index is at hand")
        (packages,) = (folder / "env/lib").glob("python*/site-packages")
        before = weigh(packages)
        install = pip(self.python, "install", self.wheel)
        assert install.returncode == 0, install.stderr
        self.bytes = weigh(packages) - before


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    folder = tmp_path_factory.mktemp("client")
    yield Installed(folder)
    shutil.rmtree(folder)


def test_all_of_it_is_below_twenty_megabytes(installed: Installed) -> None:
    assert 1_000_000 < installed.bytes < BYTES_MAX


def test_the_messages_are_published_in_it(installed: Installed) -> None:
    listing = subprocess.run(
        [installed.python, "-m", "zipfile", "-l", installed.wheel],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in ("pb/headrace.proto", "pb/infer.proto", "pb/headrace_pb2.pyi", "py.typed"):
        assert f"headrace_client/{name}" in listing
    assert "licenses/LICENSE" in listing


def test_it_asks_a_real_server(installed: Installed, tmp_path: Path) -> None:
    put(tmp_path / "models", "mlp", mlp_model())
    with start_worker(tmp_path, model_repository=str(tmp_path / "models")) as worker:
        target = worker.event("ready")["grpc"]
        done = subprocess.run(
            [installed.python, "-I", "-c", ASK, target],
            capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("FP32 (2, 1) ")
        assert worker.end() == 0
