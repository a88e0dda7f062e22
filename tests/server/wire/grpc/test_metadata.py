"""Metadata, timeouts and status messages; the oracle is what grpcio 1.85 shows and sends."""

import base64
import re
import urllib.parse

import grpc
import pytest
from grpc import aio
from hypothesis import given
from hypothesis import strategies as st

from server.wire.grpc.metadata import (
    MetadataError,
    decode_message,
    decode_metadata,
    encode_message,
    encode_metadata,
)

# Of the interop case special_status_message.
SPECIAL = (
    b"%09%0Atest with whitespace%0D%0Aand Unicode BMP %E2%98%BA and non-BMP %F0%9F%98%88%09%0A"
)
KEYS = st.from_regex(r"[0-9a-z_.-]{1,12}", fullmatch=True).map(lambda key: "x" + key)
TEXTS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30)
PAIRS = st.lists(
    st.one_of(
        st.tuples(KEYS.filter(lambda key: not key.endswith("-bin")), TEXTS.map(str.strip)),
        st.tuples(KEYS.map(lambda key: key + "-bin"), st.binary(max_size=30)),
    ),
    max_size=8,
)

# ---- grpc-message


@pytest.mark.wire("B3-05")
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", b""),
        ("plain text ~ 'quoted'", b"plain text ~ 'quoted'"),
        ("é 100%\n~ok", b"%C3%A9 100%25%0A~ok"),  # as grpcio sends it
        ("\x7f\0", b"%7F%00"),
        ("$%&", b"$%25&"),
        (" ", b"%20"),
        (" edges ", b"%20edges%20"),  # HTTP/2 forbids them bare
        ("\té ", b"%09%C3%A9%20"),
        ("\ud800", b"?"),
        (
            "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n",
            SPECIAL,
        ),
    ],
)
def test_b3_05_message_is_percent_encoded(text, value):
    assert encode_message(text) == value


@pytest.mark.wire("B3-05")
@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"%ZZ", "%ZZ"),
        (b"100%", "100%"),
        (b"%4", "%4"),
        (b"%c3%a9", "é"),
        (b"\xc3\xa9", "é"),
        (b"%ff", "\ufffd"),
    ],
)
def test_b3_05_decoding_keeps_what_is_no_escape(value, text):
    assert decode_message(value) == text


@pytest.mark.wire("B3-05")
@given(st.text())
def test_b3_05_message_round_trip(text):
    value = encode_message(text)
    assert re.fullmatch(rb"[\x20-\x7e]*", value)
    assert value == value.strip()
    assert decode_message(value) == text.encode("utf-8", "replace").decode()
    assert urllib.parse.unquote(value.decode()) == decode_message(value)


@pytest.mark.wire("B3-05")
@given(st.binary())
def test_b3_05_decoding_never_fails(value):
    decode_message(value)


# ---- metadata in


@pytest.mark.wire("B3-21")
def test_b3_21_order_and_repeats_are_kept_and_the_protocols_own_fields_are_not_shown():
    fields = [
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"x-a", b"1"),
        (b"grpc-timeout", b"1S"),
        (b"grpc-trace-bin", b"!"),
        (b"b.c_d", b" 2 "),
        (b"x-a", b"3"),
        (b"x-a", b""),
        (b"user-agent", b"me/1"),
    ]
    assert decode_metadata(fields) == [
        ("x-a", "1"),
        ("b.c_d", " 2 "),
        ("x-a", "3"),
        ("x-a", ""),
        ("user-agent", "me/1"),
    ]


@pytest.mark.wire("B3-21")
@pytest.mark.parametrize(
    ("value", "text"),
    [(b"a\tb", "a\tb"), (b"\x7f", "\x7f"), (b"\xc3\xa9", "é"), (b"\xff", "ÿ"), (b"a,b", "a,b")],
)
def test_b3_21_a_value_that_http_allows_is_no_error(value, text):
    assert decode_metadata([(b"x-a", value)]) == [("x-a", text)]


@pytest.mark.wire("B3-21")
@pytest.mark.parametrize("name", [b"x!a", b"x~a", b"x a", b"X-A", b"\xe9", b""])
def test_b3_21_a_name_that_grpc_does_not_have_is_left_out(name):
    assert decode_metadata([(name, b"v"), (b"x-a", b"v")]) == [("x-a", "v")]


@pytest.mark.wire("B3-20")
@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (b"AAE", [b"\0\1"]),
        (b"AAE=", [b"\0\1"]),
        (b"AAEC", [b"\0\1\2"]),
        (b"/w==", [b"\xff"]),
        (b"/w=", [b"\xff"]),
        (b"", [b""]),
        (b"=", [b""]),
        (b"AAE,AAI=", [b"\0\1", b"\0\2"]),
        (b"AAE, AAI", [b"\0\1", b"\0\2"]),
        (b",", [b"", b""]),
        (b",".join([b"AA"] * 128), [b"\0"] * 128),
    ],
)
def test_b3_20_binary_values_are_split_at_commas_then_decoded(value, parts):
    assert decode_metadata([(b"a-bin", value)]) == [("a-bin", part) for part in parts]


