"""The operations over gRPC: `headrace.v1.Admin`, with health and reflection beside it.

The messages say what REST says in JSON, field by field, so that one mapping serves all methods. No
page of a browser can call it: gRPC's content type is none that another site may send.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.json_format import MessageToDict, ParseDict

from server.admin.document import OPERATIONS, Operation
from server.admin.operations import Operations
from server.pb import admin_pb2
from server.wire.handlers import Context, Handlers, Method, method_of, stream_behind
from server.wire.services import health
from server.wire.services.descriptors import parse
from server.wire.services.health import HealthService, ServingStatus
from server.wire.services.reflection import Reflection

SERVICE = "headrace.v1.Admin"
_METHODS = admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods_by_name


class AdminCalls:
    """Methods of `operations`. Health is open, as on every port; reflection is not."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._health = HealthService([SERVICE])
        self._health.set_all(ServingStatus.SERVING)

    def table(self) -> Handlers:
        """Return the gRPC handler table."""
        calls = {f"/{SERVICE}/{each.rpc}": self._handler(each) for each in OPERATIONS}
        reflection = Reflection({SERVICE, health.SERVICE}, descriptor_pool.Default()).table()
        guarded = {path: self._guarded(method_of(entry)) for path, entry in reflection.items()}
        return {**calls, **self._health.table(), **guarded}

    def _handler(self, operation: Operation) -> Any:
        method = _METHODS[operation.rpc]
        request = message_factory.GetMessageClass(method.input_type)
        reply = message_factory.GetMessageClass(method.output_type)
        return partial(self._call, operation.name, request, reply)

    async def _call(
        self, name: str, request: Any, reply: Any, data: bytes, context: Context
    ) -> bytes:
        by = self._check(context)
        arguments = MessageToDict(parse(request, data), preserving_proto_field_name=True)
        answer = await self._operations.call(name, arguments, by)
        message: bytes = ParseDict(answer, reply()).SerializeToString()
        return message

    def _check(self, context: Context) -> str | None:
        return self._operations.let_in(
            context.identity, lambda gate, owner: gate.grant_of_fields(context.fields, owner)
        )

    def _guarded(self, method: Method) -> Method:
        return Method(method.kind, stream_behind(lambda _, context: self._check(context), method))
