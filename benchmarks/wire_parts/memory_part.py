"""Memory: what an idle gRPC connection costs a server, and what a worker costs before any model."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import frames, servers
from benchmarks.common.processes import Process
from benchmarks.common.servers import HOST, Server
from benchmarks.common.tools import InvalidRun
from benchmarks.harness import Figure
from benchmarks.wire_parts.bench import Bench
from tests.support.memory import pss_bytes

CONNECTION_BYTES_MAX = 12 * 1024
WORKER_MIB_MAX = 90.0
MIB = 1 << 20
FIRST_CONNECTIONS = 200  # opened before the count begins: what they make, later ones share
SETTLE_S = 1.0
ANSWER_TIMEOUT_S = 20.0
WORKERS = 2


def measure(bench: Bench) -> Iterator[Figure]:
    """Yield both figures."""
    peer = bench.server(servers.GRPC_AIO)
    assert peer is not None, "it needs nothing that we do not have"
    number = bench.effort.idle_connections
    yield Figure(
        figure=f"{number:,} idle connections",
        unit="B each",
        runs=[idle_bytes(bench.ours(), number)],
        peer=servers.GRPC_AIO,
        peer_runs=[idle_bytes(peer, number)],
        limit=CONNECTION_BYTES_MAX,
    )
    yield Figure(
        figure=f"PSS of each of {WORKERS} workers, no model",
        unit="MiB",
        runs=worker_mib(bench.folder / "memory"),
        peer=None,
        peer_runs=None,
        limit=WORKER_MIB_MAX,
    )


def idle_bytes(server: Server, number: int) -> float:
    """Return what each of `number` connections adds to the server's memory, in bytes.

    The first few are not counted, so that all together are what a server takes by default.
    The server is started anew: what an earlier load left free would hide what they take.
    """
    server.restart()
    with contextlib.ExitStack() as stack:
        for _ in range(FIRST_CONNECTIONS):
            stack.enter_context(connection(server.name, server.ports.grpc))
        time.sleep(SETTLE_S)
        before_bytes = _pss(server.process)
        counted = number - FIRST_CONNECTIONS
        for _ in range(counted):
            stack.enter_context(connection(server.name, server.ports.grpc))
        time.sleep(SETTLE_S)
        return (_pss(server.process) - before_bytes) / counted


def _pss(process: Process) -> int:
    return sum(pss_bytes(pid) for pid in process.pids())


@contextlib.contextmanager
def connection(name: str, port: int) -> Iterator[None]:
    """Open a gRPC connection to `name` whose settings both sides have acknowledged."""
    with socket.create_connection((HOST, port), ANSWER_TIMEOUT_S) as link:
        link.sendall(frames.OPENING)
        wanted = {(frames.SETTINGS, 0), (frames.SETTINGS, frames.ACK)}
        data = b""
        while wanted:
            piece = link.recv(65_536)
            if not piece:
                raise InvalidRun(f"{name} closed an idle connection")
            data += piece
            wanted -= {(kind, flags) for kind, flags, _ in frames.walk(data)}
        link.sendall(frames.frame(frames.SETTINGS, frames.ACK, 0))
        yield


def worker_mib(data_dir: Path) -> list[float]:
    """Return the PSS of the workers of `headrace serve`, in MiB, once they have settled."""
    command = [
        sys.executable, "-m", "server.cli.main", "serve", "--workers", str(WORKERS),
        "--data-dir", str(data_dir), "--redis", "none", "--registry", "none",
        "--grpc-port", "0", "--http-port", "0", "--metrics-port", "0",
    ]  # fmt: skip
    process = Process(command, sorted(os.sched_getaffinity(0)))
    try:
        process.wait_for(lambda: True if '"ready"' in process.output() else None)
        time.sleep(SETTLE_S)
        pids = _workers(data_dir)
        assert len(pids) == WORKERS, f"{len(pids)} workers run instead of {WORKERS}"
        return [pss_bytes(pid) / MIB for pid in pids]
    finally:
        process.stop()


def _workers(data_dir: Path) -> list[int]:
    from server.processes.layout import DataDir

    children = json.loads(DataDir(data_dir).children.read_bytes())
    return [child["pid"] for child in children if child["role"].startswith("worker")]
