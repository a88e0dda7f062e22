"""A model's statistics as the protocol tells them."""

from __future__ import annotations

from typing import Any

from server.execution.statistics import BatchStatistics, Duration, Statistics
from server.models.loaded import ServedModel


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.total_ns}


def statistics_of(model: ServedModel) -> dict[str, Any]:
    """Return what a model has done since it was loaded, in the protocol's field names."""
    counted: Statistics = model.statistics
    parts = (
        "success", "fail", "queue", "compute_input", "compute_infer", "compute_output",
        "cache_hit", "cache_miss",
    )  # fmt: skip
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": counted.last_inference_ms,
        "inference_count": counted.inference_count,
        "execution_count": counted.execution_count,
        "inference_stats": {part: _duration(getattr(counted, part)) for part in parts},
        "batch_stats": [
            _batch_statistics(size, batch) for size, batch in sorted(counted.batches.items())
        ],
        "memory_usage": [{"type": "CPU", "id": 0, "byte_size": model.memory_bytes}],
    }


def _batch_statistics(size: int, batch: BatchStatistics) -> dict[str, Any]:
    return {
        "batch_size": size,
        "compute_input": _duration(batch.compute_input),
        "compute_infer": _duration(batch.compute_infer),
        "compute_output": _duration(batch.compute_output),
    }
