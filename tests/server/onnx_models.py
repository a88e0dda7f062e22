"""Small ONNX models, written with `onnx.helper`, and Triton repositories of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSETS = [helper.make_opsetid("", 21)]


def model_bytes(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=OPSETS, ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def info(name: str, kind: int, shape: list[int | str | None]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def add_model(first: str | int = "batch") -> bytes:
    """INPUT0 + INPUT1 and INPUT0 - INPUT1, INT32 [batch, 4]."""
    nodes = [
        helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
        helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
    ]
    tensors = [info(name, TensorProto.INT32, [first, 4]) for name in ("INPUT0", "INPUT1")]
    outputs = [info(name, TensorProto.INT32, [first, 4]) for name in ("OUTPUT0", "OUTPUT1")]
    return model_bytes(helper.make_graph(nodes, "add", tensors, outputs))


def mlp_model(inputs: int = 3, seed: int = 1, name: str = "features") -> bytes:
    """A small network with one `probability` per row, FLOAT [N, inputs] → [N, 1]."""
    random = np.random.default_rng(seed)
    weights = [
        numpy_helper.from_array(random.normal(size=(inputs, 8)).astype(np.float32), "w1"),
        numpy_helper.from_array(random.normal(size=(8, 1)).astype(np.float32), "w2"),
    ]
    nodes = [
        helper.make_node("IsNaN", [name], ["nan"]),
        helper.make_node("Where", ["nan", "zero", name], ["clean"]),
        helper.make_node("MatMul", ["clean", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    weights.append(numpy_helper.from_array(np.float32(0), "zero"))
    graph = helper.make_graph(
        nodes,
        "mlp",
        [info(name, TensorProto.FLOAT, ["N", inputs])],
        [info("probability", TensorProto.FLOAT, ["N", 1])],
        weights,
    )
    return model_bytes(graph)


def identity_model(
    kind: int = TensorProto.STRING,
    shape: list[int | str | None] | None = None,
    names: tuple[str, str] = ("TEXT", "SAME"),
) -> bytes:
    """TEXT → SAME (or other names), of any element type."""
    shape = shape if shape is not None else ["batch", "width"]
    graph = helper.make_graph(
        [helper.make_node("Identity", [names[0]], [names[1]])],
        "identity",
        [info(names[0], kind, shape)],
        [info(names[1], kind, shape)],
    )
    return model_bytes(graph)


def gather_model() -> bytes:
    """Row `index` of a table of four rows: an index out of range fails while it runs."""
    table = numpy_helper.from_array(np.arange(4, dtype=np.float32), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "index"], ["value"])],
        "gather",
        [info("index", TensorProto.INT64, ["N"])],
        [info("value", TensorProto.FLOAT, ["N"])],
        [table],
    )
    return model_bytes(graph)


def mixing_model() -> bytes:
    """The sum over all rows: its rows cannot be told apart, and its output has one row."""
    axes = numpy_helper.from_array(np.array([0], np.int64), "axes")
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1)],
        "mixing",
        [info("x", TensorProto.FLOAT, [None, 2])],
        [info("sum", TensorProto.FLOAT, [None, 2])],
        [axes],
    )
    return model_bytes(graph)


def put(root: Path, name: str, model: bytes, version: int = 1, config: str | None = None) -> Path:
    """Write one model into a repository; return its folder."""
    folder = root / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model)
    if config is not None:
        (root / name / "config.pbtxt").write_text(config)
    return root / name


def endless_model() -> bytes:
    """y = x, after as many rounds of a Loop as the largest x says; for ever where x is negative."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Identity", ["value"], ["same"]),
        ],
        "body",
        [info("round", TensorProto.INT64, []), info("go", TensorProto.BOOL, []),
         info("value", TensorProto.FLOAT, ["N"])],
        [info("go_on", TensorProto.BOOL, []), info("same", TensorProto.FLOAT, ["N"])],
    )  # fmt: skip
    most = numpy_helper.from_array(np.int64(1 << 62), "most")
    nodes = [
        helper.make_node("ReduceMin", ["x"], ["least"], keepdims=0),
        helper.make_node("Less", ["least", "zero"], ["endless"]),
        helper.make_node("Cast", ["least"], ["rounds"], to=TensorProto.INT64),
        helper.make_node("Where", ["endless", "most", "rounds"], ["count"]),
        helper.make_node("Loop", ["count", "", "x"], ["y"], body=body),
    ]
    graph = helper.make_graph(
        nodes,
        "endless",
        [info("x", TensorProto.FLOAT, ["N"])],
        [info("y", TensorProto.FLOAT, ["N"])],
        [most, numpy_helper.from_array(np.float32(0), "zero")],
    )
    return model_bytes(graph)


def always_endless_model() -> bytes:
    """A model that ends for no input: zeros keep it in its loop, too."""
    model = onnx.load_from_string(endless_model())
    model.graph.node[1].op_type = "LessOrEqual"
    return model.SerializeToString()


def filling_model() -> bytes:
    """A few bytes that make a tensor of as many floats as `size` says."""
    graph = helper.make_graph(
        [helper.make_node("ConstantOfShape", ["size"], ["zeros"])],
        "filling",
        [info("size", TensorProto.INT64, [1])],
        [info("zeros", TensorProto.FLOAT, ["N"])],
    )
    return model_bytes(graph)


def always_filling_model(floats: int) -> bytes:
    """A few bytes that make a tensor of `floats` in every run."""
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
            helper.make_node("ReduceMax", ["zeros"], ["zero"], keepdims=0),
            helper.make_node("Add", ["x", "zero"], ["y"]),
        ],
        "filling",
        [info("x", TensorProto.FLOAT, ["N"])],
        [info("y", TensorProto.FLOAT, ["N"])],
        [numpy_helper.from_array(np.array([floats], np.int64), "size")],
    )
    return model_bytes(graph)
