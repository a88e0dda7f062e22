"""How responses look on the wire, frame by frame."""

from __future__ import annotations

import gzip

import pytest

from headrace.errors import HeadraceError, Status
from server.wire.grpc.server import GrpcServer
from server.wire.grpc.status import StatusCode
from server.wire.handlers import Context, Kind, Method
from tests.server.wire.grpc.conftest import Connect, Serve
from tests.support.attacker import message
from tests.support.frame_factory import DATA, GRPC_FIELDS, HEADERS, RST_STREAM
from tests.support.raw_client import RawClient

_OPENING = [(b":status", b"200"), (b"content-type", b"application/grpc")]
_ACCEPTS = (b"grpc-accept-encoding", b"identity, deflate, gzip")

pytestmark = pytest.mark.usefixtures("split")


class AnyStatusError(HeadraceError):
    """An error of any status."""

    def __init__(self, code: int, text: str) -> None:
        self._number = code
        super().__init__(text)

    @property
    def status(self) -> Status:
        return Status(500, self._number)


@pytest.mark.wire("B3-01")
async def test_b3_01_a_response_is_headers_data_and_trailers(client: RawClient) -> None:
    client.call(1, b"hello")
    answer = await client.answer(1)
    assert answer.kinds == [HEADERS, DATA, HEADERS]
    assert answer.opening == _OPENING
    assert answer.body == message(b"hello")
    assert answer.trailers == [(b"grpc-status", b"0")]


@pytest.mark.wire("B3-01")
@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 40_000, 60_000])
async def test_b3_01_data_never_ends_a_stream(client: RawClient, size: int) -> None:
    client.call(1, b"%d" % size, "Big")
    answer = await client.answer(1)
    assert answer.messages == [bytes(size)]
    assert [frame.ends for frame in client.of(1)] == [False] * (len(answer.kinds) - 1) + [True]
    assert answer.kinds[-1] == HEADERS
    assert set(answer.kinds[1:-1]) == {DATA}


@pytest.mark.wire("B3-01")
async def test_b3_01_a_stream_without_messages_still_opens_and_ends_with_a_status(
    client: RawClient,
) -> None:
    client.send(client.factory.headers(1, _chat(), end_stream=True))
    answer = await client.answer(1)
    assert answer.kinds == [HEADERS, HEADERS]
    assert (answer.opening, answer.trailers) == (_OPENING, [(b"grpc-status", b"0")])


