"""Requests to TensorFlow Serving and its replies, as its REST API has them in JSON.

NaN, Infinity and -Infinity stand in it as such, as JavaScript writes them. BYTES go in Base64, as
`{"b64": …}`; they come back so where the output's name ends in `_bytes`, else as text.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from headrace.errors import FailedPreconditionError, InvalidArgumentError
from server.backends.remote.messages import check_wanted, fits, misfit
from server.backends.remote.upstream import Given, RemoteTensor
from server.execution.engine import Array
from server.models.loaded import TensorSignature
from server.protocol.tensors import from_values, shape_text

_DATATYPES = {
    "DT_FLOAT": "FP32", "DT_DOUBLE": "FP64", "DT_BOOL": "BOOL", "DT_STRING": "BYTES",
    "DT_INT8": "INT8", "DT_INT16": "INT16", "DT_INT32": "INT32", "DT_INT64": "INT64",
    "DT_UINT8": "UINT8", "DT_UINT16": "UINT16", "DT_UINT32": "UINT32", "DT_UINT64": "UINT64",
}  # fmt: skip
_WORDS_MAX = 512
_SIZE = re.compile(r"-?[0-9]{1,18}")
_UNREADABLE = (KeyError, ValueError, TypeError, AttributeError, RecursionError)


def request_json(given: Given, signature: str, *, rows: bool) -> bytes:
    """Return the body of a predict request, in the row or in the columnar format.

    Raises InvalidArgumentError for an array whose shape JSON cannot say.
    """
    columns = {}
    for spec, array in given:
        if not array.size:
            raise InvalidArgumentError(
                f"input '{spec.name}' has no elements, and TensorFlow Serving's REST takes none",
                got=shape_text(array.shape),
            )
        columns[spec.name] = _listed(array, spec.datatype)
    if not rows:
        body: dict[str, Any] = {"inputs": columns}
    else:
        sizes = {array.shape[:1] for _, array in given}
        if len(sizes) > 1 or () in sizes:
            raise InvalidArgumentError("the inputs are not of equally many rows")
        names = list(columns)
        together = zip(*columns.values(), strict=True)
        body = {"instances": [dict(zip(names, row, strict=True)) for row in together]}
    return json.dumps({"signature_name": signature, **body}, separators=(",", ":")).encode()


def outputs_of(
    reply: bytes, specs: Sequence[TensorSignature], wanted: Sequence[str], *, rows: bool
) -> list[Array | None]:
    """Return the arrays of a reply to such a request, None for those not `wanted` (empty: all are).

    Raises InternalError for a reply that does not fit the signature.
    """
    try:
        found = json.loads(reply)["predictions" if rows else "outputs"]
        if len(specs) == 1:  # its name is left out
            columns = {specs[0].name: found}
        elif rows:
            columns = {spec.name: [row[spec.name] for row in found] for spec in specs}
        else:
            columns = {spec.name: found[spec.name] for spec in specs if spec.name in found}
        arrays = [
            _array(columns[spec.name], spec) if spec.name in columns else None for spec in specs
        ]
    except (InvalidArgumentError, *_UNREADABLE) as error:
        raise misfit(f"{type(error).__name__} {error}"[:_WORDS_MAX]) from error
    check_wanted(arrays, specs, wanted)
    return arrays


def words_of(reply: bytes) -> str:
    """Return what an error says."""
    try:
        words = json.loads(reply)["error"]
    except _UNREADABLE:
        return ""
    # JSON may have half of a surrogate pair, and no reply of ours can.
    return words.encode(errors="replace").decode() if isinstance(words, str) else ""


def is_available(reply: bytes) -> bool:
    """Return whether a model status tells of a version that answers."""
    try:
        states = [each["state"] for each in json.loads(reply)["model_version_status"]]
    except _UNREADABLE:
        return False
    return "AVAILABLE" in states


def signature_of(
    reply: bytes, signature: str
) -> tuple[Sequence[RemoteTensor], Sequence[RemoteTensor]]:
    """Return inputs and outputs of a signature, by name, out of a model's metadata.

    Raises FailedPreconditionError.
    """
    try:
        known = json.loads(reply)["metadata"]["signature_def"]["signature_def"]
        names = ", ".join(sorted(map(str, known)))
        told = known.get(signature)
        if told is not None:
            return _tensors(told["inputs"]), _tensors(told["outputs"])
    except _UNREADABLE:
        raise FailedPreconditionError(
            "what answers at URL does not describe the model as TensorFlow Serving does",
            mend="let URL name the port of --rest_api_port",
        ) from None
    raise FailedPreconditionError(
        "the remote model has no such signature",
        where="SIGNATURE_NAME",
        expected=names[:_WORDS_MAX],
        got=signature[:64],
    )


def _tensors(told: dict[str, Any]) -> list[RemoteTensor]:
    return [
        RemoteTensor(name, _datatype(name, each["dtype"]), _shape(each.get("tensor_shape", {})))
        for name, each in sorted(told.items())
    ]


def _datatype(name: str, told: str) -> str:
    if told not in _DATATYPES:
        raise FailedPreconditionError(
            f"tensor '{name[:64]}' of the remote model is of a type that REST does not carry",
            expected=", ".join(_DATATYPES),
            got=told[:32],
        )
    return _DATATYPES[told]


def _shape(told: dict[str, Any]) -> tuple[int, ...] | None:
    if told.get("unknown_rank", False):
        return None
    sizes = [str(each.get("size", "0")) for each in told.get("dim", [])]
    if not all(_SIZE.fullmatch(each) for each in sizes):
        raise ValueError("a size is no number")
    return tuple(int(each) for each in sizes)


def _listed(array: Array, datatype: str) -> Any:
    """Return an array as JSON has it: nested lists, or a bare value."""
    if datatype != "BYTES":
        return array.tolist()
    values = np.empty(array.shape, object)
    for at, value in np.ndenumerate(array):
        data = value if isinstance(value, bytes) else str(value).encode()
        values[at] = {"b64": base64.b64encode(data).decode()}
    return values.tolist()


def _array(found: Any, spec: TensorSignature) -> Array:
    shape: list[int] = []
    level = [found]
    for _ in spec.shape:
        sizes = {len(each) if isinstance(each, list) else -1 for each in level}
        if len(sizes) > 1 or sizes == {-1}:
            raise ValueError(f"output '{spec.name}' is no tensor of {shape_text(spec.shape)}")
        # Where there is nothing, nothing says how large it would have been.
        shape.append(sizes.pop() if sizes else max(spec.shape[len(shape)], 0))
        level = [item for each in level for item in each]
    if not fits(shape, spec):
        raise ValueError(f"output '{spec.name}' is of shape {shape_text(shape)}")
    if spec.datatype == "BYTES":
        level = [_bytes(each) for each in level]
    return from_values(level, spec.datatype, shape, f"output '{spec.name}'")


def _bytes(value: Any) -> Any:
    """Return what stands for a string; text is left as it is."""
    if not isinstance(value, dict):
        return value
    try:
        return base64.b64decode(value["b64"], validate=True)
    except binascii.Error:
        raise ValueError("what is no Base64") from None
