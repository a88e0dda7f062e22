"""Which test proves which row of the wire's table: `python -m tests.support.wire_rows`.

Prints one JSON object, from a test's id to the rows that it is marked with, of all tests that are
marked so or whose id names a row.
"""

from __future__ import annotations

import contextlib
import io
import json
import re

import pytest

NAMED = re.compile(r"b[23]_\d\d")
FOLDERS = ("tests/server/wire", "tests/conformance")


class Recorder:
    """A pytest plugin that notes what was collected."""

    def __init__(self) -> None:
        self.rows: dict[str, list[str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            rows = sorted({str(mark.args[0]) for mark in item.iter_markers("wire")})
            if rows or NAMED.search(item.nodeid):
                self.rows[item.nodeid] = rows


def main() -> None:
    """Collect, and print."""
    recorder = Recorder()
    said = io.StringIO()
    options = ["--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    with contextlib.redirect_stdout(said):
        code = pytest.main([*options, *FOLDERS], plugins=[recorder])
    if code != pytest.ExitCode.OK:
        raise SystemExit(said.getvalue())
    print(json.dumps(recorder.rows))  # noqa: T201


if __name__ == "__main__":
    main()
