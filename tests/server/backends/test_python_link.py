"""Our end of a model's socket: nothing is lost or changes places, whoever reads and writes it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest
import uvloop

from server.backends.python.link import Link

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


class _Heard(asyncio.Protocol):
    def __init__(self) -> None:
        self.data: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.data.set_result(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


@pytest.mark.parametrize("new_loop", LOOPS)
def test_what_a_full_socket_has_no_room_for_goes_out_later_and_in_order(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    parts = [bytes([number]) * (100_000 if number % 3 else 10) for number in range(60)]
    wanted = b"".join(parts)

    async def run() -> bytes:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        link = Link(ours)
        loop = asyncio.get_running_loop()
        link.transport, _ = await loop.create_unix_connection(asyncio.Protocol, sock=ours)
        for part in parts[:40]:  # nobody reads
            link.send(part)
        theirs.setblocking(False)
        found = await loop.sock_recv(theirs, 1000)
        for part in parts[40:]:
            link.send(part)
        while len(found) < len(wanted):
            found += await loop.sock_recv(theirs, 1 << 20)
        theirs.close()
        link.close()
        return found

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(run()) == wanted


@pytest.mark.parametrize("new_loop", LOOPS)
def test_the_loop_hears_what_was_not_waited_for(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def run() -> tuple[bytes, bytes, bytes]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        link = Link(ours)
        loop = asyncio.get_running_loop()
        link.transport, heard = await loop.create_unix_connection(_Heard, sock=ours)
        nothing = link.wait(1)
        theirs.sendall(b"at once")
        at_once = link.wait(10_000)
        theirs.sendall(b"later")
        later = await heard.data
        theirs.close()
        assert link.wait(10_000) == b""  # it has ended: the transport says so
        link.send(b"to nobody")
        await heard.lost
        link.send(b"to nobody, as all know by now")
        link.close()
        return nothing, at_once, later

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(run()) == (b"", b"at once", b"later")
