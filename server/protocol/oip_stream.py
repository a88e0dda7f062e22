"""ModelStreamInfer: a stream of requests that run together and are answered in their order.

The responses of a decoupled model, any number to a request, go out as they come instead.

As Triton's: an error travels in `error_message` beside the request's id, and the stream goes on;
with the metadata `triton_grpc_error: true` it ends the stream with its status instead. Every reply
says in `triton_final_response` whether it is the last one of its request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from headrace.errors import HeadraceError
from server.wire.handlers import Context, as_headrace_error

# Of a stream: requests under way and replies that wait for their turn. Then it is read no further.
IN_FLIGHT_MAX = 64
ERROR_HEADER = "triton_grpc_error"
_FINAL = "triton_final_response"


class StreamPart(NamedTuple):
    """One response of several: a ModelInferResponse."""

    message: bytes
    final: bool
    error: HeadraceError | None


Parts = AsyncGenerator[StreamPart]
Infer = Callable[[bytes, Context], Awaitable[bytes | Parts]]


class _Reply(NamedTuple):
    """What goes back, and what it tells of if that is an error."""

    message: bytes
    error: HeadraceError | None = None


# What is to go out next: a request's task, which puts the responses here by itself where there may
# be several, and then has none.
_Queue = asyncio.Queue[asyncio.Task[_Reply | None] | _Reply | None]


class InferStream:
    """Streams of ModelInferRequests; `infer` answers one of them with a ModelInferResponse, or
    with its responses as they come."""

    def __init__(self, infer: Infer) -> None:
        self._infer = infer

    async def stream(
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        """Yield the ModelStreamInferResponses of each request, in their order.

        Raises the first error of a request where the client wants it so.
        """
        ends = context.metadata.get(ERROR_HEADER, "").lower() == "true"
        stream = _Stream(self._infer)
        reading = asyncio.create_task(stream.read(requests, context))
        try:
            while (item := await stream.queue.get()) is not None:
                reply = await item if isinstance(item, asyncio.Task) else item
                if reply is None:
                    continue
                if reply.error is not None and ends:
                    raise reply.error
                yield reply.message
            await reading
        finally:
            for each in (reading, *stream.running):
                each.cancel()
            await asyncio.gather(reading, *stream.running, return_exceptions=True)


class _Stream:
    """One stream: what is under way of it, and what is to go out."""

    def __init__(self, infer: Infer) -> None:
        self.queue = _Queue(IN_FLIGHT_MAX)
        self.running: set[asyncio.Task[Any]] = set()
        self._several: set[asyncio.Task[Any]] = set()  # of them: responses come one by one
        self._infer = infer

    async def read(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Start every request; put None behind the last response."""
        fault: Exception | None = None
        try:
            async for data in requests:
                # Its own: a request's timeout is not the stream's.
                own = Context(None, context.deadline_ns, context.peer, context.fields)
                await self.queue.put(self._start(self._answer(data, own)))
                while len(self._several) >= IN_FLIGHT_MAX:
                    await asyncio.wait(self._several, return_when=asyncio.FIRST_COMPLETED)
        except Exception as problem:  # noqa: BLE001 - those before it are answered first
            fault = problem
        while self.running:
            await asyncio.wait(set(self.running))
        await self.queue.put(None)
        if fault is not None:
            raise fault

    def _start(self, work: Coroutine[Any, Any, _Reply | None]) -> asyncio.Task[_Reply | None]:
        task = asyncio.create_task(work)
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        return task

    async def _answer(self, data: bytes, context: Context) -> _Reply | None:
        try:
            found = await self._infer(data, context)
        except Exception as problem:  # noqa: BLE001 - a request's fault stays its own
            return _failed(problem, data)
        if isinstance(found, bytes):
            return _reply(found, final=True)
        task = self._start(self._forward(data, found))
        self._several.add(task)
        task.add_done_callback(self._several.discard)
        return None

    async def _forward(self, data: bytes, parts: Parts) -> None:
        """Let responses go out as they come, as fast as the client takes them."""
        try:
            async with aclosing(parts):
                async for message, final, error in parts:
                    await self.queue.put(_reply(message, final=final, error=error))
        except Exception as problem:  # noqa: BLE001 - a request's fault stays its own
            await self.queue.put(_failed(problem, data))


def _reply(message: bytes, *, final: bool, error: HeadraceError | None = None) -> _Reply:
    response = pb.ModelStreamInferResponse()
    response.infer_response.MergeFromString(message)
    if error is not None:
        response.error_message = error.message
    response.infer_response.parameters[_FINAL].bool_param = final
    return _Reply(response.SerializeToString(), error)


def _failed(problem: Exception, data: bytes) -> _Reply:
    error = as_headrace_error(problem, "ModelStreamInfer")
    response = pb.ModelStreamInferResponse(error_message=error.message)
    _name(response.infer_response, data)
    response.infer_response.parameters[_FINAL].bool_param = True
    return _Reply(response.SerializeToString(), error)


def _name(response: Any, data: bytes) -> None:
    """Say which request failed, as far as it can be read."""
    try:
        request = pb.ModelInferRequest.FromString(data)
    except DecodeError:
        return
    response.id = request.id
    response.model_name = request.model_name
    response.model_version = request.model_version
