"""How far the ingester is, as it says so: one subscription a process, shared by all that wait."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from features.online.address import Address
from features.online.keys import PROGRESS_CHANNEL, Offset, parse_offset
from features.online.resp import Connection, backoff_s, open_connection
from features.online.timeouts import CALL_TIMEOUT_S
from headrace.errors import HeadraceError

# A peer that vanished without a word is noticed after this (and the call timeout); until then the
# readers' own polling bounds what it costs.
PING_EVERY_S = 10.0


class Progress:
    """Wakes those who wait for an offset. A hint only: the checkpoint beside the rows decides."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._waiting: list[tuple[Offset, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None
        # Whether messages come now, and the newest one's offset (None before the first).
        self.live = False
        self.latest: Offset | None = None

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._waiting)

    def start(self) -> None:
        """Subscribe, now and after each loss, until `close`."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._follow())

    async def close(self) -> None:
        """End the subscription and wake everybody."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        for _, future in self._waiting:
            _wake(future)

    async def wait(self, offset: Offset, timeout_s: float) -> None:
        """Return when the ingester has said that it passed `offset`, or after `timeout_s`."""
        if self.latest is not None and self.latest >= offset:
            return
        loop = asyncio.get_running_loop()
        place = (offset, loop.create_future())
        self._waiting.append(place)
        timer = loop.call_later(timeout_s, _wake, place[1])
        try:
            await place[1]
        finally:
            timer.cancel()
            self._waiting.remove(place)

    def _heard(self, message: list[Any]) -> None:
        latest = self.latest = parse_offset(message[2].decode(), "progress")
        for offset, future in self._waiting:
            if offset <= latest:
                _wake(future)

    async def _follow(self) -> None:
        """Stay subscribed. The only task; it ends by cancellation."""
        failures = 0
        while True:
            lost = asyncio.Event()
            connection: Connection | None = None
            try:
                connection = await open_connection(
                    self._address, on_lost=lambda _, lost=lost: lost.set(), on_push=self._heard
                )
                await connection.call(("SUBSCRIBE", PROGRESS_CHANNEL), CALL_TIMEOUT_S)
                failures = 0
                self.live = True
                while not lost.is_set():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(PING_EVERY_S):
                            await lost.wait()
                        break
                    await connection.call(("PING",), CALL_TIMEOUT_S)
            except HeadraceError:
                failures += 1
            finally:
                # What comes back may be another primary, with a checkpoint that lies further back.
                self.live = False
                self.latest = None
                if connection is not None:
                    connection.close()
                    await connection.wait_closed()
            await asyncio.sleep(backoff_s(max(failures, 1)))


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
