"""The HTTP/1.1 server: connections of one process, and the end of each event-loop tick.

Requests of a route with a door are collected; at the tick's end they go to it together, and each
connection that has something to say writes once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from headrace.errors import DeadlineExceededError, InternalError, ResourceExhaustedError
from server.wire.busy_poll import BusyPoll, Threads
from server.wire.calls import Calls
from server.wire.handlers import as_headrace_error
from server.wire.http1.answers import DoorAnswers
from server.wire.http1.body import HeldBytes, RequestBody
from server.wire.http1.connection import Connection
from server.wire.http1.head import Head, HeadTable
from server.wire.http1.limits import HttpLimits
from server.wire.listener import Listener
from server.wire.routes import Call, Door, Request, Response, Route, Routes, error_response
from server.wire.tls import Identify

_LOG = logging.getLogger(__name__)
# Every connection is looked at once a second, a tenth of them at a time.
_SWEEP_INTERVAL_S = 0.1
_SWEEPS = 10


class HttpServer:
    """Serves `routes`. `abuse` counts what was refused by reason, `calls` calls by status."""

    def __init__(self, routes: Routes, limits: HttpLimits | None = None) -> None:
        self.limits = limits or HttpLimits()
        self.abuse: Counter[str] = Counter()
        # By HTTP status; 499: nobody waited any more.
        self.calls: Calls[int] = Calls(self.limits.calls_max)
        self.held = HeldBytes(self.limits.held_bytes_max, self.abuse)
        self.heads = HeadTable()
        self.connections: set[Connection] = set()
        self.draining = False
        self.flush_due = False
        self.tick_s = 0.0  # when this tick began
        self.port = 0
        self.loop: asyncio.AbstractEventLoop
        self.listener: Listener
        self._routes = routes
        self._answers = DoorAnswers(self)
        self._doors: dict[int, tuple[Door, list[Call]]] = {}
        self._dirty: list[Connection] = []
        self._busy_poll: BusyPoll | None = None
        self.threads: Threads | None = None  # that work for callers; set it before the start
        self.identify: Identify | None = None  # as well
        self._sweep: asyncio.TimerHandle | None = None
        self._to_sweep: Iterator[Connection] = iter(())
        self._all_closed = asyncio.Event()

    async def open(self, tls: ssl.SSLContext | None = None) -> Listener:
        """Get ready to take connections; return the listener that brings them."""
        self.loop = asyncio.get_running_loop()
        self.now_s = self.loop.time
        limits = self.limits
        self.listener = Listener(
            lambda address: Connection(self, address),
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

    async def start(
        self, host: str, port: int, tls: ssl.SSLContext | None = None, *, reuse_port: bool = False
    ) -> int:
        """Listen on (host, port), 0 for any free one; return the port.

        Raises OSError when the port is taken.
        """
        listener = await self.open(tls)
        try:
            self.port = listener.start(host, port, reuse_port=reuse_port)
        except OSError:
            await self.drain(0)
            raise
        return self.port

    async def drain(self, grace_s: float) -> None:
        """Stop listening, finish what is under way within `grace_s`, then close everything."""
        self.draining = True
        await self.listener.close()
        await asyncio.sleep(0)  # what was accepted last may have its request here already
        for connection in list(self.connections):
            connection.close_if_idle()
        if not await self._wait_closed(grace_s):
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

    @property
    def open_connections(self) -> int:
        """How many client connections are open."""
        return len(self.connections)

    # Requests.

    async def answer(self, request: Request) -> Response:
        """Return the response of the route for `request`; every failure becomes one."""
        route, request.params = self._routes.resolve(request.method, request.path)
        return await self.answer_by(route, request)

    async def answer_by(
        self, route: Route | Response | None, request: Request, *, streams: bool = False
    ) -> Response:
        """Return the response of a route that was found."""
        if not isinstance(route, Route):
            assert route is not None
            return route
        if self.calls.live > self.calls.live_max:
            self.abuse["calls"] += 1
            return error_response(full())
        limit = asyncio.timeout(None if streams else self.limits.handler_timeout_s)
        try:
            async with limit:
                return await route.handler(request)
        except Exception as error:  # noqa: BLE001 - the task boundary: one request's fault stays its own
            where = f"{request.method} {request.path}"
            if isinstance(error, TimeoutError) and limit.expired():
                return error_response(DeadlineExceededError("it took too long", where=where))
            return error_response(as_headrace_error(error, where))
        finally:
            # It knows the task, whose cancellation knows this frame: a ring around the connection.
            del limit

    async def answer_to(
        self,
        head: Head,
        body: bytes,
        stream: RequestBody | None,
        peer: str,
        hold: Callable[[int], None],
        identity: object,
    ) -> Response:
        """Return the response to a request of this head."""
        request = Request(
            head.method, head.path, head.query, head.headers, body, head.params, peer, identity,
            hold=hold,
        )  # fmt: skip
        if stream is not None:
            request.stream = stream
        return await self.answer_by(head.route, request, streams=stream is not None)

    def resolve(self, head: Head) -> None:
        """Find out who answers requests of this head."""
        head.route, head.params = self._routes.resolve(head.method, head.path)
        door = head.route.door if isinstance(head.route, Route) else None
        if door is not None and head.keep_alive and not head.http_1_0:
            head.lane = door.lane(head.params, head.headers)
            if head.lane is not None:
                head.sink = self._doors.setdefault(id(door), (door, []))[1]

    # The tick.

    def wake(self) -> None:
        """Flush at the end of this tick."""
        if not self.flush_due:
            self.flush_due = True
            self.loop.call_soon(self._flush)

    def will_write(self, connection: Connection) -> None:
        """Write to this connection at the end of this tick."""
        self._dirty.append(connection)
        self.wake()

    def _flush(self) -> None:
        now_ns = time.monotonic_ns()
        self.tick_s = self.now_s()
        for door, sink in self._doors.values():
            if sink:
                calls = sink.copy()
                sink.clear()
                self._hand_over(door, calls, now_ns)
        # Only now: what the doors answered at once is written in this flush.
        self.flush_due = False
        dirty, self._dirty = self._dirty, []
        for connection in dirty:
            try:
                connection.write()
            except Exception:  # noqa: BLE001 - one connection's fault must not silence the others
                _LOG.exception("writing to %s failed", connection.peer)
                connection.abort()
        if self._busy_poll is not None:
            self._busy_poll.tick_over(now_ns)

    def _hand_over(self, door: Door, calls: list[Call], now_ns: int) -> None:
        """Give `calls` to a door, and those that it leaves to their handlers."""
        counted = self.calls
        room = max(counted.live_max - counted.live, 0)
        counted.begin(len(calls))
        if len(calls) > room:
            self.abuse["calls"] += len(calls) - room
            for call in calls[room:]:
                self._answers.answer(call, error_response(full()))
            calls = calls[:room]
        try:
            rest = door.take(calls, now_ns, self._answers)
        except Exception as fault:  # noqa: BLE001 - one route's fault must not end the others' tick
            # Which of them it had taken nobody knows; those that are answered are passed over.
            _LOG.error("a door failed", exc_info=fault)
            failed = InternalError("internal error; the server's log has the cause")
            for call in calls:
                if call[0].waits_for(call[1]):
                    self._answers.answer(call, error_response(failed))
            return
        self.leave_to_handlers(rest)

    def leave_to_handlers(self, calls: Sequence[Call]) -> None:
        """Start the handlers of calls that were a door's."""
        self.calls.live -= len(calls)
        self.calls.started -= len(calls)
        for connection, place, head, body in calls:
            if not connection.lost:
                connection.begin(place, head, body)

    # The sweep.

    def _sweep_later(self) -> None:
        self._sweep = self.loop.call_later(_SWEEP_INTERVAL_S, self._sweep_some)

    def _sweep_some(self) -> None:
        self._sweep_later()
        now_s = self.now_s()
        some = list(islice(self._to_sweep, len(self.connections) // _SWEEPS + 1))
        if not some:
            self._to_sweep = iter(list(self.connections))
        for connection in some:
            if not connection.lost:
                connection.expire(now_s)

    def released(self, connection: Connection, address: str) -> None:
        """A connection is lost."""
        self.connections.discard(connection)
        self.listener.released(address)
        if not self.connections:
            self._all_closed.set()


def full() -> ResourceExhaustedError:
    """Return what a call is told that is one too many."""
    return ResourceExhaustedError("too many calls at work", mend="try again later")
