"""docs/security.md says what the code does: each row has tests, and each default is the code's."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from server.wire.grpc.limits import ServerLimits
from server.wire.http1.limits import HttpLimits
from server.wire.http2.limits import BUDGETS, Limits

# To collect all tests of the wire takes a while where many processors' work is one processor's.
pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/security.md"
ROWS = [f"B2-{number:02}" for number in range(1, 26)] + [f"B3-{n:02}" for n in range(1, 36)]
LIMITS: dict[str, type] = {
    "### One HTTP/2 connection": Limits,
    "### One gRPC server": ServerLimits,
    "### One HTTP/1.1 server": HttpLimits,
}


def shown(name: str, value: float) -> str:
    """The value of a limit as the page writes it. Its unit is in its name."""
    if "bytes" in name:
        unit = "/s" if "_per_s_" in name else ""
        for size, word in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
            if value and value % size == 0:
                return f"{int(value) // size:,} {word}{unit}"
        return f"{int(value):,} bytes{unit}"
    if name.endswith("_ns") and value:
        return f"{value / 1e9:,.10g} s" if value >= 1e9 else f"{value / 1e3:,.10g} µs"
    return f"{value:,.10g} s" if name.endswith("_s") else f"{int(value):,}"


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text()


def cells(text: str) -> Iterator[list[str]]:
    """The rows of the tables in `text`, without their heads."""
    for line in text.splitlines():
        if line.startswith("| ") and not re.match(r"\| (row|limit|budget|reason) ", line):
            yield [cell.strip() for cell in line.strip("| ").split(" | ")]


def section(page: str, title: str) -> str:
    """What is between a heading and the next one."""
    assert page.count(f"\n{title}\n") == 1, title
    after = page.split(f"\n{title}\n")[1]
    return re.split(r"^#+ ", after, flags=re.MULTILINE)[0]


@pytest.fixture(scope="module")
def proofs() -> dict[str, list[str]]:
    """The rows that each test of the wire is marked with, by the test's id."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.wire_rows"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=290,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def rows_of(page: str) -> dict[str, list[str]]:
    return {row[0]: row for row in cells(page) if re.fullmatch(r"B[23]-\d\d", row[0])}


def test_the_page_has_every_row_once(page: str) -> None:
    assert [row[0] for row in cells(page) if row[0].startswith("B")] == ROWS
    assert all(len(row) == 4 and all(row) for row in rows_of(page).values())


def test_every_row_has_a_test_and_every_test_a_row(proofs: dict[str, list[str]]) -> None:
    marked = {row for rows in proofs.values() for row in rows}
    assert sorted(set(ROWS) - marked) == []
    assert sorted(marked - set(ROWS)) == []


def test_the_id_of_a_test_names_the_rows_that_it_proves(proofs: dict[str, list[str]]) -> None:
    wrong = {}
    for test, rows in proofs.items():
        named = {row.upper().replace("_", "-") for row in re.findall(r"b[23]_\d\d", test)}
        if named != set(rows):
            wrong[test] = (sorted(named), rows)
    assert wrong == {}


def test_the_proof_of_a_row_is_in_the_files_that_it_names(
    page: str, proofs: dict[str, list[str]]
) -> None:
    files: dict[str, set[str]] = {row: set() for row in ROWS}
    for test, rows in proofs.items():
        for row in rows:
            files[row].add(test.split("::")[0])
    for name, row in rows_of(page).items():
        linked = set(re.findall(r"\]\(\.\./(tests/[^)]+)\)", row[3]))
        assert linked, name
        assert linked <= files[name], f"{name}: {sorted(linked - files[name])} has no test of it"


