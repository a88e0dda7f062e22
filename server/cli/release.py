"""`headrace release …`: what is live, as canary or as shadow, and the way back."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from headrace.errors import InvalidArgumentError
from headrace.times import format_us
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
from server.cli.model import Model

app = make_app("Releases: who answers, with which share; every entry is kept.")

Live = Annotated[str, typer.Option("--live", help="VERSION[=WEIGHT]: the champion")]
Canaries = Annotated[
    list[str] | None, typer.Option("--canary", help="VERSION=WEIGHT; may be repeated")
]
Shadows = Annotated[
    list[str] | None, typer.Option("--shadow", help="VERSION: gets copies, never answers")
]
Expected = Annotated[
    int | None,
    typer.Option("--expected-sequence", help="Fail when the newest entry is another one"),
]
Explain = Annotated[
    float,
    typer.Option("--explain", help="Share of answers that are logged with attributions [0]"),
]


@app.command("list", epilog="Example: headrace release list delay")
def list_(model: Model, control_url: ControlUrl = None, config: ConfigOption = None) -> None:
    """List a model's releases, oldest first, with who and why."""
    rows = [
        (r["sequence"], _arms(r), r["by"], format_us(r["when_us"]), r["back_to"], r["why"])
        for r in client(config, control_url).releases(model)
    ]
    print_table(("sequence", "arms", "by", "when", "back to", "why"), rows)


@app.command(
    epilog="Example: headrace release create delay --live v1=0.9 --canary v2=0.1 --why 'first look'"
)
def create(
    model: Model,
    live: Live,
    why: Why,
    canary: Canaries = None,
    shadow: Shadows = None,
    expected_sequence: Expected = None,
    explain: Explain = 0.0,
    by: By = None,
    control_url: ControlUrl = None,
    config: ConfigOption = None,
) -> None:
    """Release approved versions; the workers follow within moments."""
    entries = [_entry("live", live, 1.0)]
    entries += [_entry("canary", each, None) for each in canary or []]
    entries += [_entry("shadow", each, 0.0) for each in shadow or []]
    control = client(config, control_url)
    _show(control.release(model, entries, actor(by), why, expected_sequence, explain))


@app.command(epilog="Example: headrace release rollback delay --why 'the canary pages'")
def rollback(
    model: Model,
    why: Why,
    to: Annotated[
        int | None, typer.Option("--to", help="The sequence to go back to [the one before]")
    ] = None,
    by: By = None,
    control_url: ControlUrl = None,
    config: ConfigOption = None,
) -> None:
    """Release again what was released before.

    This is a new entry that points back.
    """
    _show(client(config, control_url).rollback(model, actor(by), why, to))


@app.command(epilog="Example: headrace release plan")
def plan(control_url: ControlUrl = None, config: ConfigOption = None) -> None:
    """Print the release plan that the workers follow, as JSON."""
    current = client(config, control_url).plan()
    say(json.dumps(current or {"plan": 0, "models": {}}, indent=2))


def _entry(role: str, text: str, weight: float | None) -> dict[str, Any]:
    version, equals, number = text.partition("=")
    try:
        weight = float(number) if equals else weight
    except ValueError:
        weight = None
    if weight is None or not version:
        raise InvalidArgumentError(f"bad --{role}", expected="VERSION=WEIGHT", got=repr(text))
    return {"version": version, "role": role, "weight": weight}


def _arms(release: dict[str, Any]) -> str:
    """Return the arms with their shares of the traffic; a shadow answers nothing of it."""
    entries = release["entries"]
    total = sum(e["weight"] for e in entries if e["role"] != "shadow") or 1.0
    return ", ".join(
        f"{e['arm']}:{e['role']}={e['version'].removeprefix('sha256:')[:12]}"
        + ("" if e["role"] == "shadow" else f" {100 * e['weight'] / total:.4g} %")
        for e in entries
    )


def _show(release: dict[str, Any]) -> None:
    where = f"{release['model']} sequence {release['sequence']} plan {release['plan']}"
    say(f"{where}: {_arms(release)}")
