"""ModelInferRequest by hand: tensors are views of the message, not copies of copies.

Only what nearly every message has is read here: names, shapes, raw contents. All else — parameters,
typed contents, fields that nobody knows — is handed to the generated classes, as the bytes of a
message with nothing but that in it: a protobuf message may be taken apart between its fields. What
is odd in any other way (groups, overlong lengths, bad varints) is left to them as a whole.

`test_infer_message.py` compares both on messages of every form.
"""

from __future__ import annotations

from typing import NamedTuple

from headrace.errors import InvalidArgumentError

# Wire types (protobuf's encoding guide).
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_LENGTH_BYTES_MAX = 5
_PARTS_MAX = 1_024
_DIMENSIONS_MAX = 64  # what an array may have is less, and says `tensors.element_count`
_ONE_DIMENSION = 3 << 3  # a shape that is not packed


class OddError(Exception):
    """The generated classes must say what this is."""


class Input(NamedTuple):
    """One InferInputTensor. `rest` are the bytes of its other fields."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    rest: bytes


class Message(NamedTuple):
    """One ModelInferRequest. `rest` are the bytes of its other fields; `raws` view the message."""

    model: str
    version: str
    request_id: str
    inputs: list[Input]
    raws: list[memoryview]
    rest: bytes


def read(data: bytes) -> Message:
    """Read a message. Raises OddError where only the generated classes know what it is."""
    try:
        return _read(data)
    except (IndexError, UnicodeDecodeError):
        raise OddError from None


def _read(data: bytes) -> Message:
    texts = ["", "", ""]  # model_name, model_version, id
    inputs: list[Input] = []
    raws: list[memoryview] = []
    rest: list[bytes] = []
    view = memoryview(data)
    at, size = 0, len(data)
    while at < size:
        start = at
        tag = data[at]
        if tag & 7 != _LENGTH:
            at = _skip(data, at + 1, tag)
            rest.append(data[start:at])
            continue
        at, stop = _span(data, at + 1)
        field = tag >> 3
        if field == 7:
            raws.append(view[at:stop])
            _bound(len(raws), "entries in raw_input_contents")
        elif field == 5:
            inputs.append(_input(data[at:stop]))
            _bound(len(inputs), "inputs")
        elif 1 <= field <= 3:
            texts[field - 1] = data[at:stop].decode()
        else:
            _check_tag(tag)
            rest.append(data[start:stop])
        at = stop
    return Message(texts[0], texts[1], texts[2], inputs, raws, b"".join(rest))


def _input(data: bytes) -> Input:
    texts = ["", ""]  # name, datatype
    shape: list[int] = []
    rest: list[bytes] = []
    at, size = 0, len(data)
    while at < size:
        start = at
        tag = data[at]
        if tag == _ONE_DIMENSION:
            value, at = _varint(data, at + 1)
            shape.append(_signed(value))
            _bound(len(shape), "dimensions of an input", _DIMENSIONS_MAX)
            continue
        if tag & 7 != _LENGTH:
            at = _skip(data, at + 1, tag)
            rest.append(data[start:at])
            continue
        at, stop = _span(data, at + 1)
        field = tag >> 3
        if field == 3:
            while at < stop:
                value, at = _varint(data, at)
                shape.append(_signed(value))
                _bound(len(shape), "dimensions of an input", _DIMENSIONS_MAX)
            if at != stop:
                raise OddError
        elif 1 <= field <= 2:
            texts[field - 1] = data[at:stop].decode()
        else:
            _check_tag(tag)
            rest.append(data[start:stop])
        at = stop
    return Input(texts[0], texts[1], tuple(shape), b"".join(rest))


def _span(data: bytes, at: int) -> tuple[int, int]:
    """Return where the bytes of a field begin and end; their length stands at `at`."""
    length = data[at]
    begin = at + 1
    if length >= 0x80:
        length, begin = _varint(data, at)
        if begin - at > _LENGTH_BYTES_MAX:
            raise OddError
    stop = begin + length
    if stop > len(data):
        raise OddError
    return begin, stop


def _bound(count: int, what: str, most: int = _PARTS_MAX) -> None:
    """Refuse what no model has: two bytes of a message must not become two hundred of ours."""
    if count > most:
        raise InvalidArgumentError(f"too many {what}", expected=f"at most {most}")


def _check_tag(tag: int) -> None:
    """Of one byte, and of a field: all that we know are. Others may be right, too."""
    if not 8 <= tag < 0x80:
        raise OddError


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a varint: (value, where it ends). Raises IndexError where the bytes end before it."""
    byte = data[at]
    at += 1
    if byte < 0x80:
        return byte, at
    value = byte & 0x7F
    for shift in range(7, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise OddError


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _skip(data: bytes, at: int, tag: int) -> int:
    """Return where a field ends that is no string of bytes; its tag ended at `at`."""
    _check_tag(tag)
    wire_type = tag & 7
    if wire_type == _VARINT:
        return _varint(data, at)[1]
    size = _FIXED_BYTES.get(wire_type)
    if size is None or at + size > len(data):  # a group, or no wire type at all
        raise OddError
    return at + size
