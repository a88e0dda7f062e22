"""TreeSHAP against LightGBM's own, against enumeration, and against onnxruntime's scores."""

from __future__ import annotations

import math
from fractions import Fraction

import lightgbm as lgb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import UnimplementedError
from server.explain import tree_shap
from server.explain.paths import DISTINCT_MAX
from server.explain.tree_shap import BLOCK_ROWS, TreeShap
from server.explain.trees import read_ensemble
from tests.server.explain.small_trees import (
    FEATURES,
    ROWS,
    Leaf,
    Split,
    regressor,
    run,
    shapley,
    trees,
)
from tests.trainer.boosters import booster_text, labels, rows
from trainer.export import forest_to_onnx
from trainer.trees import read_forest, to_single_precision


def exported(text: str) -> TreeShap:
    model = forest_to_onnx(read_forest(text), "delay").SerializeToString()
    return TreeShap(read_ensemble(model))


def contributions(text: str, matrix: np.ndarray) -> np.ndarray:
    """LightGBM's, with the base value behind them."""
    return np.asarray(lgb.Booster(model_str=text).predict(matrix, pred_contrib=True))


def ours(text: str, matrix: np.ndarray) -> np.ndarray:
    explained = exported(text)
    values = explained.explain(matrix)[:, :, 0]
    return np.hstack([values, np.full((len(matrix), 1), explained.base[0])])


@pytest.mark.parametrize("count", [0, 1, 15, BLOCK_ROWS, 3 * BLOCK_ROWS + 1])
def test_attributions_are_lightgbms(count):
    text = to_single_precision(booster_text())
    matrix = rows(count, seed=3)
    theirs = contributions(text, rows(count or 1, seed=3))[:count]
    assert np.abs(ours(text, matrix) - theirs).max(initial=0) < 1e-12


def test_attributions_are_lightgbms_on_ways_of_many_features():
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(4000, 60)).astype(np.float32)
    # Each feature cuts off a little of what is left: a chain.
    decided = matrix > 2.0
    target = np.where(decided.any(axis=1), np.argmax(decided, axis=1) % 2, 0)
    settings = {"objective": "binary", "num_leaves": 60, "verbose": -1, "num_threads": 1,
                "min_data_in_leaf": 1, "min_sum_hessian_in_leaf": 0, "seed": 1}  # fmt: skip
    booster = lgb.train(settings, lgb.Dataset(matrix, target), 3)
    text = to_single_precision(booster.model_to_string())
    trees = read_forest(text).trees
    assert max(len(set(way)) for tree in trees for way in _ways(tree, 0, [])) > 24
    found = ours(text, matrix[:200])
    assert np.abs(found - contributions(text, matrix[:200])).max() < 1e-9


def _ways(tree, node, way):
    if node < 0:
        return [way]
    way = [*way, tree.feature[node]]
    return [*_ways(tree, tree.left[node], way), *_ways(tree, tree.right[node], way)]


@pytest.mark.parametrize("depth", [16, 17, 33])
def test_long_ways_are_exact_where_fractions_are(depth):
    """A chain: the leaf off it at level k is reached by missing k − 1 features and hitting one."""
    rng = np.random.default_rng(depth)
    tree = Leaf({0: 1.0}, 7)
    for feature in reversed(range(depth)):
        off = Leaf({0: float(rng.integers(-8, 9))}, int(rng.integers(1, 30)))
        tree = Split(feature, 0.0, "LEQ", False, off, tree)
    row = rng.choice([-1.0, 1.0], depth)
    found = TreeShap(read_ensemble(regressor([tree]))).explain(row[None])[0, :, 0]
    wanted = np.array([float(value) for value in _exact(tree, row.tolist(), depth)])
    assert np.abs(found - wanted).max() < 1e-12


def test_the_longest_ways_add_up():
    tree = Leaf({0: 1.0}, 7)
    for feature in range(DISTINCT_MAX):
        tree = Split(feature, 0.0, "LEQ", False, Leaf({0: float(feature % 5)}, 1 + feature), tree)
    explained = TreeShap(read_ensemble(regressor([tree])))
    total = explained.base + explained.explain(np.ones((1, DISTINCT_MAX))).sum(axis=1)
    assert abs(total.item() - 1.0) < 1e-10


def _exact(tree, row, depth):
    """Shapley values of a tree with distinct features on each way, in fractions: the coalitions of
    the other features by size, by the product of their polynomials."""
    values = [Fraction(0)] * depth

    def walk(node, way):
        if isinstance(node, Leaf):
            _add_leaf(values, node, way)
            return
        goes = node.goes(row[node.feature])
        for below, hit in ((node.yes, goes), (node.no, not goes)):
            walk(below, [*way, (node.feature, int(hit), Fraction(below.cover, node.cover))])

    walk(tree, [])
    return values


def _add_leaf(values, leaf, way):
    for feature, hit, share in way:
        sizes = [Fraction(1)]  # by how many others are known: the sum of their products
        for other, other_hit, other_share in way:
            if other != feature:
                with_it = [Fraction(0), *(size * other_hit for size in sizes)]
                without = [*(size * other_share for size in sizes), Fraction(0)]
                sizes = [a + b for a, b in zip(with_it, without, strict=True)]
        d = len(way)
        mean = sum(size / (d * math.comb(d - 1, known)) for known, size in enumerate(sizes))
        values[feature] += Fraction(leaf.weights[0]) * (hit - share) * mean


