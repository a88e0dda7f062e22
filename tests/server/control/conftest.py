"""A control of its own process, and its client."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.control.client import ControlClient
from server.control.upload import upload_bundle
from tests.server.processes.running import Running
from tests.support.bundles import make_bundle


class LiveControl:
    """`python -m server.control` on a folder; can be ended and started again."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.folder = folder
        self._config = {"host": "127.0.0.1", "port": 0, "data_dir": str(folder), **config}
        self.start()

    def start(self) -> None:
        config = json.dumps(self._config)
        self.process = Running(sys.executable, "-P", "-m", "server.control", config)
        try:
            line = self.process.line("ready", "stdout").string
        except AssertionError:
            with self.process:
                raise
        self.client = ControlClient(json.loads(line)["control"])

    def stop(self) -> None:
        with self.process:
            assert self.process.end() == 0, self.process.text

    def version(self, folder: Path, model: str, seed: int = 0) -> str:
        """Register a small bundle as ada; return its digest."""
        make_bundle(folder, seed=seed, name=model)
        name, digest = upload_bundle(self.client, folder)
        assert name == model
        assert self.client.register(model, digest, "ada", "made it")["state"] == "draft"
        return digest

    def approved(self, folder: Path, model: str, seed: int = 0) -> str:
        digest = self.version(folder, model, seed)
        for action, by in (("submit", "ada"), ("review", "grace"), ("approve", "grace")):
            self.client.act(model, digest, action, by, "as it should be")
        return digest


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveControl]:
    """One control for a module's tests; each takes a model name of its own."""
    live = LiveControl(tmp_path_factory.mktemp("control"))
    yield live
    live.stop()


@pytest.fixture
def own_control(tmp_path: Path) -> Iterator[LiveControl]:
    """A control that its test may kill."""
    live = LiveControl(tmp_path / "data")
    yield live
    with live.process:
        pass
