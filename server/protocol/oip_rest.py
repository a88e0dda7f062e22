"""The Open Inference Protocol over HTTP, with the binary tensor extension both ways."""

from __future__ import annotations

import asyncio
import base64
import zlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec

from headrace.errors import InvalidArgumentError, UnimplementedError
from server.models.config_json import message_json
from server.models.loaded import ServedModel
from server.protocol.infer_door import Admission
from server.protocol.oip import (
    InferAnswer,
    InferCall,
    InferenceProtocol,
    LoadParameter,
    OutputChoice,
    Parameter,
    TensorPlace,
    choice_of,
)
from server.protocol.oip_shared_memory import SharedMemoryCalls
from server.protocol.rest_door import RestDoor
from server.protocol.rest_generate import Generate
from server.protocol.rest_messages import (
    LENGTH_HEADER,
    WINDOW_BITS,
    BinaryChoice,
    InferBody,
    Input,
    compressed,
    decode_json,
    encode,
    error_of,
    json_as,
)
from server.protocol.shared_memory import SharedMemory, place_of
from server.protocol.tensors import NOT_IN_JSON, UNREAD, Tensor, from_raw, from_values
from server.wire.handlers import Context, as_headrace_error
from server.wire.http1.limits import HttpLimits
from server.wire.routes import Request, Response, Routes, json_response

# A version is Triton's number or, of a released model, its digest; clients may encode the colon.
_VERSION = r"[0-9]+|sha256(?::|%3[Aa])[0-9a-f]{64}"
_MODEL = rf"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>{_VERSION}))?"
_CONTROL = r"/v2/repository/models/(?P<model>[^/]+)"
_NAMED_REPOSITORY = r"/v2/repository/[^/]+/(?:index|models/[^/]+/(?:load|unload))"
_INFLATED_BYTES_MAX = HttpLimits().body_bytes_max
# A body with a model in it, as text: a mebibyte takes milliseconds to decode.
_LEAVE_LOOP_BYTES = 1 << 20
_LENGTH_DIGITS_MAX = 10
_PIECE_BYTES = 1 << 16  # of a compressed body, inflated at once
_INFLATED_PIECE_BYTES = 1 << 20  # counted before more is made


def _json_length(request: Request, body: bytes) -> int | None:
    """Return how many bytes of the body are JSON; None when all of it is."""
    text = request.headers.get(LENGTH_HEADER.lower())
    if text is None:
        return None
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdigit():
        raise InvalidArgumentError(f"Unable to parse {LENGTH_HEADER}, got: {text[:32]}")
    if len(text) > _LENGTH_DIGITS_MAX or not 0 <= int(text) <= len(body):
        raise InvalidArgumentError(
            f"inference header size should be in range (0, {len(body)}), got: {text[:32]}"
        )
    return int(text)


def _inflated(request: Request) -> bytes:
    """Return the body without its content coding; the output is bounded, whatever came in."""
    coding = request.headers.get("content-encoding", "identity").lower()
    if coding == "identity":
        return request.body
    window_bits = WINDOW_BITS.get(coding)
    if window_bits is None:
        raise UnimplementedError(f"Unsupported Content-Encoding: {coding[:32]}")
    inflater = zlib.decompressobj(window_bits)
    pieces: list[bytes] = []
    size = 0
    try:
        for piece in _inflating(inflater, request.body):
            size += len(piece)
            if size > _INFLATED_BYTES_MAX:
                raise InvalidArgumentError(
                    f"the decompressed body exceeds {_INFLATED_BYTES_MAX} bytes"
                )
            request.hold(len(piece))
            pieces.append(piece)
    except zlib.error:
        raise InvalidArgumentError(f"the body is not {coding} data") from None
    if not inflater.eof:
        raise InvalidArgumentError(f"the {coding} body is cut off")
    return b"".join(pieces)


def _inflating(inflater: Any, body: bytes) -> Iterator[bytes]:
    """Yield what the body inflates to, at most a MiB at a time."""
    for start in range(0, len(body), _PIECE_BYTES):
        rest = body[start : start + _PIECE_BYTES]
        while rest and not inflater.eof:
            yield inflater.decompress(rest, _INFLATED_PIECE_BYTES)
            rest = inflater.unconsumed_tail


