"""A tick's whole requests: handed to their doors, answered many at once, counted until they end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from operator import itemgetter
from typing import Protocol

from headrace.errors import HeadraceError, InternalError, ResourceExhaustedError
from server.wire.calls import Calls
from server.wire.grpc import replies
from server.wire.grpc.status import StatusCode, of_error
from server.wire.http2.connection import Connection
from server.wire.http2.headers import Head

_LOG = logging.getLogger(__name__)

_CONNECTION, _STREAM_ID = itemgetter(0), itemgetter(1)
# connection, stream id, head, body with gRPC's prefix
Whole = tuple[Connection, int, Head, bytes]


class Door(Protocol):
    """Gets all whole requests of a method in a tick together, before any task is made."""

    def take(self, calls: list[Whole], now_ns: int) -> list[Whole]:
        """Take what it can; return the others, which go to their handlers."""


def full() -> ResourceExhaustedError:
    """Return what a call is told that is one too many."""
    return ResourceExhaustedError("too many calls at work", mend="try again later")


class Tick:
    """Where a door's answers go. Every call that a door took ends by exactly one method here."""

    def __init__(self, calls: Calls[StatusCode]) -> None:
        self._calls = calls
        self._failed: HeadraceError | None = None  # the last error that ended a call …
        self._failure = StatusCode.OK, b""  # … and what is said of it

    def hand_over(self, door: Door, calls: list[Whole], now_ns: int) -> list[Whole]:
        """Give `calls` to a door; return those that it leaves to their handlers."""
        counted = self._calls
        room = counted.live_max - counted.live
        if len(calls) > room:
            for call in calls[room:]:
                counted.begin()
                self.fail(call, full())
            calls = calls[:room]
        counted.begin(len(calls))
        try:
            rest = door.take(calls, now_ns)
        except Exception:  # noqa: BLE001 - one method's fault must not end the others' tick
            # Which of them it had taken nobody knows; those that are answered already are gone.
            _LOG.exception("a door failed")
            for call in calls:
                if self.is_open(call):
                    self.fail(call, InternalError("internal error; the server's log has the cause"))
            return []
        if rest:
            counted.live -= len(rest)
            counted.started -= len(rest)
        return rest

    def reply_all(
        self, calls: Sequence[Whole], prefix: bytes, tails: Sequence[bytes | memoryview]
    ) -> None:
        """Send the message `prefix` + `tails[i]` to call i; the tails are of one length."""
        shape = replies.shape(prefix, len(tails[0]))
        count = len(calls)
        connections = list(map(_CONNECTION, calls))
        ids = list(map(_STREAM_ID, calls))
        at = 0
        while at < count:  # the calls of a connection came together
            connection = connections[at]
            stop = at + 1
            if at == 0 and connections.count(connection) == count:
                stop = count
            while stop < count and connections[stop] is connection:
                stop += 1
            connection.answer_all(ids[at:stop], shape, tails[at:stop])
            connection.owner.touch()
            at = stop
        self._calls.end(StatusCode.OK, count)

    def fail(self, call: Whole, error: HeadraceError) -> None:
        """End a call with an error."""
        if error is not self._failed:  # calls that fail together have one error
            self._failed = error
            self._failure = of_error(error)[0], replies.trailers_only(error)
        code, block = self._failure
        self._calls.end(code)
        if call[0].end_with(call[1], block):
            call[0].owner.touch()

    def drop(self, call: Whole) -> None:
        """End a call whose client went away."""
        self._calls.end(StatusCode.CANCELLED)

    def hand_back(self, calls: Sequence[Whole], came_ns: int) -> None:
        """Leave calls that a door took to their handlers, after all. `came_ns`: when they came."""
        self._calls.live -= len(calls)
        self._calls.started -= len(calls)
        for call in calls:
            call[0].owner.begin(call, came_ns)

    def is_open(self, call: Whole) -> bool:
        """Return whether the client still waits."""
        return call[1] in call[0].streams
