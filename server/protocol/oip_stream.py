"""ModelStreamInfer: a stream of requests that run together and are answered in their order.

As Triton's: an error travels in `error_message` beside the request's id, and the stream goes on;
with the metadata `triton_grpc_error: true` it ends the stream with its status instead. Every reply
says in `triton_final_response` whether it is the last one of its request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from headrace.errors import HeadraceError
from server.wire.handlers import Context, as_headrace_error

# Of a stream: requests under way and replies that wait for their turn. Then it is read no further.
IN_FLIGHT_MAX = 64
ERROR_HEADER = "triton_grpc_error"
_FINAL = "triton_final_response"

Infer = Callable[[bytes, Context], Awaitable[bytes]]


class _Reply(NamedTuple):
    """What goes back, and what it tells of if that is an error."""

    message: bytes
    error: HeadraceError | None = None


_Queue = asyncio.Queue[asyncio.Task[_Reply] | None]


class InferStream:
    """Streams of ModelInferRequests; `infer` answers one of them with a ModelInferResponse."""

    def __init__(self, infer: Infer) -> None:
        self._infer = infer

    async def stream(
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        """Yield a ModelStreamInferResponse for each request, in their order.

        Raises the first error of a request where the client wants it so.
        """
        ends = context.metadata.get(ERROR_HEADER, "").lower() == "true"
        queue = _Queue(IN_FLIGHT_MAX)
        running: set[asyncio.Task[_Reply]] = set()
        reading = asyncio.create_task(self._read(requests, context, queue, running))
        try:
            while (task := await queue.get()) is not None:
                message, error = await task
                if error is not None and ends:
                    raise error
                yield message
            await reading
        finally:
            for each in (reading, *running):
                each.cancel()
            await asyncio.gather(reading, *running, return_exceptions=True)

    async def _read(
        self,
        requests: AsyncIterator[bytes],
        context: Context,
        queue: _Queue,
        running: set[asyncio.Task[_Reply]],
    ) -> None:
        fault: Exception | None = None
        try:
            async for data in requests:
                # Its own: a request's timeout is not the stream's.
                own = Context(None, context.deadline_ns, context.peer, context.fields)
                task = asyncio.create_task(self._answer(data, own))
                running.add(task)
                task.add_done_callback(running.discard)
                await queue.put(task)
        except Exception as problem:  # noqa: BLE001 - those before it are answered first
            fault = problem
        await queue.put(None)
        if fault is not None:
            raise fault

    async def _answer(self, data: bytes, context: Context) -> _Reply:
        response = pb.ModelStreamInferResponse()
        error = None
        try:
            response.infer_response.MergeFromString(await self._infer(data, context))
        except Exception as problem:  # noqa: BLE001 - a request's fault stays its own
            error = as_headrace_error(problem, "ModelStreamInfer")
            response.error_message = error.message
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
