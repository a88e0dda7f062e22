"""Spans: what a traced request did and when, made after it is over.

A request is a span of kind server, under its caller's span where there is one. Under it lie the
reading of its features, the wait for its batch and the run of that; a run is linked to the other
traced requests of its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

LINKS_MAX: Final = 32
TRACE_BYTES, SPAN_BYTES = 16, 8
Attribute = str | int


class Ids(NamedTuple):
    """A span's place: of 16, 8 and 8 bytes; no parent: the trace begins here."""

    trace_id: bytes
    span_id: bytes
    parent_id: bytes | None = None
    state: str = ""


class Run(NamedTuple):
    """One run of a model for a request: it waited from `queued_ns`, then ran until `ended_ns`.

    Monotonic. `batch_rows` are of all requests in it. Equal `started_ns` of one model: one batch.
    """

    model: str
    version: str
    queued_ns: int
    started_ns: int
    ended_ns: int
    batch_rows: int


class Reading(NamedTuple):
    """The reading of one feature service."""

    service: str
    started_ns: int
    ended_ns: int


@dataclass(frozen=True, slots=True)
class Traced:
    """A request that is over. Times are monotonic, `code` is gRPC's."""

    ids: Ids
    method: str
    model: str
    version: str
    request_id: str
    started_ns: int
    ended_ns: int
    code: int
    error: str = ""
    runs: Sequence[Run] = ()
    readings: Sequence[Reading] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """One span as it is exported. Times are ns since 1970 (UTC)."""

    ids: Ids
    name: str
    is_server: bool
    started_ns: int
    ended_ns: int
    attributes: dict[str, Attribute] = field(default_factory=dict)
    links: Sequence[Ids] = ()
    error: str = ""


def spans_of(
    requests: Sequence[Traced], since_1970_ns: int, new_id: Callable[[int], bytes]
) -> list[Span]:
    """Return the spans of requests that ended about the same time.

    `since_1970_ns` is added to monotonic times; `new_id` draws so many random bytes.
    """
    batches: dict[tuple[str, str, int], list[Ids]] = {}
    for request in requests:
        for run in request.runs:
            batches.setdefault((run.model, run.version, run.started_ns), []).append(request.ids)
    spans: list[Span] = []
    for request in requests:
        spans.append(_server_span(request, since_1970_ns))
        ids = request.ids
        steps: list[tuple[str, int, int, dict[str, Attribute], Sequence[Ids]]] = []
        for reading in request.readings:
            of: dict[str, Attribute] = {"headrace.service": reading.service}
            steps.append(("features", reading.started_ns, reading.ended_ns, of, ()))
        for run in request.runs:
            mates = batches[run.model, run.version, run.started_ns]
            links = [mate for mate in mates[: LINKS_MAX + 1] if mate is not ids][:LINKS_MAX]
            about: dict[str, Attribute] = {
                "triton.model_name": run.model,
                "triton.model_version": run.version,
                "headrace.batch_rows": run.batch_rows,
            }
            steps.append(("queue", run.queued_ns, run.started_ns, {}, ()))
            steps.append(("model", run.started_ns, run.ended_ns, about, links))
        for name, started_ns, ended_ns, attributes, linked in steps:
            own = Ids(ids.trace_id, new_id(SPAN_BYTES), ids.span_id, ids.state)
            times = started_ns + since_1970_ns, ended_ns + since_1970_ns
            spans.append(Span(own, name, False, *times, attributes, linked))
    return spans


def _server_span(request: Traced, since_1970_ns: int) -> Span:
    attributes: dict[str, Attribute] = {
        "triton.model_name": request.model,
        "triton.model_version": request.version,
        "triton.request_id": request.request_id,
        "rpc.grpc.status_code": request.code,
    }
    return Span(
        request.ids,
        request.method,
        True,
        request.started_ns + since_1970_ns,
        request.ended_ns + since_1970_ns,
        {name: value for name, value in attributes.items() if value != ""},
        error=request.error,
    )
