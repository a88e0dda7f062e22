"""Cores that a process may really use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.processes.cores import available_cores

ALL = len(os.sched_getaffinity(0))


def test_without_a_quota_it_is_the_affinity(tmp_path: Path) -> None:
    assert available_cores(tmp_path) == ALL
    assert available_cores() <= ALL


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000\n", ALL), ("100000 100000\n", 1), ("20000 100000\n", 1), ("what is this\n", ALL),
     ("100000 0\n", ALL), (f"{10**9} 100000\n", ALL)],
)  # fmt: skip
def test_the_quota_of_version_2(tmp_path: Path, text: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert available_cores(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", ALL), ("100000", 1)])
def test_the_quota_of_version_1(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert available_cores(tmp_path) == cores
