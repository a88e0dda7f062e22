"""The small network that servers serve and clients send to: 30→64→1, one row; and the bodies.

numpy and onnx are imported where they are used: a peer's environment has not all of them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

MODEL = "mlp"
INPUT, OUTPUT = "features", "probability"
WIDTH, HIDDEN = 30, 64
SEED = 4
GRPC_PATH = "/inference.GRPCInferenceService/ModelInfer"
REST_PATH = f"/v2/models/{MODEL}/infer"
LENGTH_HEADER = "Inference-Header-Content-Length"
TOLERANCE = 1e-5


def onnx_bytes() -> bytes:
    """Return the model: FLOAT [N, 30] → ReLU(64) → sigmoid [N, 1]."""
    import numpy as np

    random = np.random.default_rng(SEED)

    def weight(*shape: int) -> Any:
        return random.normal(scale=shape[0] ** -0.5, size=shape)

    nodes = [
        ("Gemm", [INPUT, "w1", "b1"], "hidden"),
        ("Relu", ["hidden"], "active"),
        ("Gemm", ["active", "w2", "b2"], "logit"),
        ("Sigmoid", ["logit"], OUTPUT),
    ]
    weights = {
        "w1": weight(WIDTH, HIDDEN), "b1": weight(HIDDEN), "w2": weight(HIDDEN, 1), "b2": weight(1),
    }  # fmt: skip
    return graph_bytes(MODEL, nodes, weights, (INPUT, WIDTH), (OUTPUT, 1))


def graph_bytes(
    name: str,
    nodes: Iterable[tuple[str, Sequence[str], str]],
    weights: Mapping[str, Any],
    source: tuple[str, int],
    target: tuple[str, int],
) -> bytes:
    """Return an ONNX graph between two tensors, each FLOAT [N, width] by name and width.

    A node is its operator, its inputs and its one output.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    ends = [
        helper.make_tensor_value_info(each, TensorProto.FLOAT, ["N", width])
        for each, width in (source, target)
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output]) for kind, inputs, output in nodes],
        name,
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(np.float32(values), each) for each, values in weights.items()],
    )
    opset = helper.make_opsetid("", 21)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString())


def write_repository(root: Path) -> Path:
    """Write the model into a Triton repository under `root`; return the path of the ONNX file."""
    file = root / MODEL / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(onnx_bytes())
    return file


class Expected(NamedTuple):
    """The row that is sent, and what onnxruntime makes of it."""

    row: Any  # float32 [1, 30]
    answer: float


def expected(onnx_file: Path) -> Expected:
    """Run the row through onnxruntime here: what every server's answer is held against."""
    import numpy as np

    row = np.random.default_rng(SEED + 1).normal(size=(1, WIDTH)).astype(np.float32)
    return Expected(row, float(session(onnx_file).run([OUTPUT], {INPUT: row})[0][0, 0]))


def session(onnx_file: Path | str) -> Any:
    """Return an onnxruntime session of one thread: a server has one core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(onnx_file), options, providers=["CPUExecutionProvider"])


def check(answer: float, wanted: float, server: str) -> None:
    """Raise ValueError where a server's answer is not onnxruntime's."""
    if not abs(answer - wanted) <= TOLERANCE:
        raise ValueError(f"{server} answers {answer}, onnxruntime {wanted}")


# Bodies


def grpc_message(row: Any, name: str = MODEL) -> bytes:
    """Return the ModelInferRequest, without gRPC's prefix."""
    return _message({INPUT: row}, name)


def grpc_body(row: Any, name: str = MODEL) -> bytes:
    """Return what the DATA frame of a call holds: an uncompressed message behind its length."""
    return grpc_tensors_body({INPUT: row}, name)


def grpc_tensors_body(tensors: Mapping[str, Any], name: str) -> bytes:
    """Return the same of a model with these inputs."""
    message = _message(tensors, name)
    return struct.pack(">BI", 0, len(message)) + message


def _message(tensors: Mapping[str, Any], name: str) -> bytes:
    from tritonclient.grpc import service_pb2 as pb
    from tritonclient.utils import np_to_triton_dtype

    request = pb.ModelInferRequest(model_name=name)
    for each, array in tensors.items():
        datatype = np_to_triton_dtype(array.dtype)
        request.inputs.add(name=each, datatype=datatype, shape=list(array.shape))
        request.raw_input_contents.append(array.tobytes())
    return bytes(request.SerializeToString())


def grpc_answer(message: bytes) -> float:
    """Return the one value of a ModelInferResponse. Raises ValueError where it has none."""
    from google.protobuf.message import DecodeError
    from tritonclient.grpc import service_pb2 as pb

    try:
        response = pb.ModelInferResponse.FromString(message)
        if response.raw_output_contents:
            return float(struct.unpack("<f", response.raw_output_contents[0])[0])
        return float(response.outputs[0].contents.fp32_contents[0])
    except (DecodeError, LookupError, struct.error) as error:
        raise ValueError(f"no answer with one FP32 value: {message[:64]!r}") from error


def json_body(row: Any) -> bytes:
    """Return the REST request with the values as JSON numbers."""
    return json.dumps({"inputs": [_input(row) | {"data": row.ravel().tolist()}]}).encode()


def binary_body(row: Any) -> tuple[bytes, int]:
    """Return the REST request with raw bytes behind its JSON, and how many bytes the JSON has."""
    source = _input(row) | {"parameters": {"binary_data_size": row.nbytes}}
    call = {"inputs": [source], "parameters": {"binary_data_output": True}}
    head = json.dumps(call).encode()
    return head + row.tobytes(), len(head)


def _input(row: Any) -> dict[str, Any]:
    return {"name": INPUT, "datatype": "FP32", "shape": list(row.shape)}
