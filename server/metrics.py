"""Metrics in Prometheus text: Triton's names for models, `headrace_…` for what is ours.

Written by hand: the client library appends `_total` to every counter, and Triton's names have none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

from server.access.gate import Gate
from server.execution.histogram import Histogram
from server.execution.statistics import REASONS, Statistics
from server.models.loaded import ServedModel
from server.wire.http1.server import HttpServer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NS_PER_US = 1000
# Written in one go: some 0.4 ms of the loop.
_SAMPLES_AT_ONCE = 200
_LABELS_KEPT = 4096  # they are the same ones in every scrape


@dataclass(frozen=True, slots=True)
class Sample:
    """One value with its labels. `suffix` follows the family's name: of a histogram's samples."""

    value: float
    labels: dict[str, str] = field(default_factory=dict)
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Metric:
    """One family: a `counter`, a `gauge` or a `histogram`. Its samples are read once."""

    name: str
    kind: str
    text: str
    samples: Iterable[Sample]


class Part(NamedTuple):
    """One family as text: its samples, a line each."""

    name: str
    kind: str
    text: str
    lines: bytes


async def parts_of(metrics: Iterable[Metric]) -> list[Part]:
    """Write families out, some lines at a time: between them the loop does other work."""
    parts = []
    for metric in metrics:
        samples = iter(metric.samples)
        lines: list[str] = []
        while some := list(islice(samples, _SAMPLES_AT_ONCE)):
            lines += [_line(metric.name, sample) for sample in some]
            await asyncio.sleep(0)
        parts.append(Part(metric.name, metric.kind, metric.text, "".join(lines).encode()))
    return parts


def exposition(parts: Iterable[Part]) -> bytes:
    """Return the text of version 0.0.4 of Prometheus's exposition format.

    Parts of one family come together, under the head of the first.
    """
    families: dict[str, list[bytes]] = {}
    for name, kind, text, lines in parts:
        family = families.get(name)
        if family is None:
            head = f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
            family = families[name] = [head.encode()]
        family.append(lines)
    return b"".join(piece for family in families.values() for piece in family)


def _line(name: str, sample: Sample) -> str:
    labels = ",".join(map(_label, sample.labels.items()))
    within = f"{{{labels}}}" if labels else ""
    return f"{name}{sample.suffix}{within} {sample.value:.17g}\n"


@lru_cache(_LABELS_KEPT)
def _label(label: tuple[str, str]) -> str:
    return f'{label[0]}="{_escape(label[1])}"'


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def model_metrics(models: Sequence[ServedModel], labels: Mapping[str, str]) -> list[Metric]:
    """Return Triton's families for these models; `labels` are said of each."""
    labelled = [{"model": m.name, "version": m.version, **labels} for m in models]
    counted = [(own, m.statistics) for own, m in zip(labelled, models, strict=True)]
    families: list[tuple[str, str, list[float]]] = [
        ("request_success", "Number of successful inference requests, all batch sizes",
         [s.success.count for _, s in counted]),
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
            [Sample(value, own) for value, own in zip(values, labelled, strict=True)],
        )
        for name, text, values in families
    ]
    cached = [
        (own, m.statistics) for own, m in zip(labelled, models, strict=True) if m.cached is not None
    ]
    failures = [
        Sample(statistics.fail_reasons.get(reason, 0), {**own, "reason": reason})
        for own, statistics in counted
        for reason in REASONS
    ]
    waiting = [Sample(m.waiting, own) for own, m in zip(labelled, models, strict=True)]
    loads = [Sample(m.load_ns / 1e9, own) for own, m in zip(labelled, models, strict=True)]
    memory = [Sample(m.memory_bytes, own) for own, m in zip(labelled, models, strict=True)]
    text = "Instantaneous number of pending requests awaiting execution per model"
    return [
        *metrics,
        Metric("nv_inference_request_failure", "counter",
               "Number of failed inference requests, all batch sizes, by reason", failures),
        Metric("nv_inference_pending_request_count", "gauge", text, waiting),
        *(_cache_metrics(cached) if cached else []),
        Metric(
            "headrace_model_memory_bytes",
            "gauge",
            "Memory that the process held more after it loaded the model",
            memory,
        ),
        Metric("nv_model_load_duration_secs", "gauge", "Model load time in seconds", loads),
        _histogram(
            "headrace_inference_duration_seconds",
            "Inference requests that succeeded, from arrival to answer",
            [(own, s.durations) for own, s in counted],
        ),
        _histogram(
            "headrace_inference_queue_seconds",
            "Inference requests that succeeded, the wait for their batch",
            [(own, s.queue_durations) for own, s in counted],
        ),
    ]  # fmt: skip


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
    samples = (sample for labels, histogram in counted for sample in _buckets(labels, histogram))
    return Metric(name, "histogram", text, samples)


def _buckets(labels: dict[str, str], histogram: Histogram) -> Iterator[Sample]:
    total_ns, counts = histogram.total_ns, list(histogram.cumulative())  # of one moment
    count = 0
    for bound_s, count in counts:
        bound = "+Inf" if bound_s == float("inf") else f"{bound_s:g}"
        yield Sample(count, {**labels, "le": bound}, "_bucket")
    yield Sample(total_ns / 1e9, labels, "_sum")
    yield Sample(count, labels, "_count")


def gate_metrics(gate: Gate, labels: dict[str, str]) -> list[Metric]:
    """Return what access control let through and refused; strangers have no tenant."""
    calls = [Sample(n, {**labels, "tenant": tenant}) for tenant, n in sorted(gate.calls.items())]
    refused = [
        Sample(n, {**labels, "tenant": tenant, "reason": reason})
        for (tenant, reason), n in sorted(gate.refused.items())
    ]
    name = "headrace_access"
    return [
        Metric(f"{name}_calls_total", "counter", "Calls of models let through, by tenant", calls),
        Metric(f"{name}_refused_total", "counter", "Calls refused, by tenant and reason", refused),
    ]


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
