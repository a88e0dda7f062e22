"""The door: all ModelInfer requests of one event-loop tick, taken and answered together.

The wire hands over a tick's calls in one plain call. Those of a learnt template go to their model's
queue as one lot: no task, no future and no message object per request. All others go back to the
wire, which starts the general handler for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from headrace.errors import HeadraceError
from server.execution.batcher import Batcher
from server.execution.lots import NEVER_NS, Lot, Timing, deadline_passed, not_in_time
from server.models.loaded import ServedModel
from server.protocol.infer_template import InferTemplates, Template
from server.tracing.context import parse
from server.watch import Seen, Watch
from server.wire.handlers import as_headrace_error

Array = npt.NDArray[Any]
Call = tuple[Any, int, Any, bytes]  # connection, stream id, head, framed message
_HEAD, _BODY = itemgetter(2), itemgetter(3)


class Tick(Protocol):
    """Where answers go. Every call that the door took ends by exactly one of the first three."""

    def reply_all(self, calls: Sequence[Call], prefix: bytes, tails: Sequence[bytes]) -> None:
        """Send `prefix` + `tails[i]` to call i; the tails are of one length."""

    def fail(self, call: Call, error: HeadraceError) -> None:
        """End a call with an error."""

    def drop(self, call: Call) -> None:
        """End a call whose client went away."""

    def is_open(self, call: Call) -> bool:
        """Return whether the client still waits."""


class Admission(Protocol):
    """Access control before the door."""

    def admit(
        self,
        name: str,
        rows: int,
        calls: list[Call],
        endings: Any,
        fail: Callable[[Call, HeadraceError], None],
    ) -> list[tuple[list[Call], Any, str]]:
        """Return the calls that may run a model, where their answers go, and the principal's name;
        `fail` the others."""


class InferDoor:
    """Takes what it knows of a tick's calls; the rest goes the general way, which may teach it."""

    def __init__(
        self,
        templates: InferTemplates,
        tick: Tick,
        watch: Watch | None = None,
        admission: Admission | None = None,
    ) -> None:
        self._templates = templates
        self._tick = tick
        self._watch = watch or Watch()
        self._admission = admission
        self._last: Template | None = None

    def take(self, calls: list[Call], now_ns: int) -> list[Call]:
        """Start or answer what is of a learnt form; return the other calls.

        `now_ns` is the monotonic time at which the tick's calls came. The list stays the wire's.
        """
        templates = self._templates
        last = self._last
        bodies = list(map(_BODY, calls))
        if last is not None and last.form.fits_all(bodies):  # most ticks are all of one kind
            if not templates.holds(last):
                self._last = None
                return calls.copy()
            if self._admission is None:
                lot = _GrpcLot(last, calls.copy(), bodies, now_ns, self._tick)
                last.model.batcher.take(lot.split(self._watch) if self._watch.active else [lot])
            else:
                last.model.batcher.take(self._lots(last, calls.copy(), now_ns))
            return []
        known, rest = self._sort(calls)
        queues: dict[Batcher, list[Lot]] = {}
        for template, its in known.items():
            if templates.holds(template):
                lots = self._lots(template, its, now_ns)
                queues.setdefault(template.model.batcher, []).extend(lots)
                self._last = template
            else:
                rest += its
        for batcher, lots in queues.items():
            batcher.take(lots)
        return rest

    def _lots(self, template: Template, calls: list[Call], now_ns: int) -> list[Lot]:
        """Return the calls that may run the template's model."""
        tick = self._tick
        groups: list[tuple[list[Call], Any, str]] = [(calls, tick, "")]
        if self._admission is not None:
            model, rows = template.model.name, template.rows
            groups = self._admission.admit(model, rows, calls, tick, tick.fail)
        lots: list[Lot] = []
        for its, endings, principal in groups:
            lot = _GrpcLot(template, its, list(map(_BODY, its)), now_ns, endings)
            lots += lot.split(self._watch, principal) if self._watch.active else [lot]
        return lots

    def forget(self) -> None:
        """Keep no model that serves no more."""
        self._last = None
        self._templates.forget()

    def _sort(self, calls: list[Call]) -> tuple[dict[Template, list[Call]], list[Call]]:
        """Return the calls by template, and those that are of none."""
        find = self._templates.find
        by_size: dict[int, list[Call]] = {}
        for call in calls:
            by_size.setdefault(len(call[3]), []).append(call)
        known: dict[Template, list[Call]] = {}
        rest: list[Call] = []
        for alike in by_size.values():
            template = find(alike[0][3])
            if template is not None and template.form.fits_all(list(map(_BODY, alike))):
                known[template] = alike
                continue
            for call in alike:
                template = find(call[3])
                if template is None:
                    rest.append(call)
                else:
                    known.setdefault(template, []).append(call)
        return known, rest


