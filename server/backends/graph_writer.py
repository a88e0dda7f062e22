"""Writes ONNX graphs without the onnx package: for backends that make one of another file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from server.pb import onnx_trees_pb2 as pb

IR_VERSION, OPSET, ML_OPSET = 8, 17, 3
ML = "ai.onnx.ml"
FLOAT, INT64, BOOL, DOUBLE, STRING = 1, 7, 9, 11, 8  # ONNX's numbers of data types
_NUMBERS = {
    np.dtype("f4"): FLOAT, np.dtype("i8"): INT64, np.dtype("?"): BOOL, np.dtype("f8"): DOUBLE,
}  # fmt: skip
# Of attributes' types.
_OF_FLOAT, _OF_INT, _OF_STRING, _OF_FLOATS, _OF_INTS, _OF_STRINGS = 1, 2, 3, 6, 7, 8

AttributeValue = int | float | bytes | list[int] | list[float] | list[bytes]


class GraphWriter:
    """A graph that grows node by node; what nodes make has names of its own."""

    def __init__(self, name: str) -> None:
        self._model = pb.Model(ir_version=IR_VERSION, producer_name="headrace")
        for domain, version in (("", OPSET), (ML, ML_OPSET)):
            self._model.opset_import.add(domain=domain, version=version)
        self._graph = self._model.graph
        self._graph.name = name
        self._made = 0

    def input(self, name: str, columns: int) -> str:
        """Add an input float32 [N, columns]; return its name."""
        self._describe(self._graph.input.add(name=name), FLOAT, columns)
        return name

    def output(self, name: str, columns: int | None, kind: int = FLOAT) -> None:
        """Say that `name` is an output [N, columns], or [N] for None."""
        self._describe(self._graph.output.add(name=name), kind, columns)

    def constant(self, values: npt.ArrayLike, dtype: str) -> str:
        """Return the name of a constant tensor."""
        array = np.asarray(values, dtype)
        name = self._name("constant")
        self._graph.initializer.add(
            name=name, dims=array.shape, data_type=_NUMBERS[array.dtype], raw_data=array.tobytes()
        )
        return name

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        output: str | Sequence[str] = "",
        *,
        domain: str = "",
        **attributes: AttributeValue,
    ) -> str:
        """Add a node; return what its first output is called: as said, or a name of its own."""
        outputs = [output] if isinstance(output, str) else list(output)
        outputs[0] = outputs[0] or self._name(operator)
        node = self._graph.node.add(op_type=operator, domain=domain)
        node.input.extend(inputs)
        node.output.extend(outputs)
        node.attribute.extend(_attribute(name, value) for name, value in attributes.items())
        return outputs[0]

    @property
    def nodes(self) -> Sequence[Any]:
        """The nodes that were added, in their order."""
        nodes: Sequence[Any] = self._graph.node
        return nodes

    def finished(self) -> bytes:
        """Return the ONNX file."""
        return bytes(self._model.SerializeToString())

    def _name(self, kind: str) -> str:
        self._made += 1
        return f"{kind.lower()}:{self._made}"  # a name with a colon is nobody's input

    def _describe(self, value: Any, kind: int, columns: int | None) -> None:
        tensor = value.type.tensor_type
        tensor.elem_type = kind
        tensor.shape.dim.add(dim_param="N")
        if columns is not None:
            tensor.shape.dim.add(dim_value=columns)


def _attribute(name: str, value: AttributeValue) -> pb.Attribute:
    if isinstance(value, int):
        return pb.Attribute(name=name, i=value, type=_OF_INT)
    if isinstance(value, float):
        return pb.Attribute(name=name, f=value, type=_OF_FLOAT)
    if isinstance(value, bytes):
        return pb.Attribute(name=name, s=value, type=_OF_STRING)
    listed: list[Any] = list(value)
    if listed and isinstance(listed[0], bytes):
        return pb.Attribute(name=name, strings=listed, type=_OF_STRINGS)
    if listed and isinstance(listed[0], float):
        return pb.Attribute(name=name, floats=listed, type=_OF_FLOATS)
    return pb.Attribute(name=name, ints=listed, type=_OF_INTS)
