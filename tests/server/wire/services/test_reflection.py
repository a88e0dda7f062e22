"""Reflection, asked by grpcio-reflection's own client over grpc.aio."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc import aio
from grpc_reflection.v1alpha import reflection_pb2 as pb
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InvalidArgumentError
from server.pb import headrace_pb2
from server.wire.grpc.server import GrpcServer
from server.wire.handlers import Context, Kind
from server.wire.services.health import HealthService
from server.wire.services.reflection import Reflection

PATHS = {
    version: f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    for version in ("v1", "v1alpha")
}
BOTH = pytest.mark.parametrize("version", ["v1", "v1alpha"])
NAMES = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "headrace.v1.Features",
    "headrace.v1.Predictions",
    "test.Base.Unknown",
]


def pool_with_extensions() -> descriptor_pool.DescriptorPool:
    """headrace.proto, and a chain of files: top imports middle (a diamond), which imports base."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(headrace_pb2.DESCRIPTOR.serialized_pb)
    base = descriptor_pb2.FileDescriptorProto(name="base.proto", package="test", syntax="proto2")
    base.message_type.add(name="Base").extension_range.add(start=100, end=200)
    pool.Add(base)
    for name, number in (("left", 120), ("right", 110)):
        file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package="test")
        file.dependency.append("base.proto")
        file.extension.add(name=name, number=number, type=5, label=1, extendee=".test.Base")
        pool.Add(file)
    top = descriptor_pb2.FileDescriptorProto(name="top.proto", package="test")
    top.dependency.extend(["left.proto", "right.proto"])
    top.message_type.add(name="Top").nested_type.add(name="Inner").field.add(
        name="n", number=1, type=5, label=1
    )
    service = top.service.add(name="Service")
    service.method.add(name="Call", input_type=".test.Top", output_type=".test.Top")
    pool.Add(top)
    return pool


@pytest.fixture(scope="module")
def reflection() -> Reflection:
    return Reflection(
        ["headrace.v1.Predictions", "headrace.v1.Features", "test.Base.Unknown", NAMES[0]],
        pool_with_extensions(),
    )


@pytest.fixture
async def address(reflection: Reflection) -> AsyncIterator[str]:
    server = GrpcServer({**reflection.table(), **HealthService([]).table()})
    yield f"127.0.0.1:{await server.start('127.0.0.1', 0)}"
    await server.drain(0)


async def ask(reflection: Reflection, version: str, *requests: bytes) -> list:
    async def sent() -> AsyncIterator[bytes]:
        for request in requests:
            yield request

    method = reflection.table()[PATHS[version]]
    assert method.kind is Kind.BIDI_STREAM
    answers = method.call(sent(), Context())
    return [pb.ServerReflectionResponse.FromString(data) async for data in answers]


async def ask_one(reflection: Reflection, version: str, **question: object):
    request = pb.ServerReflectionRequest(host="h", **question)
    (response,) = await ask(reflection, version, request.SerializeToString())
    assert (response.valid_host, response.original_request) == ("h", request)
    return response


def file_names(response: pb.ServerReflectionResponse) -> list[str]:
    return [
        descriptor_pb2.FileDescriptorProto.FromString(data).name
        for data in response.file_descriptor_response.file_descriptor_proto
    ]


