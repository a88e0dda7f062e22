"""Calls by exact frames: messages, metadata, deadlines, cancellation."""

from __future__ import annotations

import asyncio
import gzip
import time
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from server.wire.grpc.server import GrpcServer
from server.wire.grpc.status import StatusCode
from server.wire.grpc.tick import Whole
from server.wire.handlers import Context, Kind, Method
from tests.server.wire.grpc.conftest import Connect, Serve
from tests.support.attacked_server import HoldingDoor, Services
from tests.support.attacker import fields_for, message
from tests.support.frame_factory import DATA, HEADERS, RST_STREAM, Pair
from tests.support.raw_client import RawClient, holds_nothing, until

CANCEL = 8
_KINDS = ["Method", "Total", "Chat"]
_HOUR = (b"grpc-timeout", b"1H")


def number_of(method: str, data: bytes) -> bytes:
    """What a method answers to one message."""
    return b"%d" % len(data) if method == "Total" else data


# Messages.


@pytest.mark.wire("B3-10")
@pytest.mark.parametrize("method", _KINDS)
@pytest.mark.parametrize("encoding", [None, b"identity"])
async def test_b3_10_a_compressed_message_without_an_encoding_is_an_internal_error(
    client: RawClient, split: str, method: str, encoding: bytes | None
) -> None:
    more = [] if encoding is None else [(b"grpc-encoding", encoding)]
    client.send(client.factory.headers(1, fields_for(method, *more)))
    client.send(client.factory.data(1, message(gzip.compress(b"x"), flag=1), end_stream=True))
    answer = await client.answer(1)
    assert answer.status == 13
    assert answer.text == "Compression bit set but no encoding configured"


@pytest.mark.wire("B3-12")
@pytest.mark.parametrize("method", _KINDS)
@pytest.mark.parametrize(
    "data",
    [b"junk", gzip.compress(b"x" * 99)[:-9], zlib.compress(b"x")],
    ids=["junk", "cut", "deflated"],
)
async def test_b3_12_what_does_not_decompress_is_an_internal_error(
    client: RawClient, split: str, method: str, data: bytes
) -> None:
    client.send(client.factory.headers(1, fields_for(method, (b"grpc-encoding", b"gzip"))))
    client.send(client.factory.data(1, message(data, flag=1), end_stream=True))
    answer = await client.answer(1)
    assert answer.status == 13
    assert "Decompression failed" in answer.text


@pytest.mark.wire("B3-13")
@pytest.mark.parametrize("method", _KINDS)
@pytest.mark.parametrize("flag", [2, 3, 0x80, 0xFF])
async def test_b3_13_a_flag_other_than_0_and_1_is_an_internal_error(
    client: RawClient, split: str, method: str, flag: int
) -> None:
    client.begin(1, method)
    client.send(client.factory.data(1, message(b"x", flag=flag), end_stream=True))
    answer = await client.answer(1)
    assert answer.status == 13
    assert "flag byte" in answer.text


@pytest.mark.wire("B3-14")
async def test_b3_14_each_compressed_message_has_a_context_of_its_own(
    client: RawClient, split: str
) -> None:
    client.send(client.factory.headers(1, fields_for("Chat", (b"grpc-encoding", b"deflate"))))
    for text in (b"abc" * 50, b"abc" * 50, b""):
        client.send(client.factory.data(1, message(zlib.compress(text), flag=1)))
    client.send(client.factory.data(1, end_stream=True))
    assert (await client.answer(1)).messages == [b"abc" * 50, b"abc" * 50, b""]


@pytest.mark.wire("B3-15")
@pytest.mark.parametrize("method", _KINDS)
@pytest.mark.parametrize("cut", range(1, 11))
async def test_b3_15_a_message_may_be_cut_anywhere(
    client: RawClient, split: str, method: str, cut: int
) -> None:
    framed = message(b"hello!")
    client.begin(1, method)
    client.send(client.factory.data(1, framed[:cut]), client.factory.data(1, framed[cut:]))
    client.send(client.factory.data(1, end_stream=True))
    assert (await client.answer(1)).messages == [number_of(method, b"hello!")]


