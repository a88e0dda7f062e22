"""A registry on a real file, with a clock that ticks by one at each look."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bundles import make_bundle
from trainer.registry import ArtifactStore, Registry, Version


class Desk:
    """A registry with its folder, and the shortest ways to a version in some state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.artifacts = ArtifactStore(folder / "artifacts")
        self._ticks = itertools.count(1_000)
        self.now_us = 0
        self.registry = self.open()

    def clock(self) -> int:
        self.now_us = next(self._ticks)
        return self.now_us

    def open(self) -> Registry:
        return Registry(f"sqlite:///{self.folder}/registry.db", self.artifacts, self.clock)

    def draft(self, seed: object = 0, model: str = "delay") -> Version:
        folder = self.folder / "bundles" / f"{model}-{seed}"
        if not folder.exists():
            make_bundle(folder, seed, model)
        return self.registry.register(folder, "ann", f"version {seed}")

    def in_review(self, seed: object = 0, model: str = "delay") -> Version:
        version = self.draft(seed, model)
        self.registry.submit(model, version.digest, "ann", "ready")
        return self.registry.review(model, version.digest, "bob", "looking")

    def approved(
        self, seed: object = 0, model: str = "delay", expires_us: int | None = None
    ) -> Version:
        version = self.in_review(seed, model)
        return self.registry.approve(model, version.digest, "bob", "good", expires_us)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    with desk.registry:
        yield desk


@pytest.fixture
def registry(desk: Desk) -> Registry:
    return desk.registry
