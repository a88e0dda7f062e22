"""What lies between the clients and the fake store, and everything that can go wrong there.

Each connection is first in, first out in both directions; between connections anything may overtake
anything. A request that was sent arrives even when its sender is dead by then, as in a kernel's
buffers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import hiredis

from tests.sim.loop import SimLoop
from tests.sim.store import FakeStore, RefusalError, Reply, id_of

LATENCY_S = 0.002


def encode(reply: Reply) -> bytes:
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, RefusalError):
        return b"-%s\r\n" % str(reply).encode()
    if isinstance(reply, list):
        return b"*%d\r\n" % len(reply) + b"".join(map(encode, reply))
    return b"$%d\r\n%s\r\n" % (len(reply), reply)


class FakeNetwork:
    """Connections to one store, with faults as they are set; `rng` decides all there is to decide.

    lose: the probability that a command's connection is cut before it is done, while it answers,
    or before its answer. stalled_until_s: until then the store does not answer. down: it refuses
    connections. last_fault_s: when something last went wrong.
    """

    def __init__(self, loop: SimLoop, store: FakeStore, rng: random.Random) -> None:
        self.loop = loop
        self.store = store
        self.rng = rng
        self.lose = 0.0
        self.down = False
        self.stalled_until_s = 0.0
        self.last_fault_s = -1e9
        self.cuts = 0
        self.links: list[Link] = []
        self.blocked: list[Link] = []
        self.subscribed: list[Link] = []

    def latency_s(self) -> float:
        # Mostly quick; one in twenty is an order slower, so that things overtake one another.
        return self.rng.random() * LATENCY_S * (10 if self.rng.random() < 0.05 else 1)

    async def connect(self, factory: Callable[[], Any]) -> tuple[Link, Any]:
        await asyncio.sleep(self.latency_s())
        if self.down:
            self.fault()
            raise ConnectionRefusedError("the fake store is down")
        protocol = factory()
        link = Link(self, protocol)
        self.links.append(link)
        protocol.connection_made(link)
        return link, protocol

    def fault(self) -> None:
        self.last_fault_s = self.loop.time()

    @property
    def faulty(self) -> bool:
        stalled = self.loop.time() < self.stalled_until_s
        return self.down or self.lose > 0 or stalled or self.store.out_of_memory

    def cut_all(self) -> None:
        for link in list(self.links):
            link.cut()

    def after_command(self) -> None:
        """Tell those who wait what a command has changed, in the order in which they came."""
        published, self.store.published = self.store.published, []
        for channel, message in published:
            for link in self.subscribed:
                link.reply([b"message", channel, message])
        for link in list(self.blocked):
            link.look_again()


class Link:
    """One connection: the transport that the client has, and the store's end of it."""

    def __init__(self, network: FakeNetwork, protocol: Any) -> None:
        self.network = network
        self.protocol = protocol
        self.open = True
        self._requests = hiredis.Reader()
        self._queue: list[list[bytes]] = []
        self._arrives_s = 0.0
        self._answers_s = 0.0
        self._mute = False  # nothing may follow an answer that was cut
        self._waits_for: tuple[bytes, tuple[int, int], int] | None = None
        self._wait_timer: asyncio.TimerHandle | None = None

    # The client's end

    def write(self, data: bytes) -> None:
        network = self.network
        # Strictly later than what came before: equal timers need not fire in their order.
        now_s = network.loop.time()
        self._arrives_s = max(self._arrives_s + 1e-7, now_s + network.latency_s())
        network.loop.call_at(self._arrives_s, self._arrived, bytes(data))

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        self._close(None)

    def close(self) -> None:
        self._close(None)

    def _close(self, error: Exception | None) -> None:
        if not self.open:
            return
        self.open = False
        if self._wait_timer is not None:
            self._wait_timer.cancel()
        network = self.network
        network.links.remove(self)
        for waiting in (network.blocked, network.subscribed):
            if self in waiting:
                waiting.remove(self)
        network.loop.call_soon(self.protocol.connection_lost, error)

    # The store's end

    def cut(self) -> None:
        self.network.fault()
        self.network.cuts += 1
        self._close(ConnectionResetError("cut by the simulation"))

    def _arrived(self, data: bytes) -> None:
        self._requests.feed(data)
        while (command := self._requests.gets()) is not False:
            self._queue.append(command)
        self._work()

    def _work(self) -> None:
        network = self.network
        while self._queue and self._waits_for is None:
            stalled_s = network.stalled_until_s - network.loop.time()
            if stalled_s > 0:
                network.fault()
                network.loop.call_later(stalled_s + network.latency_s(), self._work)
                return
            self._serve(self._queue.pop(0))

    def _serve(self, command: list[bytes]) -> None:
        network = self.network
        fate = network.rng.random() / network.lose if network.lose else 1.0
        if fate < 1 / 3 and self.open:
            # Cut before it was done; what lies behind it is lost with it.
            self._queue.clear()
            self.cut()
            return
        name = command[0]
        if name == b"XREAD":
            self._wait(command)
            return
        if name == b"SUBSCRIBE":
            if self.open:
                network.subscribed.append(self)
            reply: Reply = [b"subscribe", command[1], 1]
        else:
            reply = network.store.execute(command)
        if fate < 2 / 3 and self.open:
            self.cut()  # done, and nobody was told
        elif fate < 1 and self.open:
            answer = encode(reply)
            self._send(answer[: network.rng.randrange(len(answer))])
            self._mute = True
            network.loop.call_at(max(self._answers_s, network.loop.time()) + 1e-6, self.cut)
        else:
            self.reply(reply)
        network.after_command()

    def _wait(self, command: list[bytes]) -> None:
        if not self.open:
            return
        _, _, count, _, block_ms, _, key, after = command
        self._waits_for = (key, id_of(after), int(count))
        self.network.blocked.append(self)
        timeout_s = int(block_ms) / 1000
        self._wait_timer = self.network.loop.call_later(timeout_s, self._end_wait, None)
        self.look_again()

    def look_again(self) -> None:
        assert self._waits_for is not None
        found = self.network.store.read_after(*self._waits_for)
        if found is not None:
            self._end_wait(found)

    def _end_wait(self, reply: Reply) -> None:
        if self._waits_for is None or not self.open:
            return
        assert self._wait_timer is not None
        self._wait_timer.cancel()
        self._waits_for = None
        self.network.blocked.remove(self)
        self.reply(reply)
        self.network.loop.call_soon(self._work)

    def reply(self, reply: Reply) -> None:
        self._send(encode(reply))

    def _send(self, data: bytes) -> None:
        """Deliver in two pieces, cut anywhere."""
        if self._mute:
            return
        network = self.network
        middle = network.rng.randrange(len(data) + 1)
        for piece in (data[:middle], data[middle:]):
            if piece:
                arrives_s = network.loop.time() + network.latency_s()
                self._answers_s = max(self._answers_s + 1e-7, arrives_s)
                network.loop.call_at(self._answers_s, self._deliver, piece)

    def _deliver(self, data: bytes) -> None:
        if self.open:
            self.protocol.data_received(data)
