"""`headrace demo`: real flights, from raw events to a monitored prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headrace.errors import FailedPreconditionError
from server.extras import how_to_install

Project = Annotated[
    Path | None, typer.Option("--project", help="Folder of definitions, pipeline and experiment")
]
DemoDir = Annotated[Path, typer.Option("--data-dir", help="Data folder of the demo")]
Keep = Annotated[bool, typer.Option("--keep", help="Leave the system running at the end")]
Days = Annotated[int | None, typer.Option("--days", min=1, help="Replay only so many days")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: headrace demo --data-dir demo-data")(demo)


def demo(
    project: Project = None,
    data_dir: DemoDir = Path("demo-data"),
    keep: Keep = False,
    days: Days = None,
) -> None:
    """Train, release, serve and monitor a model of real flights.

    A second person reviews it, every claim is checked, and the drift of December is caught.
    """
    try:
        from server.demo.run import run_demo
    except ModuleNotFoundError as error:
        raise FailedPreconditionError(
            f"the demo needs {error.name}", mend=how_to_install("train")
        ) from None
    raise typer.Exit(run_demo(project, data_dir, keep, days))
