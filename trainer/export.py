"""A LightGBM classifier as ONNX: one input `features`, one output `probability`.

Written straight from the trees: the graph is two nodes, holds nothing but float32, and every branch
says where NaN goes. (`onnxmltools` gives two outputs with a wrong shape in a dialect of 2017.)
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from trainer.tree_columns import tree_columns
from trainer.trees import Forest

INPUT, OUTPUT = "features", "probability"
OPSETS = {"": 17, "ai.onnx.ml": 3}
IR_VERSION = 8


def forest_to_onnx(forest: Forest, name: str) -> onnx.ModelProto:
    """Return the ONNX model: `features` float32 [N, F] → `probability` float32 [N, 1].

    The trees' thresholds and leaves must be in single precision (`trees.to_single_precision`): here
    they are only stored as what they are.
    """
    ensemble = helper.make_node(
        "TreeEnsembleRegressor",
        [INPUT],
        ["raw_score"],
        domain="ai.onnx.ml",
        n_targets=1,
        aggregate_function="SUM",
        post_transform="NONE",
    )
    ensemble.attribute.extend(
        helper.make_attribute(key, values) for key, values in tree_columns(forest.trees).items()
    )
    sigmoid = helper.make_node("Sigmoid", ["raw_score"], [OUTPUT])
    graph = helper.make_graph(
        [ensemble, sigmoid],
        name,
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", forest.features])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", 1])],
    )
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    model = helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="headrace"
    )
    onnx.checker.check_model(model, full_check=True)
    return model
