"""Files of boosted trees answer as the library that wrote them, or do not load.

LightGBM is asked here; what XGBoost 3.2 said to its models lies in `golden/`.
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.errors import HeadraceError, UnimplementedError
from server.backends.forests.lightgbm_text import read_lightgbm
from server.backends.forests.xgboost_model import read_xgboost
from server.models.loaded import LoadedModel
from tests.server.backends.serving import Served
from tests.trainer.boosters import FEATURES, booster_text, rows

GOLDEN = Path(__file__).parent / "golden"
ROWS = rows(200, seed=9)


def put(root: Path, name: str, filename: str, text: str, config: str = "") -> None:
    folder = root / name / "1"
    folder.mkdir(parents=True)
    (folder / filename).write_text(text)
    if config:
        (root / name / "config.pbtxt").write_text(config)


def explained(served: Served, name: str, matrix: np.ndarray[Any, Any]) -> tuple[str, Any, Any]:
    model = served.repository.get(name)
    assert isinstance(model, LoadedModel)
    found = served.run(model.explain([matrix], len(matrix), None))
    return found.method, found.values, found.base


def regression_text(objective: str = "regression", **parameters: Any) -> str:
    targets = np.exp(np.nan_to_num(ROWS[:, 0]))
    if objective.startswith("multiclass"):
        targets = np.digitize(targets, [0.7, 1.4])
    data = lgb.Dataset(ROWS, targets)
    fixed = {"objective": objective, "verbose": -1, "num_threads": 1, "num_leaves": 7}
    return str(lgb.train(fixed | parameters, data, 8).model_to_string())


def test_a_lightgbm_file_answers_and_is_explained_as_lightgbm_does(tmp_path: Path) -> None:
    text = booster_text()
    put(tmp_path, "binary", "model.txt", text)
    booster = lgb.Booster(model_str=text)
    with Served(tmp_path) as served:
        answer = served.infer("binary", features=ROWS)["probability"]
        np.testing.assert_allclose(answer[:, 0], booster.predict(ROWS), atol=2e-5)
        one = served.infer("binary", features=ROWS[:1])["probability"]
        assert one.tobytes() == answer[:1].tobytes()
        method, values, base = explained(served, "binary", ROWS)
        model = served.repository.get("binary")
    assert method == "tree_shap"
    expected = booster.predict(ROWS, pred_contrib=True)
    np.testing.assert_allclose(values[:, :, 0], expected[:, :FEATURES], atol=1e-4)
    np.testing.assert_allclose(base[:, 0], expected[:, -1], atol=1e-4)
    assert model.config.backend == "lightgbm"
    assert model.config.default_model_filename == "model.txt"
    assert model.max_batch_size > 0


@pytest.mark.parametrize(
    ("objective", "output", "more"),
    [
        ("regression", "value", {}),
        ("poisson", "value", {}),
        ("multiclass", "probabilities", {"num_class": 3}),
        ("multiclassova", "probability", {"num_class": 3}),
    ],
)
def test_lightgbms_objectives(
    tmp_path: Path, objective: str, output: str, more: dict[str, int]
) -> None:
    text = regression_text(objective, **more)
    put(tmp_path, "m", "model.txt", text)
    with Served(tmp_path) as served:
        answer = served.infer("m", features=ROWS)[output]
    expected = lgb.Booster(model_str=text).predict(ROWS).reshape(len(ROWS), -1)
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)


def test_inputs_and_outputs_are_called_as_configured(tmp_path: Path) -> None:
    config = """
        backend: "lightgbm"
        default_model_filename: "trees.txt"
        max_batch_size: 64
        input { name: "input__0" data_type: TYPE_FP32 dims: [ 8 ] }
        output { name: "output__0" data_type: TYPE_FP32 dims: [ 1 ] }
    """
    put(tmp_path, "named", "trees.txt", booster_text(), config)
    put(tmp_path, "narrow", "trees.txt", booster_text(), config.replace("[ 8 ]", "[ 7 ]"))
    with Served(tmp_path) as served:
        assert served.infer("named", input__0=ROWS[:3])["output__0"].shape == (3, 1)
        assert "dims of input 'input__0' differ" in served.reason("narrow")


@pytest.mark.parametrize("name", ["binary", "regression", "classes", "counts"])
def test_an_xgboost_file_answers_and_is_explained_as_xgboost_did(tmp_path: Path, name: str) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    put(tmp_path, name, "model.json", json.dumps(golden["model"]))
    matrix = np.array(golden["rows"], np.float32)
    with Served(tmp_path) as served:
        (answer,) = served.infer(name, features=matrix).values()
        method, values, base = explained(served, name, matrix)
    np.testing.assert_allclose(answer, golden["answers"], rtol=2e-6, atol=1e-6)
    assert method == "tree_shap"
    expected = np.array(golden["attributions"]).reshape(len(matrix), -1, 5)
    np.testing.assert_allclose(values.transpose(0, 2, 1), expected[:, :, :-1], atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(base, expected[:, :, -1], atol=1e-4, rtol=1e-4)


class Boom:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("boom").absolute(),))


def test_a_pickle_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, filename in (("a", "model.pkl"), ("b", "model.joblib"), ("c", "model.txt")):
        put(tmp_path / "models", name, filename, "")
        (tmp_path / "models" / name / "1" / filename).write_bytes(pickle.dumps(Boom()))
    with Served(tmp_path / "models") as served:
        for name in "ab":
            assert "convert it by skl2onnx" in served.reason(name)
        assert "what is no text" in served.reason("c")
    assert not (tmp_path / "boom").exists()


def changed(model: dict[str, Any], column: str, at: int, value: Any) -> str:
    copy = json.loads(json.dumps(model))
    copy["learner"]["gradient_booster"]["model"]["trees"][0][column][at] = value
    return json.dumps(copy)


def chain(levels: int) -> str:
    """Return XGBoost's file of one tree that is a chain of nodes, each with a leaf beside it."""
    nodes = 2 * levels + 1
    model = json.loads((GOLDEN / "binary.json").read_text())["model"]
    model["learner"]["gradient_booster"]["model"]["tree_info"] = [0]
    (tree, *_) = model["learner"]["gradient_booster"]["model"]["trees"]
    model["learner"]["gradient_booster"]["model"]["trees"] = [tree]
    leaves = [-1] * (levels + 1)
    tree |= {
        "left_children": [*range(1, levels), 2 * levels, *leaves],
        "right_children": [*range(levels, 2 * levels), *leaves],
        "split_conditions": [0.5] * nodes,
        "sum_hessian": [float(levels + 1 - at) for at in range(levels)] + [1.0] * (levels + 1),
        "default_left": [0] * nodes,
        "split_indices": [0] * nodes,
        "split_type": [0] * nodes,
    }
    return json.dumps(model)


