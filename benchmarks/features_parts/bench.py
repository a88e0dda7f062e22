"""One run of the features benchmark: how much is measured, the store, and who serves from it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.common import clients, servers
from benchmarks.common.clients import Clients
from benchmarks.common.processes import Cores
from benchmarks.common.servers import Server
from benchmarks.common.turns import Contest
from benchmarks.features_parts import feast_servers, feast_side, released, world
from benchmarks.features_parts.feast_servers import FEAST

FEAST_MODULE = "benchmarks.features_parts.feast_side"


@dataclass(frozen=True)
class Effort:
    """How much is measured. `events` and `rows` say how large what is ingested and joined is."""

    runs: int
    run_s: float
    open_runs: int
    open_run_s: float
    history_runs: int
    history_events: int
    spine_rows: int
    view_rows: int
    ingest_runs: int
    ingest_events: int


QUICK = Effort(3, 1.0, 2, 1.5, 2, 500_000, 200_000, 30_000, 2, 300_000)
FULL = Effort(5, 3.0, 5, 5.0, 3, 5_000_000, 2_000_000, 300_000, 5, 3_000_000)


@dataclass
class Bench(Contest):
    """One run of the benchmark. All servers read the same store, which has a core of the load's."""

    effort: Effort
    load: Clients
    checked: int = 0  # answers that were held against the values that were written
    _store: world.Store | None = None
    _feast: harness.Side | None = None
    _sides: list[harness.Side] = field(default_factory=list)

    @property
    def store_cpu(self) -> int:
        """The store's core: not the server's, and the load's only where there are just two."""
        return self.cores.clients[0]

    @property
    def store(self) -> world.Store:
        """The store that everything is served from, with our rows in it; made on first use."""
        if self._store is None:
            self._store = world.Store(self.store_cpu, self.folder / "store")
            self._stack.callback(self._store.stop)
            world.fill(self._store.url)
        return self._store

    @property
    def feast_folder(self) -> Path:
        """Feast's repository."""
        return self.folder / "feast"

    @property
    def feast(self) -> harness.Side | None:
        """Feast's process, on the servers' core, its rows in the store; None: it is missing."""
        if self._feast is None and (python := self.python(FEAST)) is not None:
            feast_side.write_config(self.feast_folder, self.store.port)
            source = str(self.feast_folder)
            self._feast = self.side(python, FEAST_MODULE, "feast", source)
            self._feast.ask("fill")
        return self._feast

    def side(self, python: Path | str, module: str, name: str, source: str) -> harness.Side:
        """Start a process that is timed, on the servers' core."""
        side = harness.Side(python, module, name, source, self.cores.server)
        self._stack.callback(side.close)
        return side

    def launched(self, name: str) -> Server | None:
        """Return the server of that name, not started yet; None: it cannot be installed."""
        if name == servers.OURS:
            return released.worker(self.folder, self.store.url, self.cores.server)
        python = self.python(FEAST)
        if python is None or self.feast is None:
            return None
        launch = {feast_servers.HTTP: feast_servers.http, feast_servers.GRPC: feast_servers.listen}
        return launch[name](python, self.feast_folder, self.cores.server)

    def ask(self, side: harness.Side, *wanted: Any) -> dict[str, Any]:
        """Ask a process, and count what it has checked."""
        said = side.ask(*wanted)
        self.checked += int(said.get("checked", 0))
        return said


@contextlib.contextmanager
def prepared(quick: bool, cores: Cores, folder: Path) -> Iterator[Bench]:
    """Start the load's client; end every process in the end."""
    with clients.started(cores.clients[-1:]) as load:
        bench = Bench(cores, folder, None, QUICK if quick else FULL, load)
        try:
            yield bench
        finally:
            bench.note(f"{bench.checked:,} answers were checked against what was written")
            bench.close()
