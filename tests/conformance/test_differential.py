"""The same seeded calls through two transports come to the same, for client and handler."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from grpc import aio

from server.wire import grpcio
from server.wire.handlers import Kind
from tests.conformance.conftest import server_class
from tests.support.interop_plans import Plan, PlannedService, Seen, by_key, plan

_OK = grpc.StatusCode.OK
_CALLS = 60
_AT_ONCE = 8
# A transport's own: what it can decompress is its choice. Nothing else is left out, but for what a
# handler sees only the fields whose names begin with "x": grpc.aio adds the client's user-agent.
_TRANSPORT_KEYS = ("grpc-accept-encoding", "accept-encoding")


@dataclass
class Outcome:
    """What became of a call."""

    code: grpc.StatusCode
    text: str
    initial: list[tuple[str, str | bytes]]
    trailing: list[tuple[str, str | bytes]]
    responses: list[bytes]
    seen: Seen | None


def _own(metadata: Any) -> list[tuple[str, str | bytes]]:
    return by_key(pair for pair in metadata or () if pair[0] not in _TRANSPORT_KEYS)


async def _call(channel: aio.Channel, plan: Plan, service: PlannedService) -> Outcome:
    kinds = {
        Kind.UNARY: channel.unary_unary,
        Kind.SERVER_STREAM: channel.unary_stream,
        Kind.CLIENT_STREAM: channel.stream_unary,
        Kind.BIDI_STREAM: channel.stream_stream,
    }
    over = asyncio.Event()

    async def requests() -> AsyncIterator[bytes]:
        for request in plan.requests:
            yield request
        if plan.fails_early:
            await over.wait()

    given = requests() if plan.kind.value[0] else plan.requests[0]
    call: Any = kinds[plan.kind](plan.path)(
        given, timeout=plan.timeout_s, metadata=plan.metadata, compression=plan.compression
    )
    responses: list[bytes] = []
    with contextlib.suppress(aio.AioRpcError):
        if plan.kind.value[1]:
            async for response in call:
                responses.append(response)  # noqa: PERF401 - what came before an error counts
        else:
            responses.append(await call)
    over.set()
    if plan.sleeps:
        # Both sides watch the deadline, and either may be first to tell the caller.
        code = await call.code()
        return Outcome(code, "", [], [], responses, service.seen.get(plan.number))
    # grpc.aio's client forgets the initial metadata of a stream whose end overtakes them.
    ends_at_once = plan.kind.value[1] and (await call.code() is not _OK or not responses)
    return Outcome(
        await call.code(),
        await call.details(),
        [] if ends_at_once else _own(await call.initial_metadata()),
        _own(await call.trailing_metadata()),
        responses,
        service.seen.get(plan.number),
    )


@contextlib.asynccontextmanager
async def _served(server_class: Any) -> AsyncIterator[tuple[aio.Channel, PlannedService]]:
    service = PlannedService()
    server = server_class(service.handlers)
    port = await server.start("127.0.0.1", 0)
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel, service
    await server.drain(0)


async def _outcomes(server_class: Any, plans: list[Plan]) -> list[Outcome]:
    slots = asyncio.Semaphore(_AT_ONCE)
    async with _served(server_class) as (channel, service):

        async def one(plan: Plan) -> Outcome:
            async with slots:
                return await _call(channel, plan, service)

        return await asyncio.gather(*(one(plan) for plan in plans))


@pytest.mark.parametrize("seed", range(8))
async def test_seeded_calls_come_to_the_same(transport: str, seed: int) -> None:
    plans = [plan(seed, number) for number in range(_CALLS)]
    expected = await _outcomes(grpcio.GrpcServer, plans)
    got = await _outcomes(server_class(transport), plans)
    for call, one, other in zip(plans, expected, got, strict=True):
        assert other == one, call
    codes = {outcome.code for outcome in expected}
    assert {_OK, grpc.StatusCode.INTERNAL} < codes  # the seeds say something