@pytest.mark.wire("B3-15")
@pytest.mark.parametrize("end_apart", [False, True])
async def test_b3_15_one_frame_may_hold_many_messages(
    client: RawClient, split: str, end_apart: bool
) -> None:
    client.begin(1, "Chat")
    many = message(b"a") + message(b"") + message(b"ccc") + message(b"dd")[:3]
    client.send(client.factory.data(1, many, padding=7))
    client.send(client.factory.data(1, message(b"dd")[3:], end_stream=not end_apart))
    if end_apart:
        client.send(client.factory.data(1, end_stream=True))
    assert (await client.answer(1)).messages == [b"a", b"", b"ccc", b"dd"]


@pytest.mark.wire("B3-16")
@pytest.mark.parametrize("method", _KINDS)
async def test_b3_16_a_message_above_the_limit_is_refused_by_its_length(
    serve: Serve, connect: Connect, method: str
) -> None:
    server = await serve(server_limits={"message_bytes_max": 1_000})
    client = await connect(server)
    client.begin(1, method)
    client.message(1, bytes(1_000), end=True)
    assert (await client.answer(1)).status == 0
    client.begin(3, method)
    client.send(client.factory.data(3, message(b"", length=1_001)))  # nothing of it comes
    answer = await client.answer(3)
    assert answer.status == 8
    assert answer.text == "Received message larger than max (1001 vs. 1000)"
    assert await client.reset(3) == 0
    client.call(5, bytes(1_001))  # a whole request, on the fast path
    assert (await client.answer(5)).status == 8


@pytest.mark.wire("B3-16")
async def test_b3_16_the_limit_is_also_of_what_comes_out_of_compression(
    serve: Serve, connect: Connect, split: str
) -> None:
    client = await connect(await serve(server_limits={"message_bytes_max": 1_000}))
    for stream_id, size, status in ((1, 1_000, 0), (3, 1_001, 8)):
        client.begin(stream_id, "Method", (b"grpc-encoding", b"gzip"))
        data = message(gzip.compress(bytes(size)), flag=1)
        client.send(client.factory.data(stream_id, data, end_stream=True))
        assert (await client.answer(stream_id)).status == status


@pytest.mark.wire("B3-17")
@pytest.mark.parametrize("method", _KINDS)
@pytest.mark.parametrize("kept", [1, 4, 5, 8])
async def test_b3_17_a_message_cut_short_is_an_internal_error(
    client: RawClient, split: str, method: str, kept: int
) -> None:
    client.begin(1, method)
    client.send(client.factory.data(1, message(b"hello")[:kept], end_stream=True))
    answer = await client.answer(1)
    assert answer.status == 13
    assert answer.text == "the stream ended within a message"


@pytest.mark.wire("B3-17")
async def test_b3_17_messages_before_the_one_cut_short_are_answered(
    client: RawClient, split: str
) -> None:
    client.begin(1, "Chat")
    client.message(1, b"whole")
    await client.wait_for(DATA, 1)
    client.send(client.factory.data(1, message(b"cut")[:6], end_stream=True))
    answer = await client.answer(1)
    assert answer.messages == [b"whole"]
    assert answer.status == 13


@pytest.mark.wire("B3-18")
@pytest.mark.parametrize("how", ["headers", "data", "apart"])
async def test_b3_18_a_unary_call_without_a_message_is_unimplemented(
    client: RawClient, split: str, how: str
) -> None:
    client.send(client.factory.headers(1, fields_for("Method"), end_stream=how == "headers"))
    if how != "headers":
        client.send(client.factory.data(1, b"", end_stream=how == "data"))
    if how == "apart":
        client.send(client.factory.data(1, b"", end_stream=True))
    answer = await client.answer(1)
    assert answer.only_trailers
    assert answer.status == 12


@pytest.mark.wire("B3-18")
@pytest.mark.parametrize("method", ["Method", "Big"])
@pytest.mark.parametrize("apart", [False, True])
async def test_b3_18_a_unary_call_with_two_messages_is_unimplemented_and_runs_nothing(
    client: RawClient, services: Services, split: str, method: str, apart: bool
) -> None:
    client.begin(1, method)
    if apart:
        client.message(1, b"1")
        client.message(1, b"2", end=True)
    else:
        client.send(client.factory.data(1, message(b"1") + message(b"2"), end_stream=True))
    assert (await client.answer(1)).status == 12
    assert services.begun == 0


