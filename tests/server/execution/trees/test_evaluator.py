"""The compiled evaluator gives onnxruntime's answers, bit for bit, or nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from headrace.errors import InternalError
from server.backends.forests.forest import Forest
from server.execution.session import Session
from server.execution.trees.evaluator import TreeRun, tree_run
from server.execution.trees.graph import read_tree_graph
from server.execution.trees.kernels import Layout
from server.vectors import LANES
from tests.server.execution.trees.forests import (
    answers,
    classifier,
    forest,
    regressor,
    rows,
    same,
    session_of,
)
from tests.server.explain.small_trees import (
    FEATURES,
    MODES,
    ROWS,
    Leaf,
    Split,
    attributes_of,
    model_of,
    trees,
)
from trainer.trees import Tree

TRANSFORMS = ("NONE", "LOGISTIC", "SOFTMAX")
SEEDS = st.integers(0, 1 << 30)


def check(model: bytes, matrix: Any, names: tuple[str, ...]) -> None:
    """All rows at once, by blocks and one by one."""
    graph = read_tree_graph(model, names)
    layout = Layout(graph)
    expected = answers(session_of(model), matrix)
    for alone in (0, 2, LANES - 1):
        for part in (slice(None), slice(0, 1), slice(1, 4)):
            scores, labels = layout.run(matrix[part], alone)
            found = [graph.labels[labels] if label else scores for label in graph.answers]
            assert same(found, [array[part] for array in expected])


@given(st.lists(trees([0], sparse=False), min_size=1, max_size=5), ROWS)
def test_small_trees(many, matrix):
    check(regressor(many), matrix, ("score",))


@given(
    SEEDS,
    st.lists(st.integers(1, 80), min_size=1, max_size=20),
    st.integers(1, 3),
    st.sampled_from(TRANSFORMS),
    st.sampled_from(["SUM", "AVERAGE"]),
    st.sampled_from([MODES, ("LEQ",), ("EQ", "NEQ"), ("GTE",)]),
    st.booleans(),
)
def test_regressors(seed, leaves, outputs, transform, aggregate, modes, has_base):
    more: dict[str, Any] = {"post_transform": transform, "aggregate_function": aggregate}
    if has_base:
        more["base_values"] = [0.25 * (each + 1) for each in range(outputs)]
    model = regressor(forest(seed, leaves, range(outputs), modes), outputs, **more)
    check(model, rows(seed + 1, 35), ("score",))


@given(
    SEEDS,
    st.lists(st.integers(1, 40), min_size=1, max_size=20),
    st.sampled_from([[0, 1], [7, 3], ["no", "yes"], [0, 1, 2], ["a", "b", "c", "d"]]),
    st.sampled_from(TRANSFORMS),
    st.booleans(),
    st.booleans(),
)
def test_classifiers(seed, leaves, labels, transform, positive, has_base):
    outputs = 1 if len(labels) == 2 else len(labels)
    more: dict[str, Any] = {"post_transform": transform}
    if has_base:
        more["base_values"] = [0.25 * (each - 1) for each in range(outputs)]
    many = forest(seed, leaves, range(outputs), positive=positive)
    check(classifier(many, labels, **more), rows(seed + 1, 35), ("label", "scores"))


def test_the_sigmoid_has_onnxruntimes_bits_all_over():
    """One feature picks a leaf each: 4,096 scores between −30 and 30, and the far ones."""
    values = [*np.linspace(-30, 30, 4093).astype(np.float32).tolist(), 1e-30, -1e30, 1e30]

    def grow(begin: int, end: int):
        if end - begin == 1:
            return Leaf({0: values[begin]}, 1)
        middle = (begin + end) // 2
        return Split(0, middle - 0.5, "LEQ", False, grow(begin, middle), grow(middle, end))

    table = attributes_of([grow(0, len(values))]) | {"n_targets": 1}

    def behind(node):
        node.output[0] = "raw"
        return [node, helper.make_node("Sigmoid", ["raw"], ["score"])]

    matrix = np.zeros((len(values), FEATURES), np.float32)
    matrix[:, 0] = range(len(values))
    check(model_of(table, around=behind), matrix, ("score",))


def lightgbm_model() -> tuple[bytes, Any]:
    """What the trainer exports, and rows with missing values."""
    import lightgbm

    from trainer.export import forest_to_onnx
    from trainer.trees import read_forest, to_single_precision

    random = np.random.default_rng(3)
    matrix = random.normal(size=(2000, 12)).astype(np.float32)
    matrix[random.random(matrix.shape) < 0.1] = np.nan
    labels = np.nan_to_num(matrix[:, 0]) + np.nan_to_num(matrix[:, 1] * matrix[:, 2]) > 0
    settings = {"objective": "binary", "num_leaves": 31, "verbose": -1, "num_threads": 1,
                "deterministic": True, "force_row_wise": True}  # fmt: skip
    booster = lightgbm.train(settings, lightgbm.Dataset(matrix, labels), 60)
    text = to_single_precision(booster.model_to_string())
    return bytes(forest_to_onnx(read_forest(text), "trees").SerializeToString()), matrix


def sklearn_tree(estimator: Any, weights: Any, node: int = 0) -> Any:
    tree = estimator.tree_
    if tree.children_left[node] < 0:
        return Leaf(dict(enumerate(np.ravel(weights(tree.value[node])).tolist())), 1)
    return Split(
        int(tree.feature[node]),
        float(np.float32(tree.threshold[node])),
        "LEQ",
        bool(tree.missing_go_to_left[node]),
        sklearn_tree(estimator, weights, int(tree.children_left[node])),
        sklearn_tree(estimator, weights, int(tree.children_right[node])),
    )


def sklearn_models() -> dict[str, tuple[bytes, Any]]:
    """Classifiers as exporters write them: boosted ones with a base and the logistic function or
    softmax, forests with shares. With each, what scikit-learn says."""
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier

    matrix = rows_for_sklearn()
    two, three = matrix[:, 0] > 0, np.digitize(matrix[:, 0] + matrix[:, 1], [-0.5, 0.5])
    boosted = GradientBoostingClassifier(n_estimators=15, random_state=0).fit(matrix, two)
    many = [sklearn_tree(each[0], lambda value: value * 0.1) for each in boosted.estimators_]
    prior = float(np.log(two.mean() / (1 - two.mean())))
    found = {
        "boosted": (
            classifier(many, [0, 1], post_transform="LOGISTIC", base_values=[prior]),
            boosted.predict_proba(matrix),
        )
    }
    woods = RandomForestClassifier(n_estimators=15, max_depth=7, random_state=0).fit(matrix, three)
    many = [sklearn_tree(each, lambda value: value / 15) for each in woods.estimators_]
    found["forest"] = classifier(many, [0, 1, 2]), woods.predict_proba(matrix)
    return found


def rows_for_sklearn() -> Any:
    return np.random.default_rng(5).normal(size=(600, FEATURES)).astype(np.float32)


def test_a_model_that_the_trainer_exports():
    model, matrix = lightgbm_model()
    check(model, matrix[:300], ("probability",))


@pytest.mark.parametrize("name", ["boosted", "forest"])
def test_models_of_scikit_learn(name):
    model, wanted = sklearn_models()[name]
    matrix = rows_for_sklearn()
    check(model, matrix, ("label", "scores"))
    assert np.allclose(answers(session_of(model), matrix)[1], wanted, atol=1e-5)


# What takes onnxruntime's place, and when


GRADED = regressor(forest(1, [31] * 40))


@pytest.fixture(autouse=True)
def _ours_counts_as_faster(monkeypatch):
    """However busy the machine is."""
    monkeypatch.setattr("server.execution.trees.evaluator._FASTER", 0.0)


def run_of(model: bytes, change: Any = None) -> TreeRun | None:
    session = session_of(model)

    def run(feeds: Any) -> list[Any]:
        outputs = answers(session, feeds[0])
        return outputs if change is None else change(outputs)

    names = [each.name for each in session.get_outputs()]
    return tree_run(model, session.get_inputs(), names, run)


def test_it_takes_the_place_of_an_equal_one_only():
    assert run_of(GRADED) is not None

    def last_bit(outputs):
        outputs[0][-1] = np.nextafter(outputs[0][-1], np.float32(9))
        return outputs

    assert run_of(GRADED, last_bit) is None
    assert run_of(GRADED, lambda outputs: [outputs[0].astype(np.float64)]) is None
    assert run_of(GRADED, lambda outputs: [outputs[0][:, 0]]) is None
    wrong = classifier(forest(1, [9]), ["no", "yes"])
    assert run_of(wrong, lambda outputs: [outputs[0][::-1].copy(), outputs[1]]) is None


def test_a_model_that_refuses_its_rows_keeps_onnxruntime(caplog):
    def refuse(outputs):
        raise InternalError("the model failed on this input")

    with caplog.at_level(logging.INFO):
        assert run_of(GRADED, refuse) is None
    assert "does not take rows" in caplog.text


def test_the_faster_one_runs():
    ours = run_of(GRADED)
    assert ours is not None
    ours.wins = [False, True, False, True, False]
    ours.rows_max = 500
    for count, runs in [(0, 0), (1, 0), (3, 0), (4, 1), (15, 1), (16, 0), (63, 0), (64, 1),
                        (255, 1), (256, 0), (400, 0)]:  # fmt: skip
        assert (ours.run([rows(1, count)]) is not None) == bool(runs), count
    ours.wins = [True] * 5
    assert ours.run([rows(1, 500)]) is not None
    assert ours.run([rows(1, 501)]) is None


def test_one_that_is_never_faster_is_forgotten(monkeypatch, caplog):
    monkeypatch.setattr("server.execution.trees.evaluator._FASTER", 1e9)
    with caplog.at_level(logging.INFO):
        assert run_of(GRADED) is None
    assert "faster" in caplog.text


@pytest.mark.parametrize(
    "matrix",
    [
        rows(1, 4).astype(np.float64),
        rows(1, 4)[0],
        rows(1, 4)[:, :-1],
        rows(1, 4, FEATURES + 1),
        np.asfortranarray(rows(1, 4)),
        rows(1, 0),
    ],
    ids=["float64", "one axis", "narrow", "wide", "not contiguous", "no rows"],
)
def test_what_it_does_not_take_is_left_to_onnxruntime(matrix):
    ours = run_of(GRADED)
    assert ours is not None
    assert ours.run([matrix]) is None


def shaped(shape: Any, kind: int = TensorProto.FLOAT) -> bytes:
    """The regressor with another input."""
    import onnx

    model = onnx.load_from_string(GRADED)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", kind, shape))
    return bytes(model.SerializeToString())


def test_any_width_is_taken_where_the_model_says_none():
    model = shaped(["N", None])
    ours = run_of(model)
    assert ours is not None
    for width in (FEATURES, FEATURES + 3):
        matrix = rows(2, 40, width)
        found = ours.run([matrix])
        assert found is not None
        assert same(found, answers(session_of(model), matrix))
    assert ours.run([rows(2, 40, FEATURES - 1)]) is None


@pytest.mark.parametrize(
    "model",
    [
        shaped([4, FEATURES]),
        shaped(None),
        shaped(["N", FEATURES], TensorProto.DOUBLE),
        shaped(["N", 1 << 15]),
        regressor(forest(1, [3], range(2)), 3),
    ],
    ids=["fixed rows", "no shape", "float64", "too wide", "an output without weights"],
)
def test_models_that_onnxruntime_keeps(model):
    assert run_of(model) is None


def test_rows_are_read_where_they_lie_in_a_request():
    """In bytes that cannot be written to, at an odd place."""
    ours = run_of(GRADED)
    assert ours is not None
    matrix = rows(7, 20)
    body = b"?" + matrix.tobytes()
    view = np.frombuffer(body, np.float32, offset=1).reshape(matrix.shape)
    found = ours.run([view])
    assert found is not None
    assert same(found, answers(session_of(GRADED), matrix))


def test_a_row_of_a_session_has_the_same_bits_alone_and_in_any_batch(tmp_path: Path):
    model, matrix = lightgbm_model()
    (tmp_path / "model.onnx").write_bytes(model)
    session = Session(tmp_path / "model.onnx", tmp_path)
    (whole,) = answers(session_of(model), matrix[:300])
    for size in (1, 2, 3, 7, 16, 33, 300):
        parts = [session.run([matrix[at : at + size]])[0] for at in range(0, 300, size)]
        assert np.concatenate(parts)[:300].tobytes() == whole.tobytes()


def test_a_session_of_trees_refuses_what_onnxruntime_refuses():
    session = Session(GRADED, Path())
    for matrix in (rows(1, 4, FEATURES - 1), rows(1, 4).astype(np.float64)):
        with pytest.raises(InternalError):
            session.run([matrix])
    assert session.run([rows(1, 0)])[0].shape == (0, 1)


@pytest.mark.parametrize("category_least", [0.0, -0.99999994])
def test_splits_on_categories_have_onnxruntimes_bits(category_least):
    random = np.random.default_rng(5)
    trees = []
    for nan_left in random.random(60) < 0.5:
        members = np.flatnonzero(random.random(random.integers(1, 30)) < 0.5)
        trees.append(
            Tree(
                feature=np.array([2, 0], np.int32),
                threshold=random.normal(size=2),
                nan_left=np.array([nan_left, nan_left]),
                left=np.array([1, -1], np.int32),
                right=np.array([-2, -3], np.int32),
                leaf=random.normal(size=3).astype(np.float32).astype(np.float64),
                cover=np.array([3.0, 2.0]),
                leaf_cover=np.ones(3),
                sets={int(random.integers(2)): members},
            )
        )
    found = Forest(trees, [0] * 60, 3, [0.5], "Sigmoid", "BRANCH_LEQ", category_least)
    model = found.graph("rows", "out")
    ours = run_of(model)
    assert ours is not None
    rows = random.normal(size=(600, 3)).astype(np.float32)
    odd = np.array([np.nan, -1, -0.5, -0.0, 0.9, 29, 30, 1e30, np.inf, -np.inf], np.float32)
    rows[:, [0, 2]] = random.integers(-2, 32, (600, 2))
    rows[:200, [0, 2]] = random.choice(odd, (200, 2))
    for count in (1, 7, 509):
        (answer,) = ours.answers(rows[:count])
        (expected,) = answers(session_of(model), rows[:count])
        assert answer.tobytes() == expected.tobytes()
    assert ours.run([rows[:5, :2].copy()]) is None