def test_the_proofs_of_access_are_tests(page: str) -> None:
    rows = [row for row in cells(section(page, "## Access")) if row[0].startswith("AC-")]
    assert [row[0] for row in rows] == [f"AC-{number:02}" for number in range(1, len(rows) + 1)]
    for row in rows:
        assert len(row) == 4, row[0]
        proofs = re.findall(r"\]\(\.\./(tests/[^)]+)\)((?: `test_\w+`)+)", row[3])
        assert len(proofs) == row[3].count("]("), row[0]
        for path, names in proofs:
            text = (ROOT / path).read_text()
            for name in re.findall(r"test_\w+", names):
                assert f"def {name}(" in text, f"{row[0]}: {path} has no {name}"


@pytest.mark.parametrize("title", LIMITS)
def test_the_defaults_are_those_of_the_code(page: str, title: str) -> None:
    expected = [
        (f"`{each.name}`", shown(each.name, each.default)) for each in fields(LIMITS[title])
    ]
    assert [(row[0], row[1]) for row in cells(section(page, title))] == expected
    assert all(len(row) == 3 and row[2] for row in cells(section(page, title)))


def test_the_budgets_are_those_of_the_code(page: str) -> None:
    expected = [
        [f"`{name}`", *(f"{number:,}" for number in budget)] for name, budget in BUDGETS.items()
    ]
    title = "### What costs us and not the client"
    assert [row[:4] for row in cells(section(page, title))] == expected


def test_a_value_in_a_row_is_the_default_of_its_limit(page: str) -> None:
    defaults: dict[str, set[str]] = {}
    for limits in (Limits, ServerLimits):
        for each in fields(limits):
            defaults.setdefault(each.name, set()).add(shown(each.name, each.default))
    wrong = []
    for name, row in rows_of(page).items():
        for limit, value in re.findall(r"`(\w+_(?:max|min|ns|s|bytes))` \(([^)]*)\)", row[2]):
            if value not in defaults.get(limit, ()):
                wrong.append(f"{name}: {limit} is not {value}")
    assert wrong == []


def _reasons(folders: tuple[str, ...]) -> set[str]:
    """Every reason that the code counts, found in its syntax."""
    found: set[str] = set()
    wire = ROOT / "server/wire"
    for path in (*(path for each in folders for path in wire.glob(each)), wire / "listener.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found |= set(_reasons_at(node))
    return found


def _reasons_at(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Call(func=ast.Name("ConnectionFault"), args=[_, _, ast.Constant(str(reason))]):
            yield reason
        case ast.Call(func=ast.Name("Refused"), args=[_, ast.Constant(str(reason)), *_]) if reason:
            yield reason
        case ast.Call(func=ast.Attribute(attr="_end_slow"), args=[_, _, ast.Constant(str(reason))]):
            yield reason
        case ast.Subscript(
            value=ast.Attribute(attr="abuse" | "_abuse"), slice=ast.Constant(str(reason))
        ):
            yield reason
        case ast.Assign(targets=[ast.Name("reason")], value=ast.Constant(str(reason))) if reason:
            yield reason


def _explained(table: str) -> set[str]:
    return {reason for row in cells(table) for reason in re.findall(r"`(\w+)`", row[0])}


def test_every_reason_that_is_counted_is_explained(page: str) -> None:
    http2, http1 = section(page, "## Reasons that are counted").split("`headrace_http1_abuse_total")
    assert _explained(http2) == _reasons(("http2/*.py", "grpc/*.py")) - set(BUDGETS)
    assert _explained(http1) == _reasons(("http1/*.py",))


def test_shown() -> None:
    values: list[tuple[str, Any, str]] = [
        ("window_bytes", 65_535, "65,535 bytes"),
        ("window_bytes", 16 << 20, "16 MiB"),
        ("body_bytes_per_s_min", 4_096, "4 KiB/s"),
        ("timeout_ns", 1_500_000_000, "1.5 s"),
        ("timeout_ns", 200_000, "200 µs"),
        ("timeout_ns", 0, "0"),
        ("timeout_s", 10.0, "10 s"),
        ("fields_max", 8_192, "8,192"),
    ]
    assert [shown(name, value) for name, value, _ in values] == [text for *_, text in values]
