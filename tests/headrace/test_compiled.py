"""Compiled functions between processes: kept as long as nothing that they are made of changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PART = """
from numba import njit

STEP = {step}


@njit
def part(value):
    return value + STEP
"""
WHOLE = """
from numba import types

import part
from headrace.compiled import kept


@kept(part, signature=types.int64(types.int64), nogil=True)
def whole(value):
    return part.part(value)


hits = sum(whole.stats.cache_hits.values())
whole.disable_compile()
print(whole(40), hits, whole.targetoptions["nogil"])
"""


def run(folder: Path) -> str:
    return subprocess.run(
        [sys.executable, "whole.py"], cwd=folder, capture_output=True, text=True, check=True,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
    ).stdout.strip()  # fmt: skip


@pytest.mark.slow
def test_the_cache_follows_every_file_that_a_function_is_made_of(tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text(PART.format(step=1))
    (tmp_path / "whole.py").write_text(WHOLE)
    assert run(tmp_path) == "41 0 True"
    assert run(tmp_path) == "41 1 True"
    (tmp_path / "part.py").write_text(PART.format(step=2))
    assert run(tmp_path) == "42 0 True"
    assert run(tmp_path) == "42 1 True"
    (tmp_path / "whole.py").write_text(WHOLE.replace("part.part(value)", "-part.part(value)"))
    assert run(tmp_path) == "-42 0 True"
