"""Who is looked at: requests that have a line of the log, and those that are traced.

Nobody is, by default, and then nothing here runs but the question whether. A request that is looked
at is `Seen` from its arrival to its end; it tells what it was when it is over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from headrace.errors import HeadraceError, InternalError
from server import logs
from server.access.callers import current_caller
from server.tracing.context import TRACEPARENT, TRACESTATE, TraceContext, parse
from server.tracing.spans import Ids, Reading, Run, Traced
from server.wire.grpc.status import StatusCode

if TYPE_CHECKING:
    from server.execution.lots import Timing
    from server.tracing.tracer import Head, Tracer
    from server.wire.handlers import Context

_LOG = logging.getLogger("headrace.requests")
_NS_PER_US = 1000
INFER, PREDICT = "ModelInfer", "Predict"


class Seen:
    """One request that is looked at. It ends exactly once, by the first that says so.

    `parent` is what its caller says of its trace, `ids` its own span where it is traced.
    """

    __slots__ = (
        "_watch", "arrived_ns", "ended_ns", "error", "ids", "method", "model", "parent",
        "principal", "readings", "request_id", "runs", "status", "version",
    )  # fmt: skip

    def __init__(
        self,
        watch: Watch,
        method: str,
        named: tuple[str, str, str],
        arrived_ns: int,
        parent: TraceContext | None,
        ids: Ids | None,
        principal: str,
    ) -> None:
        """`named` are its model, version and request id; `principal` is who asks, if known."""
        self._watch = watch
        self.method = method
        self.model, self.version, self.request_id = named
        self.arrived_ns = arrived_ns
        self.parent = parent
        self.ids = ids
        self.principal = principal
        self.runs: list[Run] = []
        self.readings: list[Reading] = []
        self.status = StatusCode.CANCELLED
        self.error: HeadraceError | None = None
        self.ended_ns = 0

    @property
    def trace_id(self) -> bytes | None:
        """The trace that it is a part of, traced here or not."""
        if self.ids is not None:
            return self.ids.trace_id
        return None if self.parent is None else self.parent.trace_id

    def ran(self, model: str, version: str, timing: Timing) -> None:
        """A model ran for it."""
        start_ns = timing.started_ns
        end_ns = start_ns + timing.input_ns + timing.infer_ns + timing.output_ns
        queued_ns = start_ns - timing.queue_ns
        self.runs.append(Run(model, version, queued_ns, start_ns, end_ns, timing.batch_rows))

    def read(self, service: str, started_ns: int, ended_ns: int) -> None:
        """Features were read for it."""
        self.readings.append(Reading(service, started_ns, ended_ns))

    def answered(self) -> None:
        """It was answered."""
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
            self.answered()
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

    def __init__(self, *, log: bool = False, tracer: Tracer | None = None) -> None:
        self._log = log
        self._tracer = tracer
        self.active = False
        self.refresh()

    def refresh(self) -> None:
        """Hear that the tracer's rules have changed."""
        tracer = self._tracer
        self._traced = tracer if tracer is not None and tracer.on else None
        self.active = self._log or self._traced is not None

    def request(
        self, method: str, model: str, version: str, request_id: str, context: Context
    ) -> Seen | _Nobody:
        """Return what to hold, by `with`, while a request is answered; None in it: unseen."""
        if not self.active:
            return _NOBODY
        now_ns = time.monotonic_ns()
        parent = trace_of(context)
        ids = None if self._traced is None else self._traced.begin(model, parent)
        if ids is None and not self._log:
            return _NOBODY
        caller = current_caller()
        principal = "" if caller is None else caller.grant.principal.name
        seen = Seen(self, method, (model, version, request_id), now_ns, parent, ids, principal)
        context.trace_id = seen.trace_id
        return seen

    def pick(self, model: str, heads: Sequence[Head]) -> dict[int, bool]:
        """Return which of a tick's requests are looked at, and whether they are traced.

        Only while it is active.
        """
        traced = [] if self._traced is None else self._traced.pick(model, heads)
        if not self._log:
            return dict.fromkeys(traced, True)
        return dict.fromkeys(range(len(heads)), False) | dict.fromkeys(traced, True)

    def seen(
        self,
        head: Head,
        named: tuple[str, str, str],
        arrived_ns: int,
        principal: str,
        *,
        traced: bool,
    ) -> Seen:
        """Look at a ModelInfer that was picked; `named` are its model, version and request id."""
        parent = parse(head.traceparent, head.tracestate) if head.traceparent else None
        ids = self._traced.ids(parent) if traced and self._traced is not None else None
        return Seen(self, INFER, named, arrived_ns, parent, ids, principal)

    def ended(self, seen: Seen) -> None:
        """A request that was looked at is over."""
        if self._log:
            log_request(seen)
        if seen.ids is not None and self._tracer is not None:
            self._tracer.put(_traced(seen, seen.ids))


def _traced(seen: Seen, ids: Ids) -> Traced:
    return Traced(
        ids,
        seen.method,
        seen.model,
        seen.version,
        seen.request_id,
        seen.arrived_ns,
        seen.ended_ns,
        seen.status.value,
        "" if seen.error is None else seen.error.message,
        seen.runs,
        seen.readings,
    )


def log_request(seen: Seen) -> None:
    """Write a request's line."""
    trace_id = seen.trace_id
    fields: dict[str, Any] = {
        "request_id": seen.request_id,
        "model": seen.model,
        "version": seen.version,
        "principal": seen.principal,
        "trace_id": "" if trace_id is None else trace_id.hex(),
        "status": seen.status.name,
        "total_us": (seen.ended_ns - seen.arrived_ns) // _NS_PER_US,
    }
    if seen.runs:
        waited_ns = sum(run.started_ns - run.queued_ns for run in seen.runs)
        fields["queue_us"] = waited_ns // _NS_PER_US
        ran_ns = sum(run.ended_ns - run.started_ns for run in seen.runs)
        fields["compute_us"] = ran_ns // _NS_PER_US
    if seen.error is not None:
        fields["error"] = seen.error.message
    _LOG.info("%s", seen.method, extra=logs.about(**fields))


def who(request_id: str, context: Context) -> dict[str, str]:
    """Return which request this is, for a line of the log."""
    trace_id = trace_id_of(context)
    return {"request_id": request_id, "trace_id": "" if trace_id is None else trace_id.hex()}


def trace_id_of(context: Context) -> bytes | None:
    """Return the id of the trace that a request is a part of, if it is of one."""
    if context.trace_id is not None:
        return context.trace_id
    parent = trace_of(context)
    return None if parent is None else parent.trace_id


def trace_of(context: Context) -> TraceContext | None:
    """Return what the caller of a request says of its trace, if anything."""
    text = context.metadata.get(TRACEPARENT)
    if text is None:
        return None
    return parse(text.encode("latin-1", "replace"), context.metadata.get(TRACESTATE, ""))
