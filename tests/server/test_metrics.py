"""The exposition: prometheus-client's own parser is the oracle."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from server.execution.threads import RunThreads
from server.metrics import Metric, Sample, exposition, http_metrics, model_metrics
from server.models.repository import ModelRepository
from server.wire.http1.server import HttpServer
from server.wire.routes import Routes
from tests.server.onnx_models import add_model, put

LABELS = st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True), st.text(max_size=8))


@given(st.lists(st.tuples(st.floats(allow_nan=False, allow_infinity=False), LABELS), max_size=4))
def test_any_label_and_value_survives(samples: list[tuple[float, dict[str, str]]]) -> None:
    metric = Metric("headrace_x", "gauge", "help", [Sample(v, labels) for v, labels in samples])
    families = list(text_string_to_metric_families(exposition([metric]).decode()))
    (family,) = families
    assert (family.name, family.type, family.documentation) == ("headrace_x", "gauge", "help")
    assert [(sample.value, sample.labels) for sample in family.samples] == samples


def test_what_an_http_server_refused_is_told_by_reason() -> None:
    server = HttpServer(Routes())
    server.abuse.update({"slow_head": 3, "framing": 1})
    server.calls.begin(2)
    server.calls.end(404)
    text = exposition(http_metrics(server, {"worker": "0"})).decode()
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
    statistics.succeeded(1, 300_000, 200_000, 1, 1, 1, requests=3)
    statistics.succeeded(1, 7_000_000_000, 50_000, 1, 1, 1)
    text = exposition(model_metrics(repository.models())).decode()
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
    assert families["nv_inference_request_success"].samples[0].value == 4