def _tensors(
    call: InferBody, raw: memoryview | None, model: str, memory: SharedMemory | None
) -> tuple[list[Tensor], dict[int, TensorPlace]]:
    """Return the inputs, and which of them are in shared memory.

    `raw` holds the binary ones back to back, in the order of the JSON; None: no header said where
    the JSON ends.
    """
    places: dict[int, TensorPlace] = {}
    has_header = raw is not None
    raw = memoryview(b"") if raw is None else raw
    tensors: list[Tensor] = []
    for source in call.inputs:
        where = f"input '{source.name}' for model '{model}'"
        size = source.parameters.get("binary_data_size")
        place = place_of(memory, source.parameters, source.name)
        _check_one_source(source, where)
        shape = tuple(source.shape)
        if place is not None:
            places[len(tensors)] = TensorPlace(place, shape)
            array = UNREAD
        elif size is not None:
            if not isinstance(size, int) or isinstance(size, bool) or size < 0:
                raise InvalidArgumentError(f"binary_data_size of {where} is wrong", got=size)
            if size and not has_header:
                raise InvalidArgumentError(
                    "must specify valid 'Infer-Header-Content-Length' in request header and "
                    "'binary_data_size' when passing inputs in binary data format"
                )
            if size > len(raw):
                raise InvalidArgumentError(
                    f"unexpected size for input '{source.name}', expecting {size - len(raw)} "
                    f"additional bytes for model '{model}'"
                )
            array = from_raw(raw[:size], source.datatype, shape, where)
            raw = raw[size:]
        else:
            if source.datatype in NOT_IN_JSON:
                raise InvalidArgumentError(
                    f"receiving {source.datatype} data via JSON is not supported. Please use the "
                    f"binary data format for input {source.name}"
                )
            data = source.data if isinstance(source.data, list) else [source.data]
            array = from_values(data, source.datatype, shape, where)
        tensors.append(Tensor(source.name, source.datatype, array))
    if raw:
        raise InvalidArgumentError(
            f"unexpected additional input data for model '{model}'", got=f"{len(raw)} bytes"
        )
    return tensors, places


def _check_one_source(source: Input, where: str) -> None:
    """Raise InvalidArgumentError, in Triton's words, unless the data comes in one way."""
    ways = {
        "data": source.data is not None,
        "binary_data_size": "binary_data_size" in source.parameters,
        "shared_memory_region": "shared_memory_region" in source.parameters,
    }
    chosen = [f" '{name}'" for name, is_set in ways.items() if is_set]
    if len(chosen) != 1:
        raise InvalidArgumentError(
            "Input must set only one of the following fields: 'data', 'binary_data_size' in "
            "'parameters', 'shared_memory_region' in 'parameters'. But"
            + (f" set{''.join(chosen)}" if chosen else " no field is set"),
            mend=f"look at {where}",
        )


def _raw_call(model: ServedModel, version: str, body: bytes) -> InferCall:
    """Return the call of a raw binary request: the body is the only input, of one row."""
    if len(model.inputs) != 1:
        raise InvalidArgumentError(
            "Raw request must only have 1 input (found 1) to be deduced but got "
            f"{len(model.inputs)} inputs in '{model.name}' model configuration"
        )
    spec = next(iter(model.inputs.values()))
    where = f"input '{spec.name}' for model '{model.name}'"
    dims = list(spec.shape)
    if model.max_batch_size > 0:
        dims[0] = 1
    if spec.datatype == "BYTES":
        if any(size != 1 for size in dims):
            raise InvalidArgumentError(
                f"For BYTE datatype raw input '{spec.name}', the model must have input shape [1]"
            )
        raw = len(body).to_bytes(4, "little") + body
        return InferCall(
            model.name,
            version,
            "",
            [Tensor(spec.name, "BYTES", from_raw(raw, "BYTES", dims, where))],
        )
    if dims.count(-1) > 1:
        raise InvalidArgumentError(
            f"The shape of the raw input '{spec.name}' can not be deduced because there are more "
            "than one variable-sized dimension"
        )
    array = _deduced(spec.datatype, dims, body, where)
    return InferCall(model.name, version, "", [Tensor(spec.name, spec.datatype, array)])


def _deduced(datatype: str, dims: list[int], body: bytes, where: str) -> Any:
    """Return the body as an array whose one dynamic dimension follows from its length."""
    size = from_raw(b"", datatype, (0,), where).dtype.itemsize
    for dim in dims:
        size *= dim if dim > 0 else 1
    if -1 in dims and size:
        dims[dims.index(-1)] = len(body) // size
    return from_raw(body, datatype, dims, where)


_Operation = Callable[[Request], Awaitable[Response]]


def guarded(operation: _Operation) -> _Operation:
    """Return an operation of the protocol whose errors look as Triton's."""

    async def answer(request: Request) -> Response:
        try:
            return await operation(request)
        except Exception as error:  # noqa: BLE001 - the task boundary: one request's fault stays its own
            return error_of(as_headrace_error(error, request.path))

    return answer


