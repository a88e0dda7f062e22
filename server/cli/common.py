"""What the commands share: options, settings, the client, tables on a terminal."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.errors import InvalidArgumentError
from server.cli.help import PlainGroup

if TYPE_CHECKING:
    from server.config import Effective, Settings
    from server.control.client import ControlClient

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="TOML file of settings [./headrace.toml]")
]
ControlUrl = Annotated[
    str | None, typer.Option("--control-url", help="Control's address [http://127.0.0.1:8080]")
]
DataDir = Annotated[str | None, typer.Option("--data-dir", help="Data folder [headrace-data]")]
Host = Annotated[str | None, typer.Option("--host", help="Address to bind [127.0.0.1]")]
LogFormat = Annotated[
    str | None, typer.Option("--log-format", help="Of the lines on stderr: text or json [text]")
]
By = Annotated[str | None, typer.Option("--by", help="Who does it [the user that is logged in]")]
Why = Annotated[str, typer.Option("--why", help="The reason, for the record")]


def make_app(help_text: str) -> typer.Typer:
    """Return an app that shows plain help; rich help would cost a third of the start-up."""
    return typer.Typer(
        cls=PlainGroup,
        help=help_text,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
    )


def effective(
    config: Path | None,
    flags: Mapping[str, object],
    defaults: Mapping[str, object] | None = None,
) -> Effective:
    """Return the effective settings of this process with their origins."""
    from server.config import load_settings

    return load_settings(flags, os.environ, file=config, defaults=defaults)


def settings(
    config: Path | None,
    flags: Mapping[str, object],
    defaults: Mapping[str, object] | None = None,
) -> Settings:
    """Return the effective settings of this process."""
    return effective(config, flags, defaults).settings


def client(config: Path | None, control_url: str | None) -> ControlClient:
    """Return a client of the control that the settings name."""
    from server.control.client import ControlClient

    return ControlClient(settings(config, {"control_url": control_url}).control_url)


def actor(by: str | None) -> str:
    """Return who acts. Raises InvalidArgumentError where the machine does not know."""
    if by:
        return by
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise InvalidArgumentError("this user has no name", mend="say who with --by") from None


def say(text: str) -> None:
    """Write a line of results on stdout."""
    sys.stdout.write(f"{text}\n")


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write aligned columns on stdout: nothing is cut, so that they can be searched and piped."""
    lines = [list(header), *([_cell(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        say("  ".join(padded).rstrip())


def _cell(value: object) -> str:
    return "-" if value is None else str(value)
