"""The official messages of health and reflection, described in code, in a pool of their own.

The names in protobuf's default pool are one per process: a program that also imports
grpcio-health-checking or grpcio-reflection would clash with ours there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from headrace.errors import InvalidArgumentError

POOL = descriptor_pool.DescriptorPool()

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32,
}


class _Spec(NamedTuple):
    """A field: `kind` is a scalar, or the path of a message or enum of the same file."""

    name: str
    number: int
    kind: str
    in_oneof: bool = False
    repeated: bool = False


_STATUS_ENUM = "HealthCheckResponse.ServingStatus"
_HEALTH = {
    "HealthCheckRequest": [_Spec("service", 1, "string")],
    "HealthCheckResponse": [_Spec("status", 1, _STATUS_ENUM)],
}
_REFLECTION = {
    "ServerReflectionRequest": [
        _Spec("host", 1, "string"),
        _Spec("file_by_filename", 3, "string", in_oneof=True),
        _Spec("file_containing_symbol", 4, "string", in_oneof=True),
        _Spec("file_containing_extension", 5, "ExtensionRequest", in_oneof=True),
        _Spec("all_extension_numbers_of_type", 6, "string", in_oneof=True),
        _Spec("list_services", 7, "string", in_oneof=True),
    ],
    "ExtensionRequest": [
        _Spec("containing_type", 1, "string"),
        _Spec("extension_number", 2, "int32"),
    ],
    "ServerReflectionResponse": [
        _Spec("valid_host", 1, "string"),
        _Spec("original_request", 2, "ServerReflectionRequest"),
        _Spec("file_descriptor_response", 4, "FileDescriptorResponse", in_oneof=True),
        _Spec("all_extension_numbers_response", 5, "ExtensionNumberResponse", in_oneof=True),
        _Spec("list_services_response", 6, "ListServiceResponse", in_oneof=True),
        _Spec("error_response", 7, "ErrorResponse", in_oneof=True),
    ],
    "FileDescriptorResponse": [_Spec("file_descriptor_proto", 1, "bytes", repeated=True)],
    "ExtensionNumberResponse": [
        _Spec("base_type_name", 1, "string"),
        _Spec("extension_number", 2, "int32", repeated=True),
    ],
    "ListServiceResponse": [_Spec("service", 1, "ServiceResponse", repeated=True)],
    "ServiceResponse": [_Spec("name", 1, "string")],
    "ErrorResponse": [_Spec("error_code", 1, "int32"), _Spec("error_message", 2, "string")],
}
_ONEOFS = {
    "ServerReflectionRequest": "message_request",
    "ServerReflectionResponse": "message_response",
}


def _file(name: str, package: str, messages: dict[str, list[_Spec]]) -> Any:
    file = descriptor_pb2.FileDescriptorProto(name=name, package=package, syntax="proto3")
    for message_name, fields in messages.items():
        message = file.message_type.add(name=message_name)
        if message_name in _ONEOFS:
            message.oneof_decl.add(name=_ONEOFS[message_name])
        for spec in fields:
            field = message.field.add(name=spec.name, number=spec.number)
            field.label = _Field.LABEL_REPEATED if spec.repeated else _Field.LABEL_OPTIONAL
            if spec.in_oneof:
                field.oneof_index = 0
            if spec.kind in _SCALARS:
                field.type = _SCALARS[spec.kind]
            else:
                enum = spec.kind == _STATUS_ENUM
                field.type = _Field.TYPE_ENUM if enum else _Field.TYPE_MESSAGE
                field.type_name = f".{package}.{spec.kind}"
    return file


def _add_health() -> None:
    package = "grpc.health.v1"
    file = _file("grpc/health/v1/health.proto", package, _HEALTH)
    enum = file.message_type[1].enum_type.add(name="ServingStatus")
    for number, name in enumerate(("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")):
        enum.value.add(name=name, number=number)
    service = file.service.add(name="Health")
    for name in ("Check", "Watch"):
        service.method.add(
            name=name,
            input_type=f".{package}.HealthCheckRequest",
            output_type=f".{package}.HealthCheckResponse",
            server_streaming=name == "Watch",
        )
    POOL.Add(file)


def _add_reflection(version: str) -> None:
    package = f"grpc.reflection.{version}"
    file = _file(f"grpc/reflection/{version}/reflection.proto", package, _REFLECTION)
    file.service.add(name="ServerReflection").method.add(
        name="ServerReflectionInfo",
        input_type=f".{package}.ServerReflectionRequest",
        output_type=f".{package}.ServerReflectionResponse",
        client_streaming=True,
        server_streaming=True,
    )
    POOL.Add(file)


_add_health()
_add_reflection("v1")
_add_reflection("v1alpha")


def message_class(name: str) -> Any:
    """Return the class of a message of POOL by its full name."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))


def parse(message_type: Any, data: bytes) -> Any:
    """Return the decoded message. Raises InvalidArgumentError when the bytes are none."""
    try:
        return message_type.FromString(data)
    except DecodeError:
        raise InvalidArgumentError(
            f"the message is not a {message_type.DESCRIPTOR.full_name}", got=f"{len(data)} bytes"
        ) from None
