"""grpc's interop cases with grpcio's client: names, sizes and rules of
https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio

from tests.support import interop_messages as pb
from tests.support.interop_service import TestService
from tests.support.interop_tap import Tap

_REQUEST_BYTES = 271828
_RESPONSE_BYTES = 314159
_STREAM_REQUEST_BYTES = (27182, 8, 1828, 45904)
_STREAM_RESPONSE_BYTES = (31415, 9, 2653, 58979)
_METADATA = (
    ("x-grpc-test-echo-initial", "test_initial_metadata_value"),
    ("x-grpc-test-echo-trailing-bin", b"\xab\xab\xab"),
)
_SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
_GZIP = grpc.Compression.Gzip


class Stub:
    """TestService by its paths, without generated code."""

    def __init__(self, channel: aio.Channel) -> None:
        def of(kind: Any, name: str, response: Any, service: str = "TestService") -> Any:
            return kind(
                f"/grpc.testing.{service}/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=response.FromString,
            )

        self.empty = of(channel.unary_unary, "EmptyCall", pb.Empty)
        self.unary = of(channel.unary_unary, "UnaryCall", pb.SimpleResponse)
        self.input = of(channel.stream_unary, "StreamingInputCall", pb.StreamingInputCallResponse)
        self.output = of(
            channel.unary_stream, "StreamingOutputCall", pb.StreamingOutputCallResponse
        )
        self.duplex = of(channel.stream_stream, "FullDuplexCall", pb.StreamingOutputCallResponse)
        self.half = of(channel.stream_stream, "HalfDuplexCall", pb.StreamingOutputCallResponse)
        self.no_method = of(channel.unary_unary, "UnimplementedCall", pb.Empty)
        self.no_service = of(
            channel.unary_unary, "UnimplementedCall", pb.Empty, "UnimplementedService"
        )


@pytest.fixture
async def stub(port: int) -> AsyncIterator[Stub]:
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Stub(channel)


@pytest.fixture
async def tapped_stub(tapped: Tap) -> AsyncIterator[Stub]:
    async with aio.insecure_channel(f"127.0.0.1:{tapped.port}") as channel:
        yield Stub(channel)


def _payload(size: int) -> Any:
    return pb.Payload(body=bytes(size))


def _large(**fields: Any) -> Any:
    return pb.SimpleRequest(
        response_size=_RESPONSE_BYTES, payload=_payload(_REQUEST_BYTES), **fields
    )


def _duplex_request(response_bytes: int, request_bytes: int) -> Any:
    return pb.StreamingOutputCallRequest(
        response_parameters=[pb.ResponseParameters(size=response_bytes)],
        payload=_payload(request_bytes),
    )


async def _code(call: Any) -> grpc.StatusCode:
    """Return the status of a call that reads nothing more."""
    code: grpc.StatusCode = await call.code()
    return code


async def test_empty_unary(stub: Stub) -> None:
    response = await stub.empty(pb.Empty())
    assert response.ByteSize() == 0


async def test_large_unary(stub: Stub) -> None:
    response = await stub.unary(_large())
    assert response.payload.body == bytes(_RESPONSE_BYTES)


async def test_client_compressed_unary(tapped: Tap, tapped_stub: Stub) -> None:
    compressed = _large(expect_compressed=pb.BoolValue(value=True))
    with pytest.raises(aio.AioRpcError) as caught:
        await tapped_stub.unary(compressed)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    response = await tapped_stub.unary(compressed, compression=_GZIP)
    assert response.payload.body == bytes(_RESPONSE_BYTES)
    plain = _large(expect_compressed=pb.BoolValue(value=False))
    response = await tapped_stub.unary(plain)
    assert response.payload.body == bytes(_RESPONSE_BYTES)
    assert tapped.requests == [[False], [True], [False]]


@pytest.mark.parametrize("compressed", [True, False])
async def test_server_compressed_unary(tapped: Tap, tapped_stub: Stub, compressed: bool) -> None:
    response = await tapped_stub.unary(_large(response_compressed=pb.BoolValue(value=compressed)))
    assert response.payload.body == bytes(_RESPONSE_BYTES)
    assert tapped.responses == [[compressed]]


async def test_client_streaming(stub: Stub) -> None:
    requests = [pb.StreamingInputCallRequest(payload=_payload(n)) for n in _STREAM_REQUEST_BYTES]
    response = await stub.input(iter(requests))
    assert response.aggregated_payload_size == 74922


async def test_client_compressed_streaming(tapped: Tap, tapped_stub: Stub) -> None:
    compressed = pb.StreamingInputCallRequest(
        payload=_payload(27182), expect_compressed=pb.BoolValue(value=True)
    )
    with pytest.raises(aio.AioRpcError) as caught:
        await tapped_stub.input(iter([compressed]))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    # This client has no flag for one message; it sends as it is what compression would not shrink.
    plain = pb.StreamingInputCallRequest(
        payload=pb.Payload(body=random.Random(4).randbytes(45904)),
        expect_compressed=pb.BoolValue(value=False),
    )
    response = await tapped_stub.input(iter([compressed, plain]), compression=_GZIP)
    assert response.aggregated_payload_size == 73086
    assert tapped.requests == [[False], [True, False]]


async def test_server_streaming(stub: Stub) -> None:
    request = pb.StreamingOutputCallRequest(
        response_parameters=[pb.ResponseParameters(size=n) for n in _STREAM_RESPONSE_BYTES]
    )
    bodies = [response.payload.body async for response in stub.output(request)]
    assert bodies == [bytes(n) for n in _STREAM_RESPONSE_BYTES]


async def test_server_compressed_streaming(tapped: Tap, tapped_stub: Stub) -> None:
    parameters = [
        pb.ResponseParameters(size=31415, compressed=pb.BoolValue(value=True)),
        pb.ResponseParameters(size=92653, compressed=pb.BoolValue(value=False)),
    ]
    request = pb.StreamingOutputCallRequest(response_parameters=parameters)
    bodies = [response.payload.body async for response in tapped_stub.output(request)]
    assert bodies == [bytes(31415), bytes(92653)]
    assert tapped.responses == [[True, False]]


async def test_ping_pong(stub: Stub) -> None:
    call = stub.duplex()
    for response_bytes, request_bytes in zip(
        _STREAM_RESPONSE_BYTES, _STREAM_REQUEST_BYTES, strict=True
    ):
        await call.write(_duplex_request(response_bytes, request_bytes))
        response = await call.read()
        assert response.payload.body == bytes(response_bytes)
    await call.done_writing()
    assert await call.read() is aio.EOF
    assert await _code(call) is grpc.StatusCode.OK


async def test_half_duplex(stub: Stub) -> None:
    sizes = zip(_STREAM_RESPONSE_BYTES, _STREAM_REQUEST_BYTES, strict=True)
    call = stub.half(iter([_duplex_request(*pair) for pair in sizes]))
    bodies = [response.payload.body async for response in call]
    assert bodies == [bytes(n) for n in _STREAM_RESPONSE_BYTES]


async def test_empty_stream(stub: Stub) -> None:
    call = stub.duplex()
    await call.done_writing()
    assert await call.read() is aio.EOF
    assert await _code(call) is grpc.StatusCode.OK


def _assert_echoed(initial: Any, trailing: Any) -> None:
    assert _METADATA[0] in [tuple(field) for field in initial]
    assert _METADATA[1] in [tuple(field) for field in trailing]


async def test_custom_metadata_unary(stub: Stub) -> None:
    call = stub.unary(_large(), metadata=_METADATA)
    assert (await call).payload.body == bytes(_RESPONSE_BYTES)
    _assert_echoed(await call.initial_metadata(), await call.trailing_metadata())


async def test_custom_metadata_full_duplex(stub: Stub) -> None:
    call = stub.duplex(metadata=_METADATA)
    await call.write(_duplex_request(_RESPONSE_BYTES, _REQUEST_BYTES))
    await call.done_writing()
    assert len((await call.read()).payload.body) == _RESPONSE_BYTES
    assert await call.read() is aio.EOF
    _assert_echoed(await call.initial_metadata(), await call.trailing_metadata())


async def _assert_status_echoed(call: Any, code: int, message: str) -> None:
    assert (await call.code()).value[0] == code
    assert await call.details() == message


@pytest.mark.parametrize("message", ["test status message", _SPECIAL], ids=["plain", "special"])
async def test_status_code_and_message_unary(stub: Stub, message: str) -> None:
    """The special one is the case special_status_message."""
    status = pb.EchoStatus(code=2, message=message)
    call = stub.unary(pb.SimpleRequest(response_status=status))
    await _assert_status_echoed(call, 2, message)


@pytest.mark.parametrize("message", ["test status message", _SPECIAL], ids=["plain", "special"])
async def test_status_code_and_message_full_duplex(stub: Stub, message: str) -> None:
    call = stub.duplex()
    status = pb.EchoStatus(code=2, message=message)
    await call.write(pb.StreamingOutputCallRequest(response_status=status))
    await call.done_writing()
    await _assert_status_echoed(call, 2, message)


async def test_unimplemented_method(stub: Stub) -> None:
    assert await _code(stub.no_method(pb.Empty())) is grpc.StatusCode.UNIMPLEMENTED


async def test_unimplemented_service(stub: Stub) -> None:
    assert await _code(stub.no_service(pb.Empty())) is grpc.StatusCode.UNIMPLEMENTED


async def test_cancel_after_begin(stub: Stub, service: TestService) -> None:
    call = stub.input()
    call.cancel()
    assert await _code(call) is grpc.StatusCode.CANCELLED
    await service.until(live=0)
    # And once its handler waits for the first message, the handler is cancelled, too.
    before = service.entered
    call = stub.input()
    await service.until(entered=before + 1)
    call.cancel()
    assert await _code(call) is grpc.StatusCode.CANCELLED
    await service.until(live=0)
    assert service.cancelled >= 1


async def test_cancel_after_first_response(stub: Stub, service: TestService) -> None:
    call = stub.duplex()
    await call.write(_duplex_request(31415, 27182))
    assert len((await call.read()).payload.body) == 31415
    call.cancel()
    assert await _code(call) is grpc.StatusCode.CANCELLED
    await service.until(live=0)
    assert (service.entered, service.cancelled) == (1, 1)


async def test_timeout_on_sleeping_server(stub: Stub, service: TestService) -> None:
    for timeout_s in (0.001, 0.2):
        call = stub.duplex(timeout=timeout_s)
        writing = asyncio.ensure_future(
            call.write(pb.StreamingOutputCallRequest(payload=_payload(27182)))
        )
        code = await _code(call)
        if timeout_s == 0.001 and code is grpc.StatusCode.INTERNAL:
            # What grpc.aio makes of a call that ends while it writes to it.
            assert await call.details() == "Internal error from Core"
        else:
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.gather(writing, return_exceptions=True)
        await service.until(live=0)
    assert service.entered == service.cancelled >= 1


async def test_concurrent_large_unary(stub: Stub, service: TestService) -> None:
    responses = await asyncio.gather(*(stub.unary(_large()) for _ in range(200)))
    assert all(len(response.payload.body) == _RESPONSE_BYTES for response in responses)
    assert service.entered == 200


async def test_a_thousand_small_calls_at_once(stub: Stub, service: TestService) -> None:
    await asyncio.gather(*(stub.empty(pb.Empty()) for _ in range(1000)))
    assert service.entered == 1000
