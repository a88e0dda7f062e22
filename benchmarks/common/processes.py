"""Processes of the benchmark: each on its cores, with its CPU time, and ended by its pid."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks import harness
from server.processes.ports import HeldPort, inheritance

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
_POLL_S = 0.02
_T = TypeVar("_T")
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class StartError(Exception):
    """A server that does not come up; the text has what it said."""


@dataclass(frozen=True)
class Cores:
    """Who runs where. With fewer than two cores all share one, and the figures mean little."""

    server: int
    clients: tuple[int, ...]

    @property
    def second(self) -> int | None:
        """The core of a second worker, where one is left for the load; else None."""
        return self.clients[-1] if len(self.clients) > 1 else None


def cores() -> Cores:
    """Split the cores that this process may use: the last is the server's."""
    *clients, server = sorted(os.sched_getaffinity(0))
    return Cores(server, tuple(clients) or (server,))


def pinned(cpus: Sequence[int], command: Sequence[str]) -> list[str]:
    """Return the command, kept on these cores."""
    return ["taskset", "-c", ",".join(map(str, cpus)), *command]


class Process:
    """A child in a process group of its own. Its output goes to a file, for errors to show.

    It inherits `shared` as the sockets of its gRPC port.
    """

    def __init__(
        self,
        command: Sequence[str],
        cpus: Sequence[int],
        *,
        cwd: Path = harness.ROOT,
        env: Mapping[str, str] | None = None,
        shared: HeldPort | None = None,
    ) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
        descriptors = [sock.fileno() for sock in shared.sockets] if shared is not None else []
        clean |= inheritance(["grpc_port"] * len(descriptors), descriptors)
        self.log = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - it lives as long as the process
        self._child = subprocess.Popen(
            pinned(cpus, command), cwd=cwd, env=clean | dict(env or {}),
            stdin=subprocess.PIPE, stdout=self.log, stderr=self.log, start_new_session=True,
            pass_fds=descriptors,
        )  # fmt: skip
        self.pid = self._child.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._child.poll() is None

    def output(self) -> str:
        """Return what it has said so far."""
        # The child writes at the same place of the file: our reading must not move it.
        return os.pread(self.log.fileno(), 1 << 20, 0).decode(errors="replace")

    def wait_for(self, ready: Callable[[], _T | None]) -> _T:
        """Ask `ready` until it says something. Raises StartError, and ends the
        process, when that takes too long or it ends by itself."""
        end_s = time.monotonic() + START_TIMEOUT_S
        while True:
            found = ready()
            if found is not None:
                return found
            if not self.alive or time.monotonic() > end_s:
                said = self.output()[-4000:]
                self.stop()
                raise StartError(f"a server does not start; it says:\n{said}")
            time.sleep(_POLL_S)

    def cpu_s(self) -> float:
        """Return the CPU time of the process and of its children that still run."""
        return sum(_cpu_s(pid) for pid in self.pids())

    def pids(self) -> list[int]:
        """Return the processes of its group."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if os.getpgid(int(entry.name)) == self.pid:
                        found.append(int(entry.name))
        return found

    def stop(self) -> None:
        """End it and whatever it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(STOP_TIMEOUT_S)
        if self._child.stdin is not None:
            self._child.stdin.close()
        self.log.close()


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND
