"""The TreeSHAP benchmark: its document, and that its sides are compared."""

from __future__ import annotations

import sys

import pytest

from benchmarks import harness, tree_shap
from benchmarks.tree_shap import LIGHTGBM, OURS, SHAP


@pytest.mark.slow
def test_the_document_has_every_figure_and_a_missing_peer_is_said(monkeypatch):
    monkeypatch.setattr(tree_shap, "TREES", 5)
    monkeypatch.setattr(tree_shap, "TRAINING_ROWS", 2000)
    figures = tree_shap.measure(1, {LIGHTGBM: sys.executable}, run_s=0.01)
    document = harness.document("tree_shap", harness.machine(), {}, figures)
    assert document["name"] == "tree_shap"
    found = {
        (each["peer"], int(each["figure"].split(", ")[1].split()[0])): each
        for each in document["figures"]
    }
    assert {key: each["target"] for key, each in found.items()} == {
        (LIGHTGBM, 1): 2.8, (SHAP, 64): 4.4, (SHAP, 1024): 12.0,
        (SHAP, 1): None, (LIGHTGBM, 64): None, (LIGHTGBM, 1024): None,
    }  # fmt: skip
    for (peer, _), each in found.items():
        assert each["unit"] == "µs a row"
        assert each["value"] > 0
        assert (each["ratio"] is None) == (peer == SHAP)
    assert found[SHAP, 64]["met"] is None  # without the peer nobody can tell
    assert found[LIGHTGBM, 1]["met"] in {True, False}


def test_sides_that_differ_end_the_benchmark():
    tree_shap._compare({OURS: [1.0, 2.0], SHAP: [1.0, 2.0 + 1e-9]})
    with pytest.raises(RuntimeError, match=r"shap's C extension differs from ours by 0\.5"):
        tree_shap._compare({OURS: [1.0, 2.0], SHAP: [1.0, 2.5]})
