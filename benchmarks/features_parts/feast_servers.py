"""Feast's two servers: over HTTP (gunicorn and uvicorn) and over gRPC, each one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc

from benchmarks import harness
from benchmarks.common.processes import Process
from benchmarks.common.servers import HOST, Ports, Server, answers_http, free_port

FEAST = harness.Peer("feast", ("feast[redis,grpcio]==0.67.0",))
HTTP, GRPC, SDK = "Feast HTTP", "Feast gRPC", "Feast SDK"
GRPC_PATH = "/GrpcFeatureServer/GetOnlineFeatures"
# Neither looks at the registry while it is measured, and no worker is replaced by another one.
REGISTRY_TTL_S = 86_400
_COMMAND = "from feast.cli.cli import cli; cli()"
_READY_S = 0.2


def http(python: Path, folder: Path, cpu: int) -> Server:
    """Return the HTTP server of the repository in `folder`."""
    options = ("--workers", "1", "--max-requests", "0", "--no-access-log")

    def launch() -> tuple[Process, Ports]:
        port = free_port()
        process = _started(python, folder, cpu, "serve", "-h", HOST, "-p", str(port), *options)
        return _ready(process, lambda: answers_http(port, "/health")), Ports(http=port)

    return Server(HTTP, launch)


def listen(python: Path, folder: Path, cpu: int) -> Server:
    """Return the gRPC server of the repository in `folder`: with as many threads as by default."""

    def launch() -> tuple[Process, Ports]:
        port = free_port()
        process = _started(python, folder, cpu, "listen", "-a", f"{HOST}:{port}")
        return _ready(process, lambda: _answers_grpc(port)), Ports(grpc=port)

    return Server(GRPC, launch)


def _started(python: Path, folder: Path, cpu: int, *command: str) -> Process:
    arguments = [
        str(python), "-W", "ignore", "-c", _COMMAND, "--chdir", str(folder), *command,
        "--registry_ttl_sec", str(REGISTRY_TTL_S),
    ]  # fmt: skip
    # gunicorn's workers are found by the environment's own path.
    return Process(arguments, [cpu], cwd=folder, env={"FEAST_USAGE": "False"})


def _ready(process: Process, answers: Callable[[], bool]) -> Process:
    process.wait_for(lambda: answers() or None)
    return process


def _answers_grpc(port: int) -> bool:
    with grpc.insecure_channel(f"{HOST}:{port}") as channel:
        try:
            grpc.channel_ready_future(channel).result(_READY_S)
        except grpc.FutureTimeoutError:
            return False
    return True
