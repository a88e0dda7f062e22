"""The benchmark of trees: its document, and that its sides are compared."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import harness, trees
from benchmarks.serving_parts import workloads


@pytest.mark.slow
def test_the_document_has_every_size(monkeypatch):
    monkeypatch.setattr(workloads, "TREES", 5)
    monkeypatch.setattr(workloads, "TRAINING_ROWS", 2000)
    monkeypatch.setattr(trees, "ROWS", 1024)
    figures = trees.measure(1, run_s=0.01)
    document = harness.document("trees", harness.machine(), {}, figures)
    sizes = [int(each["figure"].split(", ")[1].split()[0]) for each in document["figures"]]
    assert sizes == list(trees.SIZES)
    for each in document["figures"]:
        assert (each["unit"], each["peer"], each["target"]) == ("µs a row", "onnxruntime", 1.5)
        assert each["value"] > 0
        assert each["ratio"] > 0


def test_sides_that_differ_end_the_benchmark():
    batch = np.ones((2, 3), np.float32)
    trees.compare(lambda rows: rows, lambda rows: rows.copy(), [batch])
    with pytest.raises(RuntimeError, match="differs from ours"):
        trees.compare(lambda rows: rows, lambda rows: np.nextafter(rows, np.float32(2)), [batch])
