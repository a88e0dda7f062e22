"""The door of REST: a tick's infer requests of learnt forms, taken and answered together.

The lots are those of gRPC's door: requests of one model run as one batch, whichever wire they
came on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

from headrace.errors import HeadraceError
from server.execution.batcher import Batcher
from server.execution.lots import Lot
from server.models.loaded import ServedModel
from server.protocol.infer_door import Admission, CallLot
from server.protocol.infer_template import rows_of
from server.protocol.oip import InferenceProtocol
from server.protocol.rest_messages import (
    COMPRESS_BYTES_MIN,
    LENGTH_HEADER,
    InferBody,
    accepted_coding,
    compressed,
    error_of,
)
from server.protocol.rest_template import RestTemplate, form_of
from server.protocol.tensors import Tensor
from server.wire.routes import Answers, Call, Response

# A client that changes its shapes all the time fills the table; it then starts from nothing.
_TEMPLATES_MAX = 256
_TEMPLATES_OF_LANE_MAX = 8  # they are tried one after another
_LENGTH_HEADER = LENGTH_HEADER.lower()
_BODY = itemgetter(3)


class Lane(NamedTuple):
    """What a request's head says of it."""

    model: str
    version: str
    json_bytes: int | None  # None: the whole body is JSON
    accepts: str  # the content coding of a long answer, "" for none


class RestDoor:
    """Takes what it knows of a tick's requests; the rest goes the general way, which teaches it."""

    def __init__(self, protocol: InferenceProtocol, admission: Admission | None = None) -> None:
        self._protocol = protocol
        self._admission = admission
        self._templates: dict[Lane, list[RestTemplate]] = {}
        self._count = 0

    def lane(self, params: Mapping[str, str], headers: Mapping[str, str]) -> Lane | None:
        """Return what requests of this head have in common; None: they go the general way."""
        if headers.get("content-encoding", "identity").lower() != "identity":
            return None
        text = headers.get(_LENGTH_HEADER)
        json_bytes = None
        if text is not None:
            if not (text.isascii() and text.isdigit() and len(text) < 10) or not int(text):
                return None
            json_bytes = int(text)
        accepts = accepted_coding(headers)
        return Lane(params.get("model", ""), params.get("version", ""), json_bytes, accepts)

    def take(self, calls: list[Call], now_ns: int, answers: Answers) -> list[Call]:
        """Start what is of a learnt form; return the other calls.

        `now_ns` is the monotonic time at which the tick's calls came.
        """
        by_lane: dict[Lane, list[Call]] = {}
        for call in calls:
            by_lane.setdefault(call[2].lane, []).append(call)
        queues: dict[Batcher, list[Lot]] = {}
        rest: list[Call] = []
        for lane, its in by_lane.items():
            left = its
            for template in self._templates.get(lane, ()):
                if not left:
                    break
                if not self._holds(lane, template):
                    break
                bodies = list(map(_BODY, left))
                read = template.form.read(bodies)
                if read is bodies:  # all of them, as they are
                    taken, left = left, []
                else:
                    taken, left = _sorted(left, read)
                if not taken:
                    continue
                lots = self._lots(template, lane, taken, now_ns, answers)
                queues.setdefault(template.model.batcher, []).extend(lots)
            rest += left
        for batcher, lots in queues.items():
            batcher.take(lots)
        return rest

    def _lots(
        self, template: RestTemplate, lane: Lane, calls: list[Call], now_ns: int, answers: Answers
    ) -> list[Lot]:
        """Return the calls that may run the template's model."""
        groups: list[tuple[list[Call], Any, str]] = [(calls, answers, "")]
        if self._admission is not None:
            fail = _Replies(answers, template, lane).fail
            model, rows = template.model.name, template.rows
            groups = self._admission.admit(model, rows, calls, answers, fail)
        watch = self._protocol.watch
        lots: list[Lot] = []
        for its, endings, principal in groups:
            replies = _Replies(endings, template, lane)
            lot = _RestLot(template, its, list(map(_BODY, its)), now_ns, replies)
            lots += lot.split(watch, principal) if watch.active else [lot]
        return lots

    def forget(self) -> None:
        """Keep no model that serves no more."""
        self._clear()

    def learn(
        self,
        lane: Lane | None,
        body: bytes,
        call: InferBody,
        tensors: list[Tensor],
    ) -> None:
        """Take the form of a request that was answered, where it has a simple one."""
        if lane is None:
            return
        model = self._protocol.unrouted(lane.model, lane.version)
        if model is None or model.cached is not None or self._knows(lane, body):
            return
        wanted = [output.name for output in call.outputs]
        if not model.is_plain(call.id, wanted):
            return
        form = form_of(body, lane.json_bytes, call, tensors)
        if form is None:
            return
        rows = rows_of(model, tensors, wanted)
        if rows is None:
            return
        self._add(lane, RestTemplate(
            form, call, tensors, model, rows,
            compress_bytes_min=COMPRESS_BYTES_MIN if lane.accepts else float("inf"),
        ))  # fmt: skip

    def _knows(self, lane: Lane, body: bytes) -> bool:
        return any(t.form.read([body]) != [None] for t in self._templates.get(lane, ()))

    def _add(self, lane: Lane, template: RestTemplate) -> None:
        if self._count >= _TEMPLATES_MAX:
            self._clear()
        templates = self._templates.setdefault(lane, [])
        if len(templates) >= _TEMPLATES_OF_LANE_MAX:
            self._count -= len(templates)
            templates.clear()
        templates.append(template)
        self._count += 1

    def _holds(self, lane: Lane, template: RestTemplate) -> bool:
        """Return whether the template's model is what answers now, without a release plan.

        When one no longer holds all are forgotten: swaps are rare, learning again is cheap, and
        nothing keeps a model that was unloaded.
        """
        answering: ServedModel | None = self._protocol.unrouted(lane.model, lane.version)
        if answering is template.model:
            return True
        self._clear()
        return False

    def _clear(self) -> None:
        self._templates = {}
        self._count = 0


def _sorted(calls: list[Call], read: list[Any]) -> tuple[list[Call], list[Call]]:
    """Return the calls that were read, with what was read for a body, and the others."""
    taken = [(*call[:3], body) for call, body in zip(calls, read, strict=True) if body is not None]
    if len(taken) == len(calls):
        return taken, []
    return taken, [call for call, body in zip(calls, read, strict=True) if body is None]


class _Replies:
    """Where one lot's answers go (`infer_door.Tick`)."""

    __slots__ = ("_answers", "_lane", "_template")

    def __init__(self, answers: Answers, template: RestTemplate, lane: Lane) -> None:
        self._answers = answers
        self._template = template
        self._lane = lane

    def all(self, calls: list[Call], outputs: list[Any]) -> Callable[[], None]:
        """Make the replies out of the session's joined outputs; return what sends them."""
        found = self._template.answers(outputs, len(calls))
        if found is not None:
            return partial(self._answers.reply_all, calls, *found)
        headers = {"accept-encoding": self._lane.accepts}
        responses = [
            compressed(headers, response) for response in self._template.whole(outputs, len(calls))
        ]
        return partial(self._answer_each, calls, responses)

    def _answer_each(self, calls: list[Call], responses: list[Response]) -> None:
        for call, response in zip(calls, responses, strict=True):
            self._answers.answer(call, response)

    def fail(self, call: Call, error: HeadraceError) -> None:
        """End a call with an error."""
        response: Response = error_of(error)
        self._answers.answer(call, response)

    def drop(self, call: Call) -> None:
        """End a call whose client went away."""
        self._answers.drop(call)

    def is_open(self, call: Call) -> bool:
        """Return whether the client still waits."""
        return self._answers.is_open(call)


class _RestLot(CallLot):
    """Requests that came by REST."""

    __slots__ = ()
    _tick: _Replies

    def replying(
        self, template: RestTemplate, calls: list[Call], bodies: list[Any], outputs: list[Any]
    ) -> Callable[[], None]:
        """Make the responses."""
        return self._tick.all(calls, outputs)
