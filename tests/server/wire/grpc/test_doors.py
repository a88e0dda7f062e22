"""gRPC's own clients come to a door as those of any other library do: as whole requests."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio

from server.wire.grpc.server import GrpcServer

PATH = "/test.Service/Echo"
CALLS = 40


class Door:
    """Notes what comes, and leaves it to the handlers."""

    def __init__(self) -> None:
        self.came = 0

    def take(self, calls: list[Any], now_ns: int) -> list[Any]:
        self.came += len(calls)
        return calls.copy()


async def echo(data: bytes, _: Any) -> bytes:
    return data


async def served() -> tuple[GrpcServer, Door, str]:
    server, door = GrpcServer({PATH: echo}), Door()
    server.add_door(PATH, door)
    return server, door, f"127.0.0.1:{await server.start('127.0.0.1', 0)}"


async def test_calls_of_grpc_aio() -> None:
    server, door, address = await served()
    async with grpc.aio.insecure_channel(address) as channel:
        method = channel.unary_unary(PATH)
        assert await method(b"first", timeout=10) == b"first"  # teaches the form of its head
        sent = [b"%d" % number for number in range(CALLS)]
        answers = await asyncio.gather(*(method(each, timeout=10) for each in sent))
        # A large answer needs the window that came with its request, to the byte.
        large = bytes(200_000)
        assert await method(large, timeout=10) == large
    assert answers == sent
    assert door.came >= CALLS
    await server.drain(0)


async def test_calls_of_synchronous_grpc() -> None:
    server, door, address = await served()

    def ask() -> None:
        with grpc.insecure_channel(address) as channel:
            method = channel.unary_unary(PATH)
            for number in range(CALLS):
                assert method(b"%d" % number, timeout=10) == b"%d" % number

    await asyncio.to_thread(ask)
    assert door.came >= CALLS - 1
    await server.drain(0)
