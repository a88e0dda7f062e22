"""`headrace doctor`: what stands in the way on this machine, each with its mend."""

from __future__ import annotations

import typer

from server.cli.common import ConfigOption, DataDir, print_table, say, settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: headrace doctor --data-dir headrace-data")(doctor)


def doctor(data_dir: DataDir = None, config: ConfigOption = None) -> None:
    """Check what stands in the way on this machine.

    Looks at versions, accelerators, ports, shadowed packages, system libraries, store and disk.
    Exit code 1 when something blocks.
    """
    from server.cli.checks import check_all

    findings = list(check_all(settings(config, {"data_dir": data_dir})))
    print_table(("", "what", "found"), [(f.level, f.subject, f.text) for f in findings])
    bad = [finding for finding in findings if finding.level != "ok"]
    for finding in bad:
        say(f"{finding.level}: {finding.subject} {finding.text}; mend: {finding.mend}")
    blockers = sum(finding.level == "blocker" for finding in bad)
    say(f"{blockers} blockers, {len(bad) - blockers} warnings")
    if blockers:
        raise typer.Exit(1)
