"""One run of the wire benchmark: how much is measured, the model, and who serves it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import model, servers
from benchmarks.common.processes import Cores
from benchmarks.common.servers import Server, TritonModel
from benchmarks.common.turns import Contest

TRITON_ROWS_MAX = 256


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    runs: int
    run_s: float
    latency_runs: int
    latency_run_s: float
    idle_connections: int


QUICK = Effort(3, 0.35, 2, 1.5, 2_000)
FULL = Effort(5, 2.0, 5, 5.0, 10_000)


@dataclass
class Bench(Contest):
    """One run of the benchmark."""

    effort: Effort
    onnx_file: Path
    body: Path  # of a gRPC call

    def launched(self, name: str) -> Server | None:
        """Return the server of that name, not started yet; None: it cannot be installed."""
        cpu = self.cores.server
        if name == servers.OURS:
            return servers.ours(self.onnx_file, self.folder / "data", cpu)
        if name == servers.GRPC_AIO:
            return servers.grpc_aio([self.onnx_file], cpu)
        python = self.python(
            {servers.TRITON: servers.PYTRITON, servers.FASTAPI: servers.UVICORN}[name]
        )
        if python is None:
            return None
        if name == servers.FASTAPI:
            return servers.fastapi(self.onnx_file, python, cpu)
        config = servers.triton_config(model.WIDTH, TRITON_ROWS_MAX)
        served = TritonModel(model.MODEL, self.onnx_file, config)
        return servers.triton([served], python, cpu, self.folder)


@contextlib.contextmanager
def prepared(quick: bool, cores: Cores, folder: Path) -> Iterator[Bench]:
    """Write the model and the body; end every server in the end."""
    onnx_file = model.write_repository(folder / "repository")
    wanted = model.expected(onnx_file)
    body = folder / "body"
    body.write_bytes(model.grpc_body(wanted.row))
    bench = Bench(cores, folder, wanted, QUICK if quick else FULL, onnx_file, body)
    try:
        yield bench
    finally:
        bench.close()
