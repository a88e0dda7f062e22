"""One connection to the store: a thin RESP2 client over hiredis, with a queue of calls.

A reply belongs to the oldest call that waits, always. A caller that was cancelled leaves its place
in the queue behind, and its reply is read and thrown away there; it can never reach another call
(the fault of CVE-2023-28858). A connection on which anything went wrong (a protocol error, a reply
that nobody waits for, a call without a reply for too long) is closed and never used again.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis

from features.online.address import Address
from features.online.timeouts import CONNECT_TIMEOUT_S
from headrace.errors import ResourceExhaustedError, UnavailableError

# After a failed connect: fail at once for a while, so that callers do not pile up behind a store
# that is gone. Jittered, so that workers do not come back in step.
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 1.0

# A connection whose peer is slower than its callers refuses more rather than queue without end.
PENDING_CALLS_MAX = 4096
UNSENT_BYTES_MAX = 64 << 20

logger = logging.getLogger(__name__)

Command = tuple[str | bytes | int, ...]

_NOTHING = object()


def gone(what: str) -> UnavailableError:
    """Return the error of a store that does not answer. Its address stays in our own logs."""
    return UnavailableError(what, where="online store", mend="try again")


class Connection(asyncio.Protocol):
    """One RESP2 connection. Made by `OnlineStore` and `Progress`, which reconnect."""

    def __init__(
        self,
        *,
        on_lost: Callable[[Connection], None],
        on_push: Callable[[list[Any]], None] | None = None,
    ) -> None:
        self.alive = False
        self._loop = asyncio.get_running_loop()
        self._on_lost = on_lost
        self._on_push = on_push
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        # Each call that waits: its future, and when (loop time) the connection is given up for it.
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._watchdog: asyncio.TimerHandle | None = None
        self._gone = asyncio.Event()

    @property
    def pending_calls(self) -> int:
        """How many replies are still to come, those of cancelled calls included."""
        return len(self._waiting)

    def call(self, command: Command, timeout_s: float) -> asyncio.Future[Any]:
        """Send one command; see `send`."""
        # Its stub knows tuples of one word only.
        return self.send(hiredis.pack_command(command), timeout_s)  # type: ignore[arg-type]

    def send(self, packed: bytes, timeout_s: float) -> asyncio.Future[Any]:
        """Send one command as RESP has it; the future gets the reply (a ReplyError is a value, not
        raised).

        Raises UnavailableError (at once or through the future) when the connection is lost or the
        reply does not come within `timeout_s`, ResourceExhaustedError when too much waits already.
        """
        transport = self._transport
        if transport is None or not self.alive:
            raise gone("the connection is lost")
        if (
            len(self._waiting) >= PENDING_CALLS_MAX
            or transport.get_write_buffer_size() > UNSENT_BYTES_MAX
        ):
            raise ResourceExhaustedError(
                "too many calls wait for the store",
                where="online store",
                expected=f"at most {PENDING_CALLS_MAX} calls and {UNSENT_BYTES_MAX} bytes",
                mend="try again more slowly",
            )
        future = self._loop.create_future()
        give_up = self._loop.time() + timeout_s
        self._waiting.append((future, give_up))
        if self._watchdog is None:
            self._watchdog = self._loop.call_at(give_up, self._check)
        transport.write(packed)
        return future

    def close(self, error: Exception | None = None) -> None:
        """Close now; whoever waits gets `error`, or that the connection was closed."""
        if not self.alive:
            return
        self.alive = False
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        if self._transport is not None:
            self._transport.abort()
        waiting, self._waiting = self._waiting, deque()
        for future, _ in waiting:
            if not future.done():
                future.set_exception(error or gone("the connection was closed"))
        self._on_lost(self)

    async def wait_closed(self) -> None:
        """Return when the socket of a closed connection is gone, too."""
        if self._transport is not None:
            await self._gone.wait()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        # uvloop's transports have the methods of asyncio.Transport without being one.
        self._transport = cast("asyncio.Transport", transport)
        self.alive = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        self.close(gone("the connection was lost"))
        self._gone.set()

    def data_received(self, data: bytes) -> None:
        """Called by the loop: hand each whole reply to the oldest call that waits."""
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _NOTHING:
                if self._on_push is not None and _is_push(reply):
                    self._on_push(reply)
                elif not waiting:
                    self.close(gone("a reply came that nobody waits for"))
                    return
                else:
                    future, _ = waiting.popleft()
                    if not future.done():
                        future.set_result(reply)
        except hiredis.ProtocolError:
            self.close(gone("the store sent something that is not RESP"))

    def _check(self) -> None:
        """Close when the oldest call has waited too long: all others wait behind it."""
        self._watchdog = None
        if not self._waiting:
            return
        give_up = self._waiting[0][1]
        if give_up <= self._loop.time():
            self.close(gone("no reply in time"))
        else:
            self._watchdog = self._loop.call_at(give_up, self._check)


def _is_push(reply: object) -> bool:
    """Whether this is a pub/sub message rather than the reply to a call."""
    return isinstance(reply, list) and len(reply) == 3 and reply[0] == b"message"


def backoff_s(failures: int) -> float:
    """Return how long to wait after this many failures in a row (at least one), jittered."""
    bound_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(failures - 1, 10))
    return random.uniform(bound_s / 2, bound_s)


async def open_connection(address: Address, **callbacks: Any) -> Connection:
    """Open a connection and say who we are. Raises UnavailableError within the connect timeout."""
    loop = asyncio.get_running_loop()
    connection = Connection(**callbacks)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            if address.path is not None:
                await loop.create_unix_connection(lambda: connection, address.path)
            else:
                await loop.create_connection(
                    lambda: connection, address.host, address.port, ssl=address.tls
                )
            for command in address.handshake:
                reply = await connection.call(command, CONNECT_TIMEOUT_S)
                if isinstance(reply, hiredis.ReplyError):
                    logger.warning("the store refused %s: %s", command[0], reply)
                    raise gone(f"the store refused our {command[0]}")
    except (OSError, TimeoutError) as error:
        connection.close()
        logger.warning("cannot connect to the store: %s", error)
        raise gone("the store cannot be reached") from None
    except BaseException:
        connection.close()
        raise
    return connection