@pytest.mark.wire("B3-19")
@pytest.mark.parametrize("method", ["Chat", "Total"])
@pytest.mark.parametrize("how", ["headers", "data"])
async def test_b3_19_both_ways_to_end_an_empty_stream_are_legal(
    client: RawClient, split: str, method: str, how: str
) -> None:
    client.send(client.factory.headers(1, fields_for(method), end_stream=how == "headers"))
    if how == "data":
        client.send(client.factory.data(1, end_stream=True))
    answer = await client.answer(1)
    assert answer.status == 0
    assert answer.messages == ([b"0"] if method == "Total" else [])


@pytest.mark.wire("B3-19")
async def test_b3_19_the_other_half_goes_on_after_a_half_close(
    client: RawClient, services: Services
) -> None:
    client.begin(1, "Slow")
    client.message(1, b"later", end=True)
    await until(lambda: services.running == 1)
    services.gate.set()
    assert (await client.answer(1)).messages == [b"later"]


@pytest.mark.wire("B3-19")
async def test_b3_19_trailers_of_the_client_end_its_half(client: RawClient, split: str) -> None:
    client.begin(1, "Chat")
    client.message(1, b"one")
    client.send(client.factory.headers(1, [(b"x-checksum", b"1")], end_stream=True))
    assert (await client.answer(1)).messages == [b"one"]


# Metadata.


class Mirror:
    """A unary method that keeps what it was shown."""

    def __init__(self) -> None:
        self.fields: list[tuple[str, str | bytes]] = []

    async def __call__(self, _: bytes, context: Context) -> bytes:
        self.fields = list(context.fields)
        context.trailing_metadata = [pair for pair in context.fields if pair[0].startswith("x-")]
        return b""


@pytest.fixture
async def mirror() -> Mirror:
    return Mirror()


@pytest.fixture
async def mirrored(serve: Serve, connect: Connect, mirror: Mirror) -> RawClient:
    return await connect(await serve({"/test.Service/Mirror": mirror}))


@pytest.mark.wire("B3-20")
@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        (b"AAEC/w", [b"\0\1\2\xff"]), (b"AAEC/w==", [b"\0\1\2\xff"]), (b"", [b""]),
        (b"AAE=,Ag", [b"\0\1", b"\2"]), (b"AQ, Ag==", [b"\1", b"\2"]),
    ],
)  # fmt: skip
async def test_b3_20_binary_metadata_comes_in_every_form_and_leaves_unpadded(
    mirrored: RawClient, mirror: Mirror, split: str, sent: bytes, seen: list[bytes]
) -> None:
    mirrored.call(1, b"", "Mirror", (b"x-bin", sent))
    answer = await mirrored.answer(1)
    assert mirror.fields == [("x-bin", value) for value in seen]
    sent_back = [value for name, value in answer.trailers if name == b"x-bin"]
    assert [value.count(b"=") for value in sent_back] == [0] * len(seen)
    assert len(sent_back) == len(seen)


@pytest.mark.wire("B3-20")
@pytest.mark.parametrize("method", ["Mirror", "Chat", "Total"])
async def test_b3_20_broken_base64_costs_the_stream_and_not_the_connection(
    mirrored: RawClient, split: str, method: str
) -> None:
    mirrored.call(1, b"", method, (b"x-bin", b"!!"))
    assert (await mirrored.answer(1)).status == 13
    mirrored.call(3)
    assert (await mirrored.answer(3)).status == 0


@pytest.mark.wire("B3-21")
async def test_b3_21_text_metadata_keeps_its_order_and_what_gRPC_reserves_is_not_shown(
    mirrored: RawClient, mirror: Mirror, split: str
) -> None:
    fields: list[Pair] = [
        (b"x-a", b"1"), (b"grpc-encoding", b"identity"), (b"x-b", b"2"), (b"x-a", b"3"),
        (b"grpc-previous-rpc-attempts", b"1"), (b"grpc-timeout", b"9S"), (b"x-a", b""),
    ]  # fmt: skip
    mirrored.call(1, b"", "Mirror", *fields)
    assert (await mirrored.answer(1)).status == 0
    assert mirror.fields == [("x-a", "1"), ("x-b", "2"), ("x-a", "3"), ("x-a", "")]


