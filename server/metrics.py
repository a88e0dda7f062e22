"""Metrics in Prometheus text: Triton's names for models, `headrace_…` for what is ours.

Written by hand: the client library appends `_total` to every counter, and Triton's names have none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.execution.histogram import Histogram
from server.execution.statistics import Statistics
from server.models.loaded import LoadedModel
from server.wire.http1.server import HttpServer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NS_PER_US = 1000


@dataclass(frozen=True, slots=True)
class Sample:
    """One value with its labels. `suffix` follows the family's name: of a histogram's samples."""

    value: float
    labels: dict[str, str] = field(default_factory=dict)
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Metric:
    """One family: a `counter`, a `gauge` or a `histogram`."""

    name: str
    kind: str
    text: str
    samples: Sequence[Sample]


def exposition(metrics: Iterable[Metric]) -> bytes:
    """Return the text of version 0.0.4 of Prometheus's exposition format."""
    lines: list[str] = []
    for metric in metrics:
        lines.append(f"# HELP {metric.name} {metric.text}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        for sample in metric.samples:
            labels = ",".join(f'{key}="{_escape(text)}"' for key, text in sample.labels.items())
            name = metric.name + sample.suffix
            lines.append(f"{name}{{{labels}}} {sample.value:.17g}" if labels
                         else f"{name} {sample.value:.17g}")  # fmt: skip
    lines.append("")
    return "\n".join(lines).encode()


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def model_metrics(models: Sequence[LoadedModel]) -> list[Metric]:
    """Return Triton's families for these models."""
    counted = [({"model": m.name, "version": m.version}, m.statistics) for m in models]
    families: list[tuple[str, str, list[float]]] = [
        ("request_success", "Number of successful inference requests, all batch sizes",
         [s.success.count for _, s in counted]),
        ("request_failure", "Number of failed inference requests, all batch sizes",
         [s.fail.count for _, s in counted]),
        ("count", "Number of inferences performed (rows)", [s.inference_count for _, s in counted]),
        ("exec_count", "Number of model executions performed (batches)",
         [s.execution_count for _, s in counted]),
        ("request_duration_us", "Cumulative inference request duration in microseconds",
         [s.success.total_ns // _NS_PER_US for _, s in counted]),
        ("queue_duration_us", "Cumulative inference queuing duration in microseconds",
         [s.queue.total_ns // _NS_PER_US for _, s in counted]),
        ("compute_input_duration_us", "Cumulative compute input duration in microseconds",
         [s.compute_input.total_ns // _NS_PER_US for _, s in counted]),
        ("compute_infer_duration_us", "Cumulative compute inference duration in microseconds",
         [s.compute_infer.total_ns // _NS_PER_US for _, s in counted]),
        ("compute_output_duration_us", "Cumulative compute output duration in microseconds",
         [s.compute_output.total_ns // _NS_PER_US for _, s in counted]),
    ]  # fmt: skip
    metrics = [
        Metric(
            f"nv_inference_{name}",
            "counter",
            text,
            [Sample(value, labels) for value, (labels, _) in zip(values, counted, strict=True)],
        )
        for name, text, values in families
    ]
    cached = [
        ({"model": m.name, "version": m.version}, m.statistics)
        for m in models
        if m.cached is not None
    ]
    memory = [Sample(m.memory_bytes, {"model": m.name, "version": m.version}) for m in models]
    waiting = [Sample(m.waiting, {"model": m.name, "version": m.version}) for m in models]
    text = "Instantaneous number of pending requests awaiting execution per model"
    return [
        *metrics,
        Metric("nv_inference_pending_request_count", "gauge", text, waiting),
        *(_cache_metrics(cached) if cached else []),
        Metric(
            "headrace_model_memory_bytes",
            "gauge",
            "Memory that the process held more after it loaded the model",
            memory,
        ),
        _histogram(
            "headrace_inference_duration_seconds",
            "Inference requests that succeeded, from arrival to answer",
            [(labels, s.durations) for labels, s in counted],
        ),
        _histogram(
            "headrace_inference_queue_seconds",
            "Inference requests that succeeded, the wait for their batch",
            [(labels, s.queue_durations) for labels, s in counted],
        ),
    ]


def _cache_metrics(cached: Sequence[tuple[dict[str, str], Statistics]]) -> list[Metric]:
    families: list[tuple[str, str, Callable[[Statistics], float]]] = [
        ("num_hits", "Number of response cache hits per model", lambda s: s.cache_hit.count),
        ("num_misses", "Number of response cache misses per model", lambda s: s.cache_miss.count),
        ("hit_duration", "Total cache hit duration per model, in microseconds",
         lambda s: s.cache_hit.total_ns // _NS_PER_US),
        ("miss_duration", "Total cache miss duration per model, in microseconds",
         lambda s: s.cache_miss.total_ns // _NS_PER_US),
    ]  # fmt: skip
    return [
        Metric(
            f"nv_cache_{name}_per_model",
            "counter",
            text,
            [Sample(value(statistics), labels) for labels, statistics in cached],
        )
        for name, text, value in families
    ]


def _histogram(name: str, text: str, counted: Sequence[tuple[dict[str, str], Histogram]]) -> Metric:
    samples = []
    for labels, histogram in counted:
        count = 0
        for bound_s, count in histogram.cumulative():
            bound = "+Inf" if bound_s == float("inf") else f"{bound_s:g}"
            samples.append(Sample(count, {**labels, "le": bound}, "_bucket"))
        samples.append(Sample(histogram.total_ns / 1e9, labels, "_sum"))
        samples.append(Sample(count, labels, "_count"))
    return Metric(name, "histogram", text, samples)


def http_metrics(server: HttpServer, labels: dict[str, str]) -> list[Metric]:
    """Return the counters of one HTTP server."""
    calls = server.calls

    def metric(name: str, kind: str, text: str, value: float) -> Metric:
        return Metric(f"headrace_http_{name}", kind, text, [Sample(value, labels)])

    def by(name: str, text: str, key: str, values: Mapping[Any, int]) -> Metric:
        samples = [Sample(n, {**labels, key: str(value)}) for value, n in sorted(values.items())]
        return Metric(f"headrace_{name}", "counter", text, samples)

    return [
        metric("connections", "gauge", "Open HTTP connections", server.open_connections),
        metric("calls_live", "gauge", "HTTP handlers at work", calls.live),
        metric("calls_started_total", "counter", "HTTP calls that began", calls.started),
        metric("held_bytes", "gauge", "Bytes of HTTP requests that are held", server.held.held),
        by("http_calls_ended_total", "HTTP calls by status; 499: the client went away", "status",
           calls.ended),
        by("http1_abuse_total", "Hostile requests and connections, by what was refused", "reason",
           server.abuse),
    ]  # fmt: skip
