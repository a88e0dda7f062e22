"""Models with sequences, written as ONNX: those of Triton's examples, and accumulators.

`python -m tests.server.sequence_models FOLDER` writes them as a model repository.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.server.onnx_models import info, model_bytes, put

_INTS = {"START": TensorProto.INT32, "END": TensorProto.INT32, "READY": TensorProto.INT32}


def control(name: str, kind: str = "", body: str = "int32_false_true: [ 0, 1 ]") -> str:
    kind = kind or name
    return (
        f'control_input {{ name: "{name}" control {{ kind: CONTROL_SEQUENCE_{kind} {body} }} }}\n'
    )


def tensors(datatype: str = "TYPE_INT32", dims: str = "1") -> str:
    return (
        f'input {{ name: "INPUT" data_type: {datatype} dims: [ {dims} ] }}\n'
        f'output {{ name: "OUTPUT" data_type: {datatype} dims: [ {dims} ] }}\n'
    )


def state(datatype: str = "TYPE_INT64", dims: str = "1", initial: str = "") -> str:
    if initial:
        initial = f'initial_state {{ name: "first" data_type: {datatype} {initial} }}'
    return (
        f'state {{ input_name: "STATE" output_name: "NEXT" data_type: {datatype} '
        f"dims: [ {dims} ] {initial} }}\n"
    )


def _model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, int],
    outputs: dict[str, int],
    *,
    shape: Sequence[int | str | None] = ("batch", 1),
    constants: Sequence[onnx.TensorProto] = (),
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "sequence",
        [info(name, kind, list(shape)) for name, kind in inputs.items()],
        [info(name, kind, list(shape)) for name, kind in outputs.items()],
        constants,
    )
    return model_bytes(graph)


def simple_sequence() -> bytes:
    """INPUT + START where READY."""
    nodes = [
        helper.make_node("Add", ["INPUT", "START"], ["sum"]),
        helper.make_node("Mul", ["sum", "READY"], ["OUTPUT"]),
    ]
    inputs = {"INPUT": TensorProto.INT32, "START": TensorProto.INT32, "READY": TensorProto.INT32}
    return _model(nodes, inputs, {"OUTPUT": TensorProto.INT32})


def simple_dyna_sequence() -> bytes:
    """INPUT + START + END × CORRID where READY."""
    nodes = [
        helper.make_node("Cast", ["CORRID"], ["id"], to=TensorProto.INT32),
        helper.make_node("Mul", ["id", "END"], ["last"]),
        helper.make_node("Add", ["INPUT", "START"], ["first"]),
        helper.make_node("Add", ["first", "last"], ["sum"]),
        helper.make_node("Mul", ["sum", "READY"], ["OUTPUT"]),
    ]
    inputs = {"INPUT": TensorProto.INT32, **_INTS, "CORRID": TensorProto.UINT64}
    return _model(nodes, inputs, {"OUTPUT": TensorProto.INT32})


def simple_string_dyna_sequence() -> bytes:
    """The sum of the sequence's inputs, at its end with the number that names it."""
    nodes = [
        helper.make_node("Sub", ["one", "START"], ["follows"]),
        helper.make_node("Mul", ["STATE", "follows"], ["before"]),
        helper.make_node("Add", ["INPUT", "before"], ["NEXT"]),
        helper.make_node("Cast", ["CORRID"], ["id"], to=TensorProto.INT32),
        helper.make_node("Mul", ["id", "END"], ["last"]),
        helper.make_node("Add", ["NEXT", "last"], ["sum"]),
        helper.make_node("Mul", ["sum", "READY"], ["OUTPUT"]),
    ]
    kinds = {"INPUT": TensorProto.INT32, **_INTS, "CORRID": TensorProto.STRING}
    return _model(
        nodes,
        {**kinds, "STATE": TensorProto.INT32},
        {"OUTPUT": TensorProto.INT32, "NEXT": TensorProto.INT32},
        constants=[numpy_helper.from_array(np.int32(1), "one")],
    )


def folding(*, batch: bool = True) -> bytes:
    """STATE × 3 + INPUT, INT64: it tells in which order its inputs came."""
    nodes = [
        helper.make_node("Mul", ["STATE", "three"], ["tripled"]),
        helper.make_node("Add", ["tripled", "INPUT"], ["NEXT"]),
        helper.make_node("Identity", ["NEXT"], ["OUTPUT"]),
    ]
    kind = TensorProto.INT64
    three = numpy_helper.from_array(np.int64(3), "three")
    inputs = {"INPUT": kind, "STATE": kind}
    outputs = {"OUTPUT": kind, "NEXT": kind}
    shape = ("batch", 1) if batch else (1,)
    return _model(nodes, inputs, outputs, shape=shape, constants=[three])


def joining() -> bytes:
    """All inputs of the sequence so far, one behind the other: a state that grows."""
    nodes = [
        helper.make_node("Concat", ["STATE", "INPUT"], ["NEXT"], axis=1),
        helper.make_node("Identity", ["NEXT"], ["OUTPUT"]),
    ]
    kind = TensorProto.FLOAT
    return _model(
        nodes,
        {"INPUT": kind, "STATE": kind},
        {"OUTPUT": kind, "NEXT": kind},
        shape=("batch", None),
    )


def failing() -> bytes:
    """STATE + table[INPUT], of a table of four: an INPUT out of range fails while it runs."""
    table = numpy_helper.from_array(np.arange(4, dtype=np.int64), "table")
    nodes = [
        helper.make_node("Gather", ["table", "INPUT"], ["value"]),
        helper.make_node("Add", ["STATE", "value"], ["NEXT"]),
        helper.make_node("Identity", ["NEXT"], ["OUTPUT"]),
    ]
    kind = TensorProto.INT64
    return _model(
        nodes, {"INPUT": kind, "STATE": kind}, {"OUTPUT": kind, "NEXT": kind}, constants=[table]
    )


def batching(body: str, batch: int = 8) -> str:
    return f"max_batch_size: {batch}\nsequence_batching {{\n{body}}}\n"


OLDEST = (
    "max_sequence_idle_microseconds: 10000000\n"
    "oldest { max_candidate_sequences: 1024 max_queue_delay_microseconds: 10000 }\n"
)


def write(root: Path) -> None:
    """Write the models of Triton's sequence examples."""
    put(
        root,
        "simple_sequence",
        simple_sequence(),
        config=batching(control("START") + control("READY")) + tensors(),
    )
    flags = control("START") + control("END") + control("READY")
    put(
        root,
        "simple_dyna_sequence",
        simple_dyna_sequence(),
        config=batching(OLDEST + flags + control("CORRID", body="data_type: TYPE_UINT64"))
        + tensors(),
    )
    put(
        root,
        "simple_string_dyna_sequence",
        simple_string_dyna_sequence(),
        config=batching(
            OLDEST
            + flags
            + control("CORRID", body="data_type: TYPE_STRING")
            + state("TYPE_INT32", initial="dims: [ 1 ] zero_data: true")
        )
        + tensors(),
    )


if __name__ == "__main__":
    write(Path(sys.argv[1]))
