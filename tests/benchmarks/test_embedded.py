"""The benchmark of the embedded Predictor: its document."""

from __future__ import annotations

import pytest

from benchmarks import embedded, harness


@pytest.mark.slow
def test_the_document_has_every_figure(monkeypatch):
    monkeypatch.setattr(embedded, "EVENTS", 2000)
    figures = embedded.measure(1, run_s=0.05)
    document = harness.document("embedded", harness.machine(), {}, figures)
    assert [(each["unit"], each["peer"]) for each in document["figures"]] == [
        ("s", "onnxruntime"),
        ("s", "onnxruntime"),
        ("µs", "onnxruntime"),
        ("µs", None),
        ("µs a row", None),
    ]
    assert all(each["value"] > 0 for each in document["figures"])
