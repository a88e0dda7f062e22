"""Reading tree ensembles: what is read is what onnx wrote, and nothing else gets through."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from headrace.errors import UnimplementedError
from server.explain.tree_shap import TreeShap
from server.explain.trees import (
    ensemble_of_node,
    file_with_trees,
    has_trees,
    read_ensemble,
)
from server.pb import onnx_trees_pb2 as pb
from tests.server.explain.small_trees import (
    Leaf,
    Split,
    attributes_of,
    model_of,
    regressor,
)

TREE = Split(
    2, 0.5, "LT", True, Leaf({0: 1.0}, 3), Split(1, -1.0, "GT", False, Leaf({0: 2.0}, 4),
                                                 Leaf({0: -3.0}, 5)),
)  # fmt: skip


def test_nodes_are_read_as_they_were_written():
    ensemble = read_ensemble(regressor([TREE, Leaf({0: 9.0}, 12)], base_values=[0.25]))
    assert ensemble.roots.tolist() == [0, 5]
    assert ensemble.feature.tolist() == [2, 0, 1, 0, 0, 0]
    assert ensemble.threshold.tolist() == [0.5, 0, -1, 0, 0, 0]
    assert ensemble.nan_yes.tolist() == [1, 0, 0, 0, 0, 0]
    assert ensemble.yes.tolist() == [1, -1, 3, -1, -1, -1]
    assert ensemble.no.tolist() == [2, -1, 4, -1, -1, -1]
    assert ensemble.cover.tolist() == [12, 3, 9, 4, 5, 12]
    assert ensemble.weight.tolist() == [1, 2, -3, 9]
    assert ensemble.weight_start.tolist() == [0, 0, 1, 1, 2, 3, 4]
    assert ensemble.base.tolist() == [0.25]
    assert (ensemble.features, ensemble.outputs) == (3, 1)


def test_the_order_of_nodes_and_their_numbers_do_not_matter():
    attributes = attributes_of([TREE, TREE])
    order = np.random.default_rng(1).permutation(10)
    for name, values in attributes.items():
        if name.startswith("nodes"):
            attributes[name] = [values[at] for at in order]
        if name.endswith("treeids"):
            attributes[name] = [7 * number + 3 for number in attributes[name]]
    shuffled = read_ensemble(model_of(attributes))
    plain = read_ensemble(regressor([TREE, TREE]))
    assert sorted(shuffled.cover[shuffled.roots]) == sorted(plain.cover[plain.roots])
    for name in ("threshold", "weight", "cover"):
        assert sorted(getattr(shuffled, name)) == sorted(getattr(plain, name))
    paths = TreeShap(shuffled), TreeShap(plain)
    rows = np.random.default_rng(2).normal(size=(20, 4))
    assert np.array_equal(*(each.explain(rows) for each in paths))


def test_numbers_may_be_tensors_of_doubles():
    attributes = attributes_of([TREE])
    for number, name in enumerate(("nodes_values", "nodes_hitrates", "target_weights")):
        values = np.array(attributes.pop(name))
        tensor = (
            numpy_helper.from_array(values, name)
            if number
            else helper.make_tensor(name, TensorProto.DOUBLE, [len(values)], values.tolist())
        )
        attributes[f"{name}_as_tensor"] = tensor
    ensemble = read_ensemble(model_of(attributes))
    plain = read_ensemble(regressor([TREE]))
    assert np.array_equal(ensemble.threshold, plain.threshold)
    assert np.array_equal(ensemble.cover, plain.cover)
    assert np.array_equal(ensemble.weight, plain.weight)


def test_a_tensor_that_is_cut_off_is_refused():
    attributes = attributes_of([TREE])
    tensor = numpy_helper.from_array(np.array(attributes.pop("nodes_values")))
    tensor.raw_data = tensor.raw_data[:-1]
    with pytest.raises(UnimplementedError, match="cut off"):
        read_ensemble(model_of(attributes | {"nodes_values_as_tensor": tensor}))


def test_missing_values_go_to_no_where_nothing_is_said():
    attributes = attributes_of([TREE])
    del attributes["nodes_missing_value_tracks_true"]
    assert not read_ensemble(model_of(attributes)).nan_yes.any()


@pytest.mark.parametrize("labels", [{"classlabels_int64s": [4, 5, 6]},
                                    {"classlabels_strings": ["a", "b", "c"]}])  # fmt: skip
def test_a_classifier_has_one_score_for_each_class(labels):
    forest = [Split(0, 1.0, "LEQ", False, Leaf({0: 1.0}, 1), Leaf({2: 2.0}, 1))]
    model = model_of(
        attributes_of(forest, "class") | labels, "TreeEnsembleClassifier",
        outputs=("label", "scores"),
    )  # fmt: skip
    ensemble = read_ensemble(model)
    assert ensemble.outputs == 3
    assert ensemble.weight_output.tolist() == [0, 2]


@pytest.mark.parametrize("number", [0, 1])
def test_a_classifier_of_two_classes_may_have_one_score(number):
    forest = [Split(0, 1.0, "LEQ", False, Leaf({number: 1.0}, 1), Leaf({number: 2.0}, 1))]
    model = model_of(
        attributes_of(forest, "class") | {"classlabels_int64s": [0, 1], "base_values": [0.5]},
        "TreeEnsembleClassifier",
        outputs=("label", "scores"),
    )
    ensemble = read_ensemble(model)
    assert ensemble.outputs == 1
    assert ensemble.base.tolist() == [0.5]


def test_the_average_is_a_sum_of_smaller_weights():
    ensemble = read_ensemble(regressor([TREE, TREE], aggregate_function="AVERAGE"))
    assert ensemble.weight.tolist() == [0.5, 1.0, -1.5] * 2


def passed(operator, **attributes):
    """Put a node between the input and the trees."""

    def around(node):
        node.input[0] = "z"
        return [helper.make_node(operator, ["x"], ["z"], **attributes), node]

    return around


@pytest.mark.parametrize("between", [passed("Identity"), passed("Cast", to=TensorProto.FLOAT)])
def test_what_keeps_the_features_may_stand_before_the_trees(between):
    model = model_of(attributes_of([TREE]), around=between)
    assert read_ensemble(model).weight.tolist() == [1, 2, -3]


def test_what_comes_behind_the_trees_does_not_matter():
    model = model_of(
        attributes_of([TREE]),
        around=lambda node: [node, helper.make_node("Sigmoid", ["score"], ["p"])],
    )
    assert read_ensemble(model).outputs == 1


def beside(node):
    return [node, helper.make_node("Abs", ["x"], ["more"])]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (b"\xff\xff", "no ONNX model"),
        (b"", "0 tree ensembles"),
        (model_of(attributes_of([TREE]), inputs=("x", "y")), "2 inputs"),
        (model_of(attributes_of([TREE]), around=passed("Abs")), "goes into Abs"),
        (model_of(attributes_of([TREE]), around=beside), "goes into Abs"),
        (model_of(attributes_of([TREE]), inputs=("y",)), "straight"),
        (regressor([TREE], aggregate_function="MAX"), "aggregates by MAX"),
        (regressor([TREE], base_values=[1.0, 2.0]), "2 base values"),
        (regressor([TREE], outputs=0), "does not have"),
        (regressor([Leaf({3: 1.0}, 1)], outputs=2), "does not have"),
    ],
)  # fmt: skip
def test_models_of_another_form_are_refused(model, why):
    with pytest.raises(UnimplementedError, match=why):
        read_ensemble(model)


@pytest.mark.parametrize(
    ("name", "at", "value", "why"),
    [
        ("nodes_modes", 0, "BRANCH_MEMBER", "unknown mode"),
        ("nodes_modes", 2, "LEAF", "not one root"),
        ("nodes_nodeids", 1, 0, "two nodes"),
        ("nodes_nodeids", 1, -1, "small number"),
        ("nodes_nodeids", 1, 1 << 40, "small number"),
        ("nodes_truenodeids", 0, 99, "is not there"),
        ("nodes_truenodeids", 0, 2, "two parents"),
        ("nodes_truenodeids", 2, 0, "not one root|above itself"),
        ("nodes_featureids", 0, 1 << 20, "too large"),
        ("nodes_hitrates", 0, 100.0, "nodes_hitrates"),
        ("nodes_hitrates", 0, float("nan"), "nodes_hitrates"),
        ("nodes_hitrates", 1, -1.0, "nodes_hitrates"),
        ("target_nodeids", 0, 0, "do not belong"),
        ("target_nodeids", 0, 77, "do not belong"),
        ("target_ids", 0, 5, "does not have"),
    ],
)  # fmt: skip
def test_tables_that_lead_astray_are_refused(name, at, value, why):
    attributes = attributes_of([TREE]) | {"n_targets": 1}
    attributes[name][at] = value
    with pytest.raises(UnimplementedError, match=why):
        read_ensemble(model_of(attributes))


def test_a_ring_beside_the_root_is_refused():
    # 0 is a leaf; 1 → 2 → 1, each with a leaf of its own.
    attributes = attributes_of([TREE])
    attributes["nodes_modes"] = ["LEAF", "BRANCH_LT", "BRANCH_LT", "LEAF", "LEAF"]
    attributes["nodes_truenodeids"] = [0, 2, 1, 0, 0]
    attributes["nodes_falsenodeids"] = [0, 3, 4, 0, 0]
    with pytest.raises(UnimplementedError, match="above itself"):
        read_ensemble(model_of(attributes))


def test_an_ensemble_of_nothing_is_refused():
    with pytest.raises(UnimplementedError, match="0 nodes"):
        read_ensemble(model_of({}))


@pytest.mark.parametrize(
    "name",
    ["nodes_treeids", "nodes_modes", "nodes_values", "nodes_hitrates", "nodes_featureids",
     "target_treeids", "target_weights", "target_ids"],
)  # fmt: skip
@pytest.mark.parametrize("left", [0, 1, -1])
def test_columns_of_other_lengths_are_refused(name, left):
    attributes = attributes_of([TREE])
    attributes[name] = attributes[name][:left]
    if not attributes[name]:
        del attributes[name]
    with pytest.raises(UnimplementedError):
        read_ensemble(model_of(attributes))


@given(st.data())
def test_bytes_that_are_damaged_are_refused_or_read(data):
    """Either way no index leads out of the arrays."""
    model = bytearray(regressor([TREE, TREE]))
    for _ in range(data.draw(st.integers(1, 3))):
        model[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    try:
        ensemble = read_ensemble(bytes(model))
    except UnimplementedError:
        return
    count = len(ensemble.feature)
    for children in (ensemble.yes, ensemble.no):
        assert (children >= -1).all()
        assert (children < count).all()
    assert (ensemble.weight_output >= 0).all()
    assert (ensemble.weight_output < ensemble.outputs).all()
    assert ensemble.weight_start[-1] == len(ensemble.weight)
    assert (ensemble.feature >= 0).all()


def test_a_model_without_trees_is_not_worth_a_look():
    assert has_trees(regressor([TREE]))
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", [], [])
    assert not has_trees(helper.make_model(graph).SerializeToString())


def test_a_file_is_read_whole_only_where_trees_may_be_in_it(tmp_path):
    file = tmp_path / "model.onnx"
    for content, found in ((regressor([TREE]), True), (b"no forest" * 99, False)):
        file.write_bytes(content)
        for model in (content, file):
            assert has_trees(model) is found
            assert file_with_trees(model) == (content if found else None)


def test_averaged_weights_are_divided_by_the_number_of_trees():
    plain = read_ensemble(regressor([TREE, TREE]))
    averaged = read_ensemble(regressor([TREE, TREE], aggregate_function="AVERAGE"))
    assert averaged.weight.tolist() == (plain.weight / 2).tolist()


def test_trees_are_read_once_while_somebody_holds_them():
    model = regressor([TREE])
    node = pb.Model.FromString(model).graph.node[0]
    held = ensemble_of_node(node)
    assert ensemble_of_node(pb.Model.FromString(model).graph.node[0]) is held
    assert read_ensemble(model) is held
    other = pb.Model.FromString(regressor([TREE, TREE])).graph.node[0]
    assert ensemble_of_node(other) is not held
