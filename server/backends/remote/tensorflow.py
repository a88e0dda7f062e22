"""TensorFlow Serving, by its REST API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from urllib.parse import quote

from headrace.errors import FailedPreconditionError, UnimplementedError
from server.backends.remote.http_pool import BrokenError, HttpPool
from server.backends.remote.settings import Settings, Tensorflow
from server.backends.remote.tensorflow_json import (
    is_available,
    outputs_of,
    request_json,
    signature_of,
    words_of,
)
from server.backends.remote.upstream import CallFailedError, Given, RemoteModel
from server.execution.engine import Array, Parameter
from server.models.loaded import TensorSignature
from server.wire.grpc.status import StatusCode

# Which of TensorFlow's codes, that are gRPC's, became a status; 400 may be three of them.
_CODES = {
    HTTPStatus.BAD_REQUEST: StatusCode.INVALID_ARGUMENT,
    HTTPStatus.NOT_FOUND: StatusCode.NOT_FOUND,
    HTTPStatus.TOO_MANY_REQUESTS: StatusCode.RESOURCE_EXHAUSTED,
    499: StatusCode.CANCELLED,
    HTTPStatus.NOT_IMPLEMENTED: StatusCode.UNIMPLEMENTED,
    # What is between us and it says so of what it cannot reach.
    HTTPStatus.BAD_GATEWAY: StatusCode.UNAVAILABLE,
    HTTPStatus.SERVICE_UNAVAILABLE: StatusCode.UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: StatusCode.DEADLINE_EXCEEDED,
}


class TensorflowUpstream:
    """One signature of a model of TensorFlow Serving."""

    def __init__(self, settings: Settings) -> None:
        assert settings.tensorflow is not None
        self._asked: Tensorflow = settings.tensorflow
        self._pool = HttpPool(settings.address, settings.pool_size, settings.tls)
        self._path = f"/v1/models/{quote(settings.model, safe='')}"
        if settings.version:
            self._path += f"/versions/{settings.version}"
        elif self._asked.label:
            self._path += f"/labels/{quote(self._asked.label, safe='')}"

    async def described(self, timeout_ns: int) -> RemoteModel:
        """As `Upstream` says. How large batches may be, its metadata does not tell."""
        if not is_available(await self._exchange("GET", self._path, b"", timeout_ns)):
            raise CallFailedError(StatusCode.UNAVAILABLE, "no version is AVAILABLE")
        metadata = await self._exchange("GET", f"{self._path}/metadata", b"", timeout_ns)
        inputs, outputs = signature_of(metadata, self._asked.signature)
        if self._asked.rows and not all(
            each.shape is None or each.shape[:1] == (-1,) for each in (*inputs, *outputs)
        ):
            raise FailedPreconditionError(
                "not all tensors of the remote model have the batch dimension",
                where="FORMAT",
                expected="columns",
                got="rows",
            )
        return RemoteModel(inputs, outputs, None)

    def request(
        self,
        request_id: str,
        given: Given,
        wanted: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> bytes:
        """Return the body of a predict request. Ids and parameters have no place in it."""
        if parameters.get("sequence_id"):
            raise UnimplementedError("TensorFlow Serving keeps no sequences")
        return request_json(given, self._asked.signature, rows=self._asked.rows)

    async def infer(self, request: bytes, timeout_ns: int) -> bytes:
        """As `Upstream` says."""
        return await self._exchange("POST", f"{self._path}:predict", request, timeout_ns)

    def outputs(
        self, reply: bytes, specs: Sequence[TensorSignature], wanted: Sequence[str]
    ) -> list[Array | None]:
        """As `Upstream` says."""
        return outputs_of(reply, specs, wanted, rows=self._asked.rows)

    async def close(self) -> None:
        """As `Upstream` says."""
        await self._pool.close()

    async def _exchange(self, method: str, path: str, body: bytes, timeout_ns: int) -> bytes:
        try:
            reply = await self._pool.exchange(method, path, body, timeout_ns)
        except TimeoutError:
            raise CallFailedError(StatusCode.DEADLINE_EXCEEDED, "") from None
        except BrokenError as error:
            raise CallFailedError(StatusCode.UNAVAILABLE, str(error)) from error
        if reply.status != HTTPStatus.OK:
            code = _CODES.get(reply.status, StatusCode.INTERNAL)
            raise CallFailedError(code, words_of(reply.body) or f"status {reply.status}")
        return reply.body
