"""Style as a test: what a linter does not know about this code base."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("headrace", "features", "router", "monitor", "trainer", "server", "client")
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70

# call → what to use instead, and the files that may use it all the same.
BANNED_CALLS = {
    "pickle.load": ("nothing from outside is ever unpickled", ()),
    "pickle.loads": ("nothing from outside is ever unpickled", ()),
    "joblib.load": ("nothing from outside is ever unpickled", ()),
    "eval": ("never evaluate text", ()),
    "exec": ("only a team's own definitions are executed", ("features/loading.py",)),
    # Until Python 3.12 it loses a cancellation that comes in the turn in which it ends.
    "asyncio.wait_for": ("use asyncio.timeout", ()),
    "datetime.now": ("take the time as an argument", ()),
    "datetime.utcnow": ("take the time as an argument", ()),
}
# Sans-IO: these never read a clock or a random source.
CORES = (
    "headrace",
    "server/wire/http2",
    "router",
    "features/windows",
    "features/row.py",
    "features/entity_key.py",
    "features/definitions.py",
    "monitor/drift.py",
    "monitor/calibration.py",
    "trainer/registry/states.py",
    "trainer/bundle.py",
)
CLOCKS = (
    "time.time",
    "time.time_ns",
    "time.monotonic",
    "time.monotonic_ns",
    "random.random",
    "os.urandom",
    "secrets.token_bytes",
    "uuid.uuid4",
)
# Words that may not appear in what we publish: machine paths and index hosts.
BANNED_TEXT = re.compile(r"/work/|/root/|/opt/(wheels|pypi)|\bFIXME\b|\bXXX\b|\bTODO\b")


def tracked_files() -> list[Path]:
    """Every file that git tracks or would track."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return [ROOT / line for line in listing.splitlines() if (ROOT / line).is_file()]


def sources() -> list[Path]:
    files = [path for path in tracked_files() if path.suffix == ".py"]
    return [
        path
        for path in files
        if path.relative_to(ROOT).parts[0] in PACKAGES and "pb" not in path.parts
    ]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def call_name(node: ast.Call) -> str:
    return ast.unparse(node.func) if isinstance(node.func, ast.Attribute | ast.Name) else ""


def calls(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield node.lineno, call_name(node)


@pytest.fixture(scope="module")
def python_sources() -> list[Path]:
    found = sources()
    assert len(found) > 20, "the tidy test lost sight of the sources"
    return found


def test_files_can_be_read_in_one_sitting(python_sources: list[Path]) -> None:
    long = {
        name(p): n
        for p in python_sources
        if (n := len(p.read_text().splitlines())) > FILE_LINES_MAX
    }
    assert long == {}


def test_functions_do_one_thing(python_sources: list[Path]) -> None:
    long = [
        f"{name(path)}:{node.lineno} {node.name} has {lines} lines"
        for path in python_sources
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_banned_calls(python_sources: list[Path]) -> None:
    found = [
        f"{name(path)}:{line} {call}: {BANNED_CALLS[call][0]}"
        for path in python_sources
        for line, call in calls(path)
        if call in BANNED_CALLS and name(path) not in BANNED_CALLS[call][1]
    ]
    assert found == []


def test_cores_read_no_clock_and_no_randomness(python_sources: list[Path]) -> None:
    cores = [path for path in python_sources if name(path).startswith(CORES)]
    assert cores
    found = [f"{name(p)}:{line} {call}" for p in cores for line, call in calls(p) if call in CLOCKS]
    assert found == []


@pytest.mark.timeout(400)
def test_every_module_is_used(python_sources: list[Path]) -> None:
    text = "\n".join(p.read_text() for p in tracked_files() if p.suffix in {".py", ".toml"})
    dead = []
    for path in python_sources:
        # client/ is the root of a distribution of its own: its modules are named from there.
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("client.")
        if path.name in {"__init__.py", "__main__.py"}:
            continue
        package, _, leaf = module.rpartition(".")
        used = (
            re.search(rf"\b{re.escape(module)}\b", text)
            or re.search(rf"from {re.escape(package)} import [^\n]*\b{leaf}\b", text)
            or re.search(rf"from \.+[\w.]* import [^\n]*\b{leaf}\b", text)
            or re.search(rf"from {re.escape(package)} import \([^)]*\b{leaf}\b", text)
        )
        if not used:
            dead.append(module)
    assert dead == []


def test_no_machine_paths_and_nothing_left_to_do() -> None:
    texts = {
        ".py",
        ".md",
        ".toml",
        ".sh",
        ".yaml",
        ".yml",
        ".proto",
        ".html",
        ".txt",
        ".in",
        ".lock",
        "",
    }
    found = [
        f"{name(path)}:{number}: {line.strip()[:80]}"
        for path in tracked_files()
        if path.suffix in texts and path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if BANNED_TEXT.search(line)
    ]
    assert found == []


def test_the_coverage_gate_names_files_that_exist() -> None:
    lines = (ROOT / "tests/coverage-gate.txt").read_text().splitlines()
    modules = [line for line in lines if not line.startswith("#")]
    assert len(modules) == len(set(modules))
    for module in modules:
        path = Path(module)
        assert (ROOT / path).is_file(), module
        assert (ROOT / "tests" / path.parent / f"test_{path.name}").is_file(), module
