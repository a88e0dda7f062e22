"""`headrace`: the command line. Commands load what they need when they run, so that help is
fast."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from headrace.errors import HeadraceError
from server.cli import (
    access,
    config,
    control,
    demo,
    doctor,
    features,
    ingest,
    model,
    release,
    replay,
    serve,
    up,
)
from server.cli.common import make_app

# typer shows its errors' leaves only; their base is what one line on stderr needs.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]

app = make_app("Headrace: a model server and feature engine with one definition of its features.")


def _version(wanted: bool) -> None:
    if wanted:
        from headrace import __version__

        sys.stdout.write(f"headrace {__version__}\n")
        raise typer.Exit


@app.callback(epilog="Example: headrace up --data-dir headrace-data")
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version")
    ] = False,
) -> None:
    """Headrace: a model server and feature engine with one definition of its features."""


for command in (up, serve, control, ingest, demo, replay, doctor, config):
    command.register(app)
for name, group, example in (
    ("model", model, "model list delay"),
    ("release", release, "release list delay"),
    ("features", features, "features list"),
    ("access", access, "access new-key"),
):
    app.add_typer(group.app, name=name, epilog=f"Example: headrace {example}")


def main() -> None:
    """Run one command. Errors are one line on stderr: exit 1, or 2 for wrong usage."""
    try:
        code = app(standalone_mode=False, prog_name="headrace")
    except _USAGE_ERROR as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "headrace"
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stderr.write(f"{error}\n")
        else:
            message = error.format_message() if hasattr(error, "format_message") else str(error)
            sys.stderr.write(f"{path}: {message} (see {path} --help)\n")
        sys.exit(2)
    except HeadraceError as error:
        sys.stderr.write(f"headrace: {error}\n")
        sys.exit(1)
    except BrokenPipeError:  # `headrace … | head`
        sys.stderr.close()
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(128 + signal.SIGINT)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
