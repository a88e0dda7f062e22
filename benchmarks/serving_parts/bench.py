"""One run of the serving benchmark: how much is measured, what is served, and by whom."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np

from benchmarks import harness
from benchmarks.common import clients, model, servers
from benchmarks.common.clients import Clients, Closed, Open
from benchmarks.common.processes import Cores
from benchmarks.common.servers import CALL_TIMEOUT_S, HOST, Server
from benchmarks.common.tools import InvalidRun
from benchmarks.common.turns import Contest
from benchmarks.serving_parts import ensembles, peers, workloads
from benchmarks.serving_parts.workloads import Workload

PEERS: dict[str, harness.Peer] = {
    servers.TRITON: servers.PYTRITON,
    peers.MLSERVER: peers.MLSERVER_PEER,
    peers.BENTOML: peers.BENTOML_PEER,
}
CONNECTIONS = 16  # of an open loop
PATIENCE_MS = 20  # of the callers of the overloaded model


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    runs: int
    run_s: float
    open_runs: int
    open_run_s: float
    overload_runs: int
    overload_run_s: float
    peak_runs: int
    sentences_runs: int
    sentences_run_s: float


QUICK = Effort(1, 0.2, 1, 0.3, 2, 0.7, 1, 3, 1.0)
FULL = Effort(5, 1.0, 3, 3.0, 5, 3.0, 3, 7, 2.0)


@dataclass
class Bench(Contest):
    """One run of the benchmark. `shapes` are the workloads of the A rows, `chains` of ensembles."""

    effort: Effort
    files: dict[str, Path]
    shapes: list[Workload]
    chains: list[Workload]
    hurried: Workload
    load: Clients
    checked: int = 0  # answers that were held against onnxruntime's
    _scripts: dict[tuple[str, int | None], list[Path]] = field(default_factory=dict)
    _reply_bytes: dict[tuple[str, str], int] = field(default_factory=dict)

    def launched(self, name: str) -> Server | None:
        """Return the server of that name, not started yet; None: it cannot be installed."""
        cpu = self.cores.server
        if name == servers.OURS:
            return servers.ours(self.files[model.MODEL], self.folder / "data", cpu)
        if name == servers.GRPC_AIO:
            return servers.grpc_aio(list(self._small.values()), cpu)
        python = self.python(PEERS[name])
        if python is None:
            return None
        if name == servers.TRITON:
            models = workloads.triton_models(self.files)
            models += ensembles.triton_models(self.files[model.MODEL].parents[2])
            return servers.triton(models, python, cpu, self.folder)
        if name == peers.MLSERVER:
            return peers.mlserver(self._small, python, cpu, self.folder)
        return peers.bentoml(self._small, python, cpu, self.folder)

    @property
    def _small(self) -> dict[str, Path]:
        """The models of the peers that are not overloaded."""
        return {name: file for name, file in self.files.items() if name != workloads.WIDE}

    def closed(self, server: Server, work: Workload, concurrency: int, run_s: float) -> Closed:
        """Run a closed loop, every answer of which is checked. Raises InvalidRun."""
        self._first_call(server, work)
        result = self.load.closed(
            server, (concurrency, 1), self._script(work), work.body_bytes, run_s, work.answers
        )
        self.checked += result.checked
        return result

    def open(
        self,
        server: Server,
        work: Workload,
        rate_per_s: float,
        run_s: float,
        seed: int,
        timeout_ms: int | None = None,
    ) -> Open:
        """Run an open loop, every answer of which is checked. Raises InvalidRun."""
        self._first_call(server, work)
        result = self.load.open(
            server, CONNECTIONS, self._script(work, timeout_ms), work.body_bytes, rate_per_s,
            run_s, seed, work.answers,
        )  # fmt: skip
        self.checked += len(result.right_us)
        return result

    def _script(self, work: Workload, timeout_ms: int | None = None) -> list[Path]:
        key = work.title, timeout_ms
        if key not in self._scripts:
            self._scripts[key] = work.script(self.folder, timeout_ms)
        return self._scripts[key]

    def _first_call(self, server: Server, work: Workload) -> None:
        """Learn how long the server's replies are. Raises InvalidRun when the first is wrong."""
        key = server.name, work.title
        if key not in self._reply_bytes:
            self._reply_bytes[key] = 5 + len(first_reply(server, work))
        server.reply_bytes = self._reply_bytes[key]


def first_reply(server: Server, work: Workload) -> bytes:
    """Make one real call; return its message. Raises InvalidRun when it is not right."""
    with grpc.insecure_channel(f"{HOST}:{server.ports.grpc}") as channel:
        call = channel.unary_unary(model.GRPC_PATH, None, None)
        try:
            reply: bytes = call(work.bodies[0][5:], timeout=CALL_TIMEOUT_S, wait_for_ready=True)
        except grpc.RpcError as error:
            raise InvalidRun(f"{server.name} fails a call of {work.title}: {error}") from error
    wanted = work.wanted()[0]
    got = np.frombuffer(reply[-wanted.nbytes :], np.float32)
    if len(got) != len(wanted) or not np.allclose(got, wanted, atol=model.TOLERANCE):
        raise InvalidRun(f"{server.name} answers {work.title} otherwise than onnxruntime")
    return reply


@contextlib.contextmanager
def prepared(quick: bool, cores: Cores, folder: Path) -> Iterator[Bench]:
    """Train and write the models and the requests; end every server in the end."""
    effort = QUICK if quick else FULL
    root = folder / "repository"
    files = workloads.write_repository(root)
    steps = ensembles.write_steps(root, files)

    def work(title: str, name: str, bodies: int, rows: int, calls_max: int) -> Workload:
        shape = bodies, rows
        return workloads.write_workload([files[name]], folder, title, name, shape, calls_max)

    shapes = [
        work("MLP", model.MODEL, 64, 1, 40_000),
        work("GBDT ×1", workloads.GBDT, 64, 1, 40_000),
        work("GBDT ×32", workloads.GBDT, 32, 32, 15_000),
        work("GBDT ×256", workloads.GBDT, 8, 256, 4_000),
    ]
    chains = [
        workloads.write_workload(
            steps[name], folder, f"ensemble of 3 with the {kind}", name, (64, 1), 20_000
        )
        for name, kind in (
            (ensembles.ensemble_of(model.MODEL), "MLP"),
            (ensembles.ensemble_of(workloads.GBDT), "GBDT"),
        )
    ]
    hurried = work("wide MLP", workloads.WIDE, 64, 1, 10_000)
    wanted = model.expected(files[model.MODEL])
    with clients.started(cores.clients[-1:]) as load:
        bench = Bench(cores, folder, wanted, effort, files, shapes, chains, hurried, load)
        try:
            yield bench
        finally:
            bench.note(f"{bench.checked:,} answers under load were checked against onnxruntime")
            bench.close()
