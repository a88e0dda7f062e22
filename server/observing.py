"""How a worker is looked at: its watch, its traces' way out, and what clients may set of both."""

from __future__ import annotations

import random
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from server.metrics import Metric, Sample
from server.protocol.oip_logging import LOGGING, LogCalls
from server.protocol.oip_tracing import TRACING, TraceCalls
from server.tracing.export import Exporter, otlp
from server.tracing.rules import Rule
from server.tracing.spans import Traced
from server.tracing.tracer import Tracer
from server.watch import Watch
from server.wire.handlers import Handlers
from server.wire.routes import Routes

# The thread that writes spans computes (85 us a trace): the loop gets its turn back after this, not
# after the 5 ms of Python's default. Beside a thread that never rests it does 1.7 times as much so.
_SWITCH_S = 0.001


class Observing:
    """One worker's. `tell` has all workers change settings, by the extension's name, as this one
    does, and returns what waits for them; it raises UnavailableError where nobody passes that on.
    """

    def __init__(
        self,
        worker: int,
        tell: Callable[[str, dict[str, Any]], Awaitable[None]],
        is_known: Callable[[str], bool],
        *,
        log_requests: bool,
        trace_endpoint: str | None,
        trace_rate: int,
    ) -> None:
        """`is_known` says whether there is a model of a name."""
        self._exporter: Exporter | None = None
        if trace_endpoint is not None:
            self._exporter = Exporter(otlp(trace_endpoint, worker))
        tracer = Tracer(self._put, random.random)
        self.watch = Watch(log=log_requests, tracer=tracer)
        self._logging = LogCalls(partial(tell, LOGGING))
        self._tracing = TraceCalls(
            tracer,
            Rule(on=trace_endpoint is not None, rate=trace_rate),
            is_known,
            self.watch.refresh,
            partial(tell, TRACING),
            available=trace_endpoint is not None,
        )

    def table(self) -> Handlers:
        """Return the gRPC handler table."""
        return {**self._logging.table(), **self._tracing.table()}

    def add_to(self, routes: Routes) -> None:
        """Add the REST paths."""
        self._logging.add_to(routes)
        self._tracing.add_to(routes)

    def apply(self, changed: Mapping[str, Any]) -> None:
        """Take settings that a client has changed, here or at another worker."""
        if LOGGING in changed:
            self._logging.apply(changed[LOGGING])
        if TRACING in changed:
            self._tracing.apply(changed[TRACING])

    def log_settings(self) -> dict[str, Any]:
        """Return which lines this worker writes, by Triton's names."""
        return self._logging.settings()

    def start(self) -> None:
        """Begin to send what is traced."""
        if self._exporter is not None:
            sys.setswitchinterval(_SWITCH_S)
            self._exporter.start()

    async def close(self, timeout_s: float) -> None:
        """Send what waits, within a limit."""
        if self._exporter is not None:
            await self._exporter.close(timeout_s)

    def metrics(self, labels: dict[str, str]) -> list[Metric]:
        """Return what became of the traced requests."""
        exporter = self._exporter
        if exporter is None:
            return []
        values = [
            ("sent", "Traced requests whose spans were sent", exporter.sent),
            ("failed", "Traced requests that the collector did not take", exporter.failed),
            ("dropped", "Traced requests that found the queue full", exporter.dropped),
        ]
        return [
            Metric(f"headrace_traces_{name}_total", "counter", text, [Sample(value, labels)])
            for name, text, value in values
        ]

    def _put(self, traced: Traced) -> None:
        if self._exporter is not None:
            self._exporter.put(traced)
