"""REST templates: infer requests that differ in their numbers only.

The general decoder finds out once where the numbers stand. From then on a body with the same JSON
around them is read without taking that JSON apart: raw tensors by slicing, JSON numbers by decoding
the one array. What is not exactly of a learnt form is never guessed at: the general way takes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from server.models.loaded import ServedModel
from server.protocol.infer_template import CONSTANT_BYTES_MAX
from server.protocol.oip import InferAnswer, OutputTensor
from server.protocol.rest_messages import BINARY, LENGTH_HEADER, BinaryChoice, InferBody, encode
from server.protocol.tensors import DATATYPES, Tensor
from server.wire.routes import JSON, ReplyStart, Response

Array = npt.NDArray[Any]
_FLOATS = frozenset({"FP32", "FP64"})
# BYTES has no fixed size, and every BOOL must be looked at.
_RAW_DATATYPES = frozenset(DATATYPES) - {"BYTES", "BOOL"}
_encode_numbers = msgspec.json.Encoder().encode
_decode_flat = msgspec.json.Decoder(list[float]).decode
_decode_rows = msgspec.json.Decoder(list[list[float]]).decode


class _RawInput(msgspec.Struct):
    data: msgspec.Raw


class _RawBody(msgspec.Struct):
    inputs: list[_RawInput]


class RawForm:
    """Tensors as bytes behind a JSON that is always the same."""

    def __init__(self, body: bytes, json_bytes: int, tensors: Sequence[Tensor]) -> None:
        self._size = len(body)
        self._head = body[:json_bytes]
        self._places: dict[str, slice] = {}
        start = json_bytes
        for tensor in tensors:
            self._places[tensor.name] = slice(start, start + tensor.array.nbytes)
            start += tensor.array.nbytes

    def read(self, bodies: list[bytes]) -> list[Any]:
        """Return what `feed` takes of each body; None for one that is not of this form."""
        size, head = self._size, self._head
        if list(map(len, bodies)).count(size) == len(bodies) and all(
            map(bytes.startswith, bodies, repeat(head))
        ):
            return bodies
        return [body if len(body) == size and body.startswith(head) else None for body in bodies]

    def feed(self, name: str, dtype: np.dtype[Any], bodies: list[bytes]) -> Array:
        """Return one input of all bodies, flat."""
        place = self._places[name]
        raw = bodies[0][place] if len(bodies) == 1 else b"".join([body[place] for body in bodies])
        return np.frombuffer(raw, dtype)


class JsonForm:
    """One array of numbers, flat or in rows, within a JSON that is always the same around it.

    A JSON text stays the same when a value in it is exchanged for another of its kind.
    """

    def __init__(self, before: bytes, behind: bytes, count: int, *, in_rows: bool) -> None:
        self._before = before
        self._behind = behind
        self._count = count
        self._in_rows = in_rows

    def read(self, bodies: list[bytes]) -> list[Any]:
        """Return the numbers of each body; None for one that is not of this form."""
        return list(map(self._numbers, bodies))

    def _numbers(self, body: bytes) -> list[float] | None:
        before, behind = self._before, self._behind
        if not (body.startswith(before) and body.endswith(behind)):
            return None
        text = body[len(before) : len(body) - len(behind)]
        try:
            if self._in_rows:
                numbers = list(chain.from_iterable(_decode_rows(text)))
            else:
                numbers = _decode_flat(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return numbers if len(numbers) == self._count else None

    def feed(self, name: str, dtype: np.dtype[Any], numbers: list[list[float]]) -> Array:
        """Return the input of all requests, flat."""
        flat = chain.from_iterable(numbers)
        with np.errstate(over="ignore"):  # a number too large for FP32 is an infinity, as in C
            return np.fromiter(flat, dtype, self._count * len(numbers))


def form_of(body: bytes, json_bytes: int | None, call: InferBody, tensors: list[Tensor]) -> (
    RawForm | JsonForm | None
):  # fmt: skip
    """Return the form of a body that decoded to `call` and `tensors`; None where it has none."""
    if call.id or call.parameters.keys() - {"binary_data_output"} or not tensors:
        return None
    if any(output.parameters.keys() - {"binary_data"} for output in call.outputs):
        return None
    if json_bytes is None:
        return _json_form(body, tensors)
    raw = all("binary_data_size" in source.parameters for source in call.inputs)
    known = all(tensor.datatype in _RAW_DATATYPES and tensor.array.size for tensor in tensors)
    if not raw or not known or json_bytes > CONSTANT_BYTES_MAX:
        return None
    return RawForm(body, json_bytes, tensors)


def _json_form(body: bytes, tensors: list[Tensor]) -> JsonForm | None:
    if len(tensors) != 1 or tensors[0].datatype not in _FLOATS:
        return None
    try:
        text = bytes(msgspec.json.decode(body, type=_RawBody).inputs[0].data)
    except msgspec.DecodeError:  # the general way takes more than JSON: NaN
        return None
    if body.count(text) != 1 or len(body) - len(text) > CONSTANT_BYTES_MAX:
        return None
    at = body.index(text)
    array = tensors[0].array
    form = None
    for in_rows in (False, True):
        form = JsonForm(body[:at], body[at + len(text) :], array.size, in_rows=in_rows)
        if form.read([body]) != [None]:
            return form
    return None


class _Output(NamedTuple):
    """One output of the reply: its place in the session's outputs, and what it is called."""

    place: int
    name: str
    datatype: str


