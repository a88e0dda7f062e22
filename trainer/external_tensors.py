"""Which files an ONNX model would read beside itself, found without the onnx package.

A tensor may keep its data in another file (`external_data` of TensorProto). A bundle allows that
only for files that it lists, so the locations must be known before a runtime opens anything.
Source of the field numbers: onnx.proto3 of the ONNX project.
"""

from __future__ import annotations

from collections.abc import Iterator

from headrace.errors import InvalidArgumentError

DEPTH_MAX = 64  # a graph inside an attribute inside a graph …: no real model comes near

# message → field number → message of that field; only the ways that lead to a tensor.
_WAYS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}  # fmt: skip
_FIXED_BYTES = {1: 8, 5: 4}  # wire type → width


def external_tensors(model: bytes) -> set[str]:
    """Return the locations that the ONNX file `model` names for its tensors' data.

    Raises InvalidArgumentError when the bytes are no protobuf message.
    """
    if b"location" not in model:
        return set()  # the key of every external tensor; most models end here
    try:
        return set(_locations(memoryview(model), "Model", 0))
    except (IndexError, ValueError) as error:
        raise InvalidArgumentError("truncated or no ONNX model", where="model.onnx") from error


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > DEPTH_MAX:
        raise ValueError("too deep")
    ways = _WAYS[kind]
    for field, content in _fields(message):
        way = ways.get(field)
        if way is None:
            continue
        if way == "Entry":
            entry = dict(_fields(content))
            if bytes(entry.get(1, b"")) == b"location":
                yield bytes(entry.get(2, b"")).decode()
        else:
            yield from _locations(content, way, depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the length-delimited fields of a message; numbers are stepped over."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == 2:
            length, at = _varint(message, at)
            if at + length > end:
                raise ValueError("cut off")
            yield tag >> 3, message[at : at + length]
            at += length
        elif wire == 0:
            _, at = _varint(message, at)
        elif wire in _FIXED_BYTES:
            at += _FIXED_BYTES[wire]
        else:
            raise ValueError("unknown wire type")
    if at != end:
        raise ValueError("cut off")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a varint of more than ten bytes")
