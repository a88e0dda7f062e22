"""The transport-neutral handler table: method path → async bytes → bytes.

A transport looks a method path up in `Handlers`, hands over the message's bytes and a `Context`,
and sends back what it gets. A `HeadraceError` becomes its status; anything else is an internal
error, logged here and shown to no client.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from headrace.errors import DeadlineExceededError, HeadraceError, InternalError

_LOG = logging.getLogger(__name__)
_NO_METADATA: Mapping[str, str] = {}


@dataclass(slots=True)
class Context:
    """What a transport knows of a call besides its bytes.

    `deadline_ns` is on the monotonic clock (`time.monotonic_ns`), None where the caller set none.
    """

    metadata: Mapping[str, str] = field(default_factory=lambda: _NO_METADATA)
    deadline_ns: int | None = None
    peer: str = ""

    def check_deadline(self, where: str) -> None:
        """Raise DeadlineExceededError when the caller no longer waits: work would be wasted."""
        if self.deadline_ns is not None and time.monotonic_ns() >= self.deadline_ns:
            raise DeadlineExceededError(
                "the caller's deadline passed before the work began", where=where
            )

    def shorten_deadline(self, timeout_ns: int) -> None:
        """Bring the deadline to at most `timeout_ns` from now; it never moves away."""
        deadline_ns = time.monotonic_ns() + timeout_ns
        if self.deadline_ns is None or deadline_ns < self.deadline_ns:
            self.deadline_ns = deadline_ns


Handler = Callable[[bytes, Context], Awaitable[bytes]]
Handlers = dict[str, Handler]


def as_headrace_error(error: BaseException, where: str) -> HeadraceError:
    """Return `error` if a client may see it, else log it and return a bare internal error."""
    if isinstance(error, HeadraceError):
        return error
    _LOG.error("%s failed", where, exc_info=error)
    return InternalError("internal error; the server's log has the cause", where=where)
