"""One gRPC connection: the asyncio protocol around the HTTP/2 core.

It passes bytes in and out, turns the core's events into calls, and keeps the transport's
back-pressure: a client that does not read is not written to.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from headrace.errors import HeadraceError
from server.wire.grpc import replies
from server.wire.grpc.calls import Call
from server.wire.grpc.route import Route
from server.wire.grpc.status import StatusCode
from server.wire.grpc.tick import Whole, full
from server.wire.http2.connection import Connection
from server.wire.http2.events import Body, Ended, Event, Opened, Reset, Writable
from server.wire.http2.frames import ErrorCode
from server.wire.http2.stream import Stream
from server.wire.tls import identity_of

if TYPE_CHECKING:
    from server.wire.grpc.server import GrpcServer

_WRITE_BUFFER_BYTES = 256 * 1024
# Who takes less than this of what waits for it, in a whole stall timeout, does not read.
_READ_BYTES_MIN = 16 * 1024
_ALPN = "h2"


@dataclass(frozen=True, slots=True)
class SocketState:
    """What one connection is doing."""

    peer: str
    age_s: float
    requests: int  # streams that the client opened
    streams: int  # that are open now
    calls: int  # handlers at work, also those whose stream is gone
    waiting_bytes: int  # of answers, for the client's windows
    writable: bool  # whether the client reads
    draining: bool


class _Gone:
    """The owner of a core whose connection is lost: there is nobody to answer."""

    identity = None

    def touch(self) -> None:
        """Write nothing."""

    def begin(self, whole: Whole, now_ns: int) -> None:
        """Start nothing."""


_GONE = _Gone()


class GrpcConnection(asyncio.Protocol):
    """`calls` holds what runs for it, by stream id, also calls whose stream is gone already."""

    __slots__ = (
        "_address",
        "_dirty",
        "_late_bytes",
        "_paused_bytes",
        "_read_bytes",
        "_read_ns",
        "_transport",
        "_written_bytes",
        "calls",
        "closing_ns",
        "core",
        "identity",
        "server",
    )

    def __init__(self, server: GrpcServer, address: str) -> None:
        self.server = server
        self.calls: dict[int, Call] = {}
        self.core = Connection(
            server.heads, server.connection_limits, time.monotonic_ns(), abuse=server.abuse
        )
        self.core.owner = self
        self.core.age_max_ns = server.jittered_age_ns()
        self.identity: object = None
        self.closing_ns = 0  # since when nothing but the client's goodbye is waited for; 0: no
        self._address = address
        self._dirty = False
        self._late_bytes = 0  # that came after our goodbye
        self._written_bytes = 0
        # Of a client that does not read: how much was written by then, how much of it the client
        # had taken when it last took some, and when that was.
        self._paused_bytes = self._read_bytes = self._read_ns = 0
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)

    # From the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say hello with our settings."""
        self._transport = cast(asyncio.Transport, transport)
        self.server.connections[self] = None
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != _ALPN:
            self.server.abuse["tls_without_h2"] += 1
            self._transport.abort()
            return
        self.identity = identity_of(transport, self.server.identify)
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        if self.server.draining:
            self.core.begin_drain()
        self.touch()

    def data_received(self, data: bytes) -> None:
        """Feed the core. What whole requests it finds waits for the end of the tick."""
        core = self.core
        core.receive(data, time.monotonic_ns())
        if core.events:
            self.handle_events()
        if core.out or core.closed:
            if self.closing_ns:
                self._ignore(len(data))
            self.touch()
        self.server.wake()

    def eof_received(self) -> bool:
        """A client that is done sending has gone: gRPC knows no half-closed connections."""
        # The transport closes once its last bytes are out. A client that takes none is not awaited.
        self.closing_ns = self.closing_ns or time.monotonic_ns()
        self._abandon()
        return False

    def connection_lost(self, _: Exception | None) -> None:
        """Forget everything; handlers at work are cancelled."""
        self.server.released(self, self._address)
        self._abandon()
        # In a cycle it would keep its transport, 40 KiB over TLS, until a full collection.
        self.core.owner = _GONE

    def pause_writing(self) -> None:
        """The client does not read."""
        self.core.writable = False
        self._paused_bytes = self._written_bytes
        self._read_bytes = self._written_bytes - self._transport.get_write_buffer_size()
        self._read_ns = time.monotonic_ns()

    def resume_writing(self) -> None:
        """The client reads again."""
        self.core.writable = True
        self.core.flush()
        if self.core.events:
            self.handle_events()
        self.touch()

    # For calls and for the server.

    @property
    def peer(self) -> str:
        """The client's address as gRPC writes it."""
        name: Any = self._transport.get_extra_info("peername")
        if not isinstance(name, tuple):
            return "unix:"
        kind, host = ("ipv6", f"[{name[0]}]") if ":" in name[0] else ("ipv4", name[0])
        return f"{kind}:{host}:{name[1]}"

    def state(self, now_ns: int) -> SocketState:
        """Return what it is doing."""
        core = self.core
        return SocketState(
            peer=self.peer,
            age_s=(now_ns - core.born_ns) / 1e9,
            requests=core.requests,
            streams=len(core.streams),
            calls=len(self.calls),
            waiting_bytes=core.pending_bytes,
            writable=core.writable,
            draining=core.draining,
        )

    def touch(self) -> None:
        """Write what there is to write at the end of this tick."""
        if not self._dirty:
            self._dirty = True
            self.server.will_write(self)

    def write(self) -> None:
        """Write, as far as the transport takes it; then close if that was all."""
        self._dirty = False
        core = self.core
        transport = self._transport
        if self.closing_ns or transport.is_closing():
            core.out.clear()
            return
        if core.draining and core.drained:
            core.close(ErrorCode.NO_ERROR, "")
        while output := core.take_output():
            self._written_bytes += len(output)
            transport.write(output)
            if core.more_output:  # unless every stream waits for a window of its own
                core.flush()
                if core.events:
                    self.handle_events()
        if core.closed:
            self._close()
        elif not core.writable and (
            self._written_bytes - self._paused_bytes > self.server.limits.unread_bytes_max
        ):
            self._end_slow_read()

    def check_reading(self, now_ns: int) -> None:
        """End the connection when its client has stopped to take what waits (CVE-2019-9517)."""
        if self.core.writable:
            return
        read_bytes = self._written_bytes - self._transport.get_write_buffer_size()
        if read_bytes - self._read_bytes >= _READ_BYTES_MIN:
            self._read_bytes = read_bytes
            self._read_ns = now_ns
        elif now_ns - self._read_ns > self.core.limits.stall_timeout_ns:
            self._end_slow_read()

    def _end_slow_read(self) -> None:
        """No GOAWAY: it would wait behind all that is not read."""
        self.server.abuse["slow_read"] += 1
        self._abandon()
        self._transport.abort()

    def begin(self, whole: Whole, now_ns: int) -> None:
        """Start the handler of a whole request."""
        _, stream_id, head, body = whole
        if stream_id not in self.core.streams:
            return
        call = Call(self, stream_id, head, now_ns)
        if self._may_begin():
            self._count(call)
            call.take(body, now_ns)
        else:
            call.refuse(full())

    def ended(self, call: Call) -> None:
        """A call gave back what it held; its handler, if there was one, is over."""
        del self.calls[call.stream_id]
        self.server.calls.end(call.code)

    def shut(self, error: HeadraceError) -> None:
        """The server stops and waits no longer: end what still runs, and the connection."""
        for call in list(self.calls.values()):
            call.fail(error)
        self.core.close(ErrorCode.NO_ERROR, "shut down")
        self.touch()

    def abort(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    # Events.

    def handle_events(self) -> None:
        """Pass what the core says on to the calls; they may make it say more."""
        events = self.core.events
        while events:
            self.core.events = []
            for event in events:
                self._handle(event)
            events = self.core.events

    def _handle(self, event: Event) -> None:
        if isinstance(event, Opened):
            self._open(event.stream)
            return
        stream_id = event.stream_id if isinstance(event, Reset) else event.stream.id
        call = self.calls.get(stream_id)
        if call is None:
            if isinstance(event, Body):  # of a call that was refused or is over
                self.core.consume(event.stream, len(event.data))
                self.touch()
        elif isinstance(event, Body):
            call.feed(event.data)
        elif isinstance(event, Ended):
            call.end()
        elif isinstance(event, Writable):
            call.writable()
        else:
            call.cancel()

    def _open(self, stream: Stream) -> None:
        head = stream.head
        assert head is not None
        route: Route = head.route
        if route.http_status != 200:
            self.core.send_headers(stream, replies.http_error(route.http_status), end_stream=True)
            self.touch()
            return
        if route.error is not None:
            self.server.calls.begin()
            self.server.calls.end(StatusCode(route.error.status.grpc))
            block = replies.trailers_only(route.error)
            self.core.send_headers(stream, block, end_stream=True)
            self.touch()
            return
        now_ns = self.core.now_ns
        call = Call(self, stream.id, head, now_ns, stream)
        if not self._may_begin():
            call.refuse(full())
            return
        self._count(call)
        call.open(now_ns)

    def _may_begin(self) -> bool:
        calls = self.server.calls
        # Calls outlive their streams: one connection may not fill the server by resetting.
        return calls.live < calls.live_max and len(self.calls) < 2 * self.core.limits.streams_max

    def _count(self, call: Call) -> None:
        self.calls[call.stream_id] = call
        self.server.calls.begin()

    # The end.

    def _close(self) -> None:
        """Let the client read our last bytes: a close with bytes unread would destroy them."""
        self.closing_ns = time.monotonic_ns()
        self._abandon()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _ignore(self, count: int) -> None:
        """Read on after our goodbye, but not what a flood goes on to send.

        An honest client had no more than its window under way.
        """
        self._late_bytes += count
        if self._late_bytes > self.core.limits.connection_window_bytes:
            self._transport.abort()

    def _abandon(self) -> None:
        self.core.lose()
        for call in list(self.calls.values()):
            call.cancel()
