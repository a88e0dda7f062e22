"""`headrace up`: everything on one machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.common import ConfigOption, DataDir, Host, LogFormat, settings
from server.cli.help import ServingCommand
from server.cli.serve import (
    Access,
    AdminGrpcPort,
    AdminHost,
    AdminOnly,
    AdminPort,
    ConnectionAgeS,
    ControlMode,
    DrainS,
    ExitOnError,
    ForkedWorkers,
    GrpcPort,
    HttpPort,
    LoadModel,
    LogRequests,
    MetricsHost,
    MetricsPort,
    ModelMemoryMib,
    Redis,
    ReplayScope,
    Repository,
    RepositoryPollS,
    RunTimeoutS,
    StrictReadiness,
    TlsCert,
    TlsClientCa,
    TlsKey,
    TraceEndpoint,
    TraceRate,
    Transport,
    UnreadyS,
    Workers,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

ControlPort = Annotated[int | None, typer.Option("--control-port", help="0 = any free port [8080]")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        cls=ServingCommand, epilog="Example: headrace up --data-dir headrace-data --workers 2"
    )(up)


def up(
    model_repository: Repository = None,
    model_control_mode: ControlMode = None,
    load_model: LoadModel = None,
    repository_poll_s: RepositoryPollS = None,
    strict_readiness: StrictReadiness = None,
    exit_on_error: ExitOnError = None,
    run_timeout_s: RunTimeoutS = None,
    model_memory_mib: ModelMemoryMib = None,
    grpc_port: GrpcPort = None,
    http_port: HttpPort = None,
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = None,
    control_port: ControlPort = None,
    workers: Workers = None,
    host: Host = None,
    redis: Redis = None,
    data_dir: DataDir = None,
    replay_scope: ReplayScope = None,
    drain_s: DrainS = None,
    unready_s: UnreadyS = None,
    transport: Transport = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
    access: Access = None,
    admin_port: AdminPort = None,
    admin_grpc_port: AdminGrpcPort = None,
    admin_host: AdminHost = None,
    admin_only: AdminOnly = None,
    connection_age_s: ConnectionAgeS = None,
    nursery: ForkedWorkers = None,
    log_format: LogFormat = None,
    log_requests: LogRequests = None,
    trace_endpoint: TraceEndpoint = None,
    trace_rate: TraceRate = None,
    config: ConfigOption = None,
) -> None:
    """Run the whole: store, control, collector and workers. Ctrl-C drains and ends all of it."""
    flags = {name: value for name, value in locals().items() if name != "config"}
    import asyncio
    from functools import partial

    from server import logs
    from server.processes import stack

    read = partial(settings, config, flags, {"redis": "embedded"})
    chosen = read()
    logs.setup("supervisor", chosen.log_format)
    asyncio.run(stack.run(chosen, whole=True, on_ready=_show_addresses, reread=read))


# Address first, so that a long one (a socket's path) is whole on its line.
_ADDRESSES = {
    "grpc": ("gRPC", "Open Inference Protocol, headrace.v1"),
    "http": ("REST", "Open Inference Protocol"),
    "metrics": ("metrics", "for Prometheus"),
    "control": ("control", "for headrace model, release, features"),
    "redis": ("store", "of the features"),
}


def _show_addresses(ready: Mapping[str, object]) -> None:
    shown = [(*words, str(ready[key])) for key, words in _ADDRESSES.items() if ready.get(key)]
    width = max((len(where) for _, _, where in shown[:-1]), default=0)
    lines = [f"  {name:<7}  {where:<{width}}  {what}" for name, what, where in shown]
    sys.stderr.write("\n".join(["headrace is up", *lines, ""]))