@pytest.mark.wire("B3-35")
async def test_b3_35_grpcios_reflection_client_can_call_what_it_finds(address):
    def explore() -> None:
        with grpc.insecure_channel(address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            assert list(database.get_services()) == NAMES
            found = descriptor_pool.DescriptorPool(database)
            service = found.FindServiceByName("headrace.v1.Predictions")
            assert [method.name for method in service.methods] == ["Predict", "Explain", "Feedback"]
            ours = headrace_pb2.DESCRIPTOR.services_by_name["Predictions"].methods_by_name
            assert service.methods[0].input_type.fields_by_name.keys() == (
                ours["Predict"].input_type.fields_by_name.keys()
            )
            for name in NAMES[:3]:
                assert found.FindServiceByName(name).full_name == name
            assert database.FindFileByName("top.proto").dependency == ["left.proto", "right.proto"]
            assert list(database.FindAllExtensionNumbers("test.Base")) == [110, 120]
            for find, arguments in (
                (database.FindFileByName, ["no.proto"]),
                (database.FindFileContainingSymbol, ["no.Such"]),
                (database.FindAllExtensionNumbers, ["test.No"]),
            ):
                with pytest.raises(KeyError):
                    find(*arguments)

    await asyncio.to_thread(explore)


@pytest.mark.wire("B3-35")
@BOTH
async def test_b3_35_an_error_does_not_end_the_stream(address, version):
    async with aio.insecure_channel(address) as channel:
        call = channel.stream_stream(PATHS[version])()
        await call.write(pb.ServerReflectionRequest(file_by_filename="no").SerializeToString())
        error = pb.ServerReflectionResponse.FromString(await call.read()).error_response
        assert (error.error_code, error.error_message) == (5, "file_by_filename: not found")
        await call.write(pb.ServerReflectionRequest(list_services="*").SerializeToString())
        services = pb.ServerReflectionResponse.FromString(await call.read())
        assert [service.name for service in services.list_services_response.service] == NAMES
        await call.done_writing()
        assert await call.read() == aio.EOF


@BOTH
@pytest.mark.parametrize(
    ("symbol", "file"),
    [
        ("test.Top", "top.proto"),
        ("test.Top.Inner", "top.proto"),
        ("test.Top.Inner.n", "top.proto"),
        ("test.Service", "top.proto"),
        ("test.Service.Call", "top.proto"),
        ("test.left", "left.proto"),
        ("headrace.v1.Features", "headrace.proto"),
        ("grpc.health.v1.Health.Watch", "grpc/health/v1/health.proto"),
        ("grpc.health.v1.HealthCheckResponse.ServingStatus", "grpc/health/v1/health.proto"),
        ("grpc.reflection.v1.ServerReflection", "grpc/reflection/v1/reflection.proto"),
    ],
)
async def test_a_symbol_leads_to_its_file_first(reflection, version, symbol, file):
    response = await ask_one(reflection, version, file_containing_symbol=symbol)
    assert file_names(response)[0] == file


@BOTH
async def test_a_file_comes_with_all_that_it_imports_each_once(reflection, version):
    response = await ask_one(reflection, version, file_by_filename="top.proto")
    names = file_names(response)
    assert names[0] == "top.proto"
    assert sorted(names) == ["base.proto", "left.proto", "right.proto", "top.proto"]


@BOTH
async def test_extensions_are_found_by_type_and_number(reflection, version):
    asked = pb.ExtensionRequest(containing_type="test.Base", extension_number=110)
    response = await ask_one(reflection, version, file_containing_extension=asked)
    assert file_names(response) == ["right.proto", "base.proto"]
    response = await ask_one(reflection, version, all_extension_numbers_of_type="test.Base")
    numbers = response.all_extension_numbers_response
    assert numbers.base_type_name == "test.Base"
    assert list(numbers.extension_number) == [110, 120]
    response = await ask_one(reflection, version, all_extension_numbers_of_type="test.Top")
    assert response.WhichOneof("message_response") == "all_extension_numbers_response"
    assert not response.all_extension_numbers_response.extension_number


@BOTH
@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("file_by_filename", ""),
        ("file_by_filename", "../../etc/passwd"),
        ("file_containing_symbol", ""),
        ("file_containing_symbol", "."),
        ("file_containing_symbol", "test.Service.No"),
        ("file_containing_symbol", "test.Service."),
        ("file_containing_symbol", "\0"),
        ("file_containing_extension", {"containing_type": "test.Base", "extension_number": -1}),
        ("file_containing_extension", {"containing_type": "test.No", "extension_number": 110}),
        ("all_extension_numbers_of_type", ""),
        ("all_extension_numbers_of_type", "test.Service"),
    ],
)
async def test_what_is_not_here_is_not_found(reflection, version, question, asked):
    response = await ask_one(reflection, version, **{question: asked})
    assert response.error_response.error_code == 5
    assert response.error_response.error_message == f"{question}: not found"


@BOTH
async def test_a_request_that_asks_nothing_is_an_invalid_argument(reflection, version):
    response = await ask_one(reflection, version)
    assert response.error_response.error_code == 3


@BOTH
async def test_bytes_that_are_no_request_end_the_stream(reflection, version):
    with pytest.raises(InvalidArgumentError, match="ServerReflectionRequest"):
        await ask(reflection, version, b"\xff\xff")


@given(st.binary(max_size=40))
def test_no_bytes_break_it(data):
    reflection = Reflection([], descriptor_pool.Default())
    try:
        (response,) = asyncio.run(ask(reflection, "v1", data))
    except InvalidArgumentError:
        return
    assert response.WhichOneof("message_response")
