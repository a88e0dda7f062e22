"""Who is looked at: requests that are written to the log, one by one.

Nobody is, by default, and then nothing here runs but the question whether. A request that is looked
at is `Seen` from its arrival to its end; it tells what it was when it is over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from headrace.errors import HeadraceError, InternalError
from server import logs
from server.tracing.context import TRACEPARENT, TRACESTATE, TraceContext, parse
from server.wire.grpc.status import StatusCode

if TYPE_CHECKING:
    from server.execution.lots import Timing
    from server.wire.handlers import Context

_LOG = logging.getLogger("headrace.requests")
_NS_PER_US = 1000
INFER, PREDICT = "ModelInfer", "Predict"


class Head(Protocol):
    """The head of a request on either wire, as far as it says of a trace; empty: nothing."""

    @property
    def traceparent(self) -> bytes:
        """The value as it came."""

    @property
    def tracestate(self) -> str:
        """The value as it came."""


class Seen:
    """One request that is looked at. It ends exactly once, by the first of `answered`, `failed`."""

    __slots__ = (
        "_watch", "arrived_ns", "ended_ns", "error", "method", "model", "request_id", "status",
        "timing", "trace", "version",
    )  # fmt: skip

    def __init__(
        self,
        watch: Watch,
        method: str,
        model: str,
        version: str,
        request_id: str,
        arrived_ns: int,
        trace: TraceContext | None,
    ) -> None:
        self._watch = watch
        self.method = method
        self.model = model
        self.version = version
        self.request_id = request_id
        self.arrived_ns = arrived_ns
        self.trace = trace
        self.timing: Timing | None = None
        self.status = StatusCode.CANCELLED
        self.error: HeadraceError | None = None
        self.ended_ns = 0

    def answered(self, timing: Timing | None) -> None:
        """It was answered; `timing` is of its run."""
        self.timing = timing
        self._end(StatusCode.OK)

    def failed(self, error: HeadraceError) -> None:
        """It ended with an error."""
        self.error = error
        self._end(StatusCode(error.status.grpc))

    def dropped(self) -> None:
        """Nobody waits for it any more."""
        self._end(StatusCode.CANCELLED)

    def _end(self, status: StatusCode) -> None:
        if self.ended_ns:
            return
        self.status = status
        self.ended_ns = time.monotonic_ns()
        self._watch.ended(self)

    def __enter__(self) -> Seen:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it, as far as nothing else has; what is no error of ours is internal to a client."""
        if error is None:
            self.answered(self.timing)
        elif isinstance(error, HeadraceError):
            self.failed(error)
        elif isinstance(error, Exception):
            self.failed(InternalError("internal error"))
        else:
            self.dropped()


class _Nobody:
    """In place of `Seen` for who is not looked at."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


_NOBODY = _Nobody()


class Watch:
    """Looks at the requests of one worker. `active` says whether it looks at any."""

    def __init__(self, *, log: bool = False) -> None:
        self._log = log
        self.active = log

    def request(
        self, method: str, model: str, version: str, request_id: str, context: Context
    ) -> Seen | _Nobody:
        """Return what to hold, by `with`, while a request is answered; None in it: unseen."""
        if not self.active:
            return _NOBODY
        now_ns = time.monotonic_ns()
        return Seen(self, method, model, version, request_id, now_ns, trace_of(context))

    def pick(self, heads: Sequence[Head]) -> list[int]:
        """Return which of these heads' requests are looked at. Only while it is active."""
        return list(range(len(heads)))

    def seen(self, head: Head, model: str, version: str, request_id: str, arrived_ns: int) -> Seen:
        """Look at a request that was picked."""
        trace = parse(head.traceparent, head.tracestate) if head.traceparent else None
        return Seen(self, INFER, model, version, request_id, arrived_ns, trace)

    def ended(self, seen: Seen) -> None:
        """A request that was looked at is over."""
        if self._log:
            log_request(seen)


def log_request(seen: Seen) -> None:
    """Write a request's line."""
    timing = seen.timing
    fields: dict[str, Any] = {
        "request_id": seen.request_id,
        "model": seen.model,
        "version": seen.version,
        "trace_id": "" if seen.trace is None else seen.trace.trace_id.hex(),
        "status": seen.status.name,
        "total_us": (seen.ended_ns - seen.arrived_ns) // _NS_PER_US,
    }
    if timing is not None:
        fields["queue_us"] = timing.queue_ns // _NS_PER_US
        fields["compute_us"] = (timing.input_ns + timing.infer_ns + timing.output_ns) // _NS_PER_US
    if seen.error is not None:
        fields["error"] = seen.error.message
    _LOG.info("%s", seen.method, extra=logs.about(**fields))


def who(request_id: str, context: Context) -> dict[str, str]:
    """Return which request this is, for a line of the log."""
    trace = trace_of(context)
    return {"request_id": request_id, "trace_id": "" if trace is None else trace.trace_id.hex()}


def trace_of(context: Context) -> TraceContext | None:
    """Return what the caller of a request says of its trace, if anything."""
    text = context.metadata.get(TRACEPARENT)
    if text is None:
        return None
    return parse(text.encode("latin-1", "replace"), context.metadata.get(TRACESTATE, ""))
