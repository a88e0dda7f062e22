"""`headrace config`: the effective settings and where each one comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from server.cli.common import ConfigOption, effective, say

if TYPE_CHECKING:
    from server.config import Origin


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "config", epilog="Example: HEADRACE_WORKERS=4 headrace config --config headrace.toml"
    )(show)


def show(config: ConfigOption = None) -> None:
    """Show every setting, its value and its origin: environment, file or default.

    What it prints is a file for --config, in which defaults are comments; passwords in URLs are
    masked. In the environment a setting is HEADRACE_ and its name in capitals, its text without
    quotes, a list with commas.
    """
    rows = [_row(each) for each in effective(config, {}).origins]
    width = max(len(setting) for setting, _ in rows)
    for setting, origin in rows:
        say(f"{setting.ljust(width)}  # {origin}")


def _row(setting: Origin) -> tuple[str, str]:
    if setting.value is None:
        return f"# {setting.name} =", f"{setting.origin}: not set"
    # Commands differ in defaults: in a file these would hold for all of them.
    sign = "# " if setting.origin == "default" else ""
    return f"{sign}{setting.name} = {setting.value}", setting.origin
