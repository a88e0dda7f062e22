"""Splits on categories go as those who made them say, of whatever comes as a category.

LightGBM is asked here; what XGBoost 3.2 said to its models lies in `golden/`, and where it is
installed it is asked, too.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.errors import FailedPreconditionError, HeadraceError, UnimplementedError
from server.backends.forests.categories import TABLE_MAX, split_by_tables
from server.backends.forests.lightgbm_text import read_lightgbm
from server.backends.forests.xgboost_model import read_xgboost
from server.execution.session import Session
from server.explain.tree_shap import TreeShap
from server.explain.trees import read_ensemble
from tests.server.backends.forests.test_forests import GOLDEN, explained, put
from tests.server.backends.serving import Served
from trainer.trees import Tree

CATEGORICAL = [1, 3]
ODD = np.array(
    [np.nan, -1, -0.5, -0.0, 0.5, 1.9, 5.5, 6, 39.7, 40, 63, 64, 1e9, 2**31, 3e9, -3e9, 1e30],
    np.float32,
)  # fmt: skip


def rows(count: int, seed: int, *, missing: bool) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(count, 4)).astype(np.float32)
    matrix[:, 1], matrix[:, 3] = rng.integers(0, 6, count), rng.integers(0, 40, count)
    if missing:
        matrix[rng.random(matrix.shape) < 0.1] = np.nan
    return matrix


def odd_rows(more: Any = ()) -> np.ndarray[Any, Any]:
    matrix = rows(2000, 5, missing=True)
    rng = np.random.default_rng(6)
    for column in CATEGORICAL:
        matrix[rng.random(2000) < 0.5, column] = rng.choice(np.append(ODD, more))
        at = rng.random(2000) < 0.5
        matrix[at, column] = rng.choice(np.append(ODD, more), int(at.sum()))
    return matrix.astype(np.float32)


def target(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    known = np.nan_to_num(matrix)
    noise = np.random.default_rng(7).normal(size=len(matrix))
    return known[:, 0] + (known[:, 3] % 3 == 1) + 2 * (known[:, 1] == 2) + 0.3 * noise


def answers(graph: bytes, matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    (found,) = Session(graph, Path()).run([matrix])
    return np.asarray(found)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"max_cat_to_onehot": 50},
        {"use_missing": False},
        {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
        {"boosting": "dart"},
        {"objective": "regression"},
        {"objective": "regression", "boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
        {"objective": "multiclass", "num_class": 3},
    ],
)
def test_lightgbms_sets(missing: bool, more: dict[str, Any]) -> None:
    matrix = rows(3000, 1, missing=missing)
    wanted = target(matrix)
    if more.get("objective") != "regression":
        wanted = np.digitize(wanted, [0.5, 1.5] if "num_class" in more else [0.5])
    fixed = {"objective": "binary", "verbose": -1, "num_leaves": 15, "num_threads": 1}
    data = lgb.Dataset(matrix, wanted, categorical_feature=CATEGORICAL)
    booster = lgb.train(fixed | more, data, 20)
    text = booster.model_to_string()
    assert "cat_threshold" in text
    graph = read_lightgbm(text.encode()).graph("in", "out")
    probe = odd_rows([np.inf, -np.inf])
    found = answers(graph, probe)
    expected = booster.predict(probe).reshape(found.shape)
    # A row that took another way would be off by far more than leaves are rounded by.
    np.testing.assert_allclose(found, expected, atol=1e-5)
    one = answers(graph, probe[:1])
    assert one.tobytes() == found[:1].tobytes()
    if more.get("boosting") != "rf":  # whose own attributions are of the sum, not of the average
        trees = TreeShap(read_ensemble(graph))
        values = trees.explain(probe).transpose(0, 2, 1)
        wanted = booster.predict(probe, pred_contrib=True).reshape(len(probe), -1, 5)
        np.testing.assert_allclose(values, wanted[:, :, :-1], atol=3e-5)
        np.testing.assert_allclose(trees.base, wanted[0, :, -1], atol=3e-5)


def golden_names() -> list[str]:
    return sorted(path.stem for path in GOLDEN.glob("sets*.json"))


@pytest.mark.parametrize("name", golden_names())
def test_what_xgboost_said_of_its_sets(tmp_path: Path, name: str) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    folder = tmp_path / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.ubj").write_bytes(base64.b64decode(golden["ubjson"]))
    matrix = np.array(golden["rows"], np.float32)
    with Served(tmp_path) as served:
        assert not served.reason(name)
        (answer,) = served.infer(name, features=matrix).values()
        method, values, base = explained(served, name, matrix)
        model = served.repository.get(name)
        assert model.config.backend == "xgboost"
        assert model.config.default_model_filename == "model.ubj"
    np.testing.assert_allclose(answer, golden["answers"], rtol=3e-6, atol=1e-6)
    assert method == "tree_shap"
    expected = np.array(golden["attributions"]).reshape(len(matrix), -1, 5)
    np.testing.assert_allclose(values.transpose(0, 2, 1), expected[:, :, :-1], atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(base, expected[:, :, -1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"max_cat_to_onehot": 50},
        {"booster": "dart", "rate_drop": 0.5},
        {"num_parallel_tree": 4, "subsample": 0.5},
        {"objective": "reg:squarederror"},
        {"objective": "multi:softprob", "num_class": 3},
        {"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.5]},
    ],
)
@pytest.mark.parametrize("missing", [False, True])
def test_xgboosts_sets(missing: bool, more: dict[str, Any]) -> None:
    xgb = pytest.importorskip("xgboost", reason="XGBoost is not in the lock")
    matrix = rows(2000, 1, missing=missing)
    wanted = target(matrix)
    objective = more.get("objective", "")
    if not objective.startswith("reg"):
        wanted = np.digitize(wanted, [0.5, 1.5] if objective else [0.5])
    kinds = {"feature_types": ["q", "c", "q", "c"], "enable_categorical": True}
    fixed = {"objective": "binary:logistic", "max_depth": 4, "nthread": 1}
    booster = xgb.train(fixed | more, xgb.DMatrix(matrix, wanted, **kinds), 12)
    probe = odd_rows()
    expected = booster.predict(xgb.DMatrix(probe, **kinds))
    for form in ("json", "ubj"):
        graph = read_xgboost(bytes(booster.save_raw(form))).graph("in", "out")
        found = answers(graph, probe)
        np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=3e-6, atol=1e-6)


def stump(members: Any, feature: int = 0) -> Tree:
    one = np.ones(1)
    return Tree(
        feature=np.array([feature], np.int32),
        threshold=np.zeros(1),
        nan_left=np.array([False]),
        left=np.array([-1], np.int32),
        right=np.array([-2], np.int32),
        leaf=np.array([1.0, 2.0]),
        cover=one * 2,
        leaf_cover=np.ones(2),
        sets={0: np.array(members, np.int64)},
    )


def test_a_set_that_is_asked_for_again_has_one_column() -> None:
    trees, tables = split_by_tables([stump([1, 2]), stump([1, 2]), stump([3], 1), stump([])], 2)
    assert tables.owner.tolist() == [0, 0, 1]
    assert [int(tree.feature[0]) for tree in trees] == [2, 2, 4, 3]
    assert tables.by_feature[0].T.tolist() == [[1, 0, 0, 1, 1], [1, 1, 1, 1, 1]]
    assert not any(tree.sets for tree in trees)


def test_tables_that_would_be_too_large_are_refused() -> None:
    for trees in ([stump([TABLE_MAX])], [stump([at], 0) for at in range(70_000)]):
        with pytest.raises(UnimplementedError, match="too many categories"):
            split_by_tables(trees, 1)


def changed(model: Any, tree: dict[str, Any]) -> str:
    copy = json.loads(json.dumps(model))
    copy["learner"]["gradient_booster"]["model"]["trees"][0].update(tree)
    return json.dumps(copy)


def test_sets_that_are_wrong(tmp_path: Path) -> None:
    model = json.loads((GOLDEN / "binary.json").read_text())["model"]
    nodes = len(model["learner"]["gradient_booster"]["model"]["trees"][0]["left_children"])
    types = [1] + [0] * (nodes - 1)

    def sets(members: Any, start: int, size: int, node: int = 0) -> dict[str, Any]:
        return {
            "split_type": types, "categories": members, "categories_nodes": [node],
            "categories_segments": [start], "categories_sizes": [size],
        }  # fmt: skip

    cases = {
        "none": {"split_type": types},
        "behind": sets([1, 2], 1, 2),
        "before": sets([1, 2], -1, 2),
        "negative": sets([-1], 0, 1),
        "large": sets([1 << 24], 0, 1),
        "elsewhere": sets([1], 0, 1, 1),
        "short": sets([1], 0, 1) | {"split_type": [1]},
        "columns": sets([1], 0, 1) | {"categories_sizes": []},
        "shared": {
            "split_type": types,
            "categories": [1, 2],
            "categories_nodes": [0, 1],
            "categories_segments": [0, 0],
            "categories_sizes": [2, 1],
        },
    }
    for name, tree in cases.items():
        put(tmp_path, name, "model.json", changed(model, tree))
    put(tmp_path, "good", "model.json", changed(model, sets([1, 2], 0, 2)))
    text = lgb.train(
        {"objective": "binary", "verbose": -1, "min_data_per_group": 1},
        lgb.Dataset(rows(500, 1, missing=False), np.arange(500) % 2, categorical_feature=[3]),
        1,
    ).model_to_string()
    put(tmp_path, "bounds", "model.txt", text.replace("cat_boundaries=0 ", "cat_boundaries=-5 "))
    put(tmp_path, "place", "model.txt", text.replace("cat_boundaries=", "cat_boundary="))
    words = next(each for each in text.splitlines() if each.startswith("cat_threshold="))
    put(tmp_path, "cut", "model.txt", text.replace(words, "cat_threshold="))
    with Served(tmp_path) as served:
        for name in (*cases, "bounds", "place", "cut"):
            assert "cannot be read so" in served.reason(name), (name, served.reason(name))
        assert served.repository.get("good").ready


def chain_of_sets(places: list[int], words: int) -> bytes:
    """Return LightGBM's text of a chain of nodes whose sets are the first, or nothing (1)."""
    nodes = len(places)
    columns = {
        "split_feature": [0] * nodes,
        "threshold": places,
        "decision_type": [1] * nodes,
        "left_child": [*range(1, nodes), -1],
        "right_child": [~leaf for leaf in range(1, nodes + 1)],
        "leaf_value": [0] * (nodes + 1),
        "leaf_count": [1] * (nodes + 1),
        "internal_count": [*range(nodes + 1, 1, -1)],
        "cat_boundaries": [0, words, words],
        "cat_threshold": [2**32 - 1] * words,
    }
    tree = "".join(f"{key}={' '.join(map(str, values))}\n" for key, values in columns.items())
    head = "num_tree_per_iteration=1\nmax_feature_idx=0\nobjective=regression\ntree_sizes=1\n"
    return f"tree\n{head}\nTree=0\n{tree}\nend of trees\n".encode()


