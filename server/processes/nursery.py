"""The supervisor's side of the nursery: workers are forked from it instead of started anew."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
from typing import Any

import msgspec

from headrace.errors import UnavailableError
from server.processes.child import LINE_BYTES_MAX, ChildSpec, Sockets, python_command

# The first answer comes when the nursery has imported everything, and has compiled what is not yet
# in the cache.
_READY_TIMEOUT_S = 120.0
_REPLY_BYTES_MAX = 64 * 1024
_REQUEST_BYTES_MAX = 256 * 1024  # a plan in an argument, its quotes quoted again
_PR_SET_CHILD_SUBREAPER = 36
# Threads that libraries start when they are imported, and would not survive a fork: OpenBLAS (of
# numpy and scipy), jemalloc (of Arrow).
_NO_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}


class Nursery:
    """Makes processes by asking a running nursery (`server.nursery`) to fork.

    They become children of this process, which is told of their end by the kernel; a nursery that
    ends takes none of them with it. One that is started again goes on where the last one ended.
    """

    def __init__(self) -> None:
        self._link: socket.socket | None = None
        self._linked = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._last_id = 0

    def spec(self, role: str, module: str, *, windows: bool) -> ChildSpec:
        """Return how the nursery itself is started. It makes processes that run `module.main`."""
        take_orphans_in()
        return ChildSpec(
            role,
            lambda _plan: python_command("server.nursery", {"module": module, "windows": windows}),
            link=self._connect,
            environment=_NO_THREADS,
            ready_timeout_s=_READY_TIMEOUT_S,
        )

    def _connect(self, link: socket.socket) -> None:
        if self._link is not None:
            self._link.close()
        link.setblocking(False)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _REQUEST_BYTES_MAX)
        self._link = link
        self._linked.set()

    async def fork(
        self, role: str, arguments: list[str], environment: dict[str, str], sockets: Sockets = ()
    ) -> ForkedProcess:
        """Make a process. Raises UnavailableError when there is no nursery, or it cannot."""
        stdin, stdout = os.pipe(), os.pipe()
        request = {
            "role": role,
            "arguments": arguments,
            "environment": environment,
            "sockets": [name for name, _ in sockets],
        }
        descriptors = [stdin[0], stdout[1], *(sock.fileno() for _, sock in sockets)]
        try:
            pid = await self._ask_in_time(request, descriptors)
        except BaseException:
            os.close(stdin[1])
            os.close(stdout[0])
            raise
        finally:
            os.close(stdin[0])
            os.close(stdout[1])
        process = ForkedProcess(pid)
        await process.connect(stdin[1], stdout[0])
        return process

    async def _ask_in_time(self, request: dict[str, Any], descriptors: list[int]) -> int:
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S), self._one_at_a_time:
                return await self._ask(request, descriptors)
        except TimeoutError:
            raise UnavailableError(
                f"cannot start {request['role']}: the nursery does not answer within "
                f"{_READY_TIMEOUT_S:g} s"
            ) from None

    async def _ask(self, request: dict[str, Any], descriptors: list[int]) -> int:
        await self._linked.wait()
        link = self._link
        assert link is not None
        self._last_id += 1
        request = {"id": self._last_id, **request}
        role = request["role"]
        loop = asyncio.get_running_loop()
        try:
            # One request at a time: there is always room for it.
            socket.send_fds(link, [msgspec.json.encode(request)], descriptors)
            reply: dict[str, Any] = {}
            while reply.get("id") != self._last_id:  # an older one: nobody waits for it any more
                data = await loop.sock_recv(link, _REPLY_BYTES_MAX)
                if not data:
                    raise ConnectionResetError
                reply = msgspec.json.decode(data)
        except OSError:
            if self._link is link:
                self._linked.clear()  # until it is started again
            raise UnavailableError(f"cannot start {role}: the nursery ended meanwhile") from None
        if "pid" not in reply:
            raise UnavailableError(f"cannot start {role}: {reply.get('error')}")
        return int(reply["pid"])


class ForkedProcess:
    """A child that the nursery made: what `asyncio.subprocess.Process` is for the others."""

    stdin: asyncio.StreamWriter
    stdout: asyncio.StreamReader

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.Event()
        self._pidfd = os.pidfd_open(pid)
        self._transports: list[asyncio.BaseTransport] = []
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    async def connect(self, stdin: int, stdout: int) -> None:
        """Take over our ends of its pipes, and let it go on: from here on it is ours to end."""
        loop = asyncio.get_running_loop()
        self.stdout = asyncio.StreamReader(limit=LINE_BYTES_MAX)
        reading, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self.stdout), os.fdopen(stdout, "rb", 0)
        )
        writing, protocol = await loop.connect_write_pipe(
            asyncio.BaseProtocol, os.fdopen(stdin, "wb", 0)
        )
        self.stdin = asyncio.StreamWriter(writing, protocol, None, loop)
        self._transports += [reading, writing]
        writing.write(b"\n")

    async def wait(self) -> int:
        """Wait for its end; return its exit code (negative: the signal that ended it)."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when it has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _reap(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        for transport in self._transports:
            transport.close()
        self._ended.set()


def take_orphans_in() -> None:
    """Let children of our children become ours when their parent ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot take orphans in")