def _chat() -> list[tuple[bytes, bytes]]:
    return [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/test.Service/Chat"),
        (b":authority", b"localhost"), (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]  # fmt: skip


async def test_metadata_and_compression_are_announced_and_used(
    serve: Serve, connect: Connect
) -> None:
    async def call(request: bytes, context: Context) -> bytes:
        context.initial_metadata = [("x-first", "1")]
        context.trailing_metadata = [("x-last", "2")]
        context.compress = True
        return bytes(2_000)

    client = await connect(await serve({"/test.Service/Verbose": call}))
    client.call(1, b"", "Verbose", (b"grpc-accept-encoding", b"gzip"))
    answer = await client.answer(1)
    named = [_ACCEPTS, (b"grpc-encoding", b"gzip"), (b"x-first", b"1")]
    assert answer.opening == [*_OPENING, *named]
    assert answer.trailers == [(b"grpc-status", b"0"), (b"x-last", b"2")]
    assert len(answer.body) < 100
    assert gzip.decompress(answer.body[5:]) == bytes(2_000)
    client.call(3, b"", "Verbose")
    plain = await client.answer(3)
    assert plain.opening == [*_OPENING, _ACCEPTS, (b"x-first", b"1")]
    assert plain.messages == [bytes(2_000)]


async def test_who_does_not_speak_grpc_gets_no_status_of_it(client: RawClient) -> None:
    for stream_id, name, value, expected in (
        (1, b":method", b"GET", [(b":status", b"405"), (b"allow", b"POST")]),
        (3, b"content-type", b"text/html", [(b":status", b"415")]),
    ):
        fields = [(key, value if key == name else old) for key, old in GRPC_FIELDS]
        client.send(client.factory.headers(stream_id, fields, end_stream=True))
        answer = await client.answer(stream_id)
        assert answer.only_trailers
        assert answer.opening == expected


@pytest.mark.wire("B3-02")
async def test_b3_02_an_error_before_any_message_is_one_headers_frame(client: RawClient) -> None:
    client.call(1, b"not a number", "Big")
    answer = await client.answer(1)
    assert answer.kinds == [HEADERS]
    assert answer.trailers[:2] == _OPENING
    assert answer.trailers[2:4] == [_ACCEPTS, (b"grpc-status", b"13")]
    assert answer.trailers[4][0] == b"grpc-message"


@pytest.mark.wire("B3-02")
async def test_b3_02_an_error_after_a_message_has_trailers_of_its_own(
    serve: Serve, connect: Connect
) -> None:
    async def fail_late(_: bytes, __: Context):
        yield b"one"
        raise AnyStatusError(10, "then not")

    server = await serve({"/test.Service/Late": Method(Kind.SERVER_STREAM, fail_late)})
    client = await connect(server)
    client.call(1, b"", "Late")
    answer = await client.answer(1)
    assert answer.kinds == [HEADERS, DATA, HEADERS]
    assert answer.opening == _OPENING
    assert answer.trailers == [(b"grpc-status", b"10"), (b"grpc-message", b"then not")]


@pytest.mark.wire("B3-03")
@pytest.mark.parametrize("method", ["Nowhere", "Big"])
async def test_b3_03_an_early_error_is_trailers_and_then_a_reset_without_error(
    client: RawClient, method: str
) -> None:
    client.begin(1, method)
    if method == "Big":  # its message's flag is nonsense, and the client goes on to send
        client.send(client.factory.data(1, b"\x02\0\0\0\0"))
    answer = await client.answer(1)
    assert await client.reset(1) == 0
    assert answer.only_trailers
    assert [frame.kind for frame in client.of(1)] == [HEADERS, RST_STREAM]
    # What was under way when the reset left is passed over.
    client.send(client.factory.data(1, b"x" * 100), client.factory.data(1, end_stream=True))
    client.call(3)
    assert (await client.answer(3)).status == 0
    assert [frame.kind for frame in client.of(1)] == [HEADERS, RST_STREAM]


@pytest.mark.wire("B3-03")
async def test_b3_03_after_the_clients_end_there_is_no_reset(client: RawClient) -> None:
    client.call(1, b"", "Nowhere")
    client.call(3)
    assert (await client.answer(3)).status == 0
    assert client.of(1)[0].ends or client.of(1)[-1].kind == RST_STREAM


@pytest.mark.wire("B3-04")
@pytest.mark.parametrize("code", range(1, 17))
async def test_b3_04_the_status_is_decimal(serve: Serve, connect: Connect, code: int) -> None:
    server = await _failing(serve, code, "so it is")
    client = await connect(server)
    client.call(1, b"", "Fail")
    answer = await client.answer(1)
    assert answer.fields[b"grpc-status"] == str(code).encode()
    assert server.calls.ended == {StatusCode(code): 1}


@pytest.mark.wire("B3-05")
@pytest.mark.parametrize(
    ("text", "wire"),
    [
        ("é 100%\n~ok", b"%C3%A9 100%25%0A~ok"),
        ("\r\n\0\x7f", b"%0D%0A%00%7F"),
        ("plain", b"plain"),
        ("%", b"%25"),
        ("漢字", b"%E6%BC%A2%E5%AD%97"),
        ("x" * 9_000, b"x" * 2_048),
    ],
)
async def test_b3_05_the_message_is_percent_encoded_and_bounded(
    serve: Serve, connect: Connect, text: str, wire: bytes
) -> None:
    client = await connect(await _failing(serve, 3, text))
    client.call(1, b"", "Fail")
    assert (await client.answer(1)).fields[b"grpc-message"] == wire


@pytest.mark.wire("B3-05")
async def test_b3_05_the_text_of_an_exception_stays_with_us(client: RawClient) -> None:
    client.call(1, b"secret", "Big")  # int() of it fails
    answer = await client.answer(1)
    assert answer.status == 13
    assert "secret" not in answer.text
    assert "invalid literal" not in answer.text


async def test_an_error_says_when_to_try_again(serve: Serve, connect: Connect) -> None:
    async def fail(_: bytes, __: Context) -> bytes:
        error = AnyStatusError(8, "later")
        error.retry_after_s = 1.2
        raise error

    client = await connect(await serve({"/test.Service/Busy": fail}))
    client.call(1, b"", "Busy")
    answer = await client.answer(1)
    assert (b"retry-after", b"2") in answer.opening


async def _failing(serve: Serve, code: int, text: str) -> GrpcServer:
    async def fail(_: bytes, __: Context) -> bytes:
        raise AnyStatusError(code, text)

    return await serve({"/test.Service/Fail": fail})


@pytest.mark.parametrize("kind", [Kind.UNARY, Kind.SERVER_STREAM])
@pytest.mark.parametrize("where", ["initial_metadata", "trailing_metadata"])
@pytest.mark.parametrize("fails", [False, True])
async def test_metadata_of_a_handler_that_cannot_be_sent_is_an_internal_error(
    serve: Serve, connect: Connect, kind: Kind, where: str, fails: bool
) -> None:
    async def unary(_: bytes, context: Context) -> bytes:
        setattr(context, where, [("bad key", "x")])
        if fails:
            raise AnyStatusError(5, "not here")
        return b"fine"

    async def stream(_: bytes, context: Context):
        yield await unary(b"", context)

    call = unary if kind is Kind.UNARY else stream
    server = await serve({"/test.Service/Odd": Method(kind, call)})
    client = await connect(server)
    client.call(1, b"", "Odd")
    answer = await client.answer(1)
    assert answer.http_status == 200
    assert answer.opening[:2] == _OPENING
    assert answer.status == 13
    assert server.calls.ended == {StatusCode.INTERNAL: 1}