@pytest.mark.wire("B3-20")
@pytest.mark.parametrize(
    "value",
    [b"A", b"AAAAA", b"A A=", b"_w", b"/-", b"AAE=AAE", b"AA==AA==", b"AB", b"\xff\xff", b"A=A="],
)
def test_b3_20_what_is_not_base64_is_the_streams_error(value):
    with pytest.raises(MetadataError, match="metadata 'a-bin' is not base64"):
        decode_metadata([(b"a-bin", value)])


@pytest.mark.wire("B3-20")
def test_b3_20_commas_alone_do_not_make_a_pair_each():
    with pytest.raises(MetadataError, match="too many values"):
        decode_metadata([(b"a-bin", b"," * 128)])


# ---- metadata out


@pytest.mark.wire("B3-20")
def test_b3_20_binary_values_are_sent_unpadded():
    assert encode_metadata([("a-bin", b"\0\1\2\xff"), ("b-bin", b"")]) == [
        (b"a-bin", b"AAEC/w"),
        (b"b-bin", b""),
    ]


@pytest.mark.wire("B3-21")
def test_b3_21_texts_are_sent_without_white_space_at_their_ends():
    assert encode_metadata([("x-a", " a b "), ("x-a", "")]) == [(b"x-a", b"a b"), (b"x-a", b"")]


@pytest.mark.wire("B3-21")
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("", "v", "malformed"),
        (":status", "200", "malformed"),
        ("X-A", "v", "malformed"),
        ("x-é", "v", "malformed"),
        ("x-a\n", "v", "malformed"),
        ("grpc-status", "0", "reserved"),
        ("grpc-x-bin", b"0", "reserved"),
        ("te", "trailers", "reserved"),
        ("content-type", "text/html", "reserved"),
        ("content-length", "0", "reserved"),
        ("connection", "close", "reserved"),
        ("x-a", "é", "not printable ASCII"),
        ("x-a", "a\r\nb: c", "not printable ASCII"),
        ("x-a", "a\n", "not printable ASCII"),
        ("x-a", b"bytes", "holds bytes"),
        ("x-bin", "text", "holds text"),
    ],
)
def test_b3_21_what_may_not_be_sent_is_refused(key, value, said):
    with pytest.raises(MetadataError, match=said):
        encode_metadata([(key, value)])


@pytest.mark.wire("B3-20")
@given(PAIRS)
def test_b3_20_metadata_round_trip(pairs):
    fields = encode_metadata(pairs)
    assert decode_metadata(fields) == pairs
    for (key, value), (_, sent) in zip(pairs, fields, strict=True):
        if key.endswith("-bin"):
            assert base64.b64decode(sent + b"==") == value


@pytest.mark.wire("B3-20")
@given(st.text("AB/+=9, _-", max_size=12).map(str.encode))
def test_b3_20_base64_agrees_with_the_strict_decoder(value):
    def expected(part: bytes) -> bytes | None:
        digits = part.strip().rstrip(b"=")
        try:
            data = base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
        except ValueError:
            return None
        return data if base64.b64encode(data).rstrip(b"=") == digits else None

    parts = [expected(part) for part in value.split(b",")]
    if None in parts:
        with pytest.raises(MetadataError):
            decode_metadata([(b"a-bin", value)])
    else:
        assert decode_metadata([(b"a-bin", value)]) == [("a-bin", part) for part in parts]


@pytest.mark.wire("B3-21")
async def test_b3_21_grpcio_shows_its_handlers_the_same_metadata():
    seen = []

    class Echo(grpc.GenericRpcHandler):
        def service(self, _):
            async def call(message, context):
                seen.extend(tuple(pair) for pair in context.invocation_metadata())
                return message

            return grpc.unary_unary_rpc_method_handler(call)

    server = aio.server(handlers=[Echo()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pairs = [("x-a", "1"), ("b-bin", b"\0\xff"), ("x-a", "2"), ("c.d_e", "~ ~"), ("b-bin", b"")]
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.unary_unary("/a/b")(b"", metadata=pairs)
    await server.stop(0)
    ours = decode_metadata([*encode_metadata(pairs), (b"te", b"trailers")])
    # Its own client groups the pairs by key: only the order within a key is to be compared.
    ours.sort(key=lambda pair: pair[0])
    seen.sort(key=lambda pair: pair[0])
    assert [pair for pair in seen if pair[0] != "user-agent"] == ours
    assert "user-agent" in dict(seen)
