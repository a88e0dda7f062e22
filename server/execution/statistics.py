"""What one model version did since it was loaded, counted as Triton's statistics extension says."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Duration:
    """How often something happened and how long it took in all."""

    count: int = 0
    total_ns: int = 0

    def add(self, duration_ns: int) -> None:
        """Count one more."""
        self.count += 1
        self.total_ns += duration_ns


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
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    batches: dict[int, BatchStatistics] = field(default_factory=dict)

    def executed(self, rows: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Count one batch."""
        self.execution_count += 1
        batch = self.batches.get(rows)
        if batch is None:
            batch = self.batches.setdefault(rows, BatchStatistics())
        batch.compute_input.add(input_ns)
        batch.compute_infer.add(infer_ns)
        batch.compute_output.add(output_ns)

    def succeeded(
        self,
        rows: int,
        total_ns: int,
        queue_ns: int,
        input_ns: int,
        infer_ns: int,
        output_ns: int,
    ) -> None:
        """Count one request that was answered, and what each part of its way took."""
        self.inference_count += max(rows, 1)
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.success.add(total_ns)
        self.queue.add(queue_ns)
        self.compute_input.add(input_ns)
        self.compute_infer.add(infer_ns)
        self.compute_output.add(output_ns)

    def failed(self, total_ns: int) -> None:
        """Count one request that was not answered with tensors."""
        self.fail.add(total_ns)
