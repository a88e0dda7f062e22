"""docs/errors.md: every bad input that was promised has its row, and every test it names exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "errors.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| bad input")
]
TESTS = sorted(set(re.findall(r"`(tests/[^`]+::[^`]+)`", PAGE)))
PROMISED = (
    "unknown model", "wrong dtype", "wrong shape", "missing input", "an entity never seen",
    "a NaN", "a truncated model file", "a busy port", "a config typo",
    "Valkey gone while serving",
)  # fmt: skip


def test_every_promised_bad_input_has_a_row() -> None:
    missing = [each for each in PROMISED if not any(row[0].startswith(each) for row in ROWS)]
    assert missing == []


def test_every_row_has_a_status_a_text_and_a_test() -> None:
    for row in ROWS:
        assert len(row) == 4, row
        assert all(row), row
        assert re.search(r"`tests/\S+\.py::test_\w+", row[3]), row


def test_every_named_test_exists() -> None:
    # By pytest itself, so that a case in brackets must exist too.
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *TESTS], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, re.findall("^ERROR.*", done.stdout + done.stderr, re.MULTILINE)
