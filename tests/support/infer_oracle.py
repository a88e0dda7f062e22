"""ModelInferRequest by the generated classes alone: what the decoder by hand is compared with."""

from __future__ import annotations

from typing import Any

from tritonclient.grpc import service_pb2 as pb

from headrace.errors import InvalidArgumentError
from server.protocol.oip import InferCall, choice_of
from server.protocol.oip_grpc import parameters_of, parse
from server.protocol.shared_memory import place_of
from server.protocol.tensors import Array, Tensor, datatype_of, from_raw, from_values

_CONTENTS = {
    "bool_contents": "BOOL",
    "int_contents": "INT32",
    "int64_contents": "INT64",
    "uint_contents": "UINT32",
    "uint64_contents": "UINT64",
    "fp32_contents": "FP32",
    "fp64_contents": "FP64",
    "bytes_contents": "BYTES",
}


def _tensor(source: Any, raw: bytes | None, model: str) -> Tensor:
    where = f"input '{source.name}' for model '{model}'"
    shape = tuple(source.shape)
    if raw is not None:
        if source.HasField("contents"):
            raise InvalidArgumentError(
                "contents field must not be specified when using raw_input_contents for "
                f"'{source.name}' for model '{model}'"
            )
        return Tensor(source.name, source.datatype, from_raw(raw, source.datatype, shape, where))
    array = _from_contents(source, shape, where)
    return Tensor(source.name, source.datatype, array)


def _from_contents(source: Any, shape: tuple[int, ...], where: str) -> Array:
    field = datatype_of(source.datatype, where).contents
    contents = source.contents
    filled = [name for name in _CONTENTS if len(getattr(contents, name))]
    if not field:
        raise InvalidArgumentError(
            f"{where} of type {source.datatype} can only be sent in raw_input_contents"
        )
    wrong = next((name for name in filled if name != field), None)
    tensor = where.replace("input", "input tensor", 1)
    if wrong is not None:
        raise InvalidArgumentError(
            f"unexpected explicit tensor data for {tensor} of type '{_CONTENTS[wrong]}', "
            f"expected datatype '{source.datatype}'"
        )
    if not filled and 0 not in shape:
        raise InvalidArgumentError(f"unable to find data for {tensor} in request.")
    return from_values(list(getattr(contents, field)), source.datatype, shape, where)


def decode_infer(data: bytes) -> InferCall:
    """Return the call in a ModelInferRequest. Raises InvalidArgumentError naming what is wrong."""
    request = parse(pb.ModelInferRequest, data)
    raws = request.raw_input_contents
    for source in request.inputs:
        # Without shared memory no tensor is in it, but what says so wrongly is named.
        assert place_of(None, parameters_of(source.parameters), source.name) is None
    if raws and len(raws) != len(request.inputs):
        raise InvalidArgumentError(
            f"expected {len(request.inputs)} entries in raw_input_contents for model "
            f"'{request.model_name}', one per input",
            got=len(raws),
        )
    tensors = [
        _tensor(source, raws[index] if raws else None, request.model_name)
        for index, source in enumerate(request.inputs)
    ]
    choices = {}
    for output in request.outputs:
        choice = choice_of(None, parameters_of(output.parameters), output.name)
        if choice is not None:
            choices[output.name] = choice
    return InferCall(
        request.model_name,
        request.model_version,
        request.id,
        tensors,
        [output.name for output in request.outputs],
        parameters_of(request.parameters),
        choices,
    )
