"""The reference transport: the handler table on grpc.aio."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, NoReturn

import grpc
from grpc import aio

from headrace.errors import (
    HeadraceError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)
from server.wire.grpc import status
from server.wire.handlers import Context, Handlers, Kind, Method, as_headrace_error, method_of
from server.wire.tls import H2, Identify, TlsFiles, revokes

_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}
_NANOSECONDS = 1_000_000_000
# Triton's own bound (INT32_MAX): what users trip on is the 4 MiB default of gRPC.
MESSAGE_BYTES_MAX = 2**31 - 1
CALLS_MAX = 8192

# How long a drain answers UNAVAILABLE before it closes: grpc's core cancels calls that it has
# received and not yet handed over (CANCELLED, which no client tries again), so that few are left.
_REFUSE_S = 0.1

# grpc.aio tells a handler of a client that has gone as if it had only stopped sending; the task is
# cancelled a moment later (within 0.1 ms when measured), so the end of requests waits for that.
_CANCEL_S = 0.01

_MOUNTS: dict[Kind, Callable[..., Any]] = {
    Kind.UNARY: grpc.unary_unary_rpc_method_handler,
    Kind.SERVER_STREAM: grpc.unary_stream_rpc_method_handler,
    Kind.CLIENT_STREAM: grpc.stream_unary_rpc_method_handler,
    Kind.BIDI_STREAM: grpc.stream_stream_rpc_method_handler,
}


class _Calls:
    """What is under way, and whether more may come."""

    def __init__(self) -> None:
        self.refuse = False
        self.under_way = 0
        self.none_left = asyncio.Event()

    def begin(self) -> None:
        if self.refuse:
            raise UnavailableError("the server is shutting down", mend="try again elsewhere")
        self.under_way += 1

    def end(self) -> None:
        self.under_way -= 1
        if self.refuse and self.under_way == 0:
            self.none_left.set()


class _Requests:
    """The messages of a client that streams."""

    def __init__(self, call_context: Any) -> None:
        self._call_context = call_context

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        message = await self._call_context.read()
        if message is aio.EOF:  # type: ignore[attr-defined]
            await asyncio.sleep(_CANCEL_S)
            raise StopAsyncIteration
        return bytes(message)


class _Call:
    """One call between grpc.aio and its handler."""

    def __init__(
        self, method: Method, path: str, call_context: Any, identify: Identify | None
    ) -> None:
        self._method = method
        self._path = path
        self._call_context = call_context
        self._opened = False
        self._encoding_announced = False
        remaining_s = call_context.time_remaining()
        deadline_ns = None
        if remaining_s is not None:
            deadline_ns = time.monotonic_ns() + int(remaining_s * _NANOSECONDS)
        fields = tuple(call_context.invocation_metadata() or ())
        identity = None if identify is None else _identity(call_context, identify)
        self._context = Context(None, deadline_ns, call_context.peer(), fields, identity)

    async def answer(self, request: bytes) -> bytes | None:
        """Return the one reply, or None after a stream of them."""
        client_streams, server_streams = self._method.kind.value
        given = _Requests(self._call_context) if client_streams else request
        try:
            reply = None
            if server_streams:
                await self._stream(self._method.call(given, self._context))
            else:
                reply = await self._method.call(given, self._context)
                await self._before_message()
        except aio.BaseError:
            raise  # grpc's own: the call is gone, or has been answered
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # The handler cancelled itself; grpc.aio would leave the caller without an answer.
            await self._fail(InternalError("the call was cancelled by the server"))
        except Exception as error:  # noqa: BLE001 - the task boundary: a call's fault stays its own
            await self._fail(as_headrace_error(error, self._path))
        self._call_context.set_trailing_metadata(tuple(self._context.trailing_metadata))
        return reply

    async def _stream(self, replies: AsyncGenerator[bytes, None]) -> None:
        # grpc.aio leaves the generator of a cancelled call to the garbage collector.
        async with contextlib.aclosing(replies):
            async for message in replies:
                await self._before_message()
                await self._call_context.write(message)
        if self._context.initial_metadata:
            await self._open()

    async def _before_message(self) -> None:
        await self._open()
        if self._encoding_announced and not self._context.compress:
            self._call_context.disable_next_message_compression()

    async def _open(self) -> None:
        if self._opened:
            return
        self._opened = True
        self._encoding_announced = self._context.compress is not None
        if self._encoding_announced:
            self._call_context.set_compression(grpc.Compression.Gzip)
        if self._encoding_announced or self._context.initial_metadata:
            await self._call_context.send_initial_metadata(tuple(self._context.initial_metadata))

    async def _fail(self, error: HeadraceError) -> NoReturn:
        if self._context.initial_metadata:
            await self._open()
        code, message = status.of_error(error)
        trailing = tuple(self._context.trailing_metadata)
        await self._call_context.abort(_STATUS_CODES[code], message, trailing)
        raise AssertionError("abort always raises")


def _identity(call_context: Any, identify: Identify) -> object:
    """Return who a call's client is. What grpc verified is asked for at each call: it knows no
    connections."""
    shown = call_context.auth_context().get("x509_pem_cert")
    return identify(ssl.PEM_cert_to_DER_cert(shown[0].decode())) if shown else None


def _mounted(method: Method, path: str, calls: _Calls, identify: Identify | None) -> Any:
    async def serve(request: bytes, call_context: Any) -> bytes | None:
        try:
            calls.begin()
        except UnavailableError as error:
            await call_context.abort(grpc.StatusCode.UNAVAILABLE, error.message)
        try:
            return await _Call(method, path, call_context, identify).answer(request)
        finally:
            calls.end()

    return _MOUNTS[method.kind](serve)


class _Table(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Finds the method of a path; grpc answers UNIMPLEMENTED for what is not here."""

    def __init__(self, handlers: Handlers, calls: _Calls, identify: Identify | None) -> None:
        self._methods = {
            path: _mounted(method_of(entry), path, calls, identify)
            for path, entry in handlers.items()
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._methods.get(handler_call_details.method)


def _probe(host: str, port: int) -> None:
    """Bind and let go: grpc would write its own lines to stderr and raise a bare RuntimeError."""
    family, kind, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind(address)


class GrpcServer:
    """Serves `handlers` on one port."""

    def __init__(
        self, handlers: Handlers, *, reuse_port: bool = False, identify: Identify | None = None
    ) -> None:
        options = [
            ("grpc.so_reuseport", int(reuse_port)),
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ]
        self._calls = _Calls()
        self._server = aio.server(
            handlers=[_Table(handlers, self._calls, identify)],
            options=options,
            maximum_concurrent_rpcs=CALLS_MAX,
        )
        self.port = 0

    async def start(self, host: str, port: int, tls: TlsFiles | None = None) -> int:
        """Listen on (host, port), 0 for any free one; return the port.

        Raises OSError when the port is taken, HeadraceError for TLS files of no use.
        """
        _probe(host, port)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if tls is None:
            self.port = self._server.add_insecure_port(address)
        else:
            tls.context(H2)  # grpc would take a key that is not the certificate's, and never answer
            cert, key, client_ca = tls.pem()
            if revokes(client_ca):
                raise InvalidArgumentError(
                    "the reference transport looks at no list of revoked certificates",
                    where="tls_client_ca",
                    mend="take the list out of the file, or leave --transport grpcio out",
                )
            credentials = grpc.ssl_server_credentials(
                [(key, cert)], root_certificates=client_ca, require_client_auth=bool(client_ca)
            )
            self.port = self._server.add_secure_port(address, credentials)
        await self._server.start()
        return self.port

    async def drain(self, grace_s: float) -> None:
        """Refuse new calls, finish what is under way within `grace_s`, then close."""
        self._calls.refuse = True
        end_s = time.monotonic() + grace_s
        await asyncio.sleep(min(_REFUSE_S, grace_s))
        if self._calls.under_way:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(end_s - time.monotonic()):
                    await self._calls.none_left.wait()
        await self._server.stop(max(end_s - time.monotonic(), 0.0))
