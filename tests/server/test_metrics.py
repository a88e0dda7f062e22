"""The exposition: prometheus-client's own parser is the oracle."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from headrace.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)
from server.execution.lots import Timing
from server.execution.threads import RunThreads
from server.machine import MachineLoad, busy_ticks, machine_metrics, memory_bytes, process_metrics
from server.metrics import Metric, Sample, exposition, http_metrics, model_metrics, parts_of
from server.models.repository import ModelRepository
from server.wire.http1.server import HttpServer
from server.wire.routes import Routes
from tests.server.onnx_models import add_model, put

LABELS = st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True), st.text(max_size=8))


def text_of(metrics: list[Metric]) -> str:
    return exposition(asyncio.run(parts_of(metrics))).decode()


@given(st.lists(st.tuples(st.floats(allow_nan=False, allow_infinity=False), LABELS), max_size=4))
def test_any_label_and_value_survives(samples: list[tuple[float, dict[str, str]]]) -> None:
    metric = Metric("headrace_x", "gauge", "help", [Sample(v, labels) for v, labels in samples])
    families = list(text_string_to_metric_families(text_of([metric])))
    (family,) = families
    assert (family.name, family.type, family.documentation) == ("headrace_x", "gauge", "help")
    assert [(sample.value, sample.labels) for sample in family.samples] == samples


def test_what_an_http_server_refused_is_told_by_reason() -> None:
    server = HttpServer(Routes())
    server.abuse.update({"slow_head": 3, "framing": 1})
    server.calls.begin(2)
    server.calls.end(404)
    text = text_of(http_metrics(server, {"worker": "0"}))
    families = {family.name: family for family in text_string_to_metric_families(text)}
    refused = {s.labels["reason"]: s.value for s in families["headrace_http1_abuse"].samples}
    assert refused == {"slow_head": 3, "framing": 1}
    ended = [(s.labels, s.value) for s in families["headrace_http_calls_ended"].samples]
    assert ended == [({"worker": "0", "status": "404"}, 1)]
    assert families["headrace_http_calls_live"].samples[0].value == 1


def test_a_models_durations_are_a_histogram(tmp_path: Path) -> None:
    """Parsed by prometheus-client: buckets that only grow, a sum and a count."""
    put(tmp_path, "add", add_model())
    with RunThreads(1, 1) as executor:
        repository = ModelRepository(tmp_path, executor)
        asyncio.run(repository.load_all())
    statistics = repository.get("add").statistics
    statistics.succeeded(1, 300_000, Timing(200_000, 1, 1, 1), requests=3)
    statistics.succeeded(1, 7_000_000_000, Timing(50_000, 1, 1, 1))
    text = text_of(model_metrics(repository.models(), {"worker": "3"}))
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for name, counts, total_s in (
        (
            "headrace_inference_duration_seconds",
            {"0.00025": 0, "0.0005": 3, "5": 3, "10": 4},
            7.0009,
        ),
        ("headrace_inference_queue_seconds", {"0.0001": 1, "0.00025": 4, "10": 4}, 0.00065),
    ):
        family = families[name]
        assert family.type == "histogram"
        buckets = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
        assert {bound: buckets[bound] for bound in counts} == counts
        assert list(buckets.values()) == sorted(buckets.values())
        assert buckets["+Inf"] == 4
        rest = {s.name: s.value for s in family.samples if not s.name.endswith("_bucket")}
        assert rest == {f"{name}_sum": pytest.approx(total_s), f"{name}_count": 4}
    (sample,) = families["nv_inference_request_success"].samples
    labels = {"model": "add", "version": "1", "worker": "3"}
    assert (sample.value, sample.labels) == (4, labels)
    (sample,) = families["nv_model_load_duration_secs"].samples
    assert 0 < sample.value < 60
    assert sample.labels == labels


def test_failures_are_told_by_tritons_reasons(tmp_path: Path) -> None:
    put(tmp_path, "add", add_model())
    with RunThreads(1, 1) as executor:
        repository = ModelRepository(tmp_path, executor)
        asyncio.run(repository.load_all())
    statistics = repository.get("add").statistics
    statistics.failed(1, UnavailableError("full"), requests=5)
    statistics.failed(1, DeadlineExceededError("late"), requests=2)
    statistics.failed(1, InternalError("broken"))
    statistics.failed(1, InvalidArgumentError("odd"))
    text = text_of(model_metrics(repository.models(), {}))
    families = {family.name: family for family in text_string_to_metric_families(text)}
    failed = {s.labels["reason"]: s.value for s in families["nv_inference_request_failure"].samples}
    assert failed == {"REJECTED": 7, "BACKEND": 1, "OTHER": 1}
    assert statistics.fail.count == sum(failed.values())


def test_the_machine_is_what_linux_says() -> None:
    stat = "cpu  100 20 30 1000 50 6 7 8 99 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n"
    assert busy_ticks(stat) == (171, 1221)  # a guest's time is in the user's already
    assert memory_bytes("MemTotal: 100 kB\nMemFree: 3 kB\nMemAvailable:  25 kB\n") == (
        102_400,
        76_800,
    )
    text = text_of([*machine_metrics(MachineLoad()), *process_metrics({"worker": "0"})])
    value = {
        family.name: family.samples[0].value for family in text_string_to_metric_families(text)
    }
    assert 0 <= value["nv_cpu_utilization"] <= 1
    assert 0 < value["nv_cpu_memory_used_bytes"] < value["nv_cpu_memory_total_bytes"]
    assert 1e6 < value["process_resident_memory_bytes"] < value["nv_cpu_memory_total_bytes"]
    assert value["process_cpu_seconds"] > 0
    # Read by another door: when the folder of this process came to be.
    assert value["process_start_time_seconds"] == pytest.approx(
        Path("/proc/self").stat().st_ctime, abs=600
    )
