"""What one model version did since it was loaded, counted as Triton's statistics extension says."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from headrace.errors import HeadraceError
from server.execution.histogram import Histogram
from server.execution.lots import Timing

# Triton's words for why a request failed: it was not let in or not run in time, the model failed.
REJECTED, BACKEND, OTHER = "REJECTED", "BACKEND", "OTHER"
REASONS = (REJECTED, BACKEND, OTHER)
_REASONS = {
    "resource_exhausted": REJECTED,
    "unavailable": REJECTED,
    "deadline_exceeded": REJECTED,
    "internal": BACKEND,
}


@dataclass(slots=True)
class Duration:
    """How often something happened and how long it took in all."""

    count: int = 0
    total_ns: int = 0


@dataclass(slots=True)
class BatchStatistics:
    """Executions of one batch size."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class Statistics:
    """`inference_count` counts rows, `execution_count` batches, `success.count` requests."""

    inference_count: int = 0
    execution_count: int = 0
    last_inference_ms: int = 0  # Unix time
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    fail_reasons: dict[str, int] = field(default_factory=dict)  # of `fail`, by REASONS
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    # What the response cache took: of requests that it answered, and of those that had to run.
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)
    batches: dict[int, BatchStatistics] = field(default_factory=dict)
    # Of the requests that succeeded, as `success` and `queue`.
    durations: Histogram = field(default_factory=Histogram)
    queue_durations: Histogram = field(default_factory=Histogram)

    def executed(self, rows: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Count one batch."""
        self.execution_count += 1
        batch = self.batches.get(rows)
        if batch is None:
            batch = self.batches.setdefault(rows, BatchStatistics())
        part = batch.compute_input  # written out, here and below: this is once a tick and model
        part.count += 1
        part.total_ns += input_ns
        part = batch.compute_infer
        part.count += 1
        part.total_ns += infer_ns
        part = batch.compute_output
        part.count += 1
        part.total_ns += output_ns

    def succeeded(self, rows: int, total_ns: int, timing: Timing, *, requests: int = 1) -> None:
        """Count requests of `rows` rows each that were answered, and what each one's way took."""
        self.inference_count += (rows or 1) * requests
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.durations.observe(total_ns, requests)
        self.queue_durations.observe(timing.queue_ns, requests)
        part = self.success
        part.count += requests
        part.total_ns += total_ns * requests
        part = self.queue
        part.count += requests
        part.total_ns += timing.queue_ns * requests
        part = self.compute_input
        part.count += requests
        part.total_ns += timing.input_ns * requests
        part = self.compute_infer
        part.count += requests
        part.total_ns += timing.infer_ns * requests
        part = self.compute_output
        part.count += requests
        part.total_ns += timing.output_ns * requests

    def failed(self, total_ns: int, error: HeadraceError, *, requests: int = 1) -> None:
        """Count requests that were not answered with tensors."""
        self.fail.count += requests
        self.fail.total_ns += total_ns * requests
        reason = _REASONS.get(error.code, OTHER)
        self.fail_reasons[reason] = self.fail_reasons.get(reason, 0) + requests

    def answered_before(self, total_ns: int, lookup_ns: int) -> None:
        """Count a request that took no run: a success, and no inference (as Triton counts)."""
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.success.count += 1
        self.success.total_ns += total_ns
        self.durations.observe(total_ns, 1)
        self.queue_durations.observe(0, 1)
        self.cache_hit.count += 1
        self.cache_hit.total_ns += lookup_ns

    def missed(self, cache_ns: int) -> None:
        """Count a request that the cache could not answer."""
        self.cache_miss.count += 1
        self.cache_miss.total_ns += cache_ns
