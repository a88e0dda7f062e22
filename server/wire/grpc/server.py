"""The gRPC server: connections of one process, and the end of each event-loop tick.

What a tick's reads bring is collected; at its end whole requests go to their doors together, the
others to their handlers, and each connection that has something to say writes once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from headrace.errors import UnavailableError
from server.wire.busy_poll import BusyPoll, Threads
from server.wire.calls import Calls
from server.wire.grpc.connection import GrpcConnection, SocketState
from server.wire.grpc.limits import ServerLimits
from server.wire.grpc.route import Routes
from server.wire.grpc.status import StatusCode
from server.wire.grpc.tick import Door, Tick, Whole
from server.wire.handlers import Handlers
from server.wire.http2.headers import HeadTable
from server.wire.http2.limits import Limits
from server.wire.listener import Listener
from server.wire.tls import Identify

_LOG = logging.getLogger(__name__)

# Every connection is looked at once a second, a tenth of them at a time.
_SWEEP_INTERVAL_S = 0.1
_SWEEPS = 10


class GrpcServer:
    """Serves a handler table. `abuse` counts hostile clients by reason, `calls` calls by status."""

    def __init__(
        self,
        handlers: Handlers,
        *,
        limits: ServerLimits | None = None,
        connection_limits: Limits | None = None,
    ) -> None:
        self.limits = limits or ServerLimits()
        self.connection_limits = connection_limits or Limits()
        self.abuse: Counter[str] = Counter()
        self.calls: Calls[StatusCode] = Calls(self.limits.calls_max)
        self.tick = Tick(self.calls)
        self.held_bytes = 0  # of requests in several pieces, or compressed, until they are answered
        self.connections: dict[GrpcConnection, None] = {}
        self.draining = False
        self.port = 0
        self.loop: asyncio.AbstractEventLoop
        self.listener: Listener
        self._doors: dict[str, tuple[list[Whole], Door]] = {}
        self._general: list[Whole] = []
        self.heads = HeadTable(Routes(handlers, self._sink_of).resolve)
        self._dirty: list[GrpcConnection] = []
        self._flush_due = False
        self._woken_ns = 0
        self._busy_poll: BusyPoll | None = None
        self.threads: Threads | None = None  # that work for callers; set it before the start
        self.identify: Identify | None = None  # as well
        self._random = random.Random()
        self._sweep: asyncio.TimerHandle | None = None
        self._to_sweep: Iterator[GrpcConnection] = iter(())
        self._all_closed = asyncio.Event()

    def add_door(self, path: str, door: Door) -> None:
        """Let `door` have the whole requests of a unary method first. Before the start."""
        self._doors[path] = ([], door)

    def _sink_of(self, path: str) -> list[Any]:
        door = self._doors.get(path)
        return self._general if door is None else door[0]

    async def open(self, tls: ssl.SSLContext | None = None) -> Listener:
        """Get ready to take connections; return the listener that brings them."""
        self.loop = asyncio.get_running_loop()
        limits = self.limits
        self.listener = Listener(
            lambda address: GrpcConnection(self, address),
            self.abuse,
            connections_max=limits.connections_max,
            connections_per_address_max=limits.connections_per_address_max,
            tls=tls,
            tls_handshake_timeout_s=limits.tls_handshake_timeout_s,
        )
        if limits.busy_poll_ns:
            self._busy_poll = BusyPoll(self.loop, limits.busy_poll_ns, self.threads)
        self._sweep_later()
        return self.listener

    async def share(
        self, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None = None
    ) -> int:
        """Listen on bound sockets that other processes have, too; return the port."""
        self.port = (await self.open(tls)).share(sockets)
        return self.port

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen on (host, port), 0 for any free one; return the port. Raises OSError."""
        listener = await self.open(tls)
        try:
            self.port = listener.start(host, port)
        except OSError:
            await self.drain(0)
            raise
        return self.port

    async def drain(self, grace_s: float) -> None:
        """Take no more connections, let clients finish within `grace_s`, then end what is left."""
        self.draining = True
        await self.listener.close()
        for connection in list(self.connections):
            connection.core.begin_drain()
            connection.touch()
        if not await self._wait_closed(grace_s):
            error = UnavailableError("the server is shutting down", mend="try again elsewhere")
            for connection in list(self.connections):
                connection.shut(error)
            await self._wait_closed(min(self.limits.linger_s, max(grace_s, 0.1)))
            for connection in list(self.connections):
                connection.abort()
            await self._wait_closed(1.0)
        if self._sweep is not None:
            self._sweep.cancel()

    async def _wait_closed(self, timeout_s: float) -> bool:
        self._all_closed.clear()
        if self.connections:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._all_closed.wait()
        return not self.connections

    # The tick.

    def wake(self) -> None:
        """Flush at the end of this tick."""
        if not self._flush_due:
            self._flush_due = True
            self._woken_ns = time.monotonic_ns()
            self.loop.call_soon(self._flush)

    def will_write(self, connection: GrpcConnection) -> None:
        """Write to this connection at the end of this tick."""
        self._dirty.append(connection)
        self.wake()

    def _flush(self) -> None:
        now_ns = came_ns = time.monotonic_ns()
        if self._busy_poll is not None:
            came_ns = self._busy_poll.came_ns(self._woken_ns, now_ns)
        rest: list[Whole] = []
        for sink, door in self._doors.values():
            if sink:
                calls = sink.copy()
                sink.clear()
                rest += self.tick.hand_over(door, calls, came_ns)
        if self._general:
            rest += self._general
            self._general.clear()
        for call in rest:
            call[0].owner.begin(call, came_ns)
        # Only now: what the doors answered at once is written in this flush.
        self._flush_due = False
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            try:
                connection.write()
            except Exception:  # noqa: BLE001 - one connection's fault must not silence the others
                _LOG.exception("writing to %s failed", connection.peer)
                connection.abort()
        if self._busy_poll is not None:
            self._busy_poll.tick_over(now_ns)

    # The sweep.

    def _sweep_later(self) -> None:
        self._sweep = self.loop.call_later(_SWEEP_INTERVAL_S, self._sweep_some)

    def _sweep_some(self) -> None:
        self._sweep_later()
        now_ns = time.monotonic_ns()
        some = list(islice(self._to_sweep, len(self.connections) // _SWEEPS + 1))
        if not some:
            self._to_sweep = iter(list(self.connections))
        for connection in some:
            if connection in self.connections:
                self._expire(connection, now_ns)

    def _expire(self, connection: GrpcConnection, now_ns: int) -> None:
        if connection.closing_ns:
            if now_ns - connection.closing_ns > self.limits.linger_s * 1e9:
                connection.abort()
            return
        connection.check_reading(now_ns)
        core = connection.core
        core.expire(now_ns)
        if core.events:
            connection.handle_events()
        if core.out or core.closed:
            connection.touch()

    def jittered_age_ns(self) -> int:
        """Return how old a new connection may become; 0: as old as it likes (gRPC A9: ±10 %)."""
        return int(self.connection_limits.age_max_ns * self._random.uniform(0.9, 1.1))

    # What goes on, for whoever looks for a fault (gRPC's channelz tells the same of its sockets).

    def sockets(self, count_max: int = 1000) -> list[SocketState]:
        """Return the state of up to `count_max` connections, the oldest first."""
        now_ns = time.monotonic_ns()
        return [each.state(now_ns) for each in islice(self.connections, count_max)]

    def released(self, connection: GrpcConnection, address: str) -> None:
        """A connection is lost."""
        self.connections.pop(connection, None)
        self.listener.released(address)
        if not self.connections:
            self._all_closed.set()