class InferenceRoutes:
    """The protocol's REST operations."""

    def __init__(self, protocol: InferenceProtocol, admission: Admission | None = None) -> None:
        self._protocol = protocol
        self._door = RestDoor(protocol, admission)
        self._generates = Generate(protocol)
        protocol.forget_on_change(self._door.forget)

    def add_to(self, routes: Routes) -> None:
        """Add all of the protocol's paths."""
        for method, pattern, operation in (
            ("GET", "/v2", self._server_metadata),
            ("GET", "/v2/health/live", self._live),
            ("GET", "/v2/health/ready", self._ready),
            ("GET", "/v2/models/stats", self._statistics),
            ("GET", _MODEL, self._metadata),
            ("GET", _MODEL + "/ready", self._model_ready),
            ("GET", _MODEL + "/config", self._config),
            ("GET", _MODEL + "/stats", self._statistics),
            ("POST", _MODEL + "/generate", self._generate),
            ("POST", _MODEL + "/generate_stream", self._generate_stream),
            ("POST", "/v2/repository/index", self._index),
            ("POST", _NAMED_REPOSITORY, self._no_repositories),
            ("POST", _CONTROL + "/load", self._load),
            ("POST", _CONTROL + "/unload", self._unload),
            *SharedMemoryCalls(self._protocol.memory).routes(),
        ):
            routes.add(method, pattern, guarded(operation))
        routes.add("POST", _MODEL + "/infer", guarded(self._infer), door=self._door)

    async def _live(self, _: Request) -> Response:
        return json_response({"live": True})

    async def _ready(self, _: Request) -> Response:
        ready = self._protocol.is_ready()
        return json_response({"ready": ready}, 200 if ready else 400)

    async def _server_metadata(self, _: Request) -> Response:
        return json_response(self._protocol.server_metadata())

    async def _metadata(self, request: Request) -> Response:
        return json_response(self._protocol.metadata(*_named(request)))

    async def _model_ready(self, request: Request) -> Response:
        model, version = _named(request)
        if not self._protocol.is_model_ready(model, version):
            return json_response({"error": "Model version not ready"}, 400)
        return json_response({"name": model, "ready": True})

    async def _config(self, request: Request) -> Response:
        return json_response(message_json(self._protocol.model(*_named(request)).config))

    async def _statistics(self, request: Request) -> Response:
        return json_response(self._protocol.statistics(*_named(request)))

    async def _index(self, request: Request) -> Response:
        asked = json_as(request.body or b"{}", dict[str, Any])
        ready = asked.get("ready", False)
        if not isinstance(ready, bool):
            raise InvalidArgumentError("Invalid value for 'ready': expected a boolean")
        return json_response(self._protocol.index(ready_only=ready))

    async def _no_repositories(self, _: Request) -> Response:
        raise UnimplementedError("'repository_name' specification is not supported")

    async def _load(self, request: Request) -> Response:
        if len(request.body) > _LEAVE_LOOP_BYTES:
            parameters = await asyncio.to_thread(_load_parameters, request.body)
        else:
            parameters = _load_parameters(request.body)
        await self._protocol.load(request.params["model"], parameters)
        return json_response({})

    async def _unload(self, request: Request) -> Response:
        await self._protocol.unload(request.params["model"], _control_parameters(request.body))
        return json_response({})

    async def _infer(self, request: Request) -> Response:
        model, version = _named(request)
        body = _inflated(request)
        length = _json_length(request, body)
        if length == 0:
            raw = _raw_call(self._protocol.model(model, version), version, body)
            answer = await self._run(request, raw)
            return compressed(request.headers, encode(answer, BinaryChoice(None)))
        call = decode_json(body if length is None else body[:length])
        behind = None if length is None else memoryview(body)[length:]
        memory = self._protocol.memory
        tensors, places = _tensors(call, behind, model, memory)
        neutral = InferCall(
            model,
            version,
            call.id,
            tensors,
            [output.name for output in call.outputs],
            _parameters(call),
            _choices(call, memory),
            places,
        )
        answer = await self._run(request, neutral)
        response = encode(answer, BinaryChoice(call))
        lane = self._door.lane(request.params, request.headers)
        self._door.learn(lane, body, call, neutral.tensors)
        return compressed(request.headers, response)

    async def _run(self, request: Request, call: InferCall) -> InferAnswer:
        context = Context(request.headers, None, request.peer)
        return await self._protocol.infer(call, context, "HTTP end point")

    async def _generate(self, request: Request) -> Response:
        return await self._generates.once(*_named(request), *_generated(request))

    async def _generate_stream(self, request: Request) -> Response:
        return await self._generates.stream(*_named(request), *_generated(request))


def _control_parameters(body: bytes) -> dict[str, LoadParameter]:
    return dict(json_as(body or b"{}", _ControlBody).parameters)


def _load_parameters(body: bytes) -> dict[str, LoadParameter]:
    parameters = _control_parameters(body)
    for name, value in parameters.items():
        if name.startswith("file:") and isinstance(value, str):
            parameters[name] = _from_base64(value)
    return parameters


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise InvalidArgumentError("a file of the request is not base64") from None


class _ControlBody(msgspec.Struct):
    """The body of a request to load or unload."""

    parameters: dict[str, bool | int | str] = {}


def _parameters(call: InferBody) -> dict[str, Parameter]:
    return {name: value for name, value in call.parameters.items() if name != "binary_data_output"}


def _choices(call: InferBody, memory: SharedMemory | None) -> dict[str, OutputChoice]:
    choices = {}
    for output in call.outputs:
        choice = choice_of(memory, output.parameters, output.name) if output.parameters else None
        if choice is None:
            continue
        if choice.place is not None and output.parameters.get("binary_data"):
            raise InvalidArgumentError(
                "Output can't set both 'shared_memory_region' and 'binary_data'"
            )
        choices[output.name] = choice
    return choices


def _generated(request: Request) -> tuple[bytes, Context]:
    return _inflated(request), Context(request.headers, None, request.peer)


def _named(request: Request) -> tuple[str, str]:
    return request.params.get("model", ""), request.params.get("version", "")
