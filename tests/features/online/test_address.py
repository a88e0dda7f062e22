"""Where the store is, read from a URL that may hold a password."""

from __future__ import annotations

import pytest

from features.online.address import parse_address
from headrace.errors import InvalidArgumentError


def test_the_usual_forms() -> None:
    plain = parse_address("redis://store.example")
    assert (plain.host, plain.port, plain.database, plain.path) == ("store.example", 6379, 0, None)
    assert plain.tls is None
    assert plain.handshake == []
    full = parse_address("valkey://me:p%40ss@10.0.0.1:7000/3")
    assert (full.host, full.port) == ("10.0.0.1", 7000)
    assert full.handshake == [("AUTH", "me", "p@ss"), ("SELECT", "3")]
    assert parse_address("redis://:word@h").handshake == [("AUTH", "word")]
    assert parse_address("rediss://h").tls is not None
    socket = parse_address("unix:///var/run/the%20store.sock?db=2")
    assert socket.path == "/var/run/the store.sock"
    assert socket.handshake == [("SELECT", "2")]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://h",
        "redis://h:port",
        "redis://h/zero",
        "unix://",
        "redis://[::1",
    ],
)
def test_anything_else_is_told(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="store URL: not the URL of a store"):
        parse_address(url)


def test_no_secret_shows() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_address("redis://me:secret@h:nonsense")
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(parse_address("redis://me:secret@h"))
