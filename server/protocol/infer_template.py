"""Templates: ModelInfer messages that differ in their raw tensors (and id) only.

A client sends the same bytes again and again around its numbers. The general decoder finds out once
where they stand; from then on a message of that length and those constant bytes is read by slicing,
and all that one tick brings is joined and read at once. What is not exactly of a learnt form is
never guessed at: the general decoder takes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from headrace.errors import HeadraceError
from server.models.loaded import ServedModel
from server.protocol.oip import InferAnswer, InferCall, InferenceProtocol, OutputTensor
from server.protocol.oip_grpc import encode_infer
from server.protocol.tensors import DATATYPES, Tensor
from server.wire.grpc.framing import PREFIX_BYTES, frame

Array = npt.NDArray[Any]
# A client that changes its shapes all the time fills the table; it then starts from nothing.
TEMPLATES_MAX = 256
# What it may keep of one message: a template must not hold megabytes of unknown fields.
CONSTANT_BYTES_MAX = 4096
# BYTES has no fixed size, and every BOOL must be looked at.
_LEARNT_DATATYPES = frozenset(DATATYPES) - {"BYTES", "BOOL"}
_ID_TAG, _REQUEST_RAW_TAG, _REPLY_RAW_TAG = b"\x1a", b"\x3a", b"\x32"


@dataclass(frozen=True, slots=True)
class Form:
    """Where a framed message is constant: `head` at 0, each seam (offset, bytes) further on.

    `request_id` and the `raws`, in the message's order, lie between them.
    """

    size: int
    head: bytes
    seams: tuple[tuple[int, bytes], ...]
    request_id: slice | None
    raws: tuple[slice, ...]

    def fits(self, body: bytes) -> bool:
        """Return whether `body` is of this form."""
        if len(body) != self.size or not body.startswith(self.head):
            return False
        return not self.seams or self._fits_behind([body])

    def fits_all(self, bodies: list[bytes]) -> bool:
        """Return whether every one of `bodies` is of this form."""
        return (
            list(map(len, bodies)).count(self.size) == len(bodies)
            and all(map(bytes.startswith, bodies, repeat(self.head)))
            and (not self.seams or self._fits_behind(bodies))
        )

    def _fits_behind(self, bodies: list[bytes]) -> bool:
        for offset, seam in self.seams:
            if not all(map(bytes.startswith, bodies, repeat(seam), repeat(offset))):
                return False
        # Text of protobuf is UTF-8, and an id that is not must be refused: ASCII always is.
        # (Behind an id there is always a seam.)
        ids = self.request_id
        return ids is None or b"".join(map(itemgetter(ids), bodies)).isascii()


def form_of(message: bytes, call: InferCall) -> Form | None:
    """Return the form of a ModelInferRequest that decoded to `call`; None where it has none.

    A protobuf message is the merge of its parts wherever it is cut between two fields. So what
    parses alone, before the raws (and around the id), means the same with other raws behind it.
    There are as many raws as inputs (else it had not decoded): none is hidden in front.
    """
    if call.parameters or call.choices or call.places:
        return None
    if any(tensor.datatype not in _LEARNT_DATATYPES for tensor in call.tensors):
        return None
    constant_bytes = len(message) - sum(tensor.array.nbytes for tensor in call.tensors)
    if constant_bytes > CONSTANT_BYTES_MAX:
        return None
    raws = [tensor.array.tobytes() for tensor in call.tensors]
    if not raws or not all(raws):
        return None
    lengths = [_REQUEST_RAW_TAG + _varint(len(raw)) for raw in raws]
    tail = b"".join(part for pair in zip(lengths, raws, strict=True) for part in pair)
    if not message.endswith(tail):
        return None
    before = message[: len(message) - len(tail)]
    pieces = [before]
    if call.request_id:
        request_id = call.request_id.encode()
        names = pb.ModelInferRequest(model_name=call.model, model_version=call.version)
        start = names.SerializeToString() + _ID_TAG + _varint(len(request_id))
        if not before.startswith(start + request_id):
            return None
        pieces = [start, before[len(start) + len(request_id) :]]
        parsed = _parsed(pieces[1])
        if parsed is None or parsed.id:
            return None
    if _parsed(before) is None:
        return None
    pieces[-1] += lengths[0]
    return _form(frame(message), [*pieces, *lengths[1:]], call.request_id.encode(), raws)


def _form(body: bytes, constants: list[bytes], request_id: bytes, raws: list[bytes]) -> Form:
    """Lay out constant, variable, constant, variable …; the first constant is behind the frame."""
    variables = [request_id, *raws] if request_id else raws
    position = PREFIX_BYTES
    seams, places = [], []
    for constant, variable in zip(constants, variables, strict=True):
        seams.append((position, constant))
        position += len(constant)
        places.append(slice(position, position + len(variable)))
        position += len(variable)
    head = body[: places[0].start]
    return Form(
        len(body),
        head,
        tuple(seams[1:]),
        places[0] if request_id else None,
        tuple(places[1:] if request_id else places),
    )


def _parsed(data: bytes) -> Any:
    try:
        return pb.ModelInferRequest.FromString(data)
    except DecodeError:
        return None


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


@dataclass(frozen=True, slots=True)
class _Input:
    """How one feed of the session is read out of a message."""

    raw: Callable[[bytes], bytes]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Output:
    """One output of the reply: its place in the session's outputs, and what it is called."""

    index: int
    name: str
    datatype: str
    dtype: np.dtype[Any]