@pytest.mark.wire("B3-21")
async def test_b3_21_what_http_allows_and_gRPC_does_not_is_no_error(
    mirrored: RawClient, mirror: Mirror, split: str
) -> None:
    mirrored.call(1, b"", "Mirror", (b"odd!name", b"1"), (b"latin", b"\xe9"), (b"utf", b"\xc3\xa9"))
    assert (await mirrored.answer(1)).status == 0
    assert mirror.fields == [("latin", "é"), ("utf", "é")]


# Deadlines.


class DeadlineSeen:
    """Methods of every kind that tell how long they have."""

    async def unary(self, _: bytes, context: Context) -> bytes:
        if context.deadline_ns is None:
            return b"none"
        return b"%d" % ((context.deadline_ns - time.monotonic_ns()) // 1_000_000_000)

    async def output(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        yield await self.unary(request, context)

    async def input(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        assert [request async for request in requests]
        return await self.unary(b"", context)

    def table(self) -> dict[str, Any]:
        return {
            "/test.Service/LeftUnary": self.unary,
            "/test.Service/LeftOutput": Method(Kind.SERVER_STREAM, self.output),
            "/test.Service/LeftInput": Method(Kind.CLIENT_STREAM, self.input),
        }


LEFT = ["LeftUnary", "LeftOutput", "LeftInput"]


@pytest.mark.wire("B3-23")
@pytest.mark.parametrize("method", LEFT)
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"2H", 7199), (b"99999999H", 359_999_996_399), (b"7M", 419), (b"9S", 8),
        (b"00000009S", 8), (b"9999m", 9), (b"99999999m", 99_999), (b"99999999u", 99),
    ],
)  # fmt: skip
async def test_b3_23_every_unit_of_a_timeout_is_read(
    serve: Serve, connect: Connect, method: str, value: bytes, seconds: int
) -> None:
    client = await connect(await serve(DeadlineSeen().table()))
    client.call(1, b"", method, (b"grpc-timeout", value))
    (left,) = (await client.answer(1)).messages
    assert seconds - 1 <= int(left) <= seconds


@pytest.mark.wire("B3-23")
@pytest.mark.parametrize("method", LEFT)
async def test_b3_23_without_a_timeout_there_is_no_deadline(
    serve: Serve, connect: Connect, split: str, method: str
) -> None:
    client = await connect(await serve(DeadlineSeen().table()))
    client.call(1, b"", method)
    assert (await client.answer(1)).messages == [b"none"]


@pytest.mark.wire("B3-23")
@pytest.mark.parametrize("method", ["Method", "Batched", "Endless", "Total", "Chat"])
@pytest.mark.parametrize(
    "value",
    [b"", b"10x", b"-1S", b"1", b"S", b"1.5S", b"123456789S", b"1 S", b"+1S", b"1s", b"1h"],
)
async def test_b3_23_a_malformed_timeout_is_an_internal_error_and_runs_nothing(
    serve: Serve, connect: Connect, services: Services, method: str, value: bytes
) -> None:
    taken: list[Whole] = []

    class Spy:
        def take(self, calls: list[Whole], now_ns: int) -> list[Whole]:
            taken.extend(calls)
            return calls

    server = await serve(doors={"/test.Service/Batched": lambda _: Spy()})
    client = await connect(server)
    for stream_id in (1, 3):  # the second time all its fields are in the tables
        client.call(stream_id, b"x", method, (b"grpc-timeout", value))
        answer = await client.answer(stream_id)
        assert answer.only_trailers
        assert (answer.status, answer.text) == (13, "grpc-timeout is malformed")
    assert services.begun == 0
    assert not taken, "the batch door was given a call whose timeout is malformed"
    assert server.calls.ended == {StatusCode.INTERNAL: 2}


@pytest.mark.wire("B3-24")
@pytest.mark.parametrize("method", ["Method", "Slow", "Endless", "Total", "Chat"])
async def test_b3_24_a_deadline_that_has_passed_already_runs_nothing(
    client: RawClient, server: GrpcServer, services: Services, split: str, method: str
) -> None:
    client.call(1, b"", method, (b"grpc-timeout", b"0n"))
    answer = await client.answer(1)
    assert answer.only_trailers
    assert answer.status == 4
    await until(lambda: holds_nothing(server))
    assert services.begun == 0
    assert server.calls.ended == {StatusCode.DEADLINE_EXCEEDED: 1}