def test_a_small_text_is_not_many_large_sets() -> None:
    forest = read_lightgbm(chain_of_sets([0, 1, 1], 2000))
    assert [len(members) for members in forest.trees[0].sets.values()] == [64_000, 0, 0]
    with pytest.raises(FailedPreconditionError, match="not a whole LightGBM"):
        read_lightgbm(chain_of_sets([0, 1, 0], 2000))


def lightgbm_text() -> str:
    matrix = rows(400, 1, missing=True)
    data = lgb.Dataset(matrix, target(matrix), categorical_feature=CATEGORICAL)
    fixed = {"objective": "regression", "verbose": -1, "num_leaves": 4, "num_threads": 1}
    return str(lgb.train(fixed, data, 2).model_to_string())


SOURCES = [
    (read_lightgbm, lightgbm_text().encode()),
    (
        read_xgboost,
        base64.b64decode(json.loads((GOLDEN / "sets.json").read_text())["ubjson"]),
    ),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whatever_a_file_says_it_is_a_forest_or_refused(data: st.DataObject) -> None:
    read, content = data.draw(st.sampled_from(SOURCES))
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.binary(max_size=2) | st.sampled_from([b"9", b"-", b"0 ", b"e9", b"nan", b"L", b"["])
        )
    try:
        graph = read(bytes(changed)).graph("in", "out")
    except HeadraceError:
        return
    assert graph
