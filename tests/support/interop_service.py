"""grpc.testing.TestService on the transport-neutral handler table."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

from headrace.errors import InternalError, InvalidArgumentError, Status
from server.wire.handlers import Context, Handlers, Kind, Method
from tests.support import interop_messages as pb
from tests.support.interop_tap import Tap

_INITIAL = "x-grpc-test-echo-initial"
_TRAILING = "x-grpc-test-echo-trailing-bin"


class EchoedStatusError(InternalError):
    """Any status that a client asks for, also those that no error of ours has."""

    def __init__(self, code: int, message: str) -> None:
        self._number = code
        super().__init__(message)

    @property
    def status(self) -> Status:
        return Status(500, self._number)


def _echo_status(request: Any) -> None:
    if request.HasField("response_status") and request.response_status.code:
        raise EchoedStatusError(request.response_status.code, request.response_status.message)


def _echo_metadata(context: Context) -> None:
    context.initial_metadata = [field for field in context.fields if field[0] == _INITIAL]
    context.trailing_metadata = [field for field in context.fields if field[0] == _TRAILING]


class TestService:
    """Its counters say what lives: every handler ends, and a cancelled one knows of it."""

    __test__ = False

    def __init__(self) -> None:
        self.entered = 0
        self.live = 0
        self.cancelled = 0
        self.tap: Tap | None = None  # who knows whether a request came compressed
        self._changed = asyncio.Event()

    @property
    def handlers(self) -> Handlers:
        calls = {
            "EmptyCall": self._empty,
            "UnaryCall": self._unary,
            "StreamingOutputCall": Method(Kind.SERVER_STREAM, self._output),
            "StreamingInputCall": Method(Kind.CLIENT_STREAM, self._input),
            "FullDuplexCall": Method(Kind.BIDI_STREAM, self._duplex),
            "HalfDuplexCall": Method(Kind.BIDI_STREAM, self._half_duplex),
        }
        return {f"/grpc.testing.TestService/{name}": call for name, call in calls.items()}

    async def until(self, *, entered: int = 0, live: int | None = None) -> None:
        """Wait until so many calls have been entered in all, and so many live."""
        async with asyncio.timeout(10):
            while self.entered < entered or (live is not None and self.live != live):
                self._changed.clear()
                await self._changed.wait()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self.entered += 1
        self.live += 1
        self._changed.set()
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.live -= 1
            self._changed.set()

    def _check_compressed(self, request: Any, index: int) -> None:
        if self.tap is None or not request.HasField("expect_compressed"):
            return
        came = self.tap.requests[-1][index]  # one call at a time
        if came != request.expect_compressed.value:
            raise InvalidArgumentError(
                "the request came otherwise", expected=request.expect_compressed.value, got=came
            )

    async def _empty(self, message: bytes, context: Context) -> bytes:
        with self._counted():
            return bytes(pb.Empty.FromString(message).SerializeToString())

    async def _unary(self, message: bytes, context: Context) -> bytes:
        with self._counted():
            request = pb.SimpleRequest.FromString(message)
            _echo_metadata(context)
            _echo_status(request)
            self._check_compressed(request, 0)
            if request.HasField("response_compressed"):
                context.compress = request.response_compressed.value
            payload = pb.Payload(body=bytes(request.response_size))
            return bytes(pb.SimpleResponse(payload=payload).SerializeToString())

    async def _output(self, message: bytes, context: Context) -> AsyncIterator[bytes]:
        with self._counted():
            request = pb.StreamingOutputCallRequest.FromString(message)
            _echo_metadata(context)
            _echo_status(request)
            for response in _responses(request, context):
                yield response

    async def _input(self, messages: AsyncIterator[bytes], context: Context) -> bytes:
        with self._counted():
            _echo_metadata(context)
            size = index = 0
            async for message in messages:
                request = pb.StreamingInputCallRequest.FromString(message)
                self._check_compressed(request, index)
                size += len(request.payload.body)
                index += 1
            response = pb.StreamingInputCallResponse(aggregated_payload_size=size)
            return bytes(response.SerializeToString())

    async def _duplex(
        self, messages: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        with self._counted():
            _echo_metadata(context)
            async for message in messages:
                request = pb.StreamingOutputCallRequest.FromString(message)
                _echo_status(request)
                for response in _responses(request, context):
                    yield response

    async def _half_duplex(
        self, messages: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        with self._counted():
            _echo_metadata(context)
            held = [message async for message in messages]
            for message in held:
                request = pb.StreamingOutputCallRequest.FromString(message)
                _echo_status(request)
                for response in _responses(request, context):
                    yield response


def _responses(request: Any, context: Context) -> Iterator[bytes]:
    for parameters in request.response_parameters:
        if parameters.HasField("compressed"):
            context.compress = parameters.compressed.value
        payload = pb.Payload(body=bytes(parameters.size))
        yield pb.StreamingOutputCallResponse(payload=payload).SerializeToString()
