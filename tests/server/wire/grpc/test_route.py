"""What a request's head alone decides: the method, the encodings, or what is wrong with it."""

from __future__ import annotations

import gzip

import pytest

from tests.server.wire.grpc.conftest import Connect, Serve
from tests.support.attacker import fields_for, message
from tests.support.frame_factory import HEADERS, RST_STREAM, Pair
from tests.support.raw_client import Answer, RawClient

pytestmark = pytest.mark.usefixtures("split")
_PROTOCOL_ERROR = 1


def changed(name: bytes, value: bytes | None) -> list[Pair]:
    """The head of an honest call with another value of one field, or without it."""
    fields = [pair for pair in fields_for("Method") if pair[0] != name]
    if value is None:
        return fields
    at = next((i for i, pair in enumerate(fields) if not pair[0].startswith(b":")), len(fields))
    return [*fields[:at], (name, value), *fields[at:]]


async def answer_to(client: RawClient, fields: list[Pair]) -> Answer:
    """Make a call with this head and whole body; afterwards the connection still works."""
    client.send(client.factory.headers(1, fields))
    client.send(client.factory.data(1, message(b"hello"), end_stream=True))
    answer = await client.answer(1)
    client.call(3)
    assert (await client.answer(3)).status == 0
    return answer


@pytest.mark.wire("B3-06")
async def test_b3_06_without_te_the_call_is_an_internal_error(client: RawClient) -> None:
    answer = await answer_to(client, changed(b"te", None))
    assert answer.kinds[0] == HEADERS
    assert answer.only_trailers
    assert answer.status == 13
    assert "te" in answer.text


@pytest.mark.wire("B3-06")
@pytest.mark.parametrize("value", [b"gzip", b"trailers, deflate", b""])
async def test_b3_06_another_te_is_malformed_http2(client: RawClient, value: bytes) -> None:
    # RFC 9113 §8.2.2: a stream error, before gRPC has a say.
    client.send(client.factory.headers(1, changed(b"te", value)))
    assert await client.reset(1) == _PROTOCOL_ERROR
    client.call(3)
    assert (await client.answer(3)).status == 0


@pytest.mark.wire("B3-07")
@pytest.mark.parametrize(
    "value",
    [
        b"application/grpc", b"application/grpc+proto", b"application/grpc+json",
        b"application/grpc;charset=utf-8", b"application/grpc+proto; charset=utf-8",
        b"application/grpc+", b"application/grpc; x",
    ],
)  # fmt: skip
async def test_b3_07_grpc_content_types_are_served(client: RawClient, value: bytes) -> None:
    answer = await answer_to(client, changed(b"content-type", value))
    assert (answer.http_status, answer.status) == (200, 0)
    assert dict(answer.opening)[b"content-type"] == b"application/grpc"


@pytest.mark.wire("B3-07")
@pytest.mark.parametrize(
    "value",
    [
        None, b"", b"text/html", b"application/json", b"application/grpc-web",
        b"application/grpc-web+proto", b"application/grpc-web-text", b"application/grpcx",
        b"application/grp", b"x/application/grpc", b"application/grpc_",
    ],
)  # fmt: skip
async def test_b3_07_other_content_types_are_415(client: RawClient, value: bytes | None) -> None:
    answer = await answer_to(client, changed(b"content-type", value))
    assert answer.http_status == 415
    assert b"grpc-status" not in answer.fields
    assert answer.kinds[0] == HEADERS
    assert answer.only_trailers


@pytest.mark.wire("B3-08")
@pytest.mark.parametrize("method", [b"GET", b"PUT", b"HEAD", b"OPTIONS", b"post", b"PRI"])
async def test_b3_08_other_methods_are_405(client: RawClient, method: bytes) -> None:
    fields = [(b":method", method), *fields_for("Method")[1:]]
    answer = await answer_to(client, fields)
    assert answer.http_status == 405
    assert answer.fields[b"allow"] == b"POST"
    assert b"grpc-status" not in answer.fields


@pytest.mark.wire("B3-08")
async def test_b3_08_a_get_without_a_body_is_405(client: RawClient) -> None:
    fields = [(b":method", b"GET"), *fields_for("Method")[1:4]]
    client.send(client.factory.headers(1, fields, end_stream=True))
    answer = await client.answer(1)
    assert answer.http_status == 405
    assert RST_STREAM not in [frame.kind for frame in client.of(1)]


