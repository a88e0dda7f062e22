"""Connections to one remote server, by gRPC."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from server.backends.remote.settings import Settings
from server.backends.remote.upstream import CallFailedError

_SERVICE = "/inference.GRPCInferenceService/"
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", 1 << 30),
    # A server that comes back is found within a second, not within gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),  # else all channels share one connection
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),  # ours know the breaker and the deadline
)


class Channels:
    """Calls go over the connection with the fewest. Use it in the loop that it was made in."""

    def __init__(self, settings: Settings) -> None:
        self._channels = [_channel(settings) for _ in range(settings.pool_size)]
        self._calls = [0] * settings.pool_size

    async def call(self, method: str, request: bytes, timeout_ns: int) -> bytes:
        """Return the reply to a call of the inference service. Raises CallFailedError.

        A caller who is cancelled cancels the call.
        """
        at = self._calls.index(min(self._calls))
        self._calls[at] += 1
        try:
            asked = self._channels[at].unary_unary(_SERVICE + method)
            reply: bytes = await asked(request, timeout=timeout_ns / 1e9)
        except grpc.aio.AioRpcError as error:
            raise CallFailedError(int(error.code().value[0]), error.details() or "") from error
        finally:
            self._calls[at] -= 1
        return reply

    async def close(self) -> None:
        """Close the connections; calls end."""
        for channel in self._channels:
            await channel.close()


def _channel(settings: Settings) -> Any:
    if settings.tls is None:
        return grpc.aio.insecure_channel(settings.address, _OPTIONS)
    tls = settings.tls
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)
    return grpc.aio.secure_channel(settings.address, credentials, _OPTIONS)
