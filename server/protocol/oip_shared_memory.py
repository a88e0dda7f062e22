"""The shared-memory extension's own calls, over gRPC and REST: status, register, unregister.

Only system shared memory can be registered; of CUDA shared memory there is none.
"""

from __future__ import annotations

import msgspec
from tritonclient.grpc import service_pb2 as pb

from headrace.errors import InvalidArgumentError, UnimplementedError
from server.protocol.oip_grpc import SERVICE, encoded, parse
from server.protocol.rest_messages import json_as
from server.protocol.shared_memory import SharedMemory, disabled
from server.wire.handlers import Context, Handlers
from server.wire.routes import HttpHandler, Request, Response, json_response


class _Body(msgspec.Struct):
    """The JSON of a request to register."""

    key: str
    byte_size: int
    offset: int = 0


class SharedMemoryCalls:
    """The calls of one server; without `memory` nothing can be registered."""

    def __init__(self, memory: SharedMemory | None) -> None:
        self._memory = memory

    def table(self) -> Handlers:
        """Return the handlers of gRPC."""
        return {
            f"{SERVICE}SystemSharedMemoryStatus": self._grpc_status,
            f"{SERVICE}SystemSharedMemoryRegister": self._grpc_register,
            f"{SERVICE}SystemSharedMemoryUnregister": self._grpc_unregister,
            f"{SERVICE}CudaSharedMemoryStatus": self._grpc_cuda_status,
            f"{SERVICE}CudaSharedMemoryRegister": self._grpc_cuda_register,
            f"{SERVICE}CudaSharedMemoryUnregister": self._grpc_cuda_unregister,
        }

    def routes(self) -> list[tuple[str, str, HttpHandler]]:
        """Return verb, path and handler of each operation of REST."""
        system = r"/v2/systemsharedmemory(?:/region/(?P<region>[^/]+))?"
        cuda = r"/v2/cudasharedmemory(?:/region/(?P<region>[^/]+))?"
        return [
            ("GET", system + "/status", self._rest_status),
            ("POST", system + "/register", self._rest_register),
            ("POST", system + "/unregister", self._rest_unregister),
            ("GET", cuda + "/status", self._rest_cuda_status),
            ("POST", cuda + "/register", self._rest_cuda_register),
            ("POST", cuda + "/unregister", self._rest_cuda_unregister),
        ]

    def _status(self, name: str) -> list[dict[str, str | int]]:
        if self._memory is None:
            return []
        return self._memory.status(name)

    def _allowed(self) -> SharedMemory:
        if self._memory is None:
            raise disabled()
        return self._memory

    def _refuse_cuda(self, name: str) -> UnimplementedError:
        self._allowed()
        return UnimplementedError(
            f"failed to register CUDA shared memory region: '{name[:64]}', GPUs not supported"
        )

    # gRPC.

    async def _grpc_status(self, data: bytes, _: Context) -> bytes:
        request = parse(pb.SystemSharedMemoryStatusRequest, data)
        regions = {
            str(region["name"]): pb.SystemSharedMemoryStatusResponse.RegionStatus(**region)
            for region in self._status(request.name)
        }
        return encoded(pb.SystemSharedMemoryStatusResponse(regions=regions))

    async def _grpc_register(self, data: bytes, _: Context) -> bytes:
        request = parse(pb.SystemSharedMemoryRegisterRequest, data)
        self._allowed().register(request.name, request.key, request.offset, request.byte_size)
        return encoded(pb.SystemSharedMemoryRegisterResponse())

    async def _grpc_unregister(self, data: bytes, _: Context) -> bytes:
        request = parse(pb.SystemSharedMemoryUnregisterRequest, data)
        self._allowed().unregister(request.name)
        return encoded(pb.SystemSharedMemoryUnregisterResponse())

    async def _grpc_cuda_status(self, _: bytes, __: Context) -> bytes:
        return encoded(pb.CudaSharedMemoryStatusResponse())

    async def _grpc_cuda_register(self, data: bytes, _: Context) -> bytes:
        raise self._refuse_cuda(parse(pb.CudaSharedMemoryRegisterRequest, data).name)

    async def _grpc_cuda_unregister(self, _: bytes, __: Context) -> bytes:
        self._allowed()
        return encoded(pb.CudaSharedMemoryUnregisterResponse())

    # REST.

    async def _rest_status(self, request: Request) -> Response:
        return json_response(self._status(request.params.get("region", "")))

    async def _rest_register(self, request: Request) -> Response:
        memory = self._allowed()
        asked = json_as(request.body or b"{}", object)
        try:
            body = msgspec.convert(asked, _Body)
        except msgspec.ValidationError as error:
            raise _wrong_body(error) from None
        memory.register(request.params.get("region", ""), body.key, body.offset, body.byte_size)
        return json_response({})

    async def _rest_unregister(self, request: Request) -> Response:
        self._allowed().unregister(request.params.get("region", ""))
        return json_response({})

    async def _rest_cuda_status(self, _: Request) -> Response:
        return json_response([])

    async def _rest_cuda_register(self, request: Request) -> Response:
        raise self._refuse_cuda(request.params.get("region", ""))

    async def _rest_cuda_unregister(self, _: Request) -> Response:
        self._allowed()
        return json_response({})


def _wrong_body(error: msgspec.ValidationError) -> InvalidArgumentError:
    for field in ("key", "byte_size"):
        if f"missing required field `{field}`" in str(error):
            return InvalidArgumentError(f"Shared memory register request has no '{field}' field")
    return InvalidArgumentError(f"the request is not a region to register: {error}")
