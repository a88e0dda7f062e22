"""What all parts share: the servers, the cores, how many runs there are, and runs in turns."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from benchmarks import harness
from benchmarks.wire_parts import model, servers
from benchmarks.wire_parts.processes import Cores, StartError
from benchmarks.wire_parts.servers import Server
from benchmarks.wire_parts.tools import InvalidRun

_T = TypeVar("_T")


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
class Bench:
    """One run of the benchmark."""

    effort: Effort
    cores: Cores
    folder: Path
    onnx_file: Path
    wanted: model.Expected
    body: Path  # of a gRPC call
    notes: list[str] = field(default_factory=list)
    peaks: dict[str, float] = field(default_factory=dict)  # requests/s, by server
    pythons: dict[harness.Peer, Path | None] = field(default_factory=dict)  # of the peers asked for
    _servers: dict[str, Server | None] = field(default_factory=dict)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def note(self, text: str) -> None:
        """Say something that a reader of the figures must know, once."""
        if text not in self.notes:
            self.notes.append(text)

    def server(self, name: str) -> Server | None:
        """Return a server by name, started on first use; None: it is missing.

        All of them stay up, on one core: only one at a time has anything to do.
        """
        if name not in self._servers:
            self._servers[name] = self._start(name)
        return self._servers[name]

    def ours(self) -> Server:
        """Return our server."""
        server = self.server(servers.OURS)
        assert server is not None
        return server

    def close(self) -> None:
        """End every server."""
        self._stack.close()

    def _start(self, name: str) -> Server | None:
        cpu = self.cores.server
        if name == servers.OURS:
            server = servers.ours(self.onnx_file, self.folder / "data", cpu)
        elif name == servers.GRPC_AIO:
            server = servers.grpc_aio(self.onnx_file, cpu)
        else:
            peer = {servers.TRITON: servers.PYTRITON, servers.FASTAPI: servers.UVICORN}[name]
            python = self.pythons[peer] = harness.peer_python(peer)
            if python is None:
                return None
            server = (
                servers.triton(self.onnx_file, python, cpu, self.folder)
                if name == servers.TRITON
                else servers.fastapi(self.onnx_file, python, cpu)
            )
        self._stack.callback(server.stop)
        try:
            server.start()
            if server.ports.grpc:
                server.check(self.wanted)
        except StartError as error:
            if name == servers.OURS:
                raise
            server.stop()
            self.note(f"{name} does not start here, reported as missing: {error}")
            return None
        return server

    def in_turns(
        self, runs: int, loads: Mapping[Server, Callable[[], _T]]
    ) -> dict[str, list[_T] | None]:
        """Run every load `runs` times, each time all of them next to each other.

        A peer whose run is invalid is started again once; after that it is missing (None). Ours
        raises InvalidRun.
        """
        taken: dict[str, list[_T] | None] = {server.name: [] for server in loads}
        for number in range(runs):
            # Who goes first alternates: what drifts on the machine meets all alike.
            for server in list(loads)[:: -1 if number % 2 else 1]:
                results = taken[server.name]
                if results is None:
                    continue
                result = self._attempt(server, loads[server])
                if result is None:
                    taken[server.name] = None
                else:
                    results.append(result)
        return taken

    def _attempt(self, server: Server, load: Callable[[], _T]) -> _T | None:
        try:
            return load()
        except InvalidRun as error:
            if server.name == servers.OURS:
                raise
            crashed = "it crashed" if not server.process.alive else "it failed"
            self.note(f"{server.name} was started again, {crashed}: {error}")
        try:
            server.restart()
            if server.ports.grpc:
                server.check(self.wanted)
            return load()
        except (InvalidRun, StartError) as error:
            self.note(f"{server.name} failed again, and is missing there: {error}")
            server.restart()
            return None


def present(*candidates: Server | None) -> list[Server]:
    """Return those that are not missing."""
    return [server for server in candidates if server is not None]


def values(runs: Sequence[_T] | None, of: Callable[[_T], float]) -> list[float] | None:
    """Return one value of each run; None where there are no runs."""
    return None if runs is None else [of(run) for run in runs]


@contextlib.contextmanager
def prepared(effort: Effort, cores: Cores, folder: Path) -> Iterator[Bench]:
    """Write the model and the body; end every server in the end."""
    onnx_file = model.write_repository(folder / "repository")
    wanted = model.expected(onnx_file)
    body = folder / "body"
    body.write_bytes(model.grpc_body(wanted.row))
    bench = Bench(effort, cores, folder, onnx_file, wanted, body)
    try:
        yield bench
    finally:
        bench.close()
