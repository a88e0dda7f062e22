"""Compiled code does not check its indices; here the same tests run with numba's checks on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_no_kernel_leaves_its_arrays(tmp_path: Path) -> None:
    here = Path(__file__).parent
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", here / "test_engine.py"],
        env=environment, capture_output=True, text=True, check=False, timeout=380,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]
