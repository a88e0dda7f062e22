"""The models that Triton's own client examples ask for, written as ONNX.

`python -m tests.server.triton_models FOLDER` writes them as a model repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.server.onnx_models import identity_model, info, model_bytes, put

_TENSOR = '{ name: "%s" data_type: %s dims: [ %d ] }'
SAME_NAMES = ("INPUT0", "OUTPUT0")
CLASSES = 1000


def sum_and_difference(kind: int, inner: int | None = None) -> bytes:
    """INPUT0 + INPUT1 and INPUT0 - INPUT1, [batch, 16]; by way of `inner` where `kind` has none."""
    nodes = []
    names = {"INPUT0": "INPUT0", "INPUT1": "INPUT1", "OUTPUT0": "OUTPUT0", "OUTPUT1": "OUTPUT1"}
    if inner is not None:
        names = {name: f"inner_{name}" for name in names}
        nodes += [helper.make_node("Cast", [n], [names[n]], to=inner) for n in ("INPUT0", "INPUT1")]
    inputs = [names["INPUT0"], names["INPUT1"]]
    nodes.append(helper.make_node("Add", inputs, [names["OUTPUT0"]]))
    nodes.append(helper.make_node("Sub", inputs, [names["OUTPUT1"]]))
    if inner is not None:
        nodes += [
            helper.make_node("Cast", [names[n]], [n], to=kind) for n in ("OUTPUT0", "OUTPUT1")
        ]
    graph = helper.make_graph(
        nodes,
        "simple",
        [info(name, kind, ["batch", 16]) for name in ("INPUT0", "INPUT1")],
        [info(name, kind, ["batch", 16]) for name in ("OUTPUT0", "OUTPUT1")],
    )
    return model_bytes(graph)


def image_model() -> bytes:
    """data_0 FLOAT [3, 224, 224] → fc6_1 [1000, 1, 1]: the means of the colours, weighed."""
    weights = np.random.default_rng(0).normal(size=(CLASSES, 3, 1, 1)).astype(np.float32)
    axes = numpy_helper.from_array(np.array([0], np.int64), "axes")
    nodes = [
        helper.make_node("Unsqueeze", ["data_0", "axes"], ["one"]),
        helper.make_node("GlobalAveragePool", ["one"], ["means"]),
        helper.make_node("Conv", ["means", "weights"], ["scores"]),
        helper.make_node("Squeeze", ["scores", "axes"], ["fc6_1"]),
    ]
    graph = helper.make_graph(
        nodes,
        "image",
        [info("data_0", TensorProto.FLOAT, [3, 224, 224])],
        [info("fc6_1", TensorProto.FLOAT, [CLASSES, 1, 1])],
        [axes, numpy_helper.from_array(weights, "weights")],
    )
    return model_bytes(graph)


def simple_config(datatype: str) -> str:
    """config.pbtxt as Triton's own models have it."""
    lines = ["max_batch_size: 8"]
    lines += [f"input {_TENSOR % (name, datatype, 16)}" for name in ("INPUT0", "INPUT1")]
    lines += [f"output {_TENSOR % (name, datatype, 16)}" for name in ("OUTPUT0", "OUTPUT1")]
    return "\n".join(lines)


def write(root: Path) -> None:
    """Write the models; there are seven, as the examples of model control expect."""
    put(root, "simple", sum_and_difference(TensorProto.INT32), config=simple_config("TYPE_INT32"))
    put(
        root,
        "simple_int8",
        sum_and_difference(TensorProto.INT8, TensorProto.INT32),
        config=simple_config("TYPE_INT8"),
    )
    put(
        root,
        "simple_string",
        sum_and_difference(TensorProto.STRING, TensorProto.INT32),
        config=simple_config("TYPE_STRING"),
    )
    put(
        root,
        "simple_identity",
        identity_model(TensorProto.STRING, names=SAME_NAMES),
        config='max_batch_size: 8\ninput { name: "INPUT0" data_type: TYPE_STRING dims: [ -1 ] }\n'
        'output { name: "OUTPUT0" data_type: TYPE_STRING dims: [ -1 ] }',
    )
    put(
        root,
        "custom_identity_int32",
        identity_model(TensorProto.INT32, names=SAME_NAMES),
        config="max_batch_size: 8",
    )
    put(
        root,
        "densenet_onnx",
        image_model(),
        config='max_batch_size: 0\ninput { name: "data_0" data_type: TYPE_FP32 format: FORMAT_NCHW '
        'dims: [ 3, 224, 224 ] }\noutput { name: "fc6_1" data_type: TYPE_FP32 '
        'dims: [ 1000, 1, 1 ] label_filename: "densenet_labels.txt" }',
    )
    labels = "".join(f"CLASS {number}\n" for number in range(CLASSES))
    (root / "densenet_onnx" / "densenet_labels.txt").write_text(labels)
    put(root, "identity_fp32", identity_model(onnx.TensorProto.FLOAT))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
