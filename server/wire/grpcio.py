"""The reference transport: the handler table on grpc.aio."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc import aio

from headrace.errors import HeadraceError, UnavailableError
from server.wire.handlers import Context, Handler, Handlers, as_headrace_error

_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}
_NANOSECONDS = 1_000_000_000
# Triton's own bound (INT32_MAX): what users trip on is the 4 MiB default of gRPC.
MESSAGE_BYTES_MAX = 2**31 - 1
CALLS_MAX = 8192
_MESSAGE_TEXT_MAX = 2048  # of an error: it travels in a header

# How long a drain answers UNAVAILABLE before it closes: grpc's core cancels calls that it has
# received and not yet handed over (CANCELLED, which no client tries again), so that few are left.
_REFUSE_S = 0.1

_Method = Callable[[bytes, Any], Awaitable[bytes]]


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


def _method(handler: Handler, path: str, calls: _Calls) -> _Method:
    async def call(message: bytes, call_context: Any) -> bytes:
        try:
            calls.begin()
        except UnavailableError as error:
            await call_context.abort(grpc.StatusCode.UNAVAILABLE, error.message)
        try:
            return await answer(message, call_context)
        finally:
            calls.end()

    async def answer(message: bytes, call_context: Any) -> bytes:
        remaining_s = call_context.time_remaining()
        deadline_ns = None
        if remaining_s is not None:
            deadline_ns = time.monotonic_ns() + int(remaining_s * _NANOSECONDS)
        metadata = {
            key: value
            for key, value in call_context.invocation_metadata() or ()
            if isinstance(value, str)
        }
        try:
            return await handler(message, Context(metadata, deadline_ns, call_context.peer()))
        except HeadraceError as error:
            problem = error
        except Exception as error:  # noqa: BLE001 - the task boundary: a call's fault stays its own
            problem = as_headrace_error(error, path)
        code = _STATUS_CODES[problem.status.grpc]
        await call_context.abort(code, problem.message[:_MESSAGE_TEXT_MAX])
        raise AssertionError("abort always raises")

    return call


class _Table(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Finds the method of a path; grpc answers UNIMPLEMENTED for what is not here."""

    def __init__(self, handlers: Handlers, calls: _Calls) -> None:
        self._methods = {
            path: grpc.unary_unary_rpc_method_handler(_method(handler, path, calls))
            for path, handler in handlers.items()
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
    """Serves `handlers` on one port. Unary calls only: the table has no streams yet."""

    def __init__(self, handlers: Handlers, *, reuse_port: bool = False) -> None:
        options = [
            ("grpc.so_reuseport", int(reuse_port)),
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
            ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ]
        self._calls = _Calls()
        self._server = aio.server(
            handlers=[_Table(handlers, self._calls)],
            options=options,
            maximum_concurrent_rpcs=CALLS_MAX,
        )
        self.port = 0

    async def start(self, host: str, port: int) -> int:
        """Listen on (host, port), 0 for any free one; return the port.

        Raises OSError when the port is taken.
        """
        _probe(host, port)
        self.port = self._server.add_insecure_port(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        )
        await self._server.start()
        return self.port

    async def drain(self, grace_s: float) -> None:
        """Refuse new calls, finish what is under way within `grace_s`, then close."""
        self._calls.refuse = True
        end_s = time.monotonic() + grace_s
        await asyncio.sleep(min(_REFUSE_S, grace_s))
        if self._calls.under_way:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._calls.none_left.wait(), end_s - time.monotonic())
        await self._server.stop(max(end_s - time.monotonic(), 0.0))
