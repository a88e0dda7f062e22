"""`headrace config`: the effective settings and where each one comes from."""

from __future__ import annotations

import typer

from server.cli.common import ConfigOption, effective, print_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        "config", epilog="Example: HEADRACE_WORKERS=4 headrace config --config headrace.toml"
    )(show)


def show(config: ConfigOption = None) -> None:
    """Show every setting, its value and its origin: flag, environment, file or default.

    Passwords in URLs are masked.
    """
    rows = [(each.name, each.value, each.origin) for each in effective(config, {}).origins]
    print_table(("setting", "value", "origin"), rows)