class Reply:
    """The constant bytes of a reply whose outputs have these shapes."""

    __slots__ = ("_first", "_items", "_lengths", "_names", "_plain", "shapes")

    def __init__(
        self, model: ServedModel, outputs: Sequence[_Output], shapes: list[tuple[int, ...]]
    ) -> None:
        self.shapes = shapes
        names = pb.ModelInferResponse(model_name=model.name, model_version=model.version)
        meta = pb.ModelInferResponse()
        sizes = []
        for output, shape in zip(outputs, shapes, strict=True):
            meta.outputs.add(name=output.name, datatype=output.datatype, shape=shape)
            sizes.append(math.prod(shape) * output.dtype.itemsize)
        lengths = [_REPLY_RAW_TAG + _varint(size) for size in sizes]
        self._names: bytes = names.SerializeToString()
        self._first: bytes = meta.SerializeToString() + lengths[0]
        self._plain = self._names + self._first
        self._lengths = lengths[1:]
        # numpy has no type of no bytes: an empty output is cut by hand.
        self._items = [np.dtype((np.void, size)) if size else None for size in sizes]

    def messages(
        self, arrays: list[Array], request_ids: list[bytes] | None, count: int
    ) -> tuple[bytes, list[bytes]]:
        """Return what all `count` messages begin with, and the rest of each; all of one length.

        `arrays` are the outputs of all requests joined; `request_ids` are of one length.
        """
        if request_ids is None and len(arrays) == 1:
            return self._plain, _cut(arrays[0], self._items[0], count)
        raws = [_cut(array, item, count) for array, item in zip(arrays, self._items, strict=True)]
        prefix, columns = self._plain, [raws[0]]
        if request_ids is not None:
            prefix = self._names + _ID_TAG + _varint(len(request_ids[0]))
            columns = [request_ids, [self._first] * count, raws[0]]
        for constant, raw in zip(self._lengths, raws[1:], strict=True):
            columns += [[constant] * count, raw]
        return prefix, list(map(b"".join, zip(*columns, strict=True)))


def _cut(array: Array, item: np.dtype[Any] | None, count: int) -> list[bytes]:
    raw = array.tobytes()
    if count == 1:
        return [raw]
    if item is None:
        return [b""] * count
    pieces: list[bytes] = np.frombuffer(raw, item).tolist()
    return pieces


