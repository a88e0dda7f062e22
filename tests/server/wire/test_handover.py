"""Connections that travel between workers: real sockets, several workers in one loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from server.wire.handover import Handover
from server.wire.listener import Listener
from tests.support.tls import Certificates

TIMEOUT_S = 10.0


class Named(asyncio.Protocol):
    """Says first who it is, then whatever it hears."""

    def __init__(self, port: Port, address: str) -> None:
        self.its = port
        self.address = address

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self.its.name)
        self.its.open.add(self)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.its.open.discard(self)
        self.its.listener.released(self.address)


class Port:
    """A listener, and its connections."""

    def __init__(self, number: int, tls: ssl.SSLContext | None = None) -> None:
        self.name = b"%d" % number
        self.open: set[Named] = set()
        self.listener = Listener(lambda address: Named(self, address), Counter(), tls=tls)
        self.port = 0

    async def close(self) -> None:
        await self.listener.close()
        for connection in list(self.open):
            connection.transport.abort()
        await until(lambda: not self.open)


class Worker(Port):
    """A port and its end of the handover."""

    def __init__(
        self, folder: Path, number: int, workers: int, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(number, tls)
        paths = [folder / f"{place}.sock" for place in range(workers)]
        self.handover = Handover(folder / "table", paths, number, [self.listener])

    async def start(self) -> None:
        self.port = self.listener.start("127.0.0.1", 0)
        self.handover.start()

    async def stop(self) -> None:
        self.handover.leave()
        await self.close()
        self.handover.close()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, port: int, **options: Any) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port, **options))

    async def name(self) -> int:
        return int(await asyncio.wait_for(self.reader.readexactly(1), TIMEOUT_S))

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


async def until(condition: Any) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def running(
    folder: Path, number: int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[list[Worker]]:
    workers = [Worker(folder, place, number, tls) for place in range(number)]
    for worker in workers:
        await worker.start()
    try:
        yield workers
    finally:
        for worker in workers:
            await worker.stop()


async def connected(port: int, number: int, **options: Any) -> tuple[list[Client], list[int]]:
    """Open connections one after another; return them, and which worker has each."""
    clients, names = [], []
    for _ in range(number):
        clients.append(await Client.connect(port, **options))
        names.append(await clients[-1].name())
    return clients, names


async def close_all(clients: list[Client]) -> None:
    for client in clients:
        await client.close()


async def test_connections_at_one_worker_end_up_with_all(tmp_path: Path) -> None:
    async with running(tmp_path, 4) as workers:
        clients, names = await connected(workers[0].port, 8)
        assert sorted(names) == [0, 0, 1, 1, 2, 2, 3, 3]
        assert workers[0].handover.passed_on == 6
        assert [worker.handover.received for worker in workers] == [0, 2, 2, 2]
        clients[1].writer.write(b"x")  # what came by another way is a connection like any other
        assert await clients[1].reader.readexactly(1) == b"x"
        await close_all(clients)


async def test_a_burst_is_spread_before_the_others_have_seen_any_of_it(tmp_path: Path) -> None:
    async with running(tmp_path, 3) as workers:
        # All wait to be accepted at once: nobody's loop runs meanwhile.
        sockets = [socket.create_connection(("127.0.0.1", workers[1].port)) for _ in range(9)]
        await until(lambda: sum(len(worker.open) for worker in workers) == 9)
        assert [len(worker.open) for worker in workers] == [3, 3, 3]
        for sock in sockets:
            sock.close()


async def test_connections_that_close_make_room(tmp_path: Path) -> None:
    async with running(tmp_path, 2) as workers:
        clients, names = await connected(workers[0].port, 4)
        for client, name in zip(clients, names, strict=True):
            if name == 1:
                await client.close()
        await until(lambda: not workers[1].open)
        more, names = await connected(workers[0].port, 2)
        assert names == [1, 1]
        await close_all(clients + more)


async def test_a_worker_that_died_gets_nothing_and_nothing_is_lost(tmp_path: Path) -> None:
    async with running(tmp_path, 2) as workers:
        await workers[1].stop()
        # What a kill leaves behind: a path, a row, no reader.
        killed = Worker(tmp_path, 1, 2)
        await killed.start()
        asyncio.get_running_loop().remove_reader(killed.handover._inbox.fileno())
        killed.handover._inbox.close()
        killed.handover.close()
        await killed.listener.close()
        clients, names = await connected(workers[0].port, 6)
        assert names == [0] * 6
        assert workers[0].handover.passed_on == 0
        await close_all(clients)
        workers[1] = Worker(tmp_path, 1, 2)  # another takes its place
        await workers[1].start()
        clients, names = await connected(workers[0].port, 2)
        assert sorted(names) == [0, 1]
        await close_all(clients)


async def test_a_worker_that_leaves_takes_what_was_sent_and_passes_on_what_comes(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, 3) as workers:
        sockets = [socket.create_connection(("127.0.0.1", workers[0].port)) for _ in range(6)]
        await until(lambda: workers[0].handover.passed_on == 4)
        workers[1].handover.leave()  # perhaps before it has read what was sent to it
        await until(lambda: sum(len(worker.open) for worker in workers) == 6)
        late, names = await connected(workers[1].port, 3)
        assert 1 not in names
        for sock in sockets:
            sock.settimeout(TIMEOUT_S)
            assert sock.recv(1) in {b"0", b"1", b"2"}
            sock.close()
        await close_all(late)


async def test_a_full_inbox_leaves_connections_where_they_are(tmp_path: Path) -> None:
    async with running(tmp_path, 2) as workers:
        loop = asyncio.get_running_loop()
        loop.remove_reader(workers[1].handover._inbox.fileno())  # it is busy with something else
        clients = [await Client.connect(workers[0].port) for _ in range(60)]
        await until(lambda: len(workers[0].open) + workers[0].handover.passed_on == 60)
        assert workers[0].handover.passed_on < 30
        loop.add_reader(workers[1].handover._inbox.fileno(), workers[1].handover._receive)
        await until(lambda: len(workers[0].open) + len(workers[1].open) == 60)
        for client in clients:
            await client.name()
        await close_all(clients)


async def test_tls_begins_where_the_connection_ends_up(
    tmp_path: Path, certificates: Certificates
) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificates.cert("server"), certificates.key("server"))
    client = ssl.create_default_context(cafile=str(certificates.cert("ca")))
    async with running(tmp_path, 2, server) as workers:
        clients, names = await connected(
            workers[0].port, 4, ssl=client, server_hostname="localhost"
        )
        assert sorted(names) == [0, 0, 1, 1]
        await close_all(clients)


async def test_two_kinds_of_ports_arrive_at_their_own(tmp_path: Path) -> None:
    paths = [tmp_path / "a.sock", tmp_path / "b.sock"]
    ports = [[Port(10 * number + kind) for kind in range(2)] for number in range(2)]
    ends = [
        Handover(tmp_path / "table", paths, number, [port.listener for port in ports[number]])
        for number in range(2)
    ]
    for end in ends:
        end.start()
    port = ports[0][1].listener.start("127.0.0.1", 0)
    clients = [await Client.connect(port) for _ in range(2)]
    await until(lambda: all(pair[1].open for pair in ports))
    assert not any(pair[0].open for pair in ports)
    await close_all(clients)
    for end, pair in zip(ends, ports, strict=True):
        end.leave()
        for each in pair:
            await each.close()
        end.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))
