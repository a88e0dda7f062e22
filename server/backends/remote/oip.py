"""A remote server of the Open Inference Protocol, by gRPC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tritonclient.grpc import model_config_pb2, service_pb2

from headrace.errors import FailedPreconditionError
from server.backends.remote.channels import Channels
from server.backends.remote.messages import outputs_of, request_bytes
from server.backends.remote.settings import Settings
from server.backends.remote.upstream import CallFailedError, Given, RemoteModel, RemoteTensor
from server.execution.engine import Array, Parameter
from server.models.loaded import TensorSignature
from server.wire.grpc.status import StatusCode


class OipUpstream:
    """Triton, another Headrace, or their kin."""

    def __init__(self, settings: Settings) -> None:
        self._channels = Channels(settings)
        self._model = settings.model
        self._version = settings.version

    async def described(self, timeout_ns: int) -> RemoteModel:
        """As `Upstream` says; the configuration is an extension that a server may not have."""
        which = {"name": self._model, "version": self._version}
        asked = service_pb2.ModelMetadataRequest(**which).SerializeToString()
        metadata = service_pb2.ModelMetadataResponse.FromString(
            await self._channels.call("ModelMetadata", asked, timeout_ns)
        )
        config: Any = None
        try:
            asked = service_pb2.ModelConfigRequest(**which).SerializeToString()
            reply = await self._channels.call("ModelConfig", asked, timeout_ns)
            config = service_pb2.ModelConfigResponse.FromString(reply).config
        except CallFailedError as error:
            if error.number != StatusCode.UNIMPLEMENTED:
                raise
        return _described(metadata, config)

    def request(
        self,
        request_id: str,
        given: Given,
        wanted: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> bytes:
        """Return a ModelInferRequest."""
        return request_bytes(self._model, self._version, request_id, given, wanted, parameters)

    async def infer(self, request: bytes, timeout_ns: int) -> bytes:
        """As `Upstream` says."""
        return await self._channels.call("ModelInfer", request, timeout_ns)

    def outputs(
        self, reply: bytes, specs: Sequence[TensorSignature], wanted: Sequence[str]
    ) -> list[Array | None]:
        """As `Upstream` says."""
        return outputs_of(reply, specs, wanted)

    async def close(self) -> None:
        """As `Upstream` says."""
        await self._channels.close()


def _described(metadata: Any, config: Any) -> RemoteModel:
    if config is None:
        config, batch_size = model_config_pb2.ModelConfig(), None
    else:
        batch_size = int(config.max_batch_size)
    if config.model_transaction_policy.decoupled:
        raise FailedPreconditionError(
            "the remote model is decoupled", expected="one response to a request"
        )
    optional = {tensor.name for tensor in config.input if tensor.optional}
    return RemoteModel(
        [
            RemoteTensor(each.name, each.datatype, tuple(each.shape), each.name in optional)
            for each in metadata.inputs
        ],
        [RemoteTensor(each.name, each.datatype, tuple(each.shape)) for each in metadata.outputs],
        batch_size,
    )
