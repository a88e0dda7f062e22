"""The described messages, against the generated ones of grpcio-reflection and the wire format."""

import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2

from headrace.errors import InvalidArgumentError
from server.wire.services import service_names
from server.wire.services.descriptors import POOL, message_class, parse


def described(file) -> descriptor_pb2.FileDescriptorProto:
    copied = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(copied)
    return copied


@pytest.mark.wire("B3-35")
@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_b3_35_reflection_is_described_as_the_official_file_does(version):
    ours = described(POOL.FindFileByName(f"grpc/reflection/{version}/reflection.proto"))
    official = described(reflection_pb2.DESCRIPTOR)
    assert ours.package == f"grpc.reflection.{version}"
    as_text = str(official).replace("grpc.reflection.v1alpha", ours.package)
    assert str(ours).splitlines()[1:] == as_text.splitlines()[1:]  # all but the file's name


@pytest.mark.wire("B3-35")
def test_b3_35_health_is_described_as_the_official_file_does():
    service = POOL.FindServiceByName("grpc.health.v1.Health")
    assert [
        (method.name, method.client_streaming, method.server_streaming)
        for method in service.methods
    ] == [("Check", False, False), ("Watch", False, True)]
    assert POOL.FindFieldByName("grpc.health.v1.HealthCheckRequest.service").number == 1
    response = message_class("grpc.health.v1.HealthCheckResponse")
    assert [response(status=number).SerializeToString() for number in range(4)] == [
        b"",
        b"\x08\1",
        b"\x08\2",
        b"\x08\3",
    ]
    assert response.ServingStatus.items() == [
        ("UNKNOWN", 0),
        ("SERVING", 1),
        ("NOT_SERVING", 2),
        ("SERVICE_UNKNOWN", 3),
    ]


def test_bytes_that_are_no_message_are_the_callers_fault():
    with pytest.raises(InvalidArgumentError, match=r"not a grpc\.health\.v1\.HealthCheckRequest"):
        parse(message_class("grpc.health.v1.HealthCheckRequest"), b"\x0a\xff")


def test_service_names_are_those_of_the_tables_paths():
    assert service_names(["/a.B/C", "/a.B/D", "/e.F/G"]) == {"a.B", "e.F"}
