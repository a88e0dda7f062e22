import lightgbm as lgb
import numpy as np
import onnx
import pytest

from tests.trainer.boosters import FEATURES, booster_text, rows
from trainer.export import forest_to_onnx
from trainer.scoring import onnx_predictor
from trainer.trees import read_forest, to_single_precision


def exported(text: str) -> bytes:
    return forest_to_onnx(read_forest(text), "delay").SerializeToString()


@pytest.fixture(scope="module")
def text() -> str:
    return to_single_precision(booster_text())


def test_the_graph_has_one_input_and_one_output(text):
    graph = onnx.load_model_from_string(exported(text)).graph
    assert [each.name for each in graph.input] == ["features"]
    assert [each.name for each in graph.output] == ["probability"]
    for value, width in ((graph.input[0], FEATURES), (graph.output[0], 1)):
        tensor = value.type.tensor_type
        assert tensor.elem_type == onnx.TensorProto.FLOAT
        assert tensor.shape.dim[0].dim_param == "N"
        assert tensor.shape.dim[1].dim_value == width


def test_onnx_answers_as_the_booster_does(text):
    matrix = rows(4000, seed=3)
    ours = onnx_predictor(exported(text), 1)(matrix)
    theirs = lgb.Booster(model_str=text).predict(matrix)
    assert ours.dtype == np.float32
    assert np.abs(ours - theirs).max() < 2e-7


def test_nan_goes_where_the_booster_sends_it_also_where_training_saw_none(text):
    matrix = np.repeat(rows(50, seed=4), FEATURES, axis=0)
    matrix[np.arange(len(matrix)), np.arange(len(matrix)) % FEATURES] = np.nan
    ours = onnx_predictor(exported(text), 1)(matrix)
    assert np.abs(ours - lgb.Booster(model_str=text).predict(matrix)).max() < 2e-7


def test_sums_are_exact_whatever_the_batch_and_the_threads(text):
    model = onnx.load_model_from_string(exported(text))
    del model.graph.node[1]
    model.graph.node[0].output[0] = "probability"
    matrix = rows(3000, seed=6)
    exact = lgb.Booster(model_str=text).predict(matrix, raw_score=True)
    for threads in (1, 4):
        raw = onnx_predictor(model.SerializeToString(), threads)
        assert np.array_equal(raw(matrix), exact)
        assert np.array_equal(np.concatenate([raw(row[None]) for row in matrix[:50]]), exact[:50])


def test_a_forest_of_single_leaves():
    text = to_single_precision(booster_text(trees=2, min_data_in_leaf=100_000))
    matrix = rows(5, seed=1)
    ours = onnx_predictor(exported(text), 1)(matrix)
    assert np.allclose(ours, lgb.Booster(model_str=text).predict(matrix), atol=1e-7)
