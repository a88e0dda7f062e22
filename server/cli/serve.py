"""`headrace serve`: the supervisor, a collector and N workers."""

from __future__ import annotations

from typing import Annotated

import typer

from server.cli.common import ConfigOption, DataDir, Host, LogFormat, settings
from server.cli.help import ServingCommand

Repository = Annotated[
    list[str] | None,
    typer.Option(
        "--model-repository",
        help="Folder of models (NAME/1/model.onnx, NAME/config.pbtxt), or the URL of one: s3://…, "
        "gs://…; again for more",
    ),
]
StrictReadiness = Annotated[
    bool | None,
    typer.Option("--strict-readiness", help="Ready only when all models are [no]"),
]
ExitOnError = Annotated[
    bool | None,
    typer.Option("--exit-on-error", help="Do not start when a model cannot be loaded [no]"),
]
ControlMode = Annotated[
    str | None,
    typer.Option(
        "--model-control-mode",
        help="Which models serve: none (all, as they are at the start), poll (as the folder is), "
        "explicit (as requests say) [none]",
    ),
]
LoadModel = Annotated[
    list[str] | None,
    typer.Option(
        "--load-model", help="explicit: to be loaded at the start; * = all; again for more"
    ),
]
RepositoryPollS = Annotated[
    float | None,
    typer.Option("--repository-poll-s", help="poll: seconds between two looks [15]"),
]
ModelMemoryMib = Annotated[
    float | None,
    typer.Option(
        "--model-memory-mib",
        help="Of each worker, for models; a load that needs more is refused [80 % of what is left]",
    ),
]
RunTimeoutS = Annotated[
    float | None,
    typer.Option("--run-timeout-s", help="After which a model's run is ended [30]"),
]
GrpcPort = Annotated[int | None, typer.Option("--grpc-port", help="0 = any free port [8001]")]
HttpPort = Annotated[int | None, typer.Option("--http-port", help="0 = any free port [8000]")]
MetricsPort = Annotated[int | None, typer.Option("--metrics-port", help="0 = any free [8002]")]
MetricsHost = Annotated[
    str | None,
    typer.Option("--metrics-host", help="Its address [that of --host; 127.0.0.1 with TLS]"),
]
Workers = Annotated[int | None, typer.Option("--workers", help="Data-plane processes [1]")]
SharedMemory = Annotated[
    bool | None,
    typer.Option("--shared-memory", help="Let requests name regions of /dev/shm [off]"),
]
CacheConfig = Annotated[
    str | None,
    typer.Option("--cache-config", help="Response cache: local,size=BYTES, of each worker [none]"),
]
RateLimit = Annotated[
    str | None,
    typer.Option("--rate-limit", help="execution_count: runs wait for their resources [off]"),
]
RateLimitResource = Annotated[
    list[str] | None,
    typer.Option("--rate-limit-resource", help="NAME:COUNT of each worker; again for more"),
]
Redis = Annotated[str | None, typer.Option("--redis", help="URL, embedded or none")]
Registry = Annotated[
    str | None,
    typer.Option("--registry", help="http://… of control, file://FOLDER of bundles, or none"),
]
ReplayScope = Annotated[
    bool | None,
    typer.Option("--replay-scope", help="Let callers set event_time (backtests, the demo)"),
]
DrainS = Annotated[float | None, typer.Option("--drain-s", help="Seconds to drain [10]")]
UnreadyS = Annotated[
    float | None,
    typer.Option("--unready-s", help="Seconds to say 'not ready' before that, and serve on [0]"),
]
TlsCert = Annotated[
    str | None,
    typer.Option("--tls-cert", help="PEM certificate chain: gRPC and REST speak TLS [off]"),
]
TlsKey = Annotated[str | None, typer.Option("--tls-key", help="PEM key of --tls-cert")]
TlsClientCa = Annotated[
    str | None,
    typer.Option("--tls-client-ca", help="PEM CA: clients need a certificate of it (mTLS) [none]"),
]
Access = Annotated[
    str | None,
    typer.Option("--access", help="TOML file: who may do what, and how much of it [off]"),
]
AdminPort = Annotated[
    int | None, typer.Option("--admin-port", help="For operators; 0 = any free port [off]")
]
AdminGrpcPort = Annotated[
    int | None, typer.Option("--admin-grpc-port", help="The same by gRPC; 0 = any free port [off]")
]
AdminHost = Annotated[str | None, typer.Option("--admin-host", help="Its address [127.0.0.1]")]
AdminOnly = Annotated[
    bool | None,
    typer.Option("--admin-only", help="Models are loaded and unloaded by those ports alone"),
]
ConnectionAgeS = Annotated[
    float | None,
    typer.Option(
        "--connection-age-s",
        help="After which a gRPC client connects anew; 0 = never [1800 with several workers]",
    ),
]
ForkedWorkers = Annotated[
    bool | None,
    typer.Option("--nursery/--no-nursery", help="Fork workers from one process [--nursery]"),
]
Transport = Annotated[
    str | None,
    typer.Option("--transport", help="Of gRPC: headrace, or grpcio to compare with [headrace]"),
]

LogRequests = Annotated[
    bool | None,
    typer.Option("--log-requests/--no-log-requests", help="A line of the log for every request"),
]

TraceEndpoint = Annotated[
    str | None,
    typer.Option("--trace-endpoint", help="OTLP collector: http://HOST:4318/v1/traces [off]"),
]
TraceRate = Annotated[
    int | None,
    typer.Option("--trace-rate", help="One in so many begins a trace; 0 = only callers' [1000]"),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        cls=ServingCommand, epilog="Example: headrace serve --model-repository models --workers 2"
    )(serve)


def serve(
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
    workers: Workers = None,
    host: Host = None,
    shared_memory: SharedMemory = None,
    cache_config: CacheConfig = None,
    rate_limit: RateLimit = None,
    rate_limit_resource: RateLimitResource = None,
    redis: Redis = None,
    registry: Registry = None,
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
    """Serve models. Prints one JSON line on stdout when ready; SIGTERM drains and exits 0.

    SIGHUP reads models, settings and code again, and replaces the workers one after another.
    """
    flags = {name: value for name, value in locals().items() if name != "config"}
    import asyncio
    from functools import partial

    from server import logs
    from server.processes import stack

    chosen = settings(config, flags)
    logs.setup("supervisor", chosen.log_format)
    reread = partial(settings, config, flags)
    asyncio.run(stack.run(chosen, whole=False, reread=reread))
