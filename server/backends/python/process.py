"""The process of one instance of a Python model: started, watched, ended.

It shares two memories with us, has a socket to us, and writes what it prints into our log. It is
no child that goes on by itself: the kernel ends it with this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from pathlib import Path

from headrace.errors import UnavailableError
from server.backends.python.stub import memory

_LOG = logging.getLogger(__name__)
# It imports server.backends.python.stub.runner, under a name of its own.
_STUB = Path(__file__).parent / "stub" / "__main__.py"
_LINE_BYTES_MAX = 16 * 1024
# Ours: settings may hold passwords, and inherited sockets are none of a model's business.
_PRIVATE = ("HEADRACE_", "_HEADRACE_")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class ModelProcess:
    """One process. `received` is what it reads of ours, `sent` what it writes for us."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._process: asyncio.subprocess.Process | None = None
        self._output: asyncio.Task[None] | None = None
        descriptors = memory.new_memory(), memory.new_memory()
        self._descriptors = descriptors
        self.received, self.sent = map(memory.Memory, descriptors)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    async def start(self, memory_bytes_max: int) -> socket.socket:
        """Start it; return our end of its socket. Raises UnavailableError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        inherited = (theirs.fileno(), *self._descriptors)
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(_PRIVATE)
        }
        command = [sys.executable, "-P", str(_STUB), *map(str, (os.getpid(), *inherited))]
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                str(memory_bytes_max),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is the supervisor's
                pass_fds=inherited,
                limit=_LINE_BYTES_MAX,
                env=environment,
            )
        except OSError as error:
            ours.close()
            raise UnavailableError(
                f"cannot start the process of model '{self.name}'", got=error.strerror
            ) from None
        finally:
            theirs.close()
        self._output = asyncio.create_task(self._read_output())
        return ours

    async def ended(self) -> int:
        """Wait for its end, and for what it printed; return its exit code (negative: a signal)."""
        assert self._process is not None
        code = await self._process.wait()
        if self._output is not None:
            # What it started may still hold the pipe.
            await asyncio.wait([self._output], timeout=1.0)
            self._output.cancel()
        return code

    def kill(self) -> None:
        """End it at once, and all that is of its session."""
        if self._process is not None and self._process.returncode is None:
            # Not by `Process.kill`, which may take the exit code from who waits for it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def resident_bytes(self) -> int:
        """Return how much memory it has of its own; 0 when it is gone."""
        try:
            fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        except OSError:
            return 0
        return (int(fields[1]) - int(fields[2])) * _PAGE_BYTES

    def close(self) -> None:
        """Close our ends of what it shared with us."""
        self.received.close()
        self.sent.close()

    async def _read_output(self) -> None:
        assert self._process is not None
        stream = self._process.stdout
        assert stream is not None
        while True:
            try:
                line = await stream.readline()
            except ValueError:
                _LOG.info("model %s: (a line that is too long)", self.name)
                continue
            if not line:
                return
            _LOG.info("model %s: %s", self.name, line.decode(errors="replace").rstrip())
