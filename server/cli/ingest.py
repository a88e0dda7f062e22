"""`headrace ingest`: the ingester on its own."""

from __future__ import annotations

import typer

from server.cli.common import ConfigOption, ControlUrl, DataDir, LogFormat, settings
from server.cli.serve import Redis


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Example: headrace ingest --redis redis://store:6379 --control-url http://control:8080"
    )(ingest)


def ingest(
    redis: Redis = None,
    control_url: ControlUrl = None,
    data_dir: DataDir = None,
    log_format: LogFormat = None,
    config: ConfigOption = None,
) -> None:
    """Turn pushed events into feature rows in the store.

    The definitions are those that control holds. What was applied is kept as history under
    --data-dir.
    """
    from pathlib import Path

    from headrace.errors import InvalidArgumentError
    from server import logs
    from server.control.ingest_role import run_alone

    chosen = settings(
        config,
        {
            "redis": redis,
            "control_url": control_url,
            "data_dir": data_dir,
            "log_format": log_format,
        },
    )
    logs.setup("ingester", chosen.log_format)
    if chosen.redis in {"none", "embedded"}:
        raise InvalidArgumentError(
            "the ingester needs a store", expected="--redis redis://HOST:PORT", got=chosen.redis
        )
    run_alone(chosen.redis, chosen.control_url, Path(chosen.data_dir) / "offline")
