"""The client to await: one channel, for the tasks of one event loop."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc
import grpc.aio

from headrace_client import calls
from headrace_client.connection import OPTIONS, Connection, named_as

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")


def _awaited(
    build: Callable[Parameters, calls.Call[Answer]],
) -> Callable[Concatenate[AsyncClient, Parameters], Awaitable[Answer]]:
    async def method(
        client: AsyncClient, /, *args: Parameters.args, **named: Parameters.kwargs
    ) -> Answer:
        return await client.send(build(*args, **named))

    named_as(build, method)
    return method


class AsyncClient(Connection):
    """As `Client`, to await: made and closed inside the loop, or used in an `async with` block."""

    def _open(self, target: str, credentials: grpc.ChannelCredentials | None) -> Any:
        if credentials is None:
            return grpc.aio.insecure_channel(target, OPTIONS)
        return grpc.aio.secure_channel(target, credentials, OPTIONS)

    predict = _awaited(calls.predict)
    explain = _awaited(calls.explain)
    feedback = _awaited(calls.feedback)
    feedback_batch = _awaited(calls.feedback_batch)
    get_features = _awaited(calls.get_features)
    infer = _awaited(calls.infer)

    async def send(self, call: calls.Call[Answer]) -> Answer:
        """Send a call until it is answered, its time is over, or trying again is no use."""
        method = self._channel.unary_unary(call.path)
        course = self._begin(call.timeout_s, time.monotonic())
        while True:
            try:
                answer = await method(
                    call.request,
                    timeout=course.left_s(time.monotonic()),
                    metadata=self._metadata,
                    wait_for_ready=self._wait_for_ready,
                )
            except grpc.RpcError as failure:
                await asyncio.sleep(course.wait_s(failure, time.monotonic(), random.random()))
            else:
                return call.read(answer)

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()
