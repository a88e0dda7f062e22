"""Spans on their way out: to a collector that is there, away, or slow; by OTLP's own classes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from headrace.errors import FailedPreconditionError, InvalidArgumentError
from server.tracing import export
from server.tracing.export import WAITING_MAX, Exporter, check_endpoint, otlp
from server.tracing.spans import Ids, Run, Span, Traced
from tests.support.otlp_collector import OtlpCollector, attributes_of

TRACE = bytes(range(16))


def traced(number: int = 1, error: str = "") -> Traced:
    ids = Ids(TRACE, bytes([number]) * 8, b"p" * 8, "a=1,b=2")
    run = Run("m", "1", 1_000, 2_000, 3_000, 4)
    return Traced(
        ids, "ModelInfer", "m", "1", "order-7", 500, 3_500, 13 if error else 0, error, [run]
    )


async def test_what_a_collector_gets() -> None:
    pytest.importorskip(export._PACKAGE)
    with OtlpCollector() as collector:
        exporter = Exporter(otlp(collector.endpoint, 3))
        exporter.start()
        exporter.put(traced(1))
        exporter.put(traced(2, "it failed"))
        await exporter.close(10)
        assert (exporter.sent, exporter.failed, exporter.dropped) == (2, 0, 0)
        spans = {(span.name, span.span_id[:1]): span for span in collector.spans}
    assert collector.resources[0]["service.name"] == "headrace"
    assert collector.resources[0]["service.instance.id"] == "worker-3"
    server = spans["ModelInfer", b"\x01"]
    assert (server.trace_id, server.parent_span_id, server.trace_state) == (
        TRACE,
        b"p" * 8,
        "a=1,b=2",
    )
    assert server.kind == server.SPAN_KIND_SERVER
    assert server.end_time_unix_nano - server.start_time_unix_nano == 3_000
    assert attributes_of(server) == {
        "triton.model_name": "m", "triton.model_version": "1", "triton.request_id": "order-7",
        "rpc.grpc.status_code": 0,
    }  # fmt: skip
    failed = spans["ModelInfer", b"\x02"]
    assert (failed.status.code, failed.status.message) == (
        failed.status.STATUS_CODE_ERROR,
        "it failed",
    )
    models = [span for span in collector.spans if span.name == "model"]
    assert {span.parent_span_id for span in models} == {b"\x01" * 8, b"\x02" * 8}
    assert {span.links[0].span_id for span in models} == {b"\x01" * 8, b"\x02" * 8}
    for span in models:
        assert span.links[0].span_id != span.parent_span_id
        assert span.kind == span.SPAN_KIND_INTERNAL


async def test_what_a_collector_refuses_is_counted() -> None:
    pytest.importorskip(export._PACKAGE)
    with OtlpCollector(status=400) as collector:
        exporter = Exporter(otlp(collector.endpoint, 0))
        exporter.start()
        exporter.put(traced())
        await exporter.close(10)
        assert (exporter.sent, exporter.failed, exporter.dropped) == (0, 1, 0)


async def test_a_slow_collector_costs_traces_and_no_time() -> None:
    go_on = threading.Event()

    def send(spans: Sequence[Span]) -> bool:
        return go_on.wait(10)

    exporter = Exporter(send)
    for _ in range(WAITING_MAX + 5):
        exporter.put(traced())
    assert exporter.dropped == 5
    exporter.start()
    await asyncio.sleep(0)
    await exporter.close(0.01)
    go_on.set()
    assert exporter.sent == 0
    assert exporter.failed > 0
    assert exporter.failed + exporter.dropped == WAITING_MAX + 5


async def test_a_fault_of_the_way_out_loses_spans_alone() -> None:
    def send(spans: Sequence[Span]) -> bool:
        raise OSError("no way")

    exporter = Exporter(send)
    exporter.start()
    exporter.put(traced())
    await exporter.close(10)
    assert exporter.failed == 1


@pytest.mark.parametrize("endpoint", ["localhost:4318", "grpc://host:4317", "http://", ""])
def test_an_endpoint_is_a_url(endpoint: str) -> None:
    with pytest.raises(InvalidArgumentError, match="bad value for trace_endpoint"):
        check_endpoint(endpoint)


def test_a_password_goes_by_the_environment() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_endpoint("http://user:secret@host:4318/v1/traces")
    assert "secret" not in caught.value.message
    assert "OTEL_EXPORTER_OTLP_HEADERS" in caught.value.message


def test_without_the_packages_the_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_PACKAGE", "opentelemetry_is_not.here")
    with pytest.raises(FailedPreconditionError, match=r"pip install -e '\.\[tracing\]'"):
        check_endpoint("http://host:4318/v1/traces")