def test_they_add_up_to_the_raw_score():
    text = to_single_precision(booster_text(trees=200))
    matrix = rows(300, seed=9)
    raw = lgb.Booster(model_str=text).predict(matrix, raw_score=True)
    assert np.abs(ours(text, matrix).sum(axis=1) - raw).max() < 1e-10


def test_a_forest_of_single_leaves_explains_nothing():
    text = to_single_precision(booster_text(trees=2, min_data_in_leaf=100_000))
    matrix = rows(3, seed=1)
    assert np.array_equal(ours(text, matrix)[:, :-1], np.zeros(matrix.shape))
    assert np.allclose(ours(text, matrix), contributions(text, matrix))


def test_labels_matter():  # or the boosters above would be of noise
    matrix = rows(2000, seed=3)
    text = to_single_precision(booster_text())
    assert np.corrcoef(ours(text, matrix).sum(axis=1), labels(matrix, seed=4))[0, 1] > 0.5


@given(st.lists(trees([0, 1, 2]), min_size=1, max_size=3), ROWS)
def test_all_modes_missing_values_and_outputs_against_enumeration(forest, matrix):
    explained = TreeShap(read_ensemble(regressor(forest, 3, base_values=[0.5, 0.0, -1.0])))
    found = explained.explain(matrix)
    for row, values in zip(matrix, found, strict=True):
        assert np.abs(values - shapley(forest, row.tolist(), 3)).max() < 1e-12


@given(
    st.lists(trees([0, 1], sparse=False), min_size=1, max_size=3),
    ROWS,
    st.sampled_from(["SUM", "AVERAGE"]),
)
def test_with_the_base_they_add_up_to_what_onnxruntime_says(tmp_path_factory, forest, matrix, by):
    model = regressor(forest, 2, base_values=[0.5, -1.0], aggregate_function=by)
    explained = TreeShap(read_ensemble(model))
    scores = run(model, matrix, tmp_path_factory.getbasetemp())[0]
    total = explained.base + explained.explain(matrix).sum(axis=1)
    assert np.abs(total - scores).max() < 1e-5


def test_a_row_alone_gets_the_bits_that_it_gets_among_others():
    explained = exported(to_single_precision(booster_text()))
    matrix = rows(100, seed=5)
    alone = np.concatenate([explained.explain(row[None]) for row in matrix])
    assert np.array_equal(alone, explained.explain(matrix))


def test_more_columns_than_the_trees_look_at_get_nothing():
    explained = TreeShap(read_ensemble(regressor([_split(0)])))
    assert explained.features == 1
    assert np.count_nonzero(explained.explain(np.ones((1, FEATURES)))[0, 1:]) == 0


def test_leaves_that_no_training_row_reached():
    forest = [Split(0, 0.0, "LEQ", True, _split(1), Leaf({0: 3.0}, 0))]
    explained = TreeShap(read_ensemble(regressor(forest)))
    for row in ([-1.0, 0, 0, 0], [1.0, 0, 0, 0], [1.0, 1.0, 0, 0]):
        found = explained.explain(np.array([row]))[0]
        assert np.abs(found - shapley(forest, row, 1)).max() < 1e-12


def test_a_feature_asked_for_again_below_a_way_that_no_training_row_took():
    inner = Split(0, 1.0, "LEQ", False, Leaf({0: 1.0}, 0), Leaf({0: 2.0}, 2))
    upper = Split(0, 0.0, "LEQ", False, Leaf({0: 4.0}, 2), inner)
    row = [0.5, 0.0, 0.0, 0.0]
    found = TreeShap(read_ensemble(regressor([upper]))).explain(np.array([row]))[0]
    assert np.abs(found - shapley([upper], row, 1)).max() < 1e-12


@pytest.mark.parametrize(("depth", "features"), [(600, 2), (70, 70)])
def test_trees_that_are_too_deep_are_refused(depth, features):
    tree = Leaf({0: 1.0}, 1)
    for level in range(depth):
        tree = Split(level % features, 0.0, "LEQ", False, tree, Leaf({0: 0.0}, 1))
    with pytest.raises(UnimplementedError, match="too deep"):
        TreeShap(read_ensemble(regressor([tree])))


def test_trees_that_are_too_many_are_refused(monkeypatch):
    ensemble = read_ensemble(regressor([_split(0)]))
    monkeypatch.setattr(tree_shap, "TABLE_MAX", 3 * 8)  # a row for each step, and one more
    TreeShap(ensemble)
    monkeypatch.setattr(tree_shap, "TABLE_MAX", 3 * 8 - 1)
    with pytest.raises(UnimplementedError, match="too many"):
        TreeShap(ensemble)


def _split(feature: int) -> Split:
    return Split(feature, 0.0, "LEQ", True, Leaf({0: 1.0}, 3), Leaf({0: -1.0}, 5))
