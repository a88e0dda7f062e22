"""A TCP proxy before the store that loses chosen replies: the command was done, nobody was told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class CuttingProxy:
    """Counts script calls (EVALSHA) and cuts the connection in place of a chosen one's reply."""

    port: int = 0
    cut: Callable[[int], bool] = lambda _: False
    calls: int = 0
    cuts: int = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"


async def _pass(proxy: CuttingProxy, near: Streams, far: Streams) -> None:
    lose = False

    async def forward() -> None:
        nonlocal lose
        while data := await near[0].read(1 << 20):
            for _ in range(data.count(b"EVALSHA")):
                proxy.calls += 1
                lose = lose or proxy.cut(proxy.calls)
            far[1].write(data)

    async def back() -> None:
        while data := await far[0].read(1 << 20):
            if lose:
                proxy.cuts += 1
                return
            near[1].write(data)

    ways = [asyncio.create_task(forward()), asyncio.create_task(back())]
    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    for way in ways:
        way.cancel()
    await asyncio.gather(*ways, return_exceptions=True)


@contextlib.asynccontextmanager
async def cutting_proxy(target_port: int) -> AsyncIterator[CuttingProxy]:
    """Run a proxy before 127.0.0.1:`target_port`."""
    proxy = CuttingProxy()
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        far = await asyncio.open_connection("127.0.0.1", target_port)
        try:
            await _pass(proxy, (reader, writer), far)
        finally:
            for one in (writer, far[1]):
                one.close()
                with contextlib.suppress(ConnectionError):
                    await one.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await asyncio.gather(*serving)
