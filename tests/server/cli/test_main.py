"""The command line: help, versions, errors. Each command is started as a user starts it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from headrace import __version__

COMMANDS = ["up", "serve", "control", "ingest", "demo", "replay", "doctor", "config"]
GROUPS = {
    "model": [
        "list",
        "show",
        "card",
        "register",
        "submit",
        "review",
        "approve",
        "reject",
        "revoke",
    ],
    "release": ["list", "create", "rollback", "plan"],
    "features": ["apply", "list", "show", "get", "snapshot", "history", "materialize"],
}
# What help must not load: each costs a tenth of a second or more.
HEAVY = ("numpy", "pyarrow", "grpc", "numba", "onnxruntime", "sqlalchemy", "rich.console")


def headrace(
    *arguments: str, folder: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    command = [sys.executable, "-P", "-m", "server.cli.main", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env=clean | environment,
        check=False,
    )


@pytest.mark.parametrize(
    "path",
    [
        [],
        *([command] for command in COMMANDS),
        *([group] for group in GROUPS),
        *([group, command] for group, commands in GROUPS.items() for command in commands),
    ],
    ids=" ".join,
)
def test_every_help_shows_an_example(path: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    # In this process: thirty starts would take longer than they tell.
    from server.cli import main

    assert not main.app([*path, "--help"], standalone_mode=False, prog_name="headrace")
    text = " ".join(capsys.readouterr().out.split())
    assert f"Example: {' '.join(['headrace', *path])}" in text or "Example: HEADRACE_" in text


@pytest.mark.parametrize("group", [[], *([group] for group in GROUPS)], ids=" ".join)
def test_what_a_command_does_is_said_to_the_end(group: list[str]) -> None:
    text = headrace(*group, "--help", COLUMNS="60").stdout
    commands = text.partition("Commands:")[2].partition("Example:")[0]
    assert commands.strip().endswith(".")
    assert "..." not in commands


@pytest.mark.parametrize("command", ["serve", "up"])
def test_the_options_of_a_server_stand_under_headings(command: str) -> None:
    text = headrace(command, "--help").stdout
    sections = re.findall(r"^(\w[\w ]*):\n((?:  .*\n)+)", text, re.MULTILINE)
    found = {title: re.findall(r"^  (--\S+)", rows, re.MULTILINE) for title, rows in sections}
    assert found["Options"] == ["--config", "--help"]
    assert found["Models"][0] == "--model-repository"
    assert found["Listening"][:3] == ["--host", "--grpc-port", "--http-port"]
    assert {"Limits", "Encryption and access", "Logs and traces"} < set(found)
    every = [flag for flags in found.values() for flag in flags]
    assert len(every) == len(set(every)) > 30


def test_a_long_address_is_whole_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    from server.cli.up import _show_addresses

    socket = "unix:///a/folder" + "/of/a/deep/tree" * 10 + "/valkey.sock"
    _show_addresses({"grpc": "127.0.0.1:8001", "http": None, "redis": socket})
    title, grpc, store = capsys.readouterr().err.splitlines()
    assert title == "headrace is up"
    assert grpc.split()[:2] == ["gRPC", "127.0.0.1:8001"]
    assert store.split()[:2] == ["store", socket]


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom server.cli import main\n"
        "main.app(['--help'], standalone_mode=False)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr.strip() == "[]"


def test_version() -> None:
    assert headrace("--version").stdout == f"headrace {__version__}\n"


def test_a_users_folder_of_the_same_name_shadows_nothing(tmp_path: Path) -> None:
    for name in ("features", "server", "router", "monitor", "trainer", "headrace"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the user's own')")
    done = headrace("config", folder=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["nothing"], 2, "No such command 'nothing'"),
        (["model", "show"], 2, "Missing argument"),
        (["model", "approve", "m", "v1"], 2, "Missing option '--why'"),
        (["serve", "--workers", "many"], 2, "--workers"),
        (["model", "list", "--control-url", "http://127.0.0.1:1"], 1, "does not answer"),
        (["model", "list", "--control-url", "localhost"], 1, "bad URL of control"),
        (["model", "register", "nowhere", "--why", "x"], 1, "nowhere"),
        (["features", "apply", "nowhere.py"], 1, "cannot read nowhere.py"),
        (["features", "get", "score", "user"], 1, "NAME=VALUE"),
        (["features", "get", "score", "user=1", "--server", "127.0.0.1:1"], 1, "no server at"),
        (["release", "create", "m", "--live", "v1=x", "--why", "y"], 1, "VERSION=WEIGHT"),
        (["release", "create", "m", "--live", "1", "--canary", "2", "--why", "y"], 1, "--canary"),
        (["demo", "--project", "nope"], 1, "no project nope"),
        (["demo", "--days", "0"], 2, "--days"),
        (
            ["up", "--grpc-port", "8000", "--http-port", "8000"],
            1,
            "--grpc-port and --http-port are both 8000",
        ),
        (["replay", "no-uuid"], 1, "not a prediction id"),
        (
            ["replay", "01970c6e-8f00-7000-8000-00017a3b5c2d"],
            1,
            "the folder headrace-data does not exist (got data_dir = headrace-data by default)",
        ),
        (
            ["replay", "01970c6e-8f00-7000-8000-00017a3b5c2d", "--data-dir", "."],
            1,
            "(got data_dir = . by flag --data-dir); name the server's data folder with --data-dir",
        ),
        (["ingest", "--redis", "none"], 1, "the ingester needs a store"),
        (["control", "--redis", "embedded"], 1, "no embedded store"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_error_is_one_line_on_stderr(
    tmp_path: Path, arguments: list[str], code: int, text: str
) -> None:
    done = headrace(*arguments, folder=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("headrace")
    assert text in done.stderr


def test_config_shows_value_and_origin_and_no_password(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text("workers = 3\n")
    done = headrace("config", folder=tmp_path, HEADRACE_REDIS="redis://me:s3cret@store")
    rows = {line.partition(" =")[0]: line.split("=", 1)[1].split()
            for line in done.stdout.splitlines()}  # fmt: skip
    assert rows["workers"] == ["3", "#", "file", "headrace.toml"]
    assert rows["redis"] == ['"redis://me:***@store"', "#", "environment", "HEADRACE_REDIS"]
    assert rows["# host"] == ['"127.0.0.1"', "#", "default"]
    assert rows["# shared_memory"] == ["false", "#", "default"]
    assert rows["# model_repository"] == ["[]", "#", "default"]
    assert "s3cret" not in done.stdout
    assert rows["# metrics_host"] == ["#", "default:", "not", "set"]


def test_what_config_shows_is_a_file_for_it(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text("workers = 3\nload_model = ['a', 'b']\n")
    first = headrace("config", folder=tmp_path).stdout
    (tmp_path / "headrace.toml").write_text(first)
    again = headrace("config", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first
    assert tomllib.loads(first) == {"workers": 3, "load_model": ["a", "b"]}


def test_output_into_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -P -m server.cli.main config | head -0"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr
