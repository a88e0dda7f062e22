"""A collector of spans: OTLP over HTTP on a real port; OpenTelemetry's own classes read it."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from headrace.errors import FailedPreconditionError
from server.tracing.export import check_endpoint
from tests.server.processes.running import eventually

try:
    check_endpoint("http://127.0.0.1:4318/v1/traces")
    CAN_EXPORT = True
except FailedPreconditionError:  # an extra
    CAN_EXPORT = False


class OtlpCollector:
    """Use in a `with` block. `status` is what it answers."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.take(
                    self.rfile.read(int(self.headers["content-length"])), dict(self.headers)
                )
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def take(self, body: bytes, headers: dict[str, str]) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        if headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        self.headers.append(headers)
        for resource in request.resource_spans:
            told = resource.resource.attributes
            self.resources.append({each.key: each.value.string_value for each in told})
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def named(self, name: str, trace_id: str) -> Any:
        """Wait for the one span of this name in a trace."""
        found: list[Any] = []

        def look() -> bool:
            found[:] = [
                span
                for span in list(self.spans)
                if (span.name, span.trace_id.hex()) == (name, trace_id)
            ]
            return bool(found)

        eventually(look, f"the span {name} of {trace_id} comes")
        (span,) = found
        return span

    def __enter__(self) -> OtlpCollector:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def attributes_of(span: Any) -> dict[str, Any]:
    """A span's attributes as plain values."""
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes
    }
