"""One client connection: its requests in order, its answers in order, its timers."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, cast

from server.wire.http1.answers import Buffers, head_bytes, sendable_bytes, whole_bytes
from server.wire.http1.body import Holdings, RequestBody
from server.wire.http1.head import Head, Refused
from server.wire.http1.outgoing import Outgoing
from server.wire.http1.parser import Phase
from server.wire.http1.reader import RequestReader, Waiting
from server.wire.http1.timers import Timers
from server.wire.routes import Response, error_response, json_response
from server.wire.tls import identity_of

if TYPE_CHECKING:
    from server.wire.http1.server import HttpServer

_LOG = logging.getLogger(__name__)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLIENT_GONE = 499


class Connection(asyncio.Protocol):
    """Parses, keeps order and writes. Calls of doors may be under way together; any other request
    begins when all before it are answered."""

    def __init__(self, server: HttpServer, address: str) -> None:
        self._server = server
        self._limits = server.limits
        self._address = address
        self._reader = RequestReader(server, self)
        self._parser = self._reader.parser
        self._transport: asyncio.Transport
        self.peer = ""
        self.identity: object = None
        self.lost = False
        self._first = 0  # the place that is answered next
        self._next = 0  # the place that is given out next
        self._waiting: deque[Waiting] = deque()
        self._early: dict[int, tuple[Buffers, bool]] = {}  # behind one that is not there yet
        self._held = Holdings(server.held)
        self._out: Buffers = []
        self._tasks: set[asyncio.Task[int]] = set()
        self._exclusive = False  # a request that is no door's is under way
        self._unparsed = b""
        self._reading_paused = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._closing = False  # nothing more is parsed
        self._close_when_written = False
        self._ended = False
        self._lingers = False
        self._quick = True  # what comes next may skip the parser, if its head is known
        self.timers = Timers(server.limits, server.now_s())

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        peer = transport.get_extra_info("peername")
        self.peer = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else ""
        self.identity = identity_of(transport, self._server.identify)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone, and with it whoever waited."""
        self.lost = self._closing = True
        self._quick = False
        self._forget_waiting()
        self._unparsed = b""
        self._reader.close()
        self._held.release_all()
        self._writable.set()
        for task in self._tasks:
            task.cancel()
        self._server.released(self, self._address)

    def pause_writing(self) -> None:
        """The client does not read."""
        self._writable.clear()
        self._quick = False
        self.timers.writing_blocked(self._server.now_s(), self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """The client has read."""
        self._writable.set()
        if self._transport.is_closing():
            self.timers.ends(self._server.now_s(), lingers=False)
        else:
            self._advance()

    def data_received(self, data: bytes) -> None:
        """Take what came: at once where the head is known and all of the body is there."""
        if self._quick:
            end = data.find(b"\r\n\r\n") + 4
            head = self._server.heads.find(data[:end])
            if head is not None and len(data) - end == head.length:
                place = self._next
                self._next = place + 1
                head.sink.append((self, place, head, data[end:]))  # type: ignore[union-attr]
                if not self._server.flush_due:
                    self._server.wake()
                if self._next - self._first >= self._limits.pipelined_max:
                    self._quick = False
                return
        if self._closing:
            return
        if self._unparsed:  # a read that was under way when reading was paused
            self._unparsed += data
            return
        self._parse(data)
        self._advance()

    # In.

    def queue(self, head: Head, body: bytes, stream: RequestBody | None, held: int) -> None:
        """Give a request its place; `held` of the server's budget is its body's."""
        self._held.keep(self._next, held)
        self._waiting.append(Waiting(self._next, head, body, stream))
        self._next += 1

    def advance(self) -> None:
        """See what may go on: the handler of a streamed body has made room."""
        if not self.lost:
            self._advance()

    def _parse(self, data: bytes) -> None:
        """Parse until the end of `data`, or until enough requests are under way."""
        parser, size, at = self._parser, len(data), 0
        try:
            while at < size:
                if self._next - self._first >= self._limits.pipelined_max or self._reader.is_full:
                    self._unparsed = data[at:]
                    break
                begin = at
                at = parser.feed(data, at)
                alone = parser.alone
                if alone is not None and alone.sink is not None:
                    self._server.heads.learn(data[begin:at], alone)
        except Refused as refused:
            self._refuse(refused)
        self.timers.parsed(self._server.now_s(), in_head=parser.phase is Phase.HEAD)

    def _refuse(self, refused: Refused) -> None:
        """Nothing after this can be parsed with confidence."""
        if refused.reason:
            self._server.abuse[refused.reason] += 1
        self._closing = True
        if not self._reader.refused(refused):
            self._waiting.append(Waiting(self._next, None, refused=refused))
            self._next += 1

    def _advance(self) -> None:
        """Begin what may begin, parse what waits, and say whether more may come."""
        while True:
            self._begin_some()
            if not self._unparsed or self._closing or self._reader.is_full:
                break
            if self._next - self._first >= self._limits.pipelined_max or self._blocked():
                break
            data, self._unparsed = self._unparsed, b""
            self._parse(data)
        self._send_continue()
        behind = self._blocked() and not self._closing
        pause = bool(self._unparsed) or self._reader.is_full or behind
        if pause != self._reading_paused and not self.lost and not self._transport.is_closing():
            self._reading_paused = pause
            (self._transport.pause_reading if pause else self._transport.resume_reading)()
            self.timers.reading_changes(self._server.now_s())
        self._quick = not (
            self._waiting
            or self._exclusive
            or pause
            or self._closing
            or self._parser.phase is not Phase.IDLE
            or self._next - self._first >= self._limits.pipelined_max
        )

    def _forget_waiting(self) -> None:
        for waiting in self._waiting:
            if waiting.stream is not None:
                waiting.stream.drop()
        self._waiting.clear()

    def _blocked(self) -> bool:
        return not self._writable.is_set()

    def _begin_some(self) -> None:
        while self._waiting and not (self._exclusive or self._blocked() or self.lost):
            place, head, body, stream, refused = self._waiting[0]
            if head is not None and head.sink is not None:
                self._waiting.popleft()
                head.sink.append((self, place, head, body))
                self._server.wake()
                continue
            if place != self._first:
                return
            self._waiting.popleft()
            if head is None:
                assert refused is not None
                self._lingers = True
                response = json_response({"error": refused.text}, refused.status)
                if refused.error is not None:
                    response = error_response(refused.error)
                self.deliver_all(place, whole_bytes(response, keep_alive=False), keep_alive=False)
                return
            self._exclusive = True
            self.begin(place, head, body, stream)

    def _send_continue(self) -> None:
        """Ask for the body, unless an earlier answer is still to be written."""
        before = self._next - self._reader.streams
        if self._reader.continue_due and before == self._first and not self.lost:
            self._reader.continue_due = False
            self._flush()
            self._transport.write(_CONTINUE)

    # Handlers.

    def begin(self, place: int, head: Head, body: bytes, stream: RequestBody | None = None) -> None:
        """Start the handler of a request, also of one that its door left."""
        self._server.calls.begin()
        task = self._server.loop.create_task(self._run(place, head, body, stream))
        self._tasks.add(task)
        task.add_done_callback(partial(self._done, place, head, stream))

    async def _run(self, place: int, head: Head, body: bytes, stream: RequestBody | None) -> int:
        """Run a handler and send its response; return the status."""
        hold = partial(self._held.take, place)
        response = await self._server.answer_to(head, body, stream, self.peer, hold, self.identity)
        broken = self._reader.broken
        if broken is not None:
            response = json_response({"error": broken.text}, broken.status)
        # Of a body that a handler left unread the rest is still to come: no request follows.
        whole = stream is None or stream.complete
        self._lingers = not whole or broken is not None
        keep_alive = head.keep_alive and whole and not (self._server.draining or broken)
        await self._send(place, head, response, keep_alive=keep_alive)
        return response.status

    def _done(
        self, place: int, head: Head, stream: RequestBody | None, task: asyncio.Task[int]
    ) -> None:
        """A handler has ended, one way or another: also one that was cancelled before it began."""
        self._tasks.discard(task)
        status = _CLIENT_GONE
        if not task.cancelled():
            fault = task.exception()
            if fault is not None:
                _LOG.error("answering %s failed", head.path, exc_info=fault)
                self.abort()
            elif not self.lost:
                status = task.result()
        self._server.calls.end(status)
        self._held.release(place)
        if stream is not None:
            stream.drop()
        if head.sink is None:
            self._exclusive = False
        self._server.will_write(self)

    # Out.

    def deliver(self, place: int, data: bytes) -> None:
        """Give the answer of a place; it is written when all before it are."""
        alone = place == self._first and self._next == place + 1
        if not alone or self._out or self.lost or self._close_when_written:
            self.deliver_all(place, [data], keep_alive=True)
            return
        # Nothing is before or behind it: what most answers are is written at once.
        self._first = self._next
        self.timers.answered_s = self._server.tick_s
        self._transport.write(data)
        if self._held.by_place:
            self._held.release(place)
        if not self._quick:
            self._server.will_write(self)

    def deliver_all(self, place: int, buffers: Buffers, keep_alive: bool) -> None:
        """As `deliver`; without `keep_alive` it is the connection's last answer."""
        if not self.waits_for(place):
            return
        self._held.release(place)
        self._early[place] = buffers, keep_alive
        while self._first in self._early:
            buffers, keep_alive = self._early.pop(self._first)
            self._out += buffers
            self._first += 1
            if not keep_alive:
                self._closing = self._close_when_written = True
                self._quick = False
                self._forget_waiting()
                break
        self._server.will_write(self)

    def waits_for(self, place: int) -> bool:
        """Return whether an answer of this place is still to come."""
        gone = self.lost or self._close_when_written
        return not gone and place >= self._first and place not in self._early

    async def _send(self, place: int, head: Head, response: Response, *, keep_alive: bool) -> None:
        body = response.body
        if isinstance(body, bytes | list):
            buffers = sendable_bytes(
                response, head.path, keep_alive=keep_alive, http_1_0=head.http_1_0,
                head_only=head.method == "HEAD",
            )  # fmt: skip
            self.deliver_all(place, buffers, keep_alive)
            return
        assert place == self._first, "what a door may leave does not stream"
        keep_alive = keep_alive and not head.http_1_0  # its end is the connection's
        start = head_bytes(response, None, keep_alive=keep_alive, http_1_0=head.http_1_0)
        self._out.append(start)
        self._flush()
        out = Outgoing(self._transport, self._writable, chunked=not head.http_1_0)
        if not await out.send(body, head_only=head.method == "HEAD"):
            _LOG.error("the streamed answer of %s is cut off", head.path)
            self.abort()  # the client must not take it for whole
            return
        self.deliver_all(place, [], keep_alive)

    def write(self) -> None:
        """Write what the tick brought."""
        if self.lost:
            return
        self._flush()
        if self._close_when_written:
            self.close()
            return
        self.timers.answered_s = self._server.tick_s
        if not self._quick:
            self._advance()

    def _flush(self) -> None:
        out = self._out
        if out:
            self._out = []
            if len(out) == 1:
                self._transport.write(out[0])
            else:
                self._transport.writelines(out)

    # The end.

    def expire(self, now_s: float) -> None:
        """Close when what we wait for from the client has not come in time."""
        timers = self.timers
        if self._blocked():
            if timers.reads_too_slowly(now_s, self._transport.get_write_buffer_size()):
                self._server.abuse["slow_read"] += 1
                self.abort()
        elif timers.is_over(now_s):
            self.abort()
        elif self._closing or self._reading_paused:
            return
        elif self._parser.phase is Phase.BODY:
            if timers.body_is_late(now_s):
                self._refuse(Refused(408, "slow_body", "the body did not arrive in time"))
                self._advance()
        elif self._parser.phase is Phase.HEAD:
            if timers.head_is_late(now_s):
                self._refuse(Refused(408, "slow_head", "the headers did not arrive in time"))
                self._advance()
        elif self._first == self._next and timers.is_idle(now_s):
            self.close()

    def close_if_idle(self) -> None:
        """Close a keep-alive connection that has nothing under way (the drain)."""
        if self._first == self._next and self._parser.phase is Phase.IDLE and not self._out:
            self.close()

    def close(self) -> None:
        """Close after what was written is sent.

        A refused client may still send: closing with unread bytes would reset the connection and
        with it the answer, so that our side ends first and what comes is thrown away.
        """
        if self._ended:
            return
        self._ended = self._closing = True
        self._quick = False
        lingers = self._lingers and not self._transport.is_closing()
        self.timers.ends(self._server.now_s(), lingers=lingers)
        if not lingers:
            self._transport.close()
            return
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def abort(self) -> None:
        """Close now."""
        self._closing = True
        self._transport.abort()
