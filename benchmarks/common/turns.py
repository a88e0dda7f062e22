"""Servers of one contest: started on first use, each on the same core, and run in turns."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from benchmarks import harness
from benchmarks.common import model, servers
from benchmarks.common.clients import Open
from benchmarks.common.processes import Cores, StartError
from benchmarks.common.servers import Server
from benchmarks.common.tools import InvalidRun

LATE_SEND_US_MAX = 200.0
_T = TypeVar("_T")


@dataclass
class Contest(ABC):
    """One run of a benchmark: its servers, and what a reader of its figures must know."""

    cores: Cores
    folder: Path
    wanted: model.Expected | None  # of the first call to each server that speaks gRPC
    notes: list[str] = field(default_factory=list, kw_only=True)
    peaks: dict[str, float] = field(default_factory=dict, kw_only=True)  # requests/s
    pythons: dict[harness.Peer, Path | None] = field(default_factory=dict, kw_only=True)
    _servers: dict[str, Server | None] = field(default_factory=dict, kw_only=True)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, kw_only=True)

    def note(self, text: str) -> None:
        """Say something that a reader of the figures must know, once."""
        if text not in self.notes:
            self.notes.append(text)

    def note_trouble(self, runs: Sequence[Open], where: str) -> None:
        """Say which calls of open loops failed, and how late they were sent."""
        if lost := sum(run.failed for run in runs):
            calls = sum(len(run.latencies_us) for run in runs)
            self.note(f"{where}: {lost} of {calls} calls failed; they count as the slowest")
        late_us = max((run.late_send_us for run in runs), default=0.0)
        if late_us > LATE_SEND_US_MAX:
            self.note(f"{where}: the client sent up to {late_us:.0f} µs late (p99), as counted")

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

    @abstractmethod
    def launched(self, name: str) -> Server | None:
        """Return the server of that name, not started yet; None: it cannot be installed."""

    def first_call(self, server: Server) -> None:
        """Make the first call to a server. Raises StartError when its answer is wrong."""
        if server.ports.grpc and self.wanted is not None:
            server.check(self.wanted)

    def python(self, peer: harness.Peer) -> Path | None:
        """Return the Python of a peer's environment; None: it is missing."""
        if peer not in self.pythons:
            self.pythons[peer] = harness.peer_python(peer)
            if self.pythons[peer] is None:
                wanted = " ".join(peer.requirements)
                self.note(f"{peer.name} is missing: pip cannot install {wanted} here")
        return self.pythons[peer]

    def _start(self, name: str) -> Server | None:
        server = self.launched(name)
        if server is None:
            return None
        self._stack.callback(server.stop)
        try:
            server.start()
            self.first_call(server)
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
        for server in harness.turns(list(loads), runs):
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
            self.first_call(server)
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