@pytest.mark.wire("B3-24")
@pytest.mark.parametrize(
    ("method", "ends"), [("Slow", False), ("Slow", True), ("Total", False), ("Chat", False)]
)
async def test_b3_24_a_deadline_cancels_work_and_nothing_comes_later(
    client: RawClient, server: GrpcServer, services: Services, method: str, ends: bool
) -> None:
    client.begin(1, method, (b"grpc-timeout", b"50m"))
    client.message(1, b"x", end=ends)
    answer = await client.answer(1)
    assert answer.status == 4
    await until(lambda: holds_nothing(server) and services.running == 0)
    if not ends:
        assert await client.reset(1) == 0
    count = len(client.of(1))
    services.gate.set()
    await client.pong()
    assert len(client.of(1)) == count
    assert server.calls.ended == {StatusCode.DEADLINE_EXCEEDED: 1}


@pytest.mark.wire("B3-24")
@pytest.mark.parametrize("sent", [0, 3, 5, 8])
async def test_b3_24_a_deadline_passes_while_the_request_still_comes(
    client: RawClient, server: GrpcServer, services: Services, sent: int
) -> None:
    client.begin(1, "Method", (b"grpc-timeout", b"30m"))
    # One byte at least: of a head alone the layer above learns with its body.
    client.send(client.factory.data(1, message(b"hello")[:sent], padding=1))
    assert (await client.answer(1)).status == 4
    assert await client.reset(1) == 0
    client.send(client.factory.data(1, message(b"hello")[sent:], end_stream=True))
    await client.pong()
    await until(lambda: holds_nothing(server))
    assert services.begun == 0


@pytest.mark.wire("B3-24")
async def test_b3_24_a_deadline_passes_while_the_client_does_not_read(
    server: GrpcServer, connect: Connect, services: Services
) -> None:
    client = await connect(server, {4: 1_000})
    client.call(1, b"", "Endless", (b"grpc-timeout", b"100m"))
    await until(lambda: services.produced_bytes)
    await until(lambda: services.running == 0)
    await until(lambda: holds_nothing(server), "nothing is held for a call that is over")
    made = services.produced_bytes
    assert await client.reset(1) == CANCEL
    client.send(client.factory.window_update(0, 1 << 20), client.factory.window_update(1, 1 << 20))
    await client.pong()
    assert len(client.body(1)) == 1_000
    assert services.produced_bytes == made
    assert server.calls.ended == {StatusCode.DEADLINE_EXCEEDED: 1}


@pytest.mark.wire("B3-24")
async def test_b3_24_a_deadline_passes_between_two_responses(
    serve: Serve, connect: Connect, services: Services
) -> None:
    async def one_then_wait(_: bytes, __: Context) -> AsyncIterator[bytes]:
        with services:
            yield b"one"
            await services.gate.wait()
            yield b"two"

    server = await serve({"/test.Service/Two": Method(Kind.SERVER_STREAM, one_then_wait)})
    client = await connect(server)
    client.call(1, b"", "Two", (b"grpc-timeout", b"60m"))
    answer = await client.answer(1)
    assert answer.kinds == [HEADERS, DATA, HEADERS]
    assert answer.messages == [b"one"]
    assert answer.status == 4
    await until(lambda: services.running == 0)


@pytest.mark.wire("B3-24")
async def test_b3_24_who_ignores_the_cancellation_answers_nobody_and_is_not_counted_as_well_ended(
    client: RawClient, server: GrpcServer, services: Services
) -> None:
    client.call(1, b"x", "Stubborn", (b"grpc-timeout", b"30m"))
    answer = await client.answer(1)
    assert answer.status == 4
    assert server.calls.live == 1  # the work goes on, and counts
    services.gate.set()
    await until(lambda: server.calls.live == 0)
    await client.pong()
    assert len(client.of(1)) == 1
    assert server.calls.ended == {StatusCode.DEADLINE_EXCEEDED: 1}


# The client cancels.


