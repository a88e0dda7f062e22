"""One call that needs more than the batch door: a coroutine, a deadline, perhaps streams.

A Call turns the events of its stream into messages, runs its handler as one task, and sends what
comes of it. It ends exactly once: by its handler's end, by its deadline, by the client's reset or
with its connection; whatever comes first cancels the rest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from headrace.errors import (
    DeadlineExceededError,
    HeadraceError,
    InternalError,
    ResourceExhaustedError,
    UnimplementedError,
)
from server.wire.grpc import compression, replies
from server.wire.grpc.framing import MessageReader, frame, whole
from server.wire.grpc.metadata import decode_metadata
from server.wire.grpc.status import StatusCode, of_error
from server.wire.handlers import Context, as_headrace_error
from server.wire.http2.frames import ErrorCode
from server.wire.http2.headers import BAD_TIMEOUT, Head
from server.wire.http2.stream import Stream

if TYPE_CHECKING:
    from server.wire.grpc.connection import GrpcConnection

_NS_PER_S = 1_000_000_000
# Small messages are not worth the work, and may come out longer.
_COMPRESS_BYTES_MIN = 1_024


class Call:
    """A call on `stream_id` of `connection`. `began_ns` is when its head arrived (monotonic).

    `request_stream` brings its body; without it the whole body is handed over at once.
    """

    __slots__ = (
        "_context",
        "_encoding",
        "_ended",
        "_kind",
        "_message_bytes_max",
        "_opened",
        "_over",
        "_reader",
        "_request_stream",
        "_requests",
        "_task",
        "_timer",
        "_uncredited",
        "_waiter",
        "_writable",
        "began_ns",
        "code",
        "connection",
        "head",
        "held_bytes",
        "route",
        "stream_id",
    )

    def __init__(
        self,
        connection: GrpcConnection,
        stream_id: int,
        head: Head,
        began_ns: int,
        request_stream: Stream | None = None,
    ) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.head = head
        self.route = head.route
        self.began_ns = began_ns
        self.code = StatusCode.CANCELLED  # how it ended; unless something is sent, like this
        self.held_bytes = 0  # of the request, counted against the server's budget
        self._request_stream = request_stream
        assert self.route.method is not None
        self._kind = self.route.method.kind
        self._message_bytes_max = connection.server.limits.message_bytes_max
        self._reader = MessageReader(self._message_bytes_max)
        self._requests: deque[bytes] = deque()
        self._ended = False  # the client has sent its last message
        self._opened = False  # our headers are out
        self._encoding = compression.IDENTITY  # of the response, as its headers announced
        self._over = False  # answered before its handler began
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None  # the handler waits for a message
        self._writable: asyncio.Future[None] | None = None  # the handler waits for a window
        self._uncredited = 0
        self._context = Context(None, None, connection.peer, (), connection.identity)

    # From the connection's events.

    def open(self, now_ns: int) -> bool:
        """Read the head: metadata, whether it may come at all, deadline. False when the call ended
        by it."""
        try:
            self._context.fields = decode_metadata(self.head.fields)
            if self._request_stream is not None:  # its body is still to come
                self._judge()
        except HeadraceError as error:
            self.fail(error)
            return False
        timeout_ns = self.head.timeout_ns
        if timeout_ns == BAD_TIMEOUT:
            self.fail(InternalError("grpc-timeout is malformed"))
            return False
        if timeout_ns >= 0:
            self._context.deadline_ns = self.began_ns + timeout_ns
            left_ns = self._context.deadline_ns - now_ns
            if left_ns <= 0:
                self._expire()
                return False
            loop = self.connection.server.loop
            self._timer = loop.call_later(left_ns / _NS_PER_S, self._expire)
        if self._kind.value[0]:
            self._start()
        return True

    def _judge(self) -> None:
        method = self.route.method
        if method is not None and method.judge is not None:
            method.judge(self._context)

    def take(self, body: bytes, now_ns: int) -> None:
        """Take a whole request: head and body came together."""
        if not self.open(now_ns):
            return
        try:
            message = whole(body)
            if message is not None and len(message) <= self._message_bytes_max:
                self._requests.append(message)
            else:
                for compressed, message in self._reader.feed(body):
                    self._take(compressed, message)
        except HeadraceError as error:
            self.fail(error)
            return
        self.end()

    def feed(self, data: bytes) -> None:
        """Take body bytes."""
        count = len(data)
        self._uncredited += count
        if self._over:
            self._credit()
            return
        try:
            self._hold(count)
            for compressed, message in self._reader.feed(data):
                self._take(compressed, message)
        except HeadraceError as error:
            self.fail(error)
            return
        if not self._requests or not self._kind.value[0]:
            self._credit()
        self._wake()

    def end(self) -> None:
        """The client has sent its last message."""
        if self._over:
            return
        self._ended = True
        try:
            self._reader.finish()
        except HeadraceError as error:
            self.fail(error)
            return
        if self._kind.value[0]:
            self._wake()
        elif not self._requests:
            self.fail(UnimplementedError("a unary request needs one message, and none came"))
        elif self._task is None:
            self._start()

    def cancel(self) -> None:
        """Nobody waits for the answer any more: the stream is gone."""
        if self._task is not None:
            self._task.cancel()
        elif not self._over:
            self._close()

    def writable(self) -> None:
        """The stream takes more data."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def fail(self, error: HeadraceError) -> None:
        """End the call with a status, now; its handler, if it runs, is cancelled."""
        self._finish_with(error)
        self.cancel()

    def refuse(self, error: HeadraceError) -> None:
        """End a call that is one too many: it is counted, but never was at work."""
        self._over = True
        self._finish_with(error)
        calls = self.connection.server.calls
        calls.begin()
        calls.end(self.code)

    def _close(self) -> None:
        """Give everything back: exactly once, when neither handler nor client expects more."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._requests.clear()
        self._release()
        self._credit()
        self.connection.ended(self)

    # Requests.

    def _take(self, compressed: bool, message: bytes) -> None:
        if compressed:
            message = compression.decompress(message, self.route.encoding, self._message_bytes_max)
            self._hold(len(message))  # it may be a thousand times what its window paid for
        self._requests.append(message)
        if len(self._requests) > 1 and not self._kind.value[0]:
            raise UnimplementedError("a unary request needs one message, and more came")

    def _credit(self) -> None:
        count, self._uncredited = self._uncredited, 0
        if count and self._request_stream is not None:
            self.connection.core.consume(self._request_stream, count)
            self.connection.touch()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _messages(self) -> AsyncIterator[bytes]:
        """The request stream as its handler sees it."""
        while True:
            while self._requests:
                message = self._requests.popleft()
                if not self._requests:
                    self._release()
                    self._credit()
                yield message
            if self._ended:
                return
            self._waiter = self.connection.server.loop.create_future()
            await self._waiter

    def _hold(self, count: int) -> None:
        server = self.connection.server
        self.held_bytes += count
        server.held_bytes += count
        if server.held_bytes > server.limits.request_bytes_max:
            raise ResourceExhaustedError(
                "the server holds too many unfinished requests", mend="try again later"
            )

    def _release(self) -> None:
        self.connection.server.held_bytes -= self.held_bytes
        self.held_bytes = 0

    # The handler.

    def _start(self) -> None:
        self._task = self.connection.server.loop.create_task(self._run())
        self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None  # a cancelled one holds frames that hold this call
        self._close()
        if not task.cancelled() and (error := task.exception()) is not None:
            # A handler's fault was answered in `_run`; this is one of ours.
            self._finish_with(as_headrace_error(error, self.route.path))

    async def _run(self) -> None:
        method = self.route.method
        request: Any = self._messages()
        if not self._kind.value[0]:
            request = self._requests.popleft()  # held until the call ends
        try:
            if self._kind.value[1]:
                responses = method.call(request, self._context)
                try:
                    async for message in responses:
                        await self._send(message)
                finally:
                    # A cancelled generator must not wait for the garbage collector.
                    await responses.aclose()
                self._finish_well(None)
            else:
                self._finish_well(await method.call(request, self._context))
        except asyncio.CancelledError:
            if self.connection.core.closed or self.stream_id not in self.connection.core.streams:
                raise
            # The handler cancelled itself, or the server stops: its client still waits.
            self._finish_with(InternalError("the call was cancelled by the server"))
            raise
        except Exception as error:  # noqa: BLE001 - the task boundary: a call's fault stays its own
            self._finish_with(as_headrace_error(error, self.route.path))

    # Responses.

    def _stream(self) -> Stream | None:
        return self.connection.core.stream(self.stream_id)

    async def _send(self, message: bytes) -> None:
        stream = self._stream()
        if stream is None:
            return
        core = self.connection.core
        self._open_response(stream)
        core.send_data(stream, self._framed(message))
        self.connection.touch()
        while core.is_full(stream):
            self._writable = self.connection.server.loop.create_future()
            await self._writable

    def _open_response(self, stream: Stream) -> None:
        if not self._opened:
            if self._context.compress is not None:
                self._encoding = self.route.reply_encoding
            block = replies.opening(self._context.initial_metadata, self._encoding)
            self._opened = True
            self.connection.core.send_headers(stream, block)

    def _framed(self, message: bytes) -> bytes:
        if (
            self._encoding == compression.IDENTITY
            or not self._context.compress
            or len(message) < _COMPRESS_BYTES_MIN
        ):
            return frame(message)
        return frame(compression.compress(message, self._encoding), compressed=True)

    def _finish_well(self, message: bytes | None) -> None:
        context = self._context
        core = self.connection.core
        if self.stream_id not in core.streams:
            return  # it went on though it was cancelled
        self.code = StatusCode.OK
        if message is not None and context.compress is None and not context.initial_metadata:
            block = replies.ok_trailers(context.trailing_metadata)
            if block is replies.OK_TRAILERS:
                core.answer_all([self.stream_id], replies.shape(b"", len(message)), [message])
                self.connection.touch()
                return
        stream = self._stream()
        assert stream is not None
        trailers = replies.ok_trailers(context.trailing_metadata)
        self._open_response(stream)
        if message is not None:
            core.send_data(stream, self._framed(message))
        core.send_trailers(stream, trailers)
        self.connection.touch()

    def _finish_with(self, error: HeadraceError) -> None:
        stream = self._stream()
        if stream is None or stream.trailers is not None:
            return
        try:
            self._send_status(stream, error)
        except Exception as fault:  # noqa: BLE001 - metadata that a handler set may be anything
            self._context.initial_metadata = self._context.trailing_metadata = ()
            self._send_status(stream, as_headrace_error(fault, self.route.path))

    def _send_status(self, stream: Stream, error: HeadraceError) -> None:
        self.code, _ = of_error(error)
        trailing = self._context.trailing_metadata
        core = self.connection.core
        if self._opened:
            core.send_trailers(stream, replies.error_trailers(error, trailing))
        elif self._context.initial_metadata:
            self._open_response(stream)
            core.send_trailers(stream, replies.error_trailers(error, trailing))
        else:
            block = replies.trailers_only(error, trailing)
            core.send_headers(stream, block, end_stream=True)
        self.connection.touch()

    # The deadline.

    def _expire(self) -> None:
        stream = self._stream()
        if stream is None or not stream.pending:
            self.fail(DeadlineExceededError("Deadline Exceeded"))
            return
        # A status would wait behind data that the client does not take, perhaps for ever.
        self.code = StatusCode.DEADLINE_EXCEEDED
        self.connection.core.reset(self.stream_id, ErrorCode.CANCEL)
        self.connection.touch()
        self.cancel()
