"""A process that attacks are made on: `python -m tests.support.attacked_server`.

It reads one JSON command a line and answers each with a line of JSON. `start` begins a fresh
GrpcServer with the limits that it names and gives its port; `counters` says what that server holds;
`settle` waits until it holds nothing; `release` lets handlers that wait go on; `sweep` lets the
server find every connection at a time that is yet to come.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvloop

from server.wire.grpc.limits import ServerLimits
from server.wire.grpc.server import GrpcServer
from server.wire.grpc.tick import Whole
from server.wire.handlers import Context, Handlers, Kind, Method
from server.wire.http2.limits import BUDGETS, Budget, Limits
from tests.support.defences import without

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_DEFAULT_BUDGETS = dict(BUDGETS)
_PIECE_BYTES = 64 * 1024


class Services:
    """The handlers. `running` counts those at work, `peak` the most at once."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.running = 0
        self.peak = 0
        self.begun = 0
        self.produced_bytes = 0

    def __enter__(self) -> None:
        self.begun += 1
        self.running += 1
        self.peak = max(self.peak, self.running)

    def __exit__(self, *_: object) -> None:
        self.running -= 1

    async def echo(self, request: bytes, _: Context) -> bytes:
        with self:
            return request

    async def big(self, request: bytes, _: Context) -> bytes:
        """As many bytes as the request's number says."""
        with self:
            return bytes(int(request))

    async def slow(self, request: bytes, _: Context) -> bytes:
        """Waits for `release`; ends when it is cancelled."""
        with self:
            await self.gate.wait()
            return request

    async def stubborn(self, request: bytes, _: Context) -> bytes:
        """Waits for `release`, cancelled or not: as work in a thread does."""
        with self:
            await self._wait_whatever_happens()
            return request

    async def stubborn_stream(self, requests: AsyncIterator[bytes], _: Context) -> bytes:
        with self:
            await self._wait_whatever_happens()
            return b""

    async def _wait_whatever_happens(self) -> None:
        while not self.gate.is_set():
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                continue

    async def endless(self, _: bytes, __: Context) -> AsyncIterator[bytes]:
        """Yields a GiB, and notes how much of it was taken."""
        with self:
            for _at in range((1 << 30) // _PIECE_BYTES):
                self.produced_bytes += _PIECE_BYTES
                yield bytes(_PIECE_BYTES)

    async def total(self, requests: AsyncIterator[bytes], _: Context) -> bytes:
        with self:
            return b"%d" % sum([len(message) async for message in requests])

    async def hold(self, requests: AsyncIterator[bytes], _: Context) -> bytes:
        """Takes one message, and the next only after `release`."""
        with self:
            async for _message in requests:
                await self.gate.wait()
            return b""

    async def chat(self, requests: AsyncIterator[bytes], _: Context) -> AsyncIterator[bytes]:
        with self:
            async for message in requests:
                yield message

    def table(self) -> Handlers:
        methods: dict[str, Any] = {
            "Method": self.echo,
            "Batched": self.echo,
            "Big": self.big,
            "Slow": self.slow,
            "Stubborn": self.stubborn,
            "StubbornStream": Method(Kind.CLIENT_STREAM, self.stubborn_stream),
            "Endless": Method(Kind.SERVER_STREAM, self.endless),
            "Total": Method(Kind.CLIENT_STREAM, self.total),
            "Hold": Method(Kind.CLIENT_STREAM, self.hold),
            "Chat": Method(Kind.BIDI_STREAM, self.chat),
        }
        return {f"/test.Service/{name}": method for name, method in methods.items()}


class HoldingDoor:
    """A batch door whose batch is not run before `release`."""

    def __init__(self, server: GrpcServer, services: Services) -> None:
        self._server = server
        self._services = services
        self.queue: list[Whole] = []
        self.peak = 0

    def take(self, calls: list[Whole], now_ns: int) -> list[Whole]:
        if not self.queue:
            task = asyncio.get_running_loop().create_task(self._run())
            task.add_done_callback(lambda _: None)
        self.queue += calls
        self.peak = max(self.peak, len(self.queue))
        return []

    async def _run(self) -> None:
        await self._services.gate.wait()
        calls, self.queue = self.queue, []
        tick = self._server.tick
        for call in calls:
            if tick.is_open(call):
                tick.reply_all([call], b"", [call[3][5:]])
            else:
                tick.drop(call)


class Attacked:
    """One server, and what there is to say about it."""

    def __init__(self, command: dict[str, Any]) -> None:
        BUDGETS.clear()
        BUDGETS.update(_DEFAULT_BUDGETS)
        BUDGETS.update({name: Budget(*one) for name, one in command["budgets"].items()})
        self._without = without(command["without"])
        self.services = Services()
        self.server = GrpcServer(
            self.services.table(),
            limits=ServerLimits(**command["server_limits"]),
            connection_limits=Limits(**command["limits"]),
        )
        self.door = HoldingDoor(self.server, self.services)
        self.server.add_door("/test.Service/Batched", self.door)
        self._tasks_before = len(asyncio.all_tasks())

    async def close(self) -> None:
        """Stop it at once; all defences are back."""
        self.services.gate.set()
        await self.server.drain(0)
        self._without.close()

    def sweep(self, after_s: float) -> None:
        """What the server does about once a second with each connection, at a later time."""
        now_ns = time.monotonic_ns() + round(after_s * 1e9)
        for connection in list(self.server.connections):
            self.server._expire(connection, now_ns)

    def counters(self) -> dict[str, Any]:
        server = self.server
        cores = [connection.core for connection in server.connections]
        buffers = [
            connection._transport.get_write_buffer_size() for connection in server.connections
        ]
        return {
            "live": server.calls.live,
            "started": server.calls.started,
            "ended": {code.name: count for code, count in server.calls.ended.items()},
            "held_bytes": server.held_bytes,
            "connections": len(server.connections),
            "open_connections": server.listener.open_connections,
            "abuse": dict(server.abuse),
            "running": self.services.running,
            "peak": self.services.peak,
            "begun": self.services.begun,
            "produced_bytes": self.services.produced_bytes,
            "batched": len(self.door.queue),
            "batched_peak": self.door.peak,
            "pending_bytes": sum(core.pending_bytes for core in cores),
            "buffered_bytes": sum(buffers),
            "streams": sum(len(core.streams) for core in cores),
            "tasks": len(asyncio.all_tasks()) - self._tasks_before,
            "rss_bytes": rss_bytes(),
            "rss_peak_bytes": _rss_peak_bytes(),
            "cpu_s": time.process_time(),
        }

    def is_quiet(self) -> bool:
        now = self.counters()
        quiet = ("live", "held_bytes", "connections", "open_connections", "running", "batched")
        return not any(now[name] for name in quiet)

    async def settle(self, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        # Polled: what becomes quiet last may be a transport, which tells nobody.
        while not self.is_quiet() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return self.counters()


def rss_bytes() -> int:
    """Return the resident set size of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE_BYTES


def _rss_peak_bytes() -> int:
    """Return the largest resident set since the start of the server at hand."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


def _forget_rss_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


async def obey(attacked: Attacked | None, command: dict[str, Any]) -> tuple[Attacked | None, Any]:
    """Do what the command says: (the server from now on, the answer)."""
    match command["do"]:
        case "start":
            if attacked is not None:
                await attacked.close()
            attacked = Attacked(command)
            _forget_rss_peak()
            return attacked, await attacked.server.start("127.0.0.1", 0)
        case "sweep":
            assert attacked is not None
            attacked.sweep(command["after_s"])
            return attacked, None
        case "settle":
            assert attacked is not None
            return attacked, await attacked.settle(command["timeout_s"])
        case "release":
            assert attacked is not None
            attacked.services.gate.set()
            return attacked, None
        case _:
            assert attacked is not None
            return attacked, attacked.counters()


async def main() -> None:
    """Obey until the commands end."""
    # As an operator does who wants ten thousand connections.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    attacked: Attacked | None = None
    while line := await reader.readline():
        attacked, answer = await obey(attacked, json.loads(line))
        print(json.dumps(answer), flush=True)  # noqa: T201 - the control line
    if attacked is not None:
        attacked.services.gate.set()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(main())