@pytest.mark.wire("B3-25")
@pytest.mark.parametrize("method", ["Method", "Slow", "Endless", "Total", "Hold", "Chat"])
@pytest.mark.parametrize("stage", ["head", "prefix", "message", "end"])
async def test_b3_25_a_cancel_at_every_stage_of_the_request(
    server: GrpcServer, connect: Connect, services: Services, method: str, stage: str
) -> None:
    client = await connect(server, {4: 0})  # no answer gets out
    client.begin(1, method, _HOUR)
    if stage == "prefix":
        client.send(client.factory.data(1, message(b"x")[:3]))
    elif stage != "head":
        client.message(1, b"x", end=stage == "end")
    await client.pong()
    client.send(client.factory.rst_stream(1, CANCEL))
    await client.pong()
    await until(lambda: holds_nothing(server) and services.running == 0)
    assert not [frame for frame in client.of(1) if frame.kind == RST_STREAM]
    client.send(client.factory.settings({4: 65_535}), client.factory.window_update(0, 65_535))
    client.call(3)
    assert (await client.answer(3)).status == 0
    assert not [frame for frame in client.of(1) if frame.kind == DATA]


@pytest.mark.wire("B3-25")
@pytest.mark.parametrize("method", ["Method", "Batched", "Slow", "Endless"])
async def test_b3_25_a_cancel_in_the_same_read_as_its_request_runs_nothing(
    serve: Serve, connect: Connect, services: Services, method: str
) -> None:
    server = await serve(doors={"/test.Service/Batched": lambda it: HoldingDoor(it, services)})
    services.gate.set()
    client = await connect(server)
    await client.pong()
    head = client.factory.headers(1, fields_for(method))
    body = client.factory.data(1, message(b"x"), end_stream=True)
    client.send(head, body, client.factory.rst_stream(1, CANCEL))
    await client.pong()
    await until(lambda: holds_nothing(server))
    assert client.of(1) == []
    assert services.begun == 0


@pytest.mark.wire("B3-25")
async def test_b3_25_a_cancel_while_the_call_is_in_the_batch(
    serve: Serve, connect: Connect, services: Services
) -> None:
    server = await serve(doors={"/test.Service/Batched": lambda it: HoldingDoor(it, services)})
    client = await connect(server)
    for stream_id in (1, 3, 5):
        client.call(stream_id, b"%d" % stream_id, "Batched")
    await until(lambda: server.calls.live == 3)
    client.send(client.factory.rst_stream(3, CANCEL))
    await client.pong()
    assert server.calls.live == 3  # it is still work
    services.gate.set()
    assert (await client.answer(1)).messages == [b"1"]
    assert (await client.answer(5)).messages == [b"5"]
    assert client.of(3) == []
    assert server.calls.ended == {StatusCode.OK: 2, StatusCode.CANCELLED: 1}


@pytest.mark.wire("B3-25")
@pytest.mark.parametrize("method", ["Slow", "Endless", "Hold", "Chat"])
@pytest.mark.parametrize("how", ["close", "abort", "goaway and close"])
async def test_b3_25_a_lost_connection_cancels_its_calls(
    server: GrpcServer, client: RawClient, services: Services, method: str, how: str
) -> None:
    for stream_id in (1, 3):
        client.begin(stream_id, method, _HOUR)
        client.message(stream_id, b"x", end=method in {"Slow", "Endless"})
    await until(lambda: services.begun == 2)
    if how == "abort":
        client.writer.transport.abort()
    else:
        if how != "close":
            client.send(client.factory.goaway())
        client.writer.close()
    await until(lambda: holds_nothing(server) and services.running == 0)
    await until(lambda: not server.connections)
    assert server.calls.ended == {StatusCode.CANCELLED: 2}


@pytest.mark.wire("B3-25")
async def test_b3_25_a_handler_is_told_of_the_cancel_and_may_clean_up(
    serve: Serve, connect: Connect
) -> None:
    told: list[str] = []

    async def careful(requests: AsyncIterator[bytes], _: Context) -> AsyncIterator[bytes]:
        try:
            async for request in requests:
                yield request
        except asyncio.CancelledError:
            told.append("cancelled")
            raise
        finally:
            await asyncio.sleep(0)
            told.append("cleaned up")

    server = await serve({"/test.Service/Careful": Method(Kind.BIDI_STREAM, careful)})
    client = await connect(server)
    client.begin(1, "Careful")
    client.message(1, b"x")
    await client.wait_for(DATA, 1)
    client.send(client.factory.rst_stream(1, CANCEL))
    await until(lambda: len(told) == 2)
    assert told == ["cancelled", "cleaned up"]
    await until(lambda: holds_nothing(server))
