"""The transport-neutral handler table: method path → what answers it.

A transport looks a method path up in `Handlers`, hands over message bytes and a `Context`, and
sends back what it gets. A `HeadraceError` becomes its status; anything else is an internal error,
logged here and shown to no client. The same table mounts on our own wire and on grpc.aio.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from headrace.errors import DeadlineExceededError, HeadraceError, InternalError
from server import logs

_LOG = logging.getLogger(__name__)

Metadata = Sequence[tuple[str, str | bytes]]


class Context:
    """What a transport knows of a call besides its messages.

    `fields` is the metadata as it came, in order, with repeats; a `-bin` value is bytes.
    `metadata` is its text part as a mapping (the last of a repeated key wins). `deadline_ns` is on
    the monotonic clock (`time.monotonic_ns`), None where the caller set none. `identity` is what
    the server's `identify` made of the client's certificate.

    A handler may set `initial_metadata` until its first message leaves and `trailing_metadata`
    until it ends; REST ignores both. `compress` says of the message that leaves next whether it is
    to be compressed; None leaves that to the transport. A stream that is to have both kinds sets
    it before its first message, because the encoding is announced there.
    """

    __slots__ = (
        "_metadata",
        "compress",
        "deadline_ns",
        "fields",
        "identity",
        "initial_metadata",
        "peer",
        "trace_id",
        "trailing_metadata",
    )

    def __init__(
        self,
        metadata: Mapping[str, str] | None = None,
        deadline_ns: int | None = None,
        peer: str = "",
        fields: Metadata = (),
        identity: object = None,
    ) -> None:
        self._metadata = metadata
        self.identity = identity
        self.deadline_ns = deadline_ns
        self.peer = peer
        self.trace_id: bytes | None = None  # of a trace that began here
        self.fields = fields
        self.initial_metadata: Metadata = ()
        self.trailing_metadata: Metadata = ()
        self.compress: bool | None = None

    @property
    def metadata(self) -> Mapping[str, str]:
        """The text metadata by key."""
        if self._metadata is None:
            self._metadata = {key: value for key, value in self.fields if isinstance(value, str)}
        return self._metadata

    def check_deadline(self, where: str) -> None:
        """Raise DeadlineExceededError when the caller no longer waits: work would be wasted."""
        if self.deadline_ns is not None and time.monotonic_ns() >= self.deadline_ns:
            raise DeadlineExceededError(
                "the caller's deadline passed before the work began", where=where
            )


class Kind(Enum):
    """The four kinds of gRPC method; the value is (client streams, server streams)."""

    UNARY = (False, False)
    SERVER_STREAM = (False, True)
    CLIENT_STREAM = (True, False)
    BIDI_STREAM = (True, True)


@dataclass(frozen=True, slots=True)
class Method:
    """One method of the table.

    `call` takes (request, context): the request is `bytes`, or an async iterator of `bytes` where
    the client streams. It is a coroutine function that returns `bytes`, or an async generator
    function that yields them where the server streams.

    `judge` is asked when a call's metadata is there and its message is not: it raises HeadraceError
    for one that would be refused whatever comes.
    """

    kind: Kind
    call: Callable[[Any, Context], Any]
    judge: Callable[[Context], None] | None = None


Handler = Callable[[bytes, Context], Awaitable[bytes]]
# A bare function is a unary method.
Handlers = Mapping[str, Handler | Method]


def method_of(entry: Handler | Method) -> Method:
    """Return an entry of the table as a Method."""
    return entry if isinstance(entry, Method) else Method(Kind.UNARY, entry)


def stream_behind(
    enter: Callable[[Any, Context], object], method: Method
) -> Callable[[Any, Context], AsyncIterator[bytes]]:
    """Return the calls of a method that streams, each behind `enter`, which raises for one that is
    not to begin."""

    async def stream(request: Any, context: Context) -> AsyncIterator[bytes]:
        enter(request, context)
        replies = method.call(request, context)
        try:
            async for reply in replies:
                yield reply
        finally:
            await replies.aclose()

    return stream


def as_headrace_error(error: BaseException, where: str, **about: str) -> HeadraceError:
    """Return `error` if a client may see it, else log it and return a bare internal error.

    `about` says in the log which request it is.
    """
    if isinstance(error, HeadraceError):
        return error
    _LOG.error("%s failed", where, exc_info=error, extra=logs.about(**about))
    return InternalError("internal error; the server's log has the cause", where=where)
