"""Connections to a server that says more than it was asked for, or other things."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from server.backends.remote.http_pool import BrokenError, HttpPool, Reply

_SECOND_NS = 1_000_000_000
# What is said in answer to a path, piece by piece.
Says = Callable[[bytes], list[bytes]]


def response(body: bytes, head: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n%scontent-length: %d\r\n\r\n%s" % (head, len(body), body)


@asynccontextmanager
async def pool_of(says: Says) -> AsyncIterator[tuple[HttpPool, set[asyncio.StreamWriter]]]:
    """Give a pool of one connection to a server, and the connections that the server has had. It
    waits for some turns after each piece."""
    connected: set[asyncio.StreamWriter] = set()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.add(writer)
        while head := await reader.readline():
            await reader.readuntil(b"\r\n")
            await reader.readuntil(b"\r\n")
            for piece in says(head.split()[1]):
                writer.write(piece)
                for _ in range(20):
                    await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    pool = HttpPool(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", 1, None)
    try:
        yield pool, connected
    finally:
        await pool.close()
        server.close()
        for writer in connected:
            writer.close()


async def asked(pool: HttpPool, path: str) -> Reply:
    return await pool.exchange("GET", path, b"", 10 * _SECOND_NS)


@pytest.mark.parametrize("word", [b"100 Continue", b"102 Processing", b"103 Early Hints"])
@pytest.mark.parametrize("joined", [True, False])
async def test_a_word_before_the_response_is_none(word: bytes, joined: bool) -> None:
    def says(path: bytes) -> list[bytes]:
        pieces = [b"HTTP/1.1 %s\r\nlink: </x>\r\n\r\n" % word, response(path)]
        return [b"".join(pieces)] if joined else pieces

    async with pool_of(says) as (pool, _):
        for path in ("/a", "/b", "/c"):
            assert await asked(pool, path) == Reply(200, path.encode())


@pytest.mark.parametrize("more", [response(b"other"), b"HTTP/1.1 200 OK\r\n", b"H"])
async def test_what_follows_a_response_is_nobodys(more: bytes) -> None:
    async with pool_of(lambda path: [response(path) + more]) as (pool, connected):
        for count, path in enumerate(("/a", "/b", "/c"), 1):
            assert await asked(pool, path) == Reply(200, path.encode())
            assert len(connected) == count  # each has one of its own


@pytest.mark.parametrize(
    "said",
    [
        [b"HTTP/1.1 200 OK\r\nlong: "] + [b"x" * 16_384] * 8,
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;"] + [b"x" * 16_384] * 8,
        [b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"],
    ],
)
async def test_a_head_that_does_not_end_is_broken(said: list[bytes]) -> None:
    async with pool_of(lambda _: said) as (pool, _):
        with pytest.raises(BrokenError):
            await asked(pool, "/a")


async def test_a_large_response_in_many_pieces_is_whole() -> None:
    body = bytes(range(256)) * 4096
    whole = response(body, head=b"long: " + b"x" * 40_000 + b"\r\n")
    pieces = [whole[at : at + 16_384] for at in range(0, len(whole), 16_384)]
    async with pool_of(lambda _: pieces) as (pool, _):
        assert await asked(pool, "/a") == Reply(200, body)
        assert await asked(pool, "/b") == Reply(200, body)
