"""The Open Inference Protocol over gRPC: package `inference`, service GRPCInferenceService.

Traces and log settings have tables of their own (`oip_tracing`, `oip_logging`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from headrace.errors import InvalidArgumentError, UnimplementedError
from server.protocol import infer_message
from server.protocol.infer_message import Input, Message
from server.protocol.oip import (
    EMPTY_FINAL,
    InferAnswer,
    InferCall,
    InferenceProtocol,
    Parameter,
    TensorPlace,
    choice_of,
)
from server.protocol.oip_stream import InferStream, Parts, StreamPart
from server.protocol.shared_memory import Place, SharedMemory, place_of
from server.protocol.tensors import (
    UNREAD,
    Array,
    Tensor,
    datatype_of,
    from_raw,
    from_values,
    to_raw,
)
from server.wire.handlers import Context, Handlers, Kind, Method

SERVICE = "/inference.GRPCInferenceService/"
MODEL_INFER = f"{SERVICE}ModelInfer"
_INT64_MAX = (1 << 63) - 1
# The field, and the datatype by which Triton calls what is in it.
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


def parse(message_class: Any, data: bytes) -> Any:
    """Return the decoded message. Raises InvalidArgumentError when the bytes are none."""
    try:
        return message_class.FromString(data)
    except DecodeError:
        raise _is_none(message_class, data) from None


def encoded(message: Any) -> bytes:
    """Return a message as it is sent."""
    data: bytes = message.SerializeToString()
    return data


def _is_none(message_class: Any, data: bytes) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the message is not a {message_class.DESCRIPTOR.full_name}", got=f"{len(data)} bytes"
    )


def parameters_of(entries: Any) -> dict[str, Any]:
    """Return the plain values of a map of InferParameter or ModelRepositoryParameter."""
    result = {}
    for name, entry in entries.items():
        kind = entry.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidArgumentError(f"parameter '{name}' has no value")
        result[name] = getattr(entry, kind)
    return result


def _place(source: Input, others: Any, memory: SharedMemory | None, model: str) -> Place | None:
    """Return where in shared memory a tensor is, None for one that came with the message."""
    if others is None or not others.parameters:
        return None
    place = place_of(memory, parameters_of(others.parameters), source.name)
    if place is not None and others.HasField("contents"):
        raise InvalidArgumentError(
            "unexpected 'content' provided when using shared memory for input tensor "
            f"'{source.name}' for model '{model}'"
        )
    return place


def _tensor(source: Input, others: Any, raw: memoryview | None, model: str) -> Tensor:
    """Return a tensor; `others` are the fields of it that are not read by hand, if it has any."""
    where = f"input '{source.name}' for model '{model}'"
    if raw is not None:
        if others is not None and others.HasField("contents"):
            raise InvalidArgumentError(
                "contents field must not be specified when using raw_input_contents for "
                f"'{source.name}' for model '{model}'"
            )
        array = from_raw(raw, source.datatype, source.shape, where)
    else:
        contents = pb.InferTensorContents() if others is None else others.contents
        array = _from_contents(source, contents, where)
    return Tensor(source.name, source.datatype, array)


def _from_contents(source: Input, contents: Any, where: str) -> Array:
    field = datatype_of(source.datatype, where).contents
    filled = [name for name in _CONTENTS if len(getattr(contents, name))]
    if not field:
        raise InvalidArgumentError(
            f"{where} of type {source.datatype} can only be sent in raw_input_contents"
        )
    wrong = next((name for name in filled if name != field), None)
    if wrong is not None:
        raise InvalidArgumentError(
            f"unexpected explicit tensor data for {where.replace('input', 'input tensor', 1)} of "
            f"type '{_CONTENTS[wrong]}', expected datatype '{source.datatype}'"
        )
    if not filled and 0 not in source.shape:
        where = where.replace("input", "input tensor", 1)
        raise InvalidArgumentError(f"unable to find data for {where} in request.")
    return from_values(list(getattr(contents, field)), source.datatype, source.shape, where)


def decode_infer(data: bytes, memory: SharedMemory | None = None) -> InferCall:
    """Return the call in a ModelInferRequest; what it names in `memory` is read later.

    Raises InvalidArgumentError naming what is wrong, and what `place_of` raises.
    """
    message = _read(data)
    model = message.model
    try:
        others = pb.ModelInferRequest.FromString(message.rest) if message.rest else None
        details = [
            pb.ModelInferRequest.InferInputTensor.FromString(source.rest) if source.rest else None
            for source in message.inputs
        ]
    except DecodeError:
        raise _is_none(pb.ModelInferRequest, data) from None
    places = {
        index: TensorPlace(place, source.shape)
        for index, source in enumerate(message.inputs)
        if (place := _place(source, details[index], memory, model)) is not None
    }
    count = len(message.inputs) - len(places)
    if message.raws and len(message.raws) != count:
        raise InvalidArgumentError(
            f"expected {count} entries in raw_input_contents for model '{model}', one per input",
            got=len(message.raws),
        )
    raws = iter(message.raws)
    tensors = [
        Tensor(source.name, source.datatype, UNREAD)
        if index in places
        else _tensor(source, details[index], next(raws, None), model)
        for index, source in enumerate(message.inputs)
    ]
    call = InferCall(model, message.version, message.request_id, tensors)
    call.places = places
    if others is not None:
        for output in others.outputs:
            if output.parameters:
                choice = choice_of(memory, parameters_of(output.parameters), output.name)
                if choice is not None:
                    call.choices[output.name] = choice
        call.wanted = [output.name for output in others.outputs]
        call.parameters = parameters_of(others.parameters)
    return call


def _read(data: bytes) -> Message:
    """Return a ModelInferRequest taken apart. Raises InvalidArgumentError where it is none."""
    try:
        return infer_message.read(data)
    except infer_message.OddError:
        request = parse(pb.ModelInferRequest, data)
        request.DiscardUnknownFields()
        return infer_message.read(request.SerializeToString())


def encode_infer(answer: InferAnswer) -> bytes:
    """Return the ModelInferResponse of an answer: outputs always as raw content."""
    response = pb.ModelInferResponse(
        model_name=answer.model, model_version=answer.version, id=answer.request_id
    )
    for output in answer.outputs:
        response.outputs.add(name=output.name, datatype=output.datatype, shape=output.array.shape)
        raw = b"" if output.is_placed else to_raw(output.array, output.datatype)
        response.raw_output_contents.append(raw)
    for name, value in answer.parameters.items():
        set_parameter(response.parameters[name], value)
    return encoded(response)


def set_parameter(entry: Any, value: Parameter) -> None:
    """Write a value into an InferParameter."""
    if isinstance(value, bool):
        entry.bool_param = value
    elif isinstance(value, int):
        if value > _INT64_MAX:
            entry.uint64_param = value
        else:
            entry.int64_param = value
    elif isinstance(value, float):
        entry.double_param = value
    else:
        entry.string_param = value


class InferenceCalls:
    """The protocol's unary methods: bytes in, bytes out."""

    def __init__(
        self,
        protocol: InferenceProtocol,
        learn: Callable[[bytes, InferCall], None] | None = None,
    ) -> None:
        """`learn` is told of every ModelInfer message that was answered, and its decoded call."""
        self._protocol = protocol
        self._learn = learn

    def table(self) -> Handlers:
        """Return the handler table."""
        return {
            f"{SERVICE}ServerLive": self._server_live,
            f"{SERVICE}ServerReady": self._server_ready,
            f"{SERVICE}ModelReady": self._model_ready,
            f"{SERVICE}ServerMetadata": self._server_metadata,
            f"{SERVICE}ModelMetadata": self._model_metadata,
            f"{SERVICE}ModelConfig": self._model_config,
            f"{SERVICE}ModelStatistics": self._model_statistics,
            f"{SERVICE}RepositoryIndex": self._repository_index,
            f"{SERVICE}RepositoryModelLoad": self._repository_model_load,
            f"{SERVICE}RepositoryModelUnload": self._repository_model_unload,
            MODEL_INFER: self._model_infer,
            f"{SERVICE}ModelStreamInfer": Method(
                Kind.BIDI_STREAM, InferStream(self._stream_infer).stream
            ),
        }

    async def _server_live(self, _: bytes, __: Context) -> bytes:
        return encoded(pb.ServerLiveResponse(live=True))

    async def _server_ready(self, _: bytes, __: Context) -> bytes:
        return encoded(pb.ServerReadyResponse(ready=self._protocol.is_ready()))

    async def _model_ready(self, data: bytes, _: Context) -> bytes:
        request = parse(pb.ModelReadyRequest, data)
        ready = self._protocol.is_model_ready(request.name, request.version)
        return encoded(pb.ModelReadyResponse(ready=ready))

    async def _server_metadata(self, _: bytes, __: Context) -> bytes:
        return encoded(pb.ServerMetadataResponse(**self._protocol.server_metadata()))

    async def _model_metadata(self, data: bytes, _: Context) -> bytes:
        request = parse(pb.ModelMetadataRequest, data)
        metadata = self._protocol.metadata(request.name, request.version)
        return encoded(pb.ModelMetadataResponse(**metadata))

    async def _model_config(self, data: bytes, _: Context) -> bytes:
        request = parse(pb.ModelConfigRequest, data)
        model = self._protocol.model(request.name, request.version)
        return encoded(pb.ModelConfigResponse(config=model.config))

    async def _model_statistics(self, data: bytes, _: Context) -> bytes:
        request = parse(pb.ModelStatisticsRequest, data)
        statistics = self._protocol.statistics(request.name, request.version)
        return encoded(pb.ModelStatisticsResponse(**statistics))

    async def _repository_index(self, data: bytes, _: Context) -> bytes:
        request = parse(pb.RepositoryIndexRequest, data)
        _check_repository(request.repository_name)
        entries = self._protocol.index(ready_only=request.ready)
        return encoded(pb.RepositoryIndexResponse(models=entries))

    async def _repository_model_load(self, data: bytes, _: Context) -> bytes:
        request = parse(pb.RepositoryModelLoadRequest, data)
        _check_repository(request.repository_name)
        await self._protocol.load(request.model_name, parameters_of(request.parameters))
        return encoded(pb.RepositoryModelLoadResponse())

    async def _repository_model_unload(self, data: bytes, _: Context) -> bytes:
        request = parse(pb.RepositoryModelUnloadRequest, data)
        _check_repository(request.repository_name)
        await self._protocol.unload(request.model_name, parameters_of(request.parameters))
        return encoded(pb.RepositoryModelUnloadResponse())

    async def _model_infer(self, data: bytes, context: Context) -> bytes:
        call = decode_infer(data, self._protocol.memory)
        reply = encode_infer(await self._protocol.infer(call, context, "ModelInfer RPC"))
        if self._learn is not None:
            self._learn(data, call)
        return reply

    async def _stream_infer(self, data: bytes, context: Context) -> bytes | Parts:
        call = decode_infer(data, self._protocol.memory)
        if self._protocol.is_decoupled(call.model, call.version):
            return self._parts(call, context)
        return encode_infer(await self._protocol.infer(call, context))

    async def _parts(self, call: InferCall, context: Context) -> Parts:
        """Yield the responses of a decoupled model; an empty one only where it is asked for."""
        async with aclosing(self._protocol.responses(call, context)) as parts:
            async for part in parts:
                if part.error is None and part.empty and not call.parameters.get(EMPTY_FINAL):
                    continue
                yield StreamPart(encode_infer(part.answer), part.final, part.error)


def _check_repository(name: str) -> None:
    if name:
        raise UnimplementedError("'repository_name' specification is not supported")
