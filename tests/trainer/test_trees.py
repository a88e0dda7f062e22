import lightgbm as lgb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import UnimplementedError
from tests.trainer.boosters import FEATURES, booster_text, rows
from trainer.trees import LEAF_GRID, ZERO, read_forest, round_down, to_single_precision

FLOAT32 = st.floats(width=32, allow_nan=False)


def lightgbm_zero(value: np.float32) -> float:
    """What LightGBM's predictor makes of a value (`kZeroThreshold` in its c_api.cpp)."""
    return 0.0 if abs(value) <= ZERO else float(value)


@given(st.floats(allow_nan=False), FLOAT32)
def test_round_down_splits_float32_as_lightgbm_splits_them(threshold, value):
    x = np.float32(value)
    (rounded,) = round_down(np.array([threshold]))
    assert (x <= rounded) == (lightgbm_zero(x) <= threshold)


@given(st.floats(-1e30, 1e30))
def test_round_down_at_the_threshold_and_one_step_to_either_side(threshold):
    (rounded,) = round_down(np.array([threshold]))
    for x in (rounded, np.nextafter(rounded, np.float32(np.inf)), np.float32(threshold)):
        assert (x <= rounded) == (lightgbm_zero(x) <= threshold)


@pytest.mark.parametrize(
    "threshold", [0.0, -0.0, 1e-35, -1e-35, 1e-45, -1e-45, 1e300, -1e300, np.inf]
)
@pytest.mark.parametrize("step", [-2, -1, 0, 1, 2])
def test_round_down_around_zero_and_at_the_ends(threshold, step):
    (rounded,) = round_down(np.array([threshold]))
    for start in (ZERO, -ZERO, np.float32(0), rounded):
        x = start
        with np.errstate(over="ignore"):
            for _ in range(abs(step)):
                x = np.nextafter(x, np.float32(np.inf * np.sign(step)))
        assert (x <= rounded) == (lightgbm_zero(x) <= threshold)


def test_single_precision_keeps_every_path_and_moves_leaves_by_half_a_step():
    text = booster_text()
    before, after = lgb.Booster(model_str=text), lgb.Booster(model_str=to_single_precision(text))
    matrix = rows(3000, seed=5)
    assert np.array_equal(
        before.predict(matrix, pred_leaf=True), after.predict(matrix, pred_leaf=True)
    )
    distance = before.predict(matrix, raw_score=True) - after.predict(matrix, raw_score=True)
    assert 0 < np.abs(distance).max() <= before.num_trees() * LEAF_GRID / 2


def test_single_precision_holds_only_float32_numbers():
    forest = read_forest(to_single_precision(booster_text()))
    for tree in forest.trees:
        assert np.array_equal(tree.threshold.astype(np.float32), tree.threshold)
        assert np.array_equal(tree.leaf.astype(np.float32), tree.leaf)
        assert np.array_equal(np.rint(tree.leaf / LEAF_GRID) * LEAF_GRID, tree.leaf)


def test_single_precision_twice_is_once():
    once = to_single_precision(booster_text())
    assert to_single_precision(once) == once


def test_read_forest_agrees_with_lightgbms_own_dump():
    text = booster_text()
    forest = read_forest(text)
    dump = lgb.Booster(model_str=text).dump_model()
    assert forest.features == FEATURES
    assert len(forest.trees) == len(dump["tree_info"])
    for tree, info in zip(forest.trees, dump["tree_info"], strict=True):
        stack = [info["tree_structure"]]
        while stack:
            node = stack.pop()
            if "split_index" not in node:
                assert tree.leaf[node["leaf_index"]] == node["leaf_value"]
                continue
            at = node["split_index"]
            assert tree.feature[at] == node["split_feature"]
            # "Everything that is not NaN" is ≤ inf; the dump cannot write an infinity.
            assert min(tree.threshold[at], 1e300) == node["threshold"]
            if node["missing_type"] == "NaN":
                assert tree.nan_left[at] == node["default_left"]
            else:
                assert node["missing_type"] == "None"
                assert tree.nan_left[at] == (node["threshold"] >= 0)
            stack += [node["left_child"], node["right_child"]]


def test_a_tree_of_one_leaf():
    forest = read_forest(booster_text(trees=2, min_data_in_leaf=100_000))
    assert [len(tree.feature) for tree in forest.trees] == [0] * len(forest.trees)
    assert all(len(tree.leaf) == 1 for tree in forest.trees)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"objective": "regression"}, "binary"),
        ({"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}, "binary"),
        ({"linear_tree": True}, "linear leaves"),
        ({"zero_as_missing": True}, "zero as missing"),
    ],
)
def test_what_cannot_be_exported_is_named(parameters, named):
    with pytest.raises(UnimplementedError, match=named):
        read_forest(booster_text(trees=3, **parameters))


def test_categorical_splits_are_named():
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 6, size=(2000, 2)).astype(np.float32)
    data = lgb.Dataset(matrix, np.isin(matrix[:, 0], [1, 4]), categorical_feature=[0])
    booster = lgb.train({"objective": "binary", "verbose": -1, "num_threads": 1}, data, 2)
    with pytest.raises(UnimplementedError, match="categorical splits"):
        read_forest(booster.model_to_string())
