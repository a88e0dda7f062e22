"""`headrace control`: the control process on its own."""

from __future__ import annotations

from typing import Annotated

import typer

from server.cli.common import ConfigOption, DataDir, Host, LogFormat, settings
from server.cli.serve import DrainS, Redis
from server.cli.up import ControlPort

Ingester = Annotated[
    bool, typer.Option(help="Run the ingester here (off: `headrace ingest` does it elsewhere)")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: headrace control --control-port 8080 --redis redis://store:6379")(
        control
    )


def control(
    control_port: ControlPort = None,
    host: Host = None,
    redis: Redis = None,
    data_dir: DataDir = None,
    ingester: Ingester = True,
    drain_s: DrainS = None,
    log_format: LogFormat = None,
    config: ConfigOption = None,
) -> None:
    """Run control alone: admin API, registry, monitor and ingester."""
    from headrace.errors import InvalidArgumentError
    from server import logs
    from server.control.__main__ import ControlConfig, run
    from server.processes.layout import DataDir as Layout
    from server.processes.ports import hold

    flags = {
        "control_port": control_port,
        "host": host,
        "redis": redis,
        "data_dir": data_dir,
        "drain_s": drain_s,
        "log_format": log_format,
    }
    chosen = settings(config, flags)
    logs.setup("control", chosen.log_format)
    if chosen.redis == "embedded":
        raise InvalidArgumentError(
            "control alone has no embedded store", mend="use `headrace up`, or give --redis a URL"
        )
    from pathlib import Path

    root = Layout(Path(chosen.data_dir)).create().root
    with hold(chosen.host, chosen.control_port, "control_port") as port:
        run(
            ControlConfig(
                host=chosen.host,
                port=port.port,
                data_dir=str(root),
                redis=None if chosen.redis == "none" else chosen.redis,
                ingester=ingester,
                drain_s=chosen.drain_s,
            )
        )
