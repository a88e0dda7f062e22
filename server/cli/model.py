"""`headrace model …`: versions, from registered to approved or revoked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli.common import (
    By,
    ConfigOption,
    ControlUrl,
    Why,
    actor,
    client,
    make_app,
    print_table,
    say,
)

app = make_app("Models and their versions: register, review, approve, revoke.")

Model = Annotated[str, typer.Argument(help="The model's name")]
Version = Annotated[
    str, typer.Argument(help="Digest (sha256:… or the first 6 digits or more), v3, or champion")
]
Folder = Annotated[Path, typer.Argument(help="The bundle's folder")]


@app.command("list", epilog="Example: headrace model list delay")
def list_(
    model: Annotated[str | None, typer.Argument(help="Show this model's versions")] = None,
    control_url: ControlUrl = None,
    config: ConfigOption = None,
) -> None:
    """List the models, or the versions of one."""
    control = client(config, control_url)
    if model is None:
        rows = [(m["name"], m["versions"], m["champion"]) for m in control.models()]
        print_table(("model", "versions", "champion"), rows)
        return
    versions = [
        (f"v{v['number']}", v["state"], v["author"], v["digest"]) for v in control.versions(model)
    ]
    print_table(("version", "state", "author", "digest"), versions)


@app.command(epilog="Example: headrace model show delay v1")
def show(
    model: Model, version: Version, control_url: ControlUrl = None, config: ConfigOption = None
) -> None:
    """Show one version as JSON.

    State, approvals, manifest, and who did what and why.
    """
    say(json.dumps(client(config, control_url).version(model, version), indent=2))


@app.command(epilog="Example: headrace model card delay v1")
def card(
    model: Model, version: Version, control_url: ControlUrl = None, config: ConfigOption = None
) -> None:
    """Print a version's model card (Markdown)."""
    control = client(config, control_url)
    manifest = control.version(model, version)["manifest"]
    digest = next(file["sha256"] for file in manifest["files"] if file["path"] == "card.md")
    say(control.get_blob(digest).decode())


@app.command(epilog="Example: headrace model register build/delay --why 'trained through August'")
def register(
    folder: Folder,
    why: Why,
    by: By = None,
    control_url: ControlUrl = None,
    config: ConfigOption = None,
) -> None:
    """Upload a bundle and register it as a new version (state: draft)."""
    from server.control.upload import upload_bundle

    control = client(config, control_url)
    name, digest = upload_bundle(control, folder)
    _show(control.register(name, digest, actor(by), why))


# What each act on a version does, and an example of it.
_ACTS = {
    "submit": ("Put a draft forward as a candidate.", "--why 'beats the baseline by 0.08'"),
    "review": ("Begin the review of a candidate.", "--by grace --why 'on my desk'"),
    "approve": (
        "Approve a version in review; its author cannot.",
        "--by grace --why 'slices checked'",
    ),
    "reject": ("Send a candidate back to its author as a draft.", "--by grace --why 'UA is worse'"),
    "revoke": (
        "Take an approval back, for good; not while it is released.",
        "--by grace --why 'leaks the label'",
    ),
}


def _add_act(action: str, help_text: str, example: str) -> None:
    @app.command(
        action, help=help_text, epilog=f"Example: headrace model {action} delay v1 {example}"
    )
    def act(
        model: Model,
        version: Version,
        why: Why,
        by: By = None,
        control_url: ControlUrl = None,
        config: ConfigOption = None,
    ) -> None:
        control = client(config, control_url)
        _show(control.act(model, version, action, actor(by), why))


for _action, (_help, _example) in _ACTS.items():
    _add_act(_action, _help, _example)


def _show(version: dict[str, Any]) -> None:
    say(f"{version['model']} v{version['number']} {version['state']} {version['digest']}")
