"""Every command of `headrace`, walked from the command line itself: none can be forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from server.cli import main
from tests.contracts.golden import CHANGED

# What users' scripts call; more may come, none may go.
PROMISED = {
    "", "up", "serve", "control", "ingest", "demo", "model", "release", "features", "replay",
    "doctor", "config",
}  # fmt: skip
SERVE_FLAGS = {
    "--model-repository", "--grpc-port", "--http-port", "--metrics-port", "--workers", "--host",
    "--redis", "--registry", "--data-dir",
}  # fmt: skip


def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, f"{path} {name}".strip())


COMMANDS = dict(walk(typer.main.get_command(main.app), ""))


@pytest.mark.parametrize("path", COMMANDS)
def test_help_says_what_it_does_and_shows_an_example(
    path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not main.app([*path.split(), "--help"], standalone_mode=False, prog_name="headrace")
    text = " ".join(capsys.readouterr().out.split())
    assert f"Usage: headrace {path}".strip() in text
    assert "Example: " in text
    assert f"headrace {path}".strip() in text.partition("Example: ")[2]


@pytest.mark.parametrize("path", COMMANDS)
def test_every_flag_has_its_help(path: str) -> None:
    silent = [
        name
        for parameter in COMMANDS[path].params
        for name in parameter.opts
        if name.startswith("--") and not getattr(parameter, "help", "")
    ]
    assert silent == []


def test_no_promised_command_and_no_flag_of_serve_is_gone() -> None:
    assert set(COMMANDS) >= PROMISED, CHANGED
    flags = {name for parameter in COMMANDS["serve"].params for name in parameter.opts}
    assert flags >= SERVE_FLAGS, CHANGED
