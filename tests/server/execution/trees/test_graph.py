"""Which graphs are trees and no more; what is more is left to onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from headrace.errors import UnimplementedError
from server.execution.trees.graph import (
    ABOVE_HALF,
    ABOVE_ZERO,
    CHANCES,
    LARGEST,
    LOGISTIC,
    NO_LABEL,
    PLAIN,
    SHARES,
    SIGNS,
    SOFTMAX,
    read_tree_graph,
)
from server.pb import onnx_trees_pb2 as pb
from tests.server.execution.trees.forests import classifier, forest, regressor
from tests.server.explain.small_trees import Leaf, Split, attributes_of, model_of
from tests.server.explain.test_lookups import FOREST as CATEGORIES

FOREST = forest(1, [3, 5])


def node(kind, source, target, **attributes):
    return helper.make_node(kind, [source], [target], **attributes)


@pytest.mark.parametrize(
    ("outputs", "transform", "finish"),
    [(1, "NONE", PLAIN), (1, "SOFTMAX", PLAIN), (2, "LOGISTIC", LOGISTIC), (3, "SOFTMAX", SOFTMAX)],
)
def test_a_regressor(outputs, transform, finish):
    trees = forest(1, [3, 5], range(outputs))
    model = regressor(trees, outputs, post_transform=transform, aggregate_function="AVERAGE")
    graph = read_tree_graph(model, ["score"])
    assert (graph.finish, graph.label, graph.averages) == (finish, NO_LABEL, True)
    assert (graph.width, graph.answers, graph.sigmoid) == (outputs, (False,), False)


@pytest.mark.parametrize(
    ("positive", "transform", "finish", "label"),
    [
        (True, "NONE", SHARES, ABOVE_HALF),
        (False, "NONE", SIGNS, ABOVE_ZERO),
        (True, "LOGISTIC", CHANCES, ABOVE_HALF),
        (False, "LOGISTIC", CHANCES, ABOVE_ZERO),
    ],
)
def test_two_classes_with_one_score(positive, transform, finish, label):
    model = classifier(
        forest(1, [3, 5], positive=positive), ["no", "yes"], post_transform=transform
    )
    graph = read_tree_graph(model, ["scores", "label"])
    assert (graph.finish, graph.label, graph.width) == (finish, label, 2)
    assert graph.answers == (False, True)
    assert graph.labels.tolist() == ["no", "yes"]


def test_a_score_for_each_of_several_classes():
    graph = read_tree_graph(classifier(forest(1, [3], range(3)), [5, 6, 7]), ["label"])
    assert (graph.finish, graph.label, graph.width) == (PLAIN, LARGEST, 3)
    assert graph.labels.tolist() == [5, 6, 7]
    assert graph.labels.dtype == np.int64


def test_what_exporters_put_round_it():
    def regression(trees):
        trees.input[0], trees.output[0] = "cast", "raw"
        return [
            node("Identity", "x", "same"),
            node("Cast", "same", "cast", to=TensorProto.FLOAT),
            trees,
            node("Sigmoid", "raw", "chance"),
            node("Identity", "chance", "score"),
        ]

    model = model_of(attributes_of(FOREST) | {"n_targets": 1}, around=regression)
    assert read_tree_graph(model, ["score"]).sigmoid

    def classification(trees):
        trees.output[:] = ["label_tensor", "raw"]
        return [
            trees,
            node("Cast", "label_tensor", "label", to=TensorProto.INT64),
            helper.make_node("Mul", ["raw", "one"], ["scores"]),
        ]

    model = classifier(FOREST, [0, 1], around=classification)
    assert read_tree_graph(model, ["label", "scores"]).answers == (True, False)


def changed(**attributes):
    """The regressor with other attributes."""
    return model_of(attributes_of(FOREST) | {"n_targets": 1} | attributes)


def with_nodes(around, **more):
    return model_of(attributes_of(FOREST) | {"n_targets": 1}, around=around, **more)


def mixed_up():
    """The nodes of two trees in turns."""
    table = attributes_of([FOREST[0], FOREST[0]])
    count = len(table["nodes_modes"]) // 2
    turns = np.arange(2 * count).reshape(2, count).T.ravel()
    nodes = {
        name: [values[at] for at in turns]
        for name, values in table.items()
        if name.startswith("nodes")
    }
    return model_of(table | nodes | {"n_targets": 1})


def doubles():
    table = attributes_of(FOREST)
    values = np.array(table.pop("nodes_values"))
    return model_of(
        table | {"n_targets": 1, "nodes_values_as_tensor": numpy_helper.from_array(values)}
    )


def bad_label():
    model = onnx.load_from_string(classifier(FOREST, ["no", "yes"]))
    for attribute in model.graph.node[0].attribute:
        if attribute.name == "classlabels_strings":
            attribute.strings[0] = b"\xff"
    return model.SerializeToString()


def without(name):
    model = onnx.load_from_string(regressor(FOREST))
    kept = [each for each in model.graph.node[0].attribute if each.name != name]
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.extend(kept)
    return model.SerializeToString()


SPARSE = Split(0, 0.5, "LT", False, Leaf({0: 1.0}, 1), Leaf({1: 1.0}, 1))
TWICE = attributes_of([Leaf({0: 1.0}, 1)])
for _name in ("treeids", "nodeids", "ids", "weights"):
    TWICE[f"target_{_name}"] *= 2


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (b"\xff" * 9, "no ONNX model"),
        (with_nodes(lambda each: [each], inputs=("x", "y")), "2 inputs"),
        (with_nodes(lambda each: [node("Identity", "x", "score")]), "no tree ensemble"),
        (with_nodes(lambda each: [node("Abs", "x", "y"), each]), "a node Abs"),
        (with_nodes(lambda each: [each, each]), "a node TreeEnsembleRegressor"),
        (with_nodes(lambda each: [node("Constant", "", "c"), each]), "a node Constant"),
        (with_nodes(lambda each: [helper.make_node("Shape", [], ["c"]), each]), "a node Shape"),
        (with_nodes(lambda each: [each, node("Sigmoid", "score", "other")], outputs=("score",)),
         None),
        (with_nodes(lambda each: [each, node("Cast", "score", "i", to=TensorProto.INT64)]),
         "a node Cast"),
        (with_nodes(lambda each: [each, helper.make_node("Mul", ["score", "score"], ["i"])]),
         "a node Mul"),
        (with_nodes(lambda each: [each, node("Identity", "score", "i", domain="mine")]),
         "a node Identity"),
        (with_nodes(lambda each: (each.input.__setitem__(0, "nothing"), [each])[1]), "straight"),
        (with_nodes(lambda each: (each.input.pop(), [each])[1]), "straight"),
        (changed(post_transform="PROBIT"), "transformed otherwise"),
        (changed(aggregate_function="MIN"), "aggregates by MIN"),
        (doubles(), "not float32"),
        (without("nodes_treeids"), "0 nodes|not one small number"),
        (mixed_up(), "do not lie together"),
        (regressor([SPARSE, SPARSE], 2), "may get no weight"),
        (model_of(TWICE | {"n_targets": 1}), "not one weight"),
        (model_of(TWICE | {"n_targets": 2}), "two weights"),
        (regressor([Leaf({0: 3e38}, 1)]), "too large"),
        (regressor([Leaf(dict.fromkeys(range(65_000), 1.0), 1)] * 17, 65_000), "many outputs"),
        (regressor([Leaf({0: 1.0}, 1)] * ((1 << 17) + 1)), "more than 131072 nodes"),
        (classifier(forest(1, [3], [1]), [0, 1]), "not that of the first class"),
        (classifier(forest(1, [3], [0, 1]), [0, 1]), "2 classes with 2 scores"),
        (classifier(forest(1, [3], [0]), [0]), "1 classes with 1 scores"),
        (bad_label(), "a label is not text"),
    ],
)  # fmt: skip
def test_what_is_more_or_less_is_refused_with_the_reason(model, why):
    outputs = ["label", "scores"] if b"class_ids" in model else ["score"]
    if why is None:
        read_tree_graph(model, outputs)
        return
    with pytest.raises(UnimplementedError, match=why):
        read_tree_graph(model, outputs)


def test_outputs_are_what_the_trees_say():
    model = with_nodes(lambda each: [each, node("Sigmoid", "score", "chance")])
    assert not read_tree_graph(model, ["score"]).sigmoid
    for outputs in (["score", "chance"], ["x"], ["nothing"]):
        with pytest.raises(UnimplementedError, match="outputs"):
            read_tree_graph(model, outputs)


def test_lookups_of_categories_stand_before_the_trees():
    model = pb.Model.FromString(CATEGORIES.graph("in", "out"))
    graph = read_tree_graph(model.SerializeToString(), ["out"])
    assert graph.lookups is not None
    assert (graph.features, graph.ensemble.features) == (3, 6)
    trees = model.graph.node[-1]
    next(each for each in trees.attribute if each.name == "nodes_featureids").ints[0] = 6
    with pytest.raises(UnimplementedError, match="rows do not have"):
        read_tree_graph(model.SerializeToString(), ["out"])
    del trees.input[0]
    with pytest.raises(UnimplementedError, match="node Gather"):
        read_tree_graph(model.SerializeToString(), ["out"])