def test_a_deep_tree_answers_and_one_too_deep_for_a_stack_is_refused() -> None:
    session = onnxruntime.InferenceSession(
        read_xgboost(chain(2048).encode()).graph("in", "out"), providers=["CPUExecutionProvider"]
    )
    assert session.run(None, {"in": np.zeros((1, 4), np.float32)})[0].shape == (1, 1)
    for levels in (2049, 50_000):
        with pytest.raises(UnimplementedError, match="at most 2048 levels"):
            read_xgboost(chain(levels).encode()).graph("in", "out")


def test_wrong_files_say_what_is_wrong(tmp_path: Path) -> None:
    text = booster_text(trees=3)
    model = json.loads((GOLDEN / "binary.json").read_text())["model"]
    other = json.loads(json.dumps(model).replace('"gbtree"', '"gblinear"'))
    cases = {
        "cut.txt": (text[: len(text) // 3], "no end of the trees"),
        "linear.txt": (booster_text(trees=2, linear_tree=True), "linear leaves"),
        "far.txt": (text.replace("max_feature_idx=7", "max_feature_idx=1"), "rows do not have"),
        "child.txt": (text.replace("left_child=1 ", "left_child=9999 ", 1), "child is not there"),
        "infinite.txt": (text.replace("leaf_value=", "leaf_value=1e999 ", 1), "do not fit"),
        "empty.txt": ("", "another first line"),
        "deep.json": ("[" * 100_000, "cannot be read so"),
        "cut.json": (json.dumps(model)[:-9], "cannot be read so"),
        "linear.json": (json.dumps(other), "got gblinear"),
        "loop.json": (changed(model, "left_children", 1, 1), "cannot be read so"),
        "nan.json": (changed(model, "split_conditions", 0, float("nan")), "is none"),
        "feature.json": (changed(model, "split_indices", 0, 77), "rows do not have"),
        "target.json": (json.dumps(model).replace('"tree_info": [0', f'"tree_info": [{10**30}'),
                        "a sum that there is not"),
        "wide.json": (json.dumps(model).replace('"num_feature": "', f'"num_feature": "{10**30}'),
                      "there is no forest"),
        "base.json": (re.sub(r'"base_score": "[^"]*"', '"base_score": "1"', json.dumps(model)),
                      "cannot be read so"),
        "chain.json": (chain(3000), "at most 2048 levels"),
    }  # fmt: skip
    for name, (content, _) in cases.items():
        filename = f"model{Path(name).suffix}"
        assert content not in {text, json.dumps(model)}
        put(tmp_path, name, filename, content)
    put(tmp_path, "good", "model.txt", text)
    with Served(tmp_path) as served:
        for name, (_, reason) in cases.items():
            assert reason in served.reason(name), (name, served.reason(name))
        assert served.repository.get("good").ready


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whatever_a_file_says_it_is_a_forest_or_refused(data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        read: Any = read_lightgbm
        text = booster_text(trees=2, leaves=4)
    else:
        read = read_xgboost
        text = json.dumps(json.loads((GOLDEN / "binary.json").read_text())["model"])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        piece = data.draw(st.sampled_from(["", "-", "9", "0", "e9", "null", "[", "nan", " ", "="]))
        text = text[:at] + piece + text[at + data.draw(st.integers(0, 3)) :]
    try:
        graph = read(text.encode()).graph("in", "out")
    except HeadraceError:
        return
    assert graph