class RestTemplate:
    """One form of request, bound to the model version that answers it.

    It is what `infer_door.CallLot` takes; a "body" there is what the form has read.
    """

    def __init__(
        self,
        form: RawForm | JsonForm,
        body: InferBody,
        tensors: list[Tensor],
        model: ServedModel,
        rows: int,
        *,
        compress_bytes_min: float,
    ) -> None:
        self.form = form
        self.model = model
        self.rows = rows
        shapes = {tensor.name: tensor.array.shape for tensor in tensors}
        self._inputs = [
            (spec.name, DATATYPES[spec.datatype].dtype, shapes[spec.name])
            for spec in model.feed_order
        ]
        self.shape = tuple(shape[1:] for _, _, shape in self._inputs)
        wanted = [output.name for output in body.outputs] or list(model.outputs)
        self._outputs = [
            _Output(model.output_indexes[name], name, model.outputs[name].datatype)
            for name in wanted
        ]
        self._choice = BinaryChoice(body)
        binary = {self._choice.of(name) for name in wanted}
        self._in_json = binary == {False}
        # Text, and JSON with raw outputs behind it, has a length of its own in every reply.
        self._is_plain = len(binary) == 1 and all(o.datatype != "BYTES" for o in self._outputs)
        self._compress_bytes_min = compress_bytes_min
        self._shapes: list[tuple[int, ...]] | None = None
        self._start = ReplyStart(b"")
        self._between: list[bytes] = []

    def request_id(self, body: Any) -> str:
        """Return the empty text: what has an id has no form."""
        return ""

    def feeds(self, bodies: list[Any]) -> list[Array]:
        """Return the session's feeds: the rows of all requests in one array per input."""
        count = len(bodies)
        return [
            self.form.feed(name, dtype, bodies).reshape((count * shape[0], *shape[1:]))
            if shape
            else self.form.feed(name, dtype, bodies).reshape(())
            for name, dtype, shape in self._inputs
        ]

    def answers(self, outputs: list[Array], count: int) -> tuple[ReplyStart, list[bytes]] | None:
        """Return what all replies begin with and the rest of each; None: see `whole`."""
        arrays = [outputs[output.place] for output in self._outputs]
        # One request's share: a batch has as many rows in front as its requests have together.
        shapes = [array.shape for array in arrays]
        if count > 1:
            shapes = [(shape[0] // count, *shape[1:]) for shape in shapes]
        if not self._is_plain or not all(map(math.prod, shapes)):
            return None
        if shapes != self._shapes:
            self._learn(shapes)
        columns: list[Any] = []
        for output, array, constant in zip(self._outputs, arrays, self._between, strict=True):
            columns += [_cut(array, output.datatype, count, in_json=self._in_json),
                        repeat(constant)]  # fmt: skip
        if not self._in_json and len(arrays) == 1:
            tails: list[bytes] = columns[0]
        else:
            tails = list(map(b"".join, zip(*columns, strict=False)))
        longest = len(self._start.prefix) + max(map(len, tails))
        return None if longest >= self._compress_bytes_min else (self._start, tails)

    def whole(self, outputs: list[Array], count: int) -> list[Response]:
        """Return the reply of each request, as the general way makes it."""
        responses = []
        for index in range(count):
            tensors = []
            for output in self._outputs:
                array = outputs[output.place]
                if count > 1:
                    array = array[index * self.rows : (index + 1) * self.rows]
                tensors.append(OutputTensor(output.name, output.datatype, array))
            answer = InferAnswer(self.model.name, self.model.version, "", tensors)
            responses.append(encode(answer, self._choice))
        return responses

    def _learn(self, shapes: list[tuple[int, ...]]) -> None:
        """Make the constant parts of replies whose outputs have these shapes."""
        names = {"model_name": self.model.name, "model_version": self.model.version}
        text = msgspec.json.encode(names)[:-1] + b',"outputs":['
        parts = []
        for output, shape in zip(self._outputs, shapes, strict=True):
            entry: dict[str, Any] = {
                "name": output.name, "datatype": output.datatype, "shape": shape,
            }  # fmt: skip
            if self._in_json:
                parts.append(msgspec.json.encode(entry)[:-1] + b',"data":')
            else:
                size = math.prod(shape) * DATATYPES[output.datatype].dtype.itemsize
                entry["parameters"] = {"binary_data_size": size}
                parts.append(msgspec.json.encode(entry))
        self._shapes = shapes
        if self._in_json:
            self._between = [b"}," + part for part in parts[1:]] + [b"}]}"]
            self._start = ReplyStart(text + parts[0], JSON)
        else:
            text += b",".join(parts) + b"]}"
            self._between = [b""] * len(parts)
            self._start = ReplyStart(text, BINARY, ((LENGTH_HEADER, f"{len(text)}"),))


def _cut(array: Array, datatype: str, count: int, *, in_json: bool) -> list[bytes]:
    """Return each request's share of one output."""
    if in_json:
        return list(map(_encode_numbers, array.reshape(count, -1).tolist()))
    raw = np.ascontiguousarray(array, DATATYPES[datatype].dtype).tobytes()
    if count == 1:
        return [raw]
    pieces: list[bytes] = np.frombuffer(raw, np.dtype((np.void, len(raw) // count))).tolist()
    return pieces
