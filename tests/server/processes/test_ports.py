from __future__ import annotations

import os
import socket

import pytest

from headrace.errors import InvalidArgumentError, UnavailableError
from server.processes.ports import HeldPort, hold, inheritance, inherited


def listener(port: int, *, reuse_port: bool) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen()
    return sock


def test_who_binds_a_held_port_besides_gets_every_connection() -> None:
    with hold("127.0.0.1", 0, "grpc_port") as held:
        assert held.address == f"127.0.0.1:{held.port}"
        with listener(held.port, reuse_port=True) as first:
            for _ in range(20):  # the holder never listens: none of these may be lost to it
                with socket.create_connection(("127.0.0.1", held.port), timeout=2):
                    first.settimeout(2)
                    first.accept()[0].close()
            with listener(held.port, reuse_port=True):
                pass


def accepts(held: HeldPort, by: socket.socket) -> None:
    by.settimeout(2)
    with socket.create_connection(("127.0.0.1", held.port), timeout=2):
        by.accept()[0].close()


def test_children_inherit_a_port_and_what_waits_there_survives_each_of_them() -> None:
    with hold("127.0.0.1", 0, "grpc_port") as held:
        numbers = [os.dup(sock.fileno()) for sock in held.sockets]
        (first,) = inherited(inheritance(["grpc_port"], numbers))["grpc_port"]
        first.listen()
        accepts(held, first)
        with socket.create_connection(("127.0.0.1", held.port), timeout=2) as client:
            first.close()
            second = held.sockets[0]
            second.settimeout(2)
            with second.accept()[0] as server:
                server.send(b"here")
            assert client.recv(4) == b"here"


def test_who_connects_is_refused_once_everybody_stops() -> None:
    with hold("127.0.0.1", 0, "grpc_port") as held:
        held.refuse()  # nobody listened
        held.sockets[0].listen()
        held.refuse()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", held.port), timeout=2)


def test_nothing_is_inherited_without_a_word() -> None:
    assert inheritance([], []) == {}
    assert inherited({}) == {}


def test_nothing_is_inherited_twice() -> None:
    with socket.socket() as sock:
        environment = inheritance(["grpc_port"], [os.dup(sock.fileno())])
        for each in inherited(environment)["grpc_port"]:
            assert not os.get_inheritable(each.fileno())
            each.close()
        assert environment == {}


def test_every_address_of_a_host_is_held() -> None:
    hosts = {info[4][0] for info in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
    with hold("localhost", 0, "grpc_port") as held:
        assert {sock.getsockname()[0] for sock in held.sockets} == hosts
        assert {sock.getsockname()[1] for sock in held.sockets} == {held.port}
        with pytest.raises(UnavailableError):
            hold("localhost", held.port, "grpc_port")


@pytest.mark.parametrize("reuse_port", [True, False])
def test_a_port_that_someone_listens_on_is_named_with_its_mend(reuse_port: bool) -> None:
    with listener(0, reuse_port=reuse_port) as other:
        port = other.getsockname()[1]
        with pytest.raises(UnavailableError) as raised:
            hold("127.0.0.1", port, "http_port")
    text = str(raised.value)
    assert text.startswith(f"port {port} on 127.0.0.1 is busy")
    assert "--http-port" in text
    assert "\n" not in text


def test_a_port_that_another_headrace_holds_is_busy_even_before_its_workers_listen() -> None:
    with hold("127.0.0.1", 0, "grpc_port") as held, pytest.raises(UnavailableError):
        hold("127.0.0.1", held.port, "grpc_port")


def test_a_port_is_free_again_at_once_after_connections_in_time_wait() -> None:
    with hold("127.0.0.1", 0, "grpc_port") as held, listener(held.port, reuse_port=True) as server:
        client = socket.create_connection(("127.0.0.1", held.port), timeout=2)
        server.accept()[0].close()  # the server closes first: TIME_WAIT is on its side
        client.recv(1)
        client.close()
        port = held.port
    hold("127.0.0.1", port, "grpc_port").close()


def test_a_host_of_another_machine() -> None:
    with pytest.raises(InvalidArgumentError, match="no address of this machine"):
        hold("203.0.113.7", 0, "grpc_port")


def test_ipv6_addresses_are_shown_in_brackets() -> None:
    with hold("::1", 0, "grpc_port") as held:
        assert held.address == f"[::1]:{held.port}"
