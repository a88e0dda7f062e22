"""The online store: one connection to Valkey or Redis for everything a process asks of it.

Why a client of our own instead of redis-py: a Predict of a few rows reads some forty keys in one
MGET; redis-py spends more than twice the CPU on that (`python -m benchmarks.store_client`), and
its asyncio client needs a connection for each call in flight. Here all calls of a process share
one: replies come in the order of the calls, so calls of one tick are one round trip.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import hiredis

from features.online.address import Address, parse_address
from features.online.progress import Progress
from features.online.resp import Connection, backoff_s, gone, open_connection
from features.online.timeouts import CALL_TIMEOUT_S
from headrace.errors import (
    FailedPreconditionError,
    HeadraceError,
    InternalError,
    ResourceExhaustedError,
    UnavailableError,
)

if TYPE_CHECKING:
    from features.online.row_keys import RowKeys

logger = logging.getLogger(__name__)

# A store that answers so is for now not the one to talk to: look again, perhaps elsewhere.
_NOT_NOW = {"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "TRYAGAIN", "MISCONF"}
_CREDENTIALS = {"NOAUTH", "WRONGPASS", "NOPERM"}


class Script:
    """A Lua script that the store runs as one atomic step."""

    def __init__(self, source: str) -> None:
        self.source = source
        # How the store names a script; not a matter of security.
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class AskedRows(NamedTuple):
    """Rows that were asked for, and on which connection."""

    connection: Connection
    reply: asyncio.Future[Any]


class OnlineStore:
    """A store by its URL. Connects when first used and again, by itself, after each loss.

    Belongs to one event loop. Every method raises UnavailableError while the store is gone, and
    within `call_timeout_s` (or the connect timeout) of being asked.
    """

    def __init__(self, url: str, *, call_timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._address = parse_address(url)
        self._call_timeout_s = call_timeout_s
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[Connection] | None = None
        self._closed = False
        self._failures = 0
        self._retry_at_s = 0.0
        # The store this process has read from: see `ServiceReader`, which refuses another.
        self.store_id: str | None = None
        self.progress = Progress(self._address)

    @property
    def address(self) -> Address:
        """Where the store is."""
        return self._address

    @property
    def connected(self) -> bool:
        """Whether there is a live connection now."""
        return self._connection is not None

    @property
    def pending_calls(self) -> int:
        """How many calls wait for their reply."""
        return 0 if self._connection is None else self._connection.pending_calls

    async def execute(self, *command: str | bytes | int, timeout_s: float | None = None) -> Any:
        """Run one command and return its reply (bytes, int, None or a list of them).

        Raises UnavailableError (gone, or not able for now), ResourceExhaustedError (out of memory,
        or too many calls wait here), InternalError (the store refused the command).
        """
        connection = self._connection
        if connection is None:
            connection = await self._connect_shared()
        reply = await connection.call(command, timeout_s or self._call_timeout_s)
        return self._checked(str(command[0]), reply, connection)

    async def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        """Return the values of `keys` as of one moment, None where there is none: one MGET."""
        reply: list[bytes | None] = await self.execute("MGET", *keys)
        return reply

    async def get_rows(self, keys: RowKeys) -> list[bytes | None]:
        """Return the checkpoint and the rows as of one moment, None where there is none."""
        if self._connection is None:
            await self._connect_shared()
        asked = self.ask_rows(keys)
        await asked.reply
        return self.rows_of(asked)

    def ask_rows(self, keys: RowKeys) -> AskedRows:
        """Ask for rows while `connected`; `rows_of` says what came of it."""
        connection = self._connection
        if connection is None:
            raise gone("the connection is lost")
        return AskedRows(connection, connection.send(keys.command(), self._call_timeout_s))

    def rows_of(self, asked: AskedRows) -> list[bytes | None]:
        """Return the rows once their reply is there. Raises as `execute`."""
        rows: list[bytes | None] = self._checked("MGET", asked.reply.result(), asked.connection)
        return rows

    async def run(
        self,
        script: Script,
        keys: list[bytes],
        arguments: list[str | bytes | int],
        timeout_s: float | None = None,
    ) -> Any:
        """Run a script, sending its source only where the store does not know it yet."""
        connection = self._connection
        if connection is None:
            connection = await self._connect_shared()
        tail = (len(keys), *keys, *arguments)
        for command, name in (("EVALSHA", script.sha), ("EVAL", script.source)):
            call = (command, name, *tail)
            reply = await connection.call(call, timeout_s or self._call_timeout_s)
            if not isinstance(reply, hiredis.ReplyError):
                return reply
            if command == "EVAL" or not str(reply).startswith("NOSCRIPT"):
                break
        raise self._refused(command, reply, connection)

    async def close(self) -> None:
        """Close the connection: calls that wait get UnavailableError, and so do later ones."""
        self._closed = True
        await self.progress.close()
        if self._connecting is not None:
            self._connecting.cancel()
            with contextlib.suppress(asyncio.CancelledError, HeadraceError):
                await self._connecting
        connection = self._connection
        if connection is not None:
            connection.close()
            await connection.wait_closed()

    # Connecting

    async def _connect_shared(self) -> Connection:
        """Return a live connection: all callers that find none wait for the same attempt."""
        if self._closed:
            raise gone("the store's client was closed")
        loop = asyncio.get_running_loop()
        if self._connecting is None:
            if loop.time() < self._retry_at_s:
                raise gone("the store cannot be reached")
            self._connecting = loop.create_task(self._connect())
            # When all callers were cancelled, nobody is left to hear why it failed.
            self._connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        # A cancelled caller must not take the attempt of the others with it.
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            connection = await open_connection(self._address, on_lost=self._lost)
            if not connection.alive:
                raise gone("the connection was lost")
        except HeadraceError:
            self._failures += 1
            self._retry_at_s = loop.time() + backoff_s(self._failures)
            raise
        else:
            self._failures = 0
            self._connection = connection
            return connection
        finally:
            self._connecting = None

    def _lost(self, connection: Connection) -> None:
        if self._connection is connection:
            self._connection = None

    def _checked(self, command: str, reply: Any, connection: Connection) -> Any:
        if isinstance(reply, hiredis.ReplyError):
            raise self._refused(command, reply, connection)
        return reply

    def _refused(
        self, command: str, reply: hiredis.ReplyError, connection: Connection
    ) -> HeadraceError:
        error = refusal(command, reply)
        if isinstance(error, UnavailableError):
            # The next call looks again, perhaps elsewhere: this may not be the primary any more.
            connection.close()
        return error


def refusal(command: str, reply: hiredis.ReplyError) -> HeadraceError:
    """Return the error for a reply that is one; the store's own words stay in our log."""
    word = str(reply).partition(" ")[0]
    logger.warning("the store refused %s: %s", command, reply)
    if word in _NOT_NOW:
        return gone(f"the store cannot do this now ({word})")
    if word in _CREDENTIALS:
        return gone(f"the store refused our credentials ({word})")
    if word == "OOM":
        return ResourceExhaustedError(
            "the store is out of memory", where="online store", mend="raise its maxmemory"
        )
    if word == "WRONGTYPE":
        return FailedPreconditionError(
            "a key of ours holds something else",
            where="online store",
            mend="give Headrace a database of its own",
        )
    return InternalError(f"the store refused {command} ({word})", where="online store")
