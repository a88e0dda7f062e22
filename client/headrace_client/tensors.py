"""Tensors by the buffer protocol: a NumPy array, an `array`, a memoryview; NumPy is not needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from struct import calcsize
from typing import Any, NamedTuple, TypeAlias

from headrace_client.errors import InternalError, InvalidArgumentError
from headrace_client.pb import infer_pb2 as pb

# Anything with a buffer, of any number of dimensions; typed so because 3.11 has no name for it.
Buffer: TypeAlias = Any

_FORMATS = {
    "BOOL": "?",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP32": "f",
    "FP64": "d",
}
_DATATYPES = {form: datatype for datatype, form in _FORMATS.items()}
# NumPy's int64 is a C long, which has as many bytes as the platform gives it.
_DATATYPES |= {"l": f"INT{8 * calcsize('l')}", "L": f"UINT{8 * calcsize('L')}"}
_SHOWN_MAX = 8  # values, where a tensor is printed


class Tensor(NamedTuple):
    """A tensor of an answer: `values` is flat, row-major.

    `tensor.values.tolist()` makes numbers of Python, and `numpy.asarray(tensor.values)
    .reshape(tensor.shape)` copies nothing. Of a datatype that Python has no number for (BYTES,
    FP16, BF16) `values` are the raw bytes.
    """

    datatype: str
    shape: tuple[int, ...]
    values: memoryview

    def __repr__(self) -> str:
        first = self.values[:_SHOWN_MAX]
        shown = str(first.tolist() if self.datatype in _FORMATS else first.tobytes())
        more = f" and {len(self.values) - len(first)} more" if len(self.values) > len(first) else ""
        return f"Tensor({self.datatype}, {self.shape}, {shown}{more})"


def request_of(
    model: str, tensors: Mapping[str, Buffer], version: str, outputs: Sequence[str]
) -> pb.ModelInferRequest:
    """Return the request; raises InvalidArgumentError naming a tensor that cannot be sent."""
    request = pb.ModelInferRequest(model_name=model, model_version=version)
    for name, tensor in tensors.items():
        try:
            view = memoryview(tensor)
        except TypeError:
            raise InvalidArgumentError(
                f"tensor {name!r}: expected a buffer (numpy, array, memoryview), "
                f"got {type(tensor).__name__}"
            ) from None
        datatype = _DATATYPES.get(view.format)
        if datatype is None:
            raise InvalidArgumentError(f"tensor {name!r}: {view.format!r} is no type we can send")
        request.inputs.add(name=name, datatype=datatype, shape=view.shape)
        request.raw_input_contents.append(view.tobytes())
    request.outputs.extend(pb.ModelInferRequest.OutputTensor(name=name) for name in outputs)
    return request


def tensors_of(reply: pb.ModelInferResponse) -> dict[str, Tensor]:
    """Return the outputs by name; raises InternalError for an answer that does not add up."""
    if len(reply.raw_output_contents) != len(reply.outputs):
        raise InternalError("the answer's tensors are not raw bytes")
    return {
        output.name: _tensor(output, raw)
        for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }


def _tensor(output: pb.ModelInferResponse.OutputTensor, raw: bytes) -> Tensor:
    shape = tuple(output.shape)
    form = _FORMATS.get(output.datatype)
    if form is None:
        return Tensor(output.datatype, shape, memoryview(raw))
    if len(raw) != calcsize(form) * prod(shape):
        raise InternalError(f"tensor {output.name!r} of the answer has {len(raw)} bytes: {shape}")
    data: Any = memoryview(raw)
    return Tensor(output.datatype, shape, data.cast(form))
