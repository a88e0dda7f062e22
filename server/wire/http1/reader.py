"""What one connection's parser brings, made into requests: whole, or with a streamed body."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from headrace.errors import HeadraceError, InvalidArgumentError
from server.wire.http1.body import RequestBody
from server.wire.http1.head import CHUNKED, Head, Refused
from server.wire.http1.parser import RequestParser
from server.wire.routes import Judge, Route

if TYPE_CHECKING:
    from server.wire.http1.connection import Connection
    from server.wire.http1.server import HttpServer

_PIECES_MAX = 1024  # many small pieces cost more than their bytes
# Of a body up to here nobody asks before it is there: who is refused keeps the connection.
_JUDGED_BYTES = 65_536


class Waiting(NamedTuple):
    """A request that has its place in the order of answers and has not begun."""

    place: int
    head: Head | None  # None: `refused`, the connection's last
    body: bytes = b""
    stream: RequestBody | None = None
    refused: Refused | None = None


class RequestReader:
    """Is `parser.Incoming`; gives what is ready to `Connection.queue`.

    `continue_due`: the client waits for a word before it sends the body. `broken`: why a body whose
    handler has it already will never be whole.
    """

    def __init__(self, server: HttpServer, connection: Connection) -> None:
        self._server = server
        self._connection = connection
        self.parser = RequestParser(server.limits, self)
        self.continue_due = False
        self.broken: Refused | None = None
        self._head: Head | None = None
        self._stream: RequestBody | None = None
        self._pieces: list[bytes] = []
        self._held_bytes = 0

    @property
    def streams(self) -> bool:
        """Whether the body that comes is a streamed one."""
        return self._stream is not None

    @property
    def is_full(self) -> bool:
        """Whether the handler of the body that comes is behind."""
        return self._stream is not None and self._stream.full

    def head(self, head: Head) -> int:
        """Find who answers; return how long the body may be."""
        server = self._server
        server.resolve(head)
        self._head = head
        route = head.route
        streams = isinstance(route, Route) and route.streams
        self._connection.timers.body_begins(server.now_s(), streams=streams)
        self.continue_due = head.expects_continue
        if not isinstance(route, Route):
            assert route is not None
            if head.expects_continue:
                raise Refused(route.status, "", "there is nobody to take this body")
            return server.limits.body_bytes_max
        if route.judge is not None:
            self._judge(route.judge, head)
        bytes_max = route.body_bytes_max or server.limits.body_bytes_max
        if streams and head.length <= bytes_max:
            resume = self._connection.advance
            self._stream = RequestBody(server.limits.stream_bytes_max, server.held, resume)
            self._connection.queue(head, b"", self._stream, 0)
        return bytes_max

    def _judge(self, judge: Judge, head: Head) -> None:
        is_awaited = head.length > _JUDGED_BYTES or head.length == CHUNKED or head.expects_continue
        if not is_awaited:
            return
        try:
            judge(head.headers, self._connection.identity)
        except HeadraceError as error:
            self.continue_due = False
            raise Refused(error.status.http, "", error.message, error) from None

    def body(self, data: bytes) -> None:
        """Keep a piece, hand it on, or throw away what nobody wants."""
        self.continue_due = False
        self._connection.timers.body_came(self._server.now_s(), len(data))
        head = self._head
        assert head is not None
        if self._stream is not None:
            if not self._stream.put(data):
                raise _budget_spent()
        elif isinstance(head.route, Route):
            if len(data) != head.length:  # one that is whole in one read is not held long
                if not self._server.held.take(len(data)):
                    raise _budget_spent()
                self._held_bytes += len(data)
            self._pieces.append(data)
            if len(self._pieces) > _PIECES_MAX:
                self._pieces = [b"".join(self._pieces)]

    def end(self) -> None:
        """A request is complete."""
        head, stream = self._head, self._stream
        assert head is not None
        self._head = self._stream = None
        if stream is not None:
            stream.finish()
            return
        pieces, held = self._pieces, self._held_bytes
        self._pieces, self._held_bytes = [], 0
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._connection.queue(head, body, None, held)

    def refused(self, refused: Refused) -> bool:
        """Give up the request that comes; True when its handler has it and will answer."""
        stream = self._stream
        if stream is None:
            self.drop()
            return False
        self.broken = refused
        stream.fail(InvalidArgumentError(refused.text, where="request body"))
        return True

    def close(self) -> None:
        """The connection is lost, and nothing is parsed any more.

        In a cycle with us it would keep its transport, 40 KiB over TLS, until a full collection.
        """
        self.drop()
        self.parser.close()
        del self._connection

    def drop(self) -> None:
        """Give back what is held of a request that is not whole."""
        self._server.held.give_back(self._held_bytes)
        self._pieces, self._held_bytes = [], 0
        if self._stream is not None:
            self._stream.drop()


def _budget_spent() -> Refused:
    return Refused(429, "", "too many bytes of requests are held; try again")
