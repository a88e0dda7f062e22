"""The Open Inference Protocol over gRPC: package `inference`, service GRPCInferenceService.

Shared memory, traces and log settings are not in the table, so the transport answers UNIMPLEMENTED
for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from headrace.errors import InvalidArgumentError, UnimplementedError
from server.protocol.oip import InferAnswer, InferCall, InferenceProtocol, Parameter
from server.protocol.oip_stream import InferStream
from server.protocol.tensors import (
    Array,
    Tensor,
    datatype_of,
    from_raw,
    from_values,
    to_raw,
)
from server.wire.handlers import Context, Handlers, Kind, Method

_SERVICE = "/inference.GRPCInferenceService/"
MODEL_INFER = f"{_SERVICE}ModelInfer"
_CONTENTS = (
    "bool_contents",
    "int_contents",
    "int64_contents",
    "uint_contents",
    "uint64_contents",
    "fp32_contents",
    "fp64_contents",
    "bytes_contents",
)


def parse(message_class: Any, data: bytes) -> Any:
    """Return the decoded message. Raises InvalidArgumentError when the bytes are none."""
    try:
        return message_class.FromString(data)
    except DecodeError:
        raise InvalidArgumentError(
            f"the message is not a {message_class.DESCRIPTOR.full_name}", got=f"{len(data)} bytes"
        ) from None


def parameters_of(entries: Any) -> dict[str, Any]:
    """Return the plain values of a map of InferParameter or ModelRepositoryParameter."""
    result = {}
    for name, entry in entries.items():
        kind = entry.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidArgumentError(f"parameter '{name}' has no value")
        result[name] = getattr(entry, kind)
    return result


def _tensor(source: Any, raw: bytes | None, model: str) -> Tensor:
    where = f"input '{source.name}' for model '{model}'"
    shape = tuple(source.shape)
    if "shared_memory_region" in source.parameters:
        raise UnimplementedError(f"shared memory is not supported, {where} asks for it")
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
    if any(name != field for name in filled):
        raise InvalidArgumentError(
            f"unexpected explicit tensor data for {where}",
            expected=field,
            got=", ".join(filled),
        )
    if not filled and 0 not in shape:
        raise InvalidArgumentError(f"unable to find data for {where}")
    return from_values(list(getattr(contents, field)), source.datatype, shape, where)


def decode_infer(data: bytes) -> InferCall:
    """Return the call in a ModelInferRequest. Raises InvalidArgumentError naming what is wrong."""
    request = parse(pb.ModelInferRequest, data)
    raws = request.raw_input_contents
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
    for output in request.outputs:
        for name in output.parameters:
            raise UnimplementedError(f"output parameter '{name}' of '{output.name}'")
    return InferCall(
        request.model_name,
        request.model_version,
        request.id,
        tensors,
        [output.name for output in request.outputs],
        parameters_of(request.parameters),
    )


def encode_infer(answer: InferAnswer) -> bytes:
    """Return the ModelInferResponse of an answer: outputs always as raw content."""
    response = pb.ModelInferResponse(
        model_name=answer.model, model_version=answer.version, id=answer.request_id
    )
    for output in answer.outputs:
        response.outputs.add(name=output.name, datatype=output.datatype, shape=output.array.shape)
        response.raw_output_contents.append(to_raw(output.array, output.datatype))
    for name, value in answer.parameters.items():
        _set_parameter(response.parameters[name], value)
    encoded: bytes = response.SerializeToString()
    return encoded


def _set_parameter(entry: Any, value: Parameter) -> None:
    if isinstance(value, bool):
        entry.bool_param = value
    elif isinstance(value, int):
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
            f"{_SERVICE}ServerLive": self._server_live,
            f"{_SERVICE}ServerReady": self._server_ready,
            f"{_SERVICE}ModelReady": self._model_ready,
            f"{_SERVICE}ServerMetadata": self._server_metadata,
            f"{_SERVICE}ModelMetadata": self._model_metadata,
            f"{_SERVICE}ModelConfig": self._model_config,
            f"{_SERVICE}ModelStatistics": self._model_statistics,
            f"{_SERVICE}RepositoryIndex": self._repository_index,
            f"{_SERVICE}RepositoryModelLoad": self._repository_model_load,
            f"{_SERVICE}RepositoryModelUnload": self._repository_model_unload,
            MODEL_INFER: self._model_infer,
            f"{_SERVICE}ModelStreamInfer": Method(
                Kind.BIDI_STREAM, InferStream(self._model_infer).stream
            ),
        }

    async def _server_live(self, _: bytes, __: Context) -> bytes:
        return _bytes(pb.ServerLiveResponse(live=True))

    async def _server_ready(self, _: bytes, __: Context) -> bytes:
        return _bytes(pb.ServerReadyResponse(ready=self._protocol.is_ready()))

    async def _model_ready(self, data: bytes, _: Context) -> bytes:
        request = parse(pb.ModelReadyRequest, data)
        ready = self._protocol.is_model_ready(request.name, request.version)
        return _bytes(pb.ModelReadyResponse(ready=ready))

    async def _server_metadata(self, _: bytes, __: Context) -> bytes:
        return _bytes(pb.ServerMetadataResponse(**self._protocol.server_metadata()))

    async def _model_metadata(self, data: bytes, _: Context) -> bytes:
        request = parse(pb.ModelMetadataRequest, data)
        metadata = self._protocol.metadata(request.name, request.version)
        return _bytes(pb.ModelMetadataResponse(**metadata))

    async def _model_config(self, data: bytes, _: Context) -> bytes:
        request = parse(pb.ModelConfigRequest, data)
        model = self._protocol.model(request.name, request.version)
        return _bytes(pb.ModelConfigResponse(config=model.config))

    async def _model_statistics(self, data: bytes, _: Context) -> bytes:
        request = parse(pb.ModelStatisticsRequest, data)
        statistics = self._protocol.statistics(request.name, request.version)
        return _bytes(pb.ModelStatisticsResponse(**statistics))

    async def _repository_index(self, data: bytes, _: Context) -> bytes:
        request = parse(pb.RepositoryIndexRequest, data)
        _check_repository(request.repository_name)
        entries = self._protocol.index(ready_only=request.ready)
        return _bytes(pb.RepositoryIndexResponse(models=entries))

    async def _repository_model_load(self, data: bytes, _: Context) -> bytes:
        request = parse(pb.RepositoryModelLoadRequest, data)
        _check_repository(request.repository_name)
        await self._protocol.load(request.model_name, parameters_of(request.parameters))
        return _bytes(pb.RepositoryModelLoadResponse())

    async def _repository_model_unload(self, data: bytes, _: Context) -> bytes:
        request = parse(pb.RepositoryModelUnloadRequest, data)
        _check_repository(request.repository_name)
        await self._protocol.unload(request.model_name, parameters_of(request.parameters))
        return _bytes(pb.RepositoryModelUnloadResponse())

    async def _model_infer(self, data: bytes, context: Context) -> bytes:
        call = decode_infer(data)
        reply = encode_infer(await self._protocol.infer(call, context))
        if self._learn is not None:
            self._learn(data, call)
        return reply


def _check_repository(name: str) -> None:
    if name:
        raise UnimplementedError("'repository_name' specification is not supported")


def _bytes(message: Any) -> bytes:
    encoded: bytes = message.SerializeToString()
    return encoded
