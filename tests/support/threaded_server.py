"""Our gRPC server on a uvloop in a thread of its own, for tests that drive other programs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, Self

import grpc
import uvloop

from server.wire.grpc.limits import ServerLimits
from server.wire.grpc.server import GrpcServer
from server.wire.http2.limits import Limits
from server.wire.tls import H2, TlsFiles
from tests.support.attacked_server import Services

PATIENCE_S = 20.0


class LoopThread:
    """A uvloop in a thread, as in a worker: what blocks in the test does not block the server."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run it there; return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE_S)

    def call(self, function: Any, *arguments: Any) -> Any:
        """Call a function in the loop; return its result."""
        answer: Future[Any] = Future()
        self._loop.call_soon_threadsafe(lambda: answer.set_result(function(*arguments)))
        return answer.result(PATIENCE_S)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


class ThreadedServer:
    """Our gRPC server with `Services`. Use in a `with` block.

    Keywords are limits of the server; `connection` are those of each connection.
    """

    def __init__(
        self,
        files: TlsFiles | None = None,
        *,
        connection: Mapping[str, Any] | None = None,
        **limits: Any,
    ) -> None:
        self.thread = LoopThread()
        limits_of_one = Limits(**(connection or {}))
        self.thread.run(self._start(files, ServerLimits(**limits), limits_of_one))
        self.port = self.server.port

    async def _start(
        self, files: TlsFiles | None, limits: ServerLimits, limits_of_one: Limits
    ) -> None:
        self.services = Services()
        self.server = GrpcServer(
            self.services.table(), limits=limits, connection_limits=limits_of_one
        )
        tls = None if files is None else files.context(H2)
        await self.server.start("127.0.0.1", 0, tls)

    @property
    def abuse(self) -> dict[str, int]:
        found: dict[str, int] = self.thread.call(dict, self.server.abuse)
        return found

    @property
    def open_connections(self) -> int:
        return self.server.listener.open_connections

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.run(self.server.drain(0))
        self.thread.close()


def unary(
    port: int,
    credentials: grpc.ChannelCredentials | None = None,
    data: bytes = b"hello",
    path: str = "/test.Service/Method",
) -> bytes:
    """Make one call by grpcio, on a connection of its own."""
    address = f"127.0.0.1:{port}"
    # Channels of the same options share connections, credentials or not.
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = (
        grpc.insecure_channel(address, options)
        if credentials is None
        else grpc.secure_channel(address, credentials, options)
    )
    with channel:
        answer: bytes = channel.unary_unary(path)(data, timeout=PATIENCE_S)
        return answer
