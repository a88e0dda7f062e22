"""What explains a model: trees where there are any, else sampling, with a background."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.errors import InvalidArgumentError, UnimplementedError
from server.explain.explainer import (
    NO_DEADLINE,
    PERMUTATION,
    SAMPLED_ROWS_MAX,
    TREE_SHAP,
    VALUES_MAX,
    Explainer,
)
from server.explain.trees import read_ensemble
from tests.server.explain.small_trees import Leaf, Split, regressor

TREE = Split(1, 0.0, "LEQ", False, Leaf({0: 1.0}, 1), Leaf({0: 3.0}, 3))


def linear(inputs):
    """An integer output first, as a classifier's label is; then a float."""
    score = inputs[0] @ np.array([1.0, 2.0, 3.0], np.float32)
    return [np.zeros(len(score), np.int64), score[:, None]]


def fed(rows, deadline_ns=NO_DEADLINE, seed=1):
    count = len(rows)
    seeds = np.full(count, seed, np.uint64)
    return [np.array(rows, np.float32), seeds, np.full(count, deadline_ns, np.int64)]


def prepared(*arguments, **more):
    explainer = Explainer(*arguments, **more)
    explainer.prepare()
    return explainer


def test_trees_are_explained_exactly_without_running_the_model():
    explainer = prepared(None, 0, read_ensemble(regressor([TREE])))
    assert explainer.method == TREE_SHAP
    explainer.check([np.zeros((1000, 4))], 1000)
    values, base = explainer.run(fed([[0, 1, 0, 0], [0, -1, 0, 0]]))
    assert base.tolist() == [[2.5], [2.5]]
    assert np.allclose(values[:, :, 0], [[0, 0.5, 0, 0], [0, -1.5, 0, 0]], atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 1), (2,), (2, 4, 1)])
def test_an_input_that_is_narrower_than_the_trees_is_refused(shape):
    explainer = prepared(None, 0, read_ensemble(regressor([TREE])))
    with pytest.raises(InvalidArgumentError, match="narrower"):
        explainer.check([np.zeros(shape)], 2)


def test_more_attributions_than_one_request_may_have_are_refused():
    explainer = prepared(None, 0, read_ensemble(regressor([TREE], 3)))
    fitting = VALUES_MAX // 3 // 1024
    explainer.check([np.empty((fitting, 1024))], fitting)
    with pytest.raises(InvalidArgumentError, match="too many attributions"):
        explainer.check([np.empty((fitting + 1, 1024))], fitting + 1)
    assert explainer.rows_at_once == VALUES_MAX // (2 * 3)
    assert prepared(linear, 1, None).rows_at_once == 16


def test_trees_that_are_too_deep_are_sampled():
    tree = Leaf({0: 1.0}, 1)
    for level in range(600):
        tree = Split(level % 2, 0.0, "LEQ", False, tree, Leaf({0: 0.0}, 1))
    explainer = prepared(linear, 1, read_ensemble(regressor([tree])))
    assert explainer.method == PERMUTATION


def test_a_model_without_trees_is_sampled_against_zeros():
    explainer = prepared(linear, 1, None)
    values, base, errors = explainer.run(fed([[1, 1, 1], [2, 0, 0]]))
    assert np.allclose(values[:, :, 0], [[1, 2, 3], [2, 0, 0]])
    assert np.allclose(base, 0)
    assert np.allclose(errors, 0)


def test_the_background_is_what_came_with_the_model():
    explainer = prepared(linear, 1, None, [np.array([[1.0, 0, 0], [3.0, 0, 0]])])
    values, base, _ = explainer.run(fed([[1, 1, 1]]))
    assert np.allclose(base, 2)
    assert np.allclose(values[0, :, 0], [-1, 2, 3])


def test_a_background_of_another_shape_is_left_out():
    explainer = prepared(linear, 1, None, [np.ones((2, 5))])
    assert np.allclose(explainer.run(fed([[1, 1, 1]]))[1], 0)


def test_a_row_is_explained_alike_alone_and_among_others():
    explainer = prepared(lambda inputs: [inputs[0].prod(axis=1)], 0, None)
    rows = np.random.default_rng(1).normal(size=(3, 5)).tolist()
    together = explainer.run(fed(rows))[0]
    assert np.array_equal(together[2], explainer.run(fed(rows[2:]))[0][0])
    assert not np.array_equal(together[2], explainer.run(fed(rows[2:], seed=2))[0][0])


def test_rows_whose_deadline_passed_are_left_out():
    explainer = prepared(linear, 1, None, now_ns=lambda: 100)
    feeds = fed([[1, 1, 1], [2, 2, 2]])
    feeds[2][:] = [100, 101]
    values, base, errors = explainer.run(feeds)
    assert np.isnan(values[0]).all()
    assert np.isnan(base[0]).all()
    assert np.isnan(errors[0]).all()
    assert np.allclose(values[1, :, 0], [2, 4, 6])
    feeds[2][:] = 100
    assert all(np.isnan(each).all() for each in explainer.run(feeds))


def test_what_has_no_score_cannot_be_sampled():
    with pytest.raises(UnimplementedError, match="cannot be explained"):
        prepared(linear, None, None).check([], 1)


def test_too_many_rows_are_not_sampled():
    explainer = prepared(linear, 1, None)
    explainer.check([], SAMPLED_ROWS_MAX)
    with pytest.raises(InvalidArgumentError, match="too many rows"):
        explainer.check([], SAMPLED_ROWS_MAX + 1)
