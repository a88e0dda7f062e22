"""The exposition: prometheus-client's own parser is the oracle."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from server.metrics import Metric, Sample, exposition

LABELS = st.dictionaries(st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True), st.text(max_size=8))


@given(st.lists(st.tuples(st.floats(allow_nan=False, allow_infinity=False), LABELS), max_size=4))
def test_any_label_and_value_survives(samples: list[tuple[float, dict[str, str]]]) -> None:
    metric = Metric("headrace_x", "gauge", "help", [Sample(v, labels) for v, labels in samples])
    families = list(text_string_to_metric_families(exposition([metric]).decode()))
    (family,) = families
    assert (family.name, family.type, family.documentation) == ("headrace_x", "gauge", "help")
    assert [(sample.value, sample.labels) for sample in family.samples] == samples