class LotTemplate(Protocol):
    """What a lot needs of the template of its calls."""

    @property
    def model(self) -> ServedModel:
        """The model version that answers."""

    @property
    def rows(self) -> int:
        """Rows of each request."""

    @property
    def shape(self) -> tuple[tuple[int, ...], ...]:
        """One shape per feed, without the first dimension."""

    def feeds(self, bodies: list[Any]) -> list[Array]:
        """Return the session's feeds of all calls joined."""

    def request_id(self, body: Any) -> str:
        """Return the id of a request; empty without."""


class Endings(Protocol):
    """Where calls end that get no reply, and whether they still wait."""

    def fail(self, call: Call, error: HeadraceError) -> None:
        """End a call with an error."""

    def drop(self, call: Call) -> None:
        """End a call whose client went away."""

    def is_open(self, call: Call) -> bool:
        """Return whether the client still waits."""


class CallLot:
    """Calls of one template that came in one tick: a lot of their model's queue.

    How they are replied to is the wire's: see `replying`.
    """

    __slots__ = (
        "_bodies", "_calls", "_template", "_tick", "arrived_ns", "count", "first_deadline_ns",
        "rows", "seen", "shape",
    )  # fmt: skip

    def __init__(
        self,
        template: LotTemplate,
        calls: list[Call],
        bodies: list[Any],
        arrived_ns: int,
        tick: Endings,
    ) -> None:
        self._template = template
        self._calls = calls
        self._bodies = bodies
        self._tick = tick
        self.seen: Seen | None = None  # of a lot of one call
        self.count = len(calls)
        self.rows = template.rows
        self.shape = template.shape
        self.arrived_ns = arrived_ns
        self.first_deadline_ns = self._first_deadline(calls)

    @property
    def priority(self) -> int:
        """None was asked for: a template has no parameters."""
        return 0

    @property
    def timeout_ns(self) -> int:
        """None was asked for, either."""
        return 0

    @property
    def last_deadline_ns(self) -> int | None:
        """When the last of the calls is late; None when one never is."""
        timeouts = [call[2].timeout_ns for call in self._calls]
        return None if min(timeouts) < 0 else self.arrived_ns + max(timeouts)

    def split(self, watch: Watch, principal: str = "") -> list[Lot]:
        """Return the calls that are looked at as lots of their own, and the rest of this one.

        `principal` is who asks, where that is known.
        """
        calls, template = self._calls, self._template
        model = template.model
        places = watch.pick(model.name, list(map(_HEAD, calls)))
        if not places:
            return [self]
        lots: list[Lot] = []
        for place, traced in places.items():
            call, body = calls[place], self._bodies[place]
            lot = type(self)(template, [call], [body], self.arrived_ns, self._tick)
            named = model.name, model.version, template.request_id(body)
            lot.seen = watch.seen(call[2], named, self.arrived_ns, principal, traced=traced)
            lots.append(lot)
        if len(places) < len(calls):
            self._keep([call for place, call in enumerate(calls) if place not in places])
            lots.append(self)
        return lots

    def who(self) -> dict[str, str]:
        """Say which request the first one is, for the log."""
        head = self._calls[0][2]
        trace = parse(head.traceparent) if head.traceparent else None
        return {
            "request_id": self._template.request_id(self._bodies[0]),
            "trace_id": "" if trace is None else trace.trace_id.hex(),
        }

    def keep_live(self, now_ns: int, answered_ns: float, *, ask: bool) -> int:
        """End the calls whose deadline is before then and, with `ask`, those whose client left."""
        tick = self._tick
        if answered_ns >= self.first_deadline_ns:
            hopeless = [call for call in self._calls if self._is_late(call, answered_ns)]
            self._keep([call for call in self._calls if not self._is_late(call, answered_ns)])
            self.first_deadline_ns = self._first_deadline(self._calls)
            self._fail(
                [call for call in hopeless if self._is_late(call, now_ns)], deadline_passed()
            )
            self._fail(
                [call for call in hopeless if not self._is_late(call, now_ns)], not_in_time()
            )
        if ask and not all(map(tick.is_open, self._calls)):
            left = [call for call in self._calls if not tick.is_open(call)]
            self._keep([call for call in self._calls if tick.is_open(call)])
            for call in left:
                tick.drop(call)
            if left and self.seen is not None:
                self.seen.dropped()
        return self.count

    def _first_deadline(self, calls: list[Call]) -> int:
        timeouts = [head.timeout_ns for head in set(map(_HEAD, calls)) if head.timeout_ns >= 0]
        return self.arrived_ns + min(timeouts) if timeouts else NEVER_NS

    def _is_late(self, call: Call, now_ns: float) -> bool:
        timeout_ns: int = call[2].timeout_ns
        return timeout_ns >= 0 and now_ns >= self.arrived_ns + timeout_ns

    def _keep(self, calls: list[Call]) -> None:
        self._calls = calls
        self._bodies = list(map(_BODY, calls))
        self.count = len(calls)

    def _without_late(self, outputs: list[Array], now_ns: int) -> list[Array]:
        """End the calls whose deadline passed during the run; return the others' outputs."""
        calls, count = self._calls, self.count
        in_time = [at for at, call in enumerate(calls) if not self._is_late(call, now_ns)]
        late = [call for call in calls if self._is_late(call, now_ns)]
        self._keep([calls[at] for at in in_time])
        self._fail(late, deadline_passed())
        if not late or not in_time:
            return outputs
        parts = [array.reshape(count, len(array) // count, *array.shape[1:]) for array in outputs]
        return [np.concatenate(part[in_time]) for part in parts]

    def cut(self, count: int) -> CallLot:
        """Take the first `count` calls out, as a lot of their own."""
        calls, bodies = self._calls[:count], self._bodies[:count]
        part = type(self)(self._template, calls, bodies, self.arrived_ns, self._tick)
        self._keep(self._calls[count:])
        return part

    def feeds(self) -> list[Array]:
        """Return the feeds of all calls joined."""
        return self._template.feeds(self._bodies)

    def answer(self, outputs: list[Array], timing: Timing) -> None:
        """Reply to the calls that are still in time, and count them all."""
        now_ns = time.monotonic_ns()
        if now_ns >= self.first_deadline_ns:
            outputs = self._without_late(outputs, now_ns)
            if not self.count:
                return
        template, calls = self._template, self._calls
        try:
            reply = self.replying(template, calls, self._bodies, outputs)
        except Exception as error:  # noqa: BLE001 - a call that never ends would count as work
            self.fail(as_headrace_error(error, f"model '{template.model.name}'", **self.who()))
            return
        total_ns = time.monotonic_ns() - self.arrived_ns
        template.model.statistics.succeeded(self.rows, total_ns, timing, requests=self.count)
        reply()
        if self.seen is not None:
            self.seen.ran(template.model.name, template.model.version, timing)
            self.seen.answered()

    def replying(
        self, template: Any, calls: list[Call], bodies: list[Any], outputs: list[Array]
    ) -> Callable[[], None]:
        """Make the replies out of the session's joined outputs; return what sends them."""
        raise NotImplementedError

    def fail(self, error: HeadraceError) -> None:
        """End all calls with one error and count them."""
        self._fail(self._calls, error)

    def _fail(self, calls: list[Call], error: HeadraceError) -> None:
        if not calls:
            return
        total_ns = time.monotonic_ns() - self.arrived_ns
        self._template.model.statistics.failed(total_ns, error, requests=len(calls))
        for call in calls:
            self._tick.fail(call, error)
        if self.seen is not None:
            self.seen.failed(error)


class _GrpcLot(CallLot):
    """Calls that came by gRPC."""

    __slots__ = ()
    _tick: Tick

    def replying(
        self, template: Template, calls: list[Call], bodies: list[bytes], outputs: list[Array]
    ) -> Callable[[], None]:
        """Make the messages."""
        prefix, tails = template.replies(bodies, outputs)
        if prefix:
            return partial(self._tick.reply_all, calls, prefix, tails)
        return partial(self._reply_each, calls, tails)

    def _reply_each(self, calls: list[Call], tails: list[bytes]) -> None:
        for call, tail in zip(calls, tails, strict=True):
            self._tick.reply_all([call], b"", [tail])