@pytest.mark.wire("B3-09")
@pytest.mark.parametrize(
    "path",
    [
        b"/test.Service/Nowhere", b"/no.Service/Method", b"/test.Service/method", b"/",
        b"/test.Service/Method/", b"//test.Service/Method", b"*", b"/test.Service/Method?x=1",
        b"/\xc3\xa9", b"http://localhost/test.Service/Method",
    ],
)  # fmt: skip
async def test_b3_09_an_unknown_method_is_unimplemented(client: RawClient, path: bytes) -> None:
    fields = [(name, path if name == b":path" else value) for name, value in fields_for("Method")]
    answer = await answer_to(client, fields)
    assert answer.only_trailers
    assert (answer.status, answer.text) == (12, "Method not found!")
    assert answer.fields[b"content-type"] == b"application/grpc"


@pytest.mark.wire("B3-11")
@pytest.mark.parametrize("method", ["Method", "Chat", "Total"])
@pytest.mark.parametrize("encoding", [b"br", b"zstd", b"GZIP", b"gzip, deflate", b""])
async def test_b3_11_an_unknown_encoding_is_unimplemented_and_the_known_ones_are_named(
    client: RawClient, method: str, encoding: bytes
) -> None:
    client.call(1, b"hello", method, (b"grpc-encoding", encoding))
    answer = await client.answer(1)
    assert answer.only_trailers
    assert answer.status == 12
    assert answer.fields[b"grpc-accept-encoding"] == b"identity, deflate, gzip"
    assert "identity, deflate, gzip" in answer.text
    assert encoding.decode() in answer.text


@pytest.mark.wire("B3-11")
async def test_b3_11_a_known_encoding_is_read_also_when_a_message_does_not_use_it(
    client: RawClient,
) -> None:
    client.send(client.factory.headers(1, fields_for("Chat", (b"grpc-encoding", b"gzip"))))
    client.message(1, b"plain")
    client.send(client.factory.data(1, message(gzip.compress(b"small"), flag=1), end_stream=True))
    assert (await client.answer(1)).messages == [b"plain", b"small"]


@pytest.mark.wire("B3-22")
@pytest.mark.parametrize("method", ["Method", "Total", "Nowhere"])
async def test_b3_22_too_large_metadata_is_resource_exhausted_and_the_table_follows(
    serve: Serve, connect: Connect, method: str
) -> None:
    client = await connect(await serve(header_list_bytes_max=4_096))
    # The block puts entries into the table, before the limit and after it.
    fields = [(b"x-first", b"1"), (b"x-big", b"y" * 4_000), (b"x-second", b"2")]
    client.send(client.factory.headers(1, fields_for(method, *fields)))
    client.send(client.factory.data(1, message(b"hello"), end_stream=True))
    answer = await client.answer(1)
    assert answer.only_trailers
    assert (answer.http_status, answer.status) == (200, 8)
    # Short references to those entries now: they must mean what the client means by them.
    table = [(name, value) for name, value in client.factory.encoder.header_table.dynamic_entries]
    assert (b"x-second", b"2") in table
    client.send(client.factory.headers(3, fields_for("Echo", (b"x-first", b"1"))))
    client.send(client.factory.data(3, message(b""), end_stream=True))
    assert (await client.answer(3)).status == 12
    client.call(5, b"hello", "Method", (b"x-second", b"2"))
    assert (await client.answer(5)).messages == [b"hello"]


@pytest.mark.wire("B3-22")
async def test_b3_22_the_size_counts_names_values_and_32_bytes_a_field(
    serve: Serve, connect: Connect
) -> None:
    fields = fields_for("Method")
    size = sum(len(name) + len(value) + 32 for name, value in fields)
    room = 300 - len(b"x") - 32
    client = await connect(await serve(header_list_bytes_max=size + 300))
    client.send(client.factory.headers(1, [*fields, (b"x", b"y" * room)]))
    client.send(client.factory.data(1, message(b"fits"), end_stream=True))
    client.send(client.factory.headers(3, [*fields, (b"x", b"y" * (room + 1))]))
    client.send(client.factory.data(3, message(b"does not"), end_stream=True))
    assert (await client.answer(1)).status == 0
    assert (await client.answer(3)).status == 8


@pytest.mark.wire("B3-22")
async def test_b3_22_the_limit_is_advertised(serve: Serve, connect: Connect) -> None:
    client = await connect(await serve(header_list_bytes_max=7_777))
    settings = (await client.wait_for(4)).payload
    assert b"\0\x06" + (7_777).to_bytes(4, "big") in [
        settings[at : at + 6] for at in range(0, len(settings), 6)
    ]
