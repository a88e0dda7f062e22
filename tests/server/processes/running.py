"""A process under test: its lines as they come, its signals, its end."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO

TIMEOUT_S = 20.0


class Running:
    """Starts a command and collects the lines of its stdout and stderr. Use in a `with` block."""

    def __init__(
        self,
        *command: str,
        environment: dict[str, str] | None = None,
        keeps: tuple[int, ...] = (),
    ) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean | (environment or {}),
            pass_fds=keeps,
        )
        self.stdout: queue.Queue[str] = queue.Queue()
        self.stderr: queue.Queue[str] = queue.Queue()
        self.seen: list[str] = []
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=_collect, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.stdout), (self.process.stderr, self.stderr))
        ]
        for reader in self._readers:
            reader.start()

    @classmethod
    def python(cls, script: str, *arguments: str, keeps: tuple[int, ...] = ()) -> Running:
        return cls(sys.executable, "-c", script, *arguments, keeps=keeps)

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self, pattern: str, stream: str = "stderr") -> re.Match[str]:
        """Wait for the next line that holds `pattern`."""
        lines: queue.Queue[str] = getattr(self, stream)
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                text = lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line {pattern!r} in: {self.seen}") from None
            self.seen.append(text)
            match = re.search(pattern, text)
            if match is not None:
                return match

    def lines(self, *patterns: str) -> None:
        """Wait until each pattern has come, in any order: several processes write to stderr."""
        missing = list(patterns)
        while missing:
            text = self.line("|".join(missing)).string
            missing = [pattern for pattern in missing if not re.search(pattern, text)]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.send(number)
        return self.wait()

    def wait(self) -> int:
        try:
            code = self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._read_on()
            raise AssertionError(f"it does not end; it said: {self.seen}") from None
        # Children may hold the pipes open for longer than the process itself.
        for reader in self._readers:
            reader.join(0.5)
        self._read_on()
        return code

    def _read_on(self) -> None:
        for lines in (self.stdout, self.stderr):
            while not lines.empty():
                self.seen.append(lines.get_nowait())

    @property
    def text(self) -> str:
        return "\n".join(self.seen)

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for reader in self._readers:
            reader.join(1.0)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def eventually_dead(pid: int) -> bool:
    """Wait until a process is gone; False when it stays."""
    deadline = time.monotonic() + TIMEOUT_S
    while alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _collect(stream: IO[bytes], lines: queue.Queue[str]) -> None:
    try:
        for line in stream:
            lines.put(line.decode(errors="replace").rstrip("\n"))
    except ValueError:  # closed by the test
        return


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` holds; fail with `what` after the time limit."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        time.sleep(0.02)
