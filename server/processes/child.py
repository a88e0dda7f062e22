"""One child process: how it is started, when it is ready, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from headrace.errors import UnavailableError
from server.processes.layout import ChildRecord, start_ticks
from server.processes.ports import inheritance

# A child that has this much unread on its stdin does not read: it hangs.
_UNREAD_BYTES_MAX = 4 * 1024 * 1024
LINE_BYTES_MAX = 1024 * 1024
# Linux refuses a longer argument (MAX_ARG_STRLEN is 128 KiB).
ARGUMENT_BYTES_MAX = 120 * 1024


def line_of(said: dict[str, Any]) -> bytes:
    """Return what is said to a child as the line that goes to its stdin."""
    return json.dumps(said, separators=(",", ":")).encode()


class Process(Protocol):
    """What a child is for us: an `asyncio.subprocess.Process`, or what the nursery made."""

    @property
    def pid(self) -> int: ...  # noqa: D102

    @property
    def returncode(self) -> int | None: ...  # noqa: D102

    @property
    def stdin(self) -> asyncio.StreamWriter | None: ...  # noqa: D102

    @property
    def stdout(self) -> asyncio.StreamReader | None: ...  # noqa: D102

    async def wait(self) -> int: ...  # noqa: D102

    def send_signal(self, number: signal.Signals) -> None: ...  # noqa: D102


Sockets = Sequence[tuple[str, socket.socket]]
Fork = Callable[[str, list[str], dict[str, str], Sockets], Awaitable[Process]]


@dataclass(frozen=True)
class ChildSpec:
    """What to start. `command` is called with the newest plan for every start.

    A child is ready when it prints a JSON line {"event": "ready", …} on stdout or, where `probe` is
    given, when that returns True. `link` gets our end of a socket (unix, SOCK_SEQPACKET) whose
    other end is the child's stdin. `fork` makes the child from (role, arguments, environment,
    sockets) instead of a new program; `command` then returns what follows the program's name. The
    child inherits `sockets` by their names. `hear` gets the JSON lines that it prints on stdout
    once it is ready.
    """

    role: str
    command: Callable[[dict[str, Any] | None], list[str]]
    probe: Callable[[], Awaitable[bool]] | None = None
    takes_plans: bool = False
    ready_timeout_s: float = 120.0
    environment: dict[str, str] = field(default_factory=dict)
    link: Callable[[socket.socket], None] | None = None
    fork: Fork | None = None
    sockets: Sockets = ()
    hear: Callable[[Child, dict[str, Any]], None] | None = None


# A store's URL may hold a password, and arguments are for everybody on the machine to read: it goes
# to a child by its environment.
STORE_VARIABLE = "_HEADRACE_REDIS"


def store_environment(redis: str | None) -> dict[str, str]:
    """Return what hands a store's URL to a child."""
    return {} if redis is None else {STORE_VARIABLE: redis}


def python_command(module: str, config: dict[str, Any]) -> list[str]:
    """Return the command that runs one of our modules with `config` as JSON in argv[1].

    -P keeps the working folder out of `sys.path`: a user's own `server/` or `features/` there must
    not replace ours (CONTRACTS §9).
    """
    return [sys.executable, "-P", "-m", module, json.dumps(config, separators=(",", ":"))]


class Child:
    """A running child of this process.

    It gets a session of its own, so that Ctrl-C in the terminal reaches the supervisor alone, which
    then ends its children in order. It has no parent-death signal: workers go on when the
    supervisor is killed (CONTRACTS §2), and so must what they need (collector, store, control). The
    next supervisor in this data folder replaces them all (`layout.replace_orphans`).
    """

    def __init__(self, spec: ChildSpec, process: Process) -> None:
        self.spec = spec
        self.ready: dict[str, Any] = {}
        self._process = process
        self._drain_output: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, spec: ChildSpec, plan: dict[str, Any] | None) -> Child:
        """Start the process. Raises UnavailableError when the machine refuses."""
        command = spec.command(plan)
        if spec.fork is not None:
            return cls(spec, await spec.fork(spec.role, command, spec.environment, spec.sockets))
        stdin = asyncio.subprocess.PIPE if spec.takes_plans else asyncio.subprocess.DEVNULL
        with contextlib.ExitStack() as stack:
            if spec.link is not None:
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                stdin = stack.enter_context(theirs).fileno()
                spec.link(ours)
            descriptors = [sock.fileno() for _, sock in spec.sockets]
            heirlooms = inheritance((name for name, _ in spec.sockets), descriptors)
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=stdin,
                    stdout=asyncio.subprocess.PIPE,
                    start_new_session=True,
                    limit=LINE_BYTES_MAX,
                    pass_fds=descriptors,
                    env={
                        **os.environ,
                        "ORT_DISABLE_TELEMETRY": "1",
                        **spec.environment,
                        **heirlooms,
                    },
                )
            except OSError as error:
                raise UnavailableError(f"cannot start {spec.role}: {error.strerror}") from None
        return cls(spec, process)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def record(self) -> ChildRecord | None:
        """What tells this process from a later one with its pid; None when it is gone already."""
        ticks = start_ticks(self.pid)
        return None if ticks is None else ChildRecord(self.spec.role, self.pid, ticks)

    async def wait_ready(self) -> None:
        """Wait until it is ready.

        Raises UnavailableError when it ends first or takes longer than `ready_timeout_s`.
        """
        waiter = self._probe_until_ready() if self.spec.probe else self._read_ready_line()
        try:
            async with asyncio.timeout(self.spec.ready_timeout_s):
                await waiter
        except TimeoutError:
            raise UnavailableError(
                f"{self.spec.role} was not ready within {self.spec.ready_timeout_s:g} s"
            ) from None
        self._drain_output = asyncio.create_task(self._hear_output())

    async def wait(self) -> int:
        """Wait for its end and return its exit code (negative: the signal that ended it)."""
        code = await self._process.wait()
        if self._drain_output is not None:
            self._drain_output.cancel()
        return code

    def send_line(self, line: bytes) -> None:
        """Write a line to its stdin. A child that does not read is killed: it hangs."""
        stdin = self._process.stdin
        if stdin is None or stdin.is_closing():
            return
        stdin.write(line + b"\n")
        if stdin.transport.get_write_buffer_size() > _UNREAD_BYTES_MAX:
            self.signal(signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when it is gone already."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def stop(self, grace_s: float) -> bool:
        """End it: SIGTERM, then SIGKILL after `grace_s`. True when it ended by itself."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.wait()
            return False
        return True

    async def _read_ready_line(self) -> None:
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:
                continue  # longer than the limit: no ready line
            if not line:
                code = await self._process.wait()
                raise UnavailableError(f"{self.spec.role} ended before it was ready", got=how(code))
            message = _as_object(line)
            if message.get("event") == "ready":
                self.ready = message
                return

    async def _probe_until_ready(self) -> None:
        assert self.spec.probe is not None
        while self._process.returncode is None:
            if await self.spec.probe():
                return
            await asyncio.sleep(0.02)
        raise UnavailableError(
            f"{self.spec.role} ended before it was ready", got=how(self._process.returncode)
        )

    async def _hear_output(self) -> None:
        """Read what else comes on stdout: a full pipe would stop the child."""
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:
                continue  # longer than the limit: none that we know
            if not line:
                return
            if self.spec.hear is not None:
                self.spec.hear(self, _as_object(line))


def how(code: int) -> str:
    """Return an exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def _as_object(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
