"""The exposition: prometheus-client's own parser is the oracle."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from server.metrics import Metric, Sample, exposition, http_metrics
from server.wire.http1.server import HttpServer
from server.wire.routes import Routes

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
