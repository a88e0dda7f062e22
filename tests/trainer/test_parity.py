from dataclasses import replace

import numpy as np
import pytest

from headrace.errors import FailedPreconditionError
from tests.trainer.boosters import booster_text, rows
from trainer.export import forest_to_onnx
from trainer.parity import Predictors, check_parity, special_rows, split_rows
from trainer.scoring import onnx_predictor
from trainer.training import predictor
from trainer.trees import Forest, Tree, read_forest, to_single_precision

THRESHOLD = 0.3


@pytest.fixture(scope="module")
def unrounded() -> str:
    return booster_text()


@pytest.fixture(scope="module")
def shipped(unrounded) -> str:
    return to_single_precision(unrounded)


@pytest.fixture(scope="module")
def test_set() -> np.ndarray:
    return rows(5000, seed=11)


def onnx_of(forest: Forest):
    return onnx_predictor(forest_to_onnx(forest, "delay").SerializeToString(), 1)


def predictors(shipped: str, unrounded: str, forest: Forest | None = None) -> Predictors:
    return Predictors(
        onnx=onnx_of(forest or read_forest(shipped)),
        booster=predictor(shipped, 1),
        unrounded=predictor(unrounded, 1),
        threshold=THRESHOLD,
    )


def wrong(shipped: str, unrounded: str, **changes) -> Forest:
    """The shipped forest with other fields of its trees, from the trees before rounding."""
    return Forest(
        [
            replace(good, **{key: change(source) for key, change in changes.items()})
            for good, source in zip(
                read_forest(shipped).trees, read_forest(unrounded).trees, strict=True
            )
        ],
        read_forest(shipped).features,
    )


def nearest(tree: Tree) -> np.ndarray:
    return tree.threshold.astype(np.float32).astype(np.float64)


def upwards(tree: Tree) -> np.ndarray:
    near = tree.threshold.astype(np.float32)
    up = np.where(near < tree.threshold, np.nextafter(near, np.float32(np.inf)), near)
    return up.astype(np.float64)


def test_a_right_export_passes_and_the_report_counts(shipped, unrounded, test_set):
    forest = read_forest(shipped)
    report = check_parity(predictors(shipped, unrounded), forest, test_set)
    splits = sum(len(tree.feature) for tree in forest.trees)
    assert report.splits == splits > 500
    counted = {name: check.rows for name, check in report.shipped.items()}
    assert counted["test set"] == len(test_set)
    assert counted["split thresholds ± 1 ulp"] == 3 * splits
    assert counted["NaN, ±inf, ±0"] == 5 * 4 * (forest.features + 1)
    assert all(check.label_flips == 0 for check in report.shipped.values())
    assert all(check.delta_max < 2e-7 for check in report.shipped.values())
    assert all(0 < check.delta_max < 1e-5 for check in report.unrounded.values())
    assert report.batch_bits_differ == 0


@pytest.mark.parametrize("threshold", [nearest, upwards])
def test_thresholds_rounded_another_way_are_refused(shipped, unrounded, test_set, threshold):
    forest = wrong(shipped, unrounded, threshold=threshold)
    with pytest.raises(FailedPreconditionError, match="LightGBM disagree"):
        check_parity(predictors(shipped, unrounded, forest), read_forest(shipped), test_set)


def test_random_rows_would_not_have_shown_it(shipped, unrounded):
    forest = wrong(shipped, unrounded, threshold=nearest)
    matrix = np.random.default_rng(8).normal(size=(20_000, forest.features)).astype(np.float32)
    distance = onnx_of(forest)(matrix) - predictor(shipped, 1)(matrix)
    assert np.abs(distance).max() < 2e-7


def test_a_booster_that_was_itself_rounded_up_is_refused(shipped, unrounded, test_set):
    """ONNX and the shipped booster agree here: only the booster before rounding shows it."""
    forest = wrong(shipped, unrounded, threshold=upwards)
    compared = replace(predictors(shipped, unrounded, forest), booster=onnx_of(forest))
    with pytest.raises(FailedPreconditionError, match="before rounding"):
        check_parity(compared, forest, test_set)


def test_nan_sent_the_other_way_is_refused(shipped, unrounded, test_set):
    forest = wrong(shipped, unrounded, nan_left=lambda tree: ~tree.nan_left)
    with pytest.raises(FailedPreconditionError, match="test set"):
        check_parity(predictors(shipped, unrounded, forest), read_forest(shipped), test_set)


def test_nan_sent_the_other_way_where_the_data_has_none_is_refused(shipped, unrounded, test_set):
    forest = wrong(shipped, unrounded, nan_left=lambda tree: ~tree.nan_left)
    whole = np.nan_to_num(test_set)
    with pytest.raises(FailedPreconditionError, match="NaN"):
        check_parity(predictors(shipped, unrounded, forest), read_forest(shipped), whole)


def test_a_label_that_flips_is_refused_however_near(shipped, unrounded, test_set):
    good = predictors(shipped, unrounded)
    sharp = replace(good, threshold=float(good.onnx(test_set[:1])[0]) + 1e-9)
    moved = replace(sharp, onnx=lambda matrix: good.onnx(matrix) + np.float32(1e-6))
    with pytest.raises(FailedPreconditionError, match="flips"):
        check_parity(moved, read_forest(shipped), test_set)


def test_an_answer_that_is_not_a_number_is_refused(shipped, unrounded, test_set):
    good = predictors(shipped, unrounded)
    silent = replace(good, onnx=lambda matrix: np.full(len(matrix), np.float32(np.nan)))
    with pytest.raises(FailedPreconditionError, match="nan"):
        check_parity(replace(silent, threshold=2.0), read_forest(shipped), test_set)


def test_answers_that_depend_on_the_batch_are_refused(shipped, unrounded, test_set):
    good = predictors(shipped, unrounded)

    def unsteady(matrix):
        return good.onnx(matrix) + np.float32(1e-7 * (len(matrix) == 7))

    with pytest.raises(FailedPreconditionError, match="size of the batch"):
        check_parity(replace(good, onnx=unsteady), read_forest(shipped), test_set)


def test_split_rows_reach_the_split_they_are_for(shipped):
    """A changed path at the threshold shows that the row came by: left at t, right one step on."""
    forest, base = read_forest(shipped), rows(4000, seed=12)
    reached = total = 0
    for tree, points in zip(forest.trees, split_rows(forest, base), strict=True):
        at, above, below = points[0::3], points[1::3], points[2::3]
        for node, feature in enumerate(tree.feature):
            assert at[node, feature] == np.float32(tree.threshold[node])
            assert below[node, feature] < at[node, feature]
            if np.isinf(tree.threshold[node]):  # all but NaN goes left: no step leads right
                continue
            assert at[node, feature] < above[node, feature]
            reached += leaf(tree, at[node]) != leaf(tree, above[node])
            total += 1
    assert reached / total > 0.95


def leaf(tree: Tree, row: np.ndarray) -> int:
    node = 0
    while node >= 0:
        value = row[tree.feature[node]]
        left = tree.nan_left[node] if np.isnan(value) else value <= tree.threshold[node]
        node = int((tree.left if left else tree.right)[node])
    return ~node


def test_special_rows_hold_every_value_in_every_feature():
    base = rows(100, seed=1)
    chunks = np.concatenate(list(special_rows(base)))
    for feature in range(base.shape[1]):
        column = chunks[:, feature]
        assert np.isnan(column).any()
        assert {np.inf, -np.inf} <= set(column[np.isinf(column)].tolist())
        assert (np.signbit(column) & (column == 0)).any()
        assert (~np.signbit(column) & (column == 0)).any()
