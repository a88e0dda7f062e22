"""Ticks of GetFeatures without a wire: what the door gets of one, and where its answers go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.features_parts import facts
from benchmarks.features_parts.calls import Shape, answered_values, message_of
from features.online.tick_reader import TickReader
from headrace.errors import HeadraceError
from server.protocol.features_door import FeaturesDoor
from server.wire.grpc.framing import frame


class _Head:
    timeout_ns = -1


class Ticks:
    """Asks a service's reader through the door, a tick after the other."""

    def __init__(self, reader: TickReader, width: int) -> None:
        self._width = width
        self._door = FeaturesDoor(_Readers(reader), self, lambda _: time.time_ns() // 1000)
        self._replies: dict[int, bytes] = {}
        self._wanted = 0
        self._all: asyncio.Future[None]

    def calls(self, entities: Sequence[int]) -> list[Any]:
        """Return a call for each entity."""
        head = _Head()
        bodies = [frame(message_of(self._width, [each], packed=False)) for each in entities]
        return [(None, place, head, body) for place, body in enumerate(bodies)]

    async def ask(self, calls: list[Any]) -> list[bytes]:
        """Return the calls' answers."""
        self._replies, self._wanted = {}, len(calls)
        self._all = asyncio.get_running_loop().create_future()
        if left := self._door.take(calls, time.monotonic_ns()):
            raise AssertionError(f"the door leaves {len(left)} calls")
        await self._all
        return [self._replies[place] for place in range(len(calls))]

    def values(self, replies: Sequence[bytes]) -> Any:
        """Return the values, an entity a row."""
        shape = Shape(self._width, 1, len(replies))
        return np.concatenate([answered_values(bytes(reply), shape) for reply in replies])

    # The wire's side

    def reply_all(self, calls: Sequence[Any], prefix: bytes, tails: Sequence[bytes]) -> None:
        """Take replies."""
        self._replies |= {call[1]: tail for call, tail in zip(calls, tails, strict=True)}
        if len(self._replies) == self._wanted:
            self._all.set_result(None)

    def fail(self, call: Any, error: HeadraceError) -> None:
        """A call failed."""
        if not self._all.done():
            self._all.set_exception(error)

    def drop(self, call: Any) -> None:
        """Nobody goes away."""
        raise AssertionError("a call was dropped")

    def hand_back(self, calls: Sequence[Any], came_ns: int) -> None:
        """There are no handlers."""
        raise AssertionError(f"{len(calls)} calls were left to their handlers")

    def is_open(self, call: Any) -> bool:
        """Return whether the client still waits."""
        return True


class _Readers:
    def __init__(self, reader: TickReader) -> None:
        self._reader = reader

    def reader_of(self, name: str) -> TickReader | None:
        return self._reader if name in map(facts.service_of, facts.WIDTHS) else None
