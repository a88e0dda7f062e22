"""The listener: what is counted, what is refused, what a close leaves behind."""

import asyncio
import errno
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from server.wire.listener import Listener


class Greeter(asyncio.Protocol):
    """Says hello, and gives its place back when it is lost."""

    def __init__(self, listener: Listener, address: str) -> None:
        self._listener = listener
        self._address = address

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(f"{self._address}\n".encode())

    def connection_lost(self, _: Exception | None) -> None:
        self._listener.released(self._address)


class Watched(Listener):
    """Says when a connection is gone."""

    def __init__(self, **limits: int) -> None:
        self.changed = asyncio.Event()
        self.abuse: Counter[str] = Counter()
        super().__init__(lambda address: Greeter(self, address), self.abuse, **limits)  # type: ignore[arg-type]

    def released(self, address: str) -> None:
        super().released(address)
        self.changed.set()


Make = Callable[..., Watched]
Greet = Callable[..., Awaitable[tuple[bytes, socket.socket]]]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[Watched] = []

    def listener(**limits: int) -> Watched:
        made.append(Watched(**limits))
        return made[-1]

    yield listener
    for each in made:
        await each.close()


@pytest.fixture
def greet() -> Iterator[Greet]:
    clients: list[socket.socket] = []

    async def greeting(port: int, host: str = "127.0.0.1") -> tuple[bytes, socket.socket]:
        loop = asyncio.get_running_loop()
        clients.append(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
        clients[-1].setblocking(False)
        await loop.sock_connect(clients[-1], (host, port))
        try:
            return await loop.sock_recv(clients[-1], 100), clients[-1]
        except ConnectionResetError:
            return b"", clients[-1]

    yield greeting
    for client in clients:
        client.close()


async def test_a_connection_counts_for_its_address_until_it_is_lost(
    make: Make, greet: Greet
) -> None:
    listener = make(connections_per_address_max=1)
    port = listener.start("127.0.0.1", 0)
    said, first = await greet(port)
    assert said == b"127.0.0.1\n"
    assert (await greet(port))[0] == b""
    assert listener._abuse == {"connections_per_address": 1}
    first.close()
    await listener.changed.wait()
    assert (await greet(port))[0] == b"127.0.0.1\n"


async def test_all_connections_together_are_bounded(make: Make, greet: Greet) -> None:
    listener = make(connections_max=2)
    port = listener.start("127.0.0.1", 0)
    held = [await greet(port) for _ in range(2)]
    assert (await greet(port))[0] == b""
    held[0][1].close()
    await listener.changed.wait()
    assert (await greet(port))[0] == b"127.0.0.1\n"


async def test_an_ipv6_client_counts_for_its_network(make: Make, greet: Greet) -> None:
    listener = make()
    try:
        port = listener.start("::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6")
    said, _ = await greet(port, "::1")
    assert said == b"0000000000000000\n"


async def test_a_taken_port_is_an_error_and_leaves_nothing_open(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OSError) as caught:
        make().start("127.0.0.1", other.getsockname()[1])
    assert caught.value.errno == errno.EADDRINUSE


async def test_listening_sockets_and_connections_may_come_from_elsewhere(
    make: Make, greet: Greet
) -> None:
    listener = make()
    inherited = socket.create_server(("127.0.0.1", 0))
    listener.listen(inherited)
    assert (await greet(inherited.getsockname()[1]))[0] == b"127.0.0.1\n"
    near, far = socket.socketpair()
    listener.adopt(near)
    far.setblocking(False)
    with far:  # a Unix socket counts for no address
        assert await asyncio.get_running_loop().sock_recv(far, 100) == b"\n"


async def test_what_waits_is_taken_before_the_close(make: Make, greet: Greet) -> None:
    listener = make()
    port = listener.start("127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", port)) as waiting:  # the loop has not seen it yet
        await listener.close()
        waiting.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(waiting, 100) == b"127.0.0.1\n"
    with pytest.raises(ConnectionRefusedError):
        await greet(port)


async def test_without_descriptors_it_pauses_and_goes_on(
    make: Make, greet: Greet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.wire.listener._PAUSE_S", 0.01)
    listener = make()

    class Exhausted(socket.socket):
        failures = 1

        def accept(self):  # type: ignore[no-untyped-def]
            if Exhausted.failures:
                Exhausted.failures -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    sock = Exhausted(socket.AF_INET, socket.SOCK_STREAM)
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    listener.listen(sock)
    assert (await greet(sock.getsockname()[1]))[0] == b"127.0.0.1\n"
    assert listener._abuse == {"accept_failed": 1}
    assert "cannot accept connections" in caplog.text


async def test_bound_sockets_are_shared_and_the_port_is_free_again(
    make: Make, greet: Greet
) -> None:
    """Even though a connection that was closed here first is in TIME_WAIT."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    port = bound.getsockname()[1]
    first, second = make(), make()
    assert first.share([bound.dup()]) == second.share([bound]) == port
    _, client = await greet(port)
    assert first.open_connections + second.open_connections == 1
    await first.close()
    _, other = await greet(port)  # the other one takes what comes
    await second.close()
    client.close()
    other.close()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


async def test_a_shared_socket_that_listens_no_more_is_left_alone(make: Make) -> None:
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    listener = make()
    listener.share([bound.dup()])
    bound.shutdown(socket.SHUT_RD)
    bound.close()
    for _ in range(20):
        await asyncio.sleep(0)
    await listener.close()
    assert listener.abuse == {}