class Template:
    """One form of request, bound to the model version that answers it."""

    __slots__ = (
        "_has_text", "_inputs", "_outputs", "_reply",
        "form", "model", "name", "rows", "shape", "version",
    )  # fmt: skip

    def __init__(self, form: Form, call: InferCall, model: ServedModel, rows: int) -> None:
        """`name` and `version` are as the request says them; `rows` is what one request has."""
        self.form = form
        self.name, self.version = call.model, call.version
        self.model = model
        self.rows = rows
        places = {tensor.name: place for place, tensor in enumerate(call.tensors)}
        self._inputs = [
            _Input(
                itemgetter(form.raws[places[spec.name]]),
                DATATYPES[spec.datatype].dtype,
                call.tensors[places[spec.name]].array.shape,
            )
            for spec in model.feed_order
        ]
        self.shape = tuple(entry.shape[1:] for entry in self._inputs)
        self._outputs = [
            _Output(
                model.output_indexes[name],
                name,
                model.outputs[name].datatype,
                DATATYPES[model.outputs[name].datatype].dtype,
            )
            for name in call.wanted or model.outputs
        ]
        self._has_text = any(output.datatype == "BYTES" for output in self._outputs)
        self._reply: Reply | None = None

    def request_id(self, body: bytes) -> str:
        """Return the id of a request; empty without."""
        place = self.form.request_id
        return "" if place is None else body[place].decode()

    def feeds(self, bodies: list[bytes]) -> list[Array]:
        """Return the session's feeds: the rows of all `bodies` in one array per input."""
        if len(bodies) == 1:
            body = bodies[0]
            return [np.ndarray(entry.shape, entry.dtype, entry.raw(body)) for entry in self._inputs]
        count = len(bodies)
        return [
            np.ndarray(
                (count * entry.shape[0], *entry.shape[1:]),
                entry.dtype,
                b"".join(map(entry.raw, bodies)),
            )
            for entry in self._inputs
        ]

    def replies(self, bodies: list[bytes], outputs: list[Array]) -> tuple[bytes, list[bytes]]:
        """Return a prefix of all reply messages and the rest of each, from the joined outputs.

        The rests are of one length, except where an output is BYTES.
        """
        count = len(bodies)
        place = self.form.request_id
        request_ids = None if place is None else [body[place] for body in bodies]
        if self._has_text:
            return b"", self._general(request_ids, outputs, count)
        arrays = [outputs[output.index] for output in self._outputs]
        # One request's share: a batch has as many rows in front as its requests have together.
        shapes = [array.shape for array in arrays]
        if count > 1:
            shapes = [(shape[0] // count, *shape[1:]) for shape in shapes]
        reply = self._reply
        if reply is None or reply.shapes != shapes:
            self._reply = reply = Reply(self.model, self._outputs, shapes)
        return reply.messages(arrays, request_ids, count)

    def _general(
        self, request_ids: list[bytes] | None, outputs: list[Array], count: int
    ) -> list[bytes]:
        messages = []
        for index in range(count):
            tensors = []
            for output in self._outputs:
                array = outputs[output.index]
                if count > 1:
                    array = array[index * self.rows : (index + 1) * self.rows]
                tensors.append(OutputTensor(output.name, output.datatype, array))
            request_id = "" if request_ids is None else request_ids[index].decode()
            answer = InferAnswer(self.model.name, self.model.version, request_id, tensors)
            messages.append(encode_infer(answer))
        return messages


def rows_of(model: ServedModel, tensors: Sequence[Tensor], wanted: Sequence[str]) -> int | None:
    """Return how many rows a request has; None of one that no template may stand for."""
    try:
        feeds, rows = model.check(tensors, wanted)
    except HeadraceError:
        return None
    # Where an optional input was left out, what the model is fed is not what came.
    return rows if len(feeds) == len(tensors) else None


class InferTemplates:
    """The templates of one server, by the bytes that they recognise."""

    def __init__(self, protocol: InferenceProtocol) -> None:
        self._protocol = protocol
        self._count = 0
        # Message size → (size of the head, head → templates): one look for any number of models.
        self._by_size: dict[int, dict[int, dict[bytes, list[Template]]]] = {}

    def __len__(self) -> int:
        return self._count

    def find(self, body: bytes) -> Template | None:
        """Return the template that a framed message is of; whether it still holds is not asked."""
        for size, by_head in self._by_size.get(len(body), {}).items():
            for template in by_head.get(body[:size], ()):
                if template.form.fits(body):
                    return template
        return None

    def holds(self, template: Template) -> bool:
        """Return whether the template's model is what answers now, without a release plan.

        When one no longer holds all are forgotten: swaps are rare, learning again is cheap, and
        nothing keeps a model that was unloaded.
        """
        answering = self._protocol.unrouted(template.name, template.version)
        if answering is template.model:
            return True
        self.forget()
        return False

    def learn(self, message: bytes, call: InferCall) -> None:
        """Take the form of a message (not framed) that was answered, where it has a simple one."""
        model = self._protocol.unrouted(call.model, call.version)
        if model is None or model.cached is not None or self.find(frame(message)) is not None:
            return
        if not model.is_plain(call.request_id, call.wanted):
            return
        form = form_of(message, call)
        if form is None:
            return
        rows = rows_of(model, call.tensors, call.wanted)
        if rows is None:
            return
        if self._count >= TEMPLATES_MAX:
            self.forget()
        by_head = self._by_size.setdefault(form.size, {}).setdefault(len(form.head), {})
        by_head.setdefault(form.head, []).append(Template(form, call, model, rows))
        self._count += 1

    def forget(self) -> None:
        """Forget all: other models answer."""
        self._by_size.clear()
        self._count = 0
