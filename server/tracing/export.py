"""Spans go out: a bounded queue, and OTLP over HTTP by OpenTelemetry's own exporter.

The package is an extra (`tracing`). Its settings come by OpenTelemetry's environment
(OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES …).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from headrace import __version__
from headrace.errors import FailedPreconditionError, InvalidArgumentError
from server.extras import how_to_install
from server.tracing.spans import Ids, Span, Traced, spans_of

_LOG = logging.getLogger(__name__)
WAITING_MAX = 8192  # requests; beyond it they are counted and not traced
_SENT_AT_ONCE_MAX = 512
_INTERVAL_S = 0.5
_SEND_TIMEOUT_S = 5
_PACKAGE = "opentelemetry.exporter.otlp.proto.http.trace_exporter"

Send = Callable[[Sequence[Span]], bool]


def check_endpoint(endpoint: str) -> None:
    """Raise InvalidArgumentError for what is no URL to send spans to, FailedPreconditionError where
    the packages are missing that send them."""
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InvalidArgumentError(
            "bad value for trace_endpoint",
            expected="http://HOST:4318/v1/traces",
            mend="check --trace-endpoint",
        )
    if "@" in parts.netloc:
        raise InvalidArgumentError(
            "trace_endpoint holds a password, and arguments are for everybody to read",
            mend="put it into the environment, as OTEL_EXPORTER_OTLP_HEADERS",
        )
    try:
        found = importlib.util.find_spec(_PACKAGE) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise FailedPreconditionError(
            "trace_endpoint is set, and OpenTelemetry's exporter is not installed",
            mend=how_to_install("tracing"),
        )


class Exporter:
    """Sends what is put into it, in the background. `sent`, `dropped`, `failed` count requests."""

    def __init__(self, send: Send) -> None:
        self.sent = self.dropped = self.failed = 0
        self._send = send
        self._waiting: deque[Traced] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        # Of its own: who takes the spans may be slow, and models wait for nobody.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="spans")

    def start(self) -> None:
        """Begin to send."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="spans")

    def put(self, traced: Traced) -> None:
        """Take a request that is over. Never waits."""
        if len(self._waiting) >= WAITING_MAX:
            self.dropped += 1
            return
        self._waiting.append(traced)

    async def close(self, timeout_s: float) -> None:
        """Send what waits, within a limit."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._task
        self.dropped += len(self._waiting)
        self._waiting.clear()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_INTERVAL_S):
                    await self._wake.wait()
            while self._waiting:
                count = min(len(self._waiting), _SENT_AT_ONCE_MAX)
                some = [self._waiting.popleft() for _ in range(count)]
                taken = False
                try:
                    taken = await loop.run_in_executor(self._executor, self._export, some)
                finally:  # also when the end does not wait for it
                    self.sent += count if taken else 0
                    self.failed += 0 if taken else count
            if self._closing:
                return

    def _export(self, requests: list[Traced]) -> bool:
        since_1970_ns = time.time_ns() - time.monotonic_ns()
        try:
            return self._send(spans_of(requests, since_1970_ns, secrets.token_bytes))
        except Exception:  # noqa: BLE001 - spans are lost and counted; requests never notice
            _LOG.exception("%d traces cannot be sent", len(requests))
            return False


def otlp(endpoint: str, worker: int) -> Send:
    """Return what sends spans to a collector."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExportResult
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    attributes: dict[str, Any] = {"service.instance.id": f"worker-{worker}"}
    named = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in named:
        attributes["service.name"] = "headrace"
    resource = Resource.create(attributes)
    scope = InstrumentationScope("headrace", __version__)
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_SEND_TIMEOUT_S)

    def send(spans: Sequence[Span]) -> bool:
        readable = [_readable(span, resource, scope) for span in spans]
        return bool(exporter.export(readable) is SpanExportResult.SUCCESS)

    return send


def _readable(span: Span, resource: Any, scope: Any) -> Any:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Link, SpanKind
    from opentelemetry.trace.status import Status, StatusCode

    ids = span.ids
    parent = None
    if ids.parent_id is not None:
        above = Ids(ids.trace_id, ids.parent_id, None, ids.state)
        parent = _context(above, is_remote=span.is_server)
    status = Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET)
    return ReadableSpan(
        name=span.name,
        context=_context(ids, is_remote=False),
        parent=parent,
        resource=resource,
        attributes=span.attributes,
        links=[Link(_context(each, is_remote=False)) for each in span.links],
        kind=SpanKind.SERVER if span.is_server else SpanKind.INTERNAL,
        status=status,
        start_time=span.started_ns,
        end_time=span.ended_ns,
        instrumentation_scope=scope,
    )


def _context(ids: Ids, *, is_remote: bool) -> Any:
    from opentelemetry.trace import SpanContext, TraceFlags, TraceState

    return SpanContext(
        int.from_bytes(ids.trace_id, "big"),
        int.from_bytes(ids.span_id, "big"),
        is_remote,
        TraceFlags(TraceFlags.SAMPLED),
        TraceState.from_header([ids.state]) if ids.state else TraceState(),
    )
