"""ModelInferRequest read by hand: the same call, or refusal, as by the generated classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from headrace.errors import HeadraceError
from server.protocol import infer_message, oip_grpc
from server.protocol.infer_message import OddError
from tests.support import infer_oracle


def varint(value: int, more: int = 0) -> bytes:
    """A varint; with `more` bytes than it needs."""
    encoded = []
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    if more:
        encoded[-1] |= 0x80
        encoded += [0x80] * (more - 1) + [0]
    return bytes(encoded)


def field(number: int, data: bytes, more: int = 0, wire_type: int = 2) -> bytes:
    tag = varint(number << 3 | wire_type)
    return tag + (varint(len(data), more) if wire_type == 2 else b"") + data


def outcome(decode: Any, data: bytes) -> Any:
    """The call, so that calls can be compared, or the error."""
    try:
        call = decode(data)
    except HeadraceError as error:
        return (error.code, error.message)
    tensors = [
        (t.name, t.datatype, t.array.shape, t.array.dtype, t.array.ravel().tolist())
        for t in call.tensors
    ]
    return (call.model, call.version, call.request_id, tensors, call.wanted, call.parameters)


def check(data: bytes) -> None:
    ours, theirs = outcome(oip_grpc.decode_infer, data), outcome(infer_oracle.decode_infer, data)
    assert repr(ours) == repr(theirs)  # NaN is not equal to itself


SIZES = {"INT32": 4, "FP32": 4, "UINT8": 1, "BYTES": 4, "BOOL": 1, "INT64": 8, "FP16": 2}
MORE = st.sampled_from([0, 0, 0, 0, 1, 2, 3, 4, 9])
DIMENSIONS = st.sampled_from([0, 1, 2, 3, -1, 1 << 40, -(1 << 63)])


@st.composite
def unknown(draw: st.DrawFn) -> bytes:
    """A field that nobody knows, or a known one of another wire type."""
    number = draw(st.sampled_from([1, 3, 5, 7, 8, 15, 16, 1000, (1 << 29) - 1]))
    wire_type = draw(st.sampled_from([0, 1, 2, 5]))
    if wire_type == 2 and number <= 7:
        wire_type = 0
    data = {
        0: varint(draw(st.integers(0, (1 << 64) - 1))), 1: bytes(8), 5: bytes(4),
        2: draw(st.binary(max_size=6)),
    }[wire_type]  # fmt: skip
    if draw(st.booleans()):
        return field(number, data, wire_type=wire_type)
    group = draw(st.integers(9, 20))
    return varint(group << 3 | 3) + field(9, b"in") + varint(group << 3 | 4)


@st.composite
def shapes(draw: st.DrawFn) -> bytes:
    """A shape, packed, one by one, or both."""
    dims = [value & (1 << 64) - 1 for value in draw(st.lists(DIMENSIONS, max_size=3))]
    pieces = b""
    while dims:
        count = draw(st.integers(1, len(dims)))
        part, dims = dims[:count], dims[count:]
        encoded = [varint(value, draw(MORE) if value < 128 else 0) for value in part]
        if draw(st.booleans()):
            pieces += field(3, b"".join(encoded))
        else:
            pieces += b"".join(field(3, each, wire_type=0) for each in encoded)
    return pieces


PARAMETER = st.sampled_from([
    field(4, field(1, b"k") + field(2, field(2, b"\x05", wire_type=0))),
    field(4, field(1, b"shared_memory_region") + field(2, field(3, b"r"))),
    field(4, field(1, b"none") + field(2, b"")),
])  # fmt: skip
CONTENTS = st.sampled_from([
    field(5, field(2, b"\x01\x02\x03")), field(5, field(8, b"text")), field(5, b""),
    field(5, field(6, bytes(4))) + field(5, field(6, bytes(4))), field(5, b"\xff"),
])  # fmt: skip


@st.composite
def inputs(draw: st.DrawFn) -> bytes:
    name = draw(st.sampled_from([b"x", b"y", "é".encode(), b"\xff", b""]))
    parts = [field(1, name, draw(MORE)), field(2, draw(st.sampled_from(sorted(SIZES))).encode())]
    parts += [draw(shapes())]
    parts += draw(st.lists(st.one_of(PARAMETER, CONTENTS, unknown()), max_size=2))
    parts += draw(st.lists(st.just(field(1, b"again")), max_size=1))
    return b"".join(draw(st.permutations(parts)))


RAWS = st.sampled_from([b"", bytes(4), bytes(8), b"\x01\0\0\0a", b"\x01\x02\x03\x04" * 2])
OTHERS = st.sampled_from([
    field(6, field(1, b"out")), field(6, field(1, b"o") + field(2, field(1, b"k"))),
    field(4, field(1, b"priority") + field(2, field(2, b"\x03", wire_type=0))),
    field(1, b"other"), field(4, b"\xff"),
])  # fmt: skip


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message: its fields in any order, some of them twice, some that nobody knows."""
    parts = [field(1, b"model"), field(2, b"1", draw(MORE)), field(3, draw(st.binary(max_size=4)))]
    parts += [field(5, each, draw(MORE)) for each in draw(st.lists(inputs(), max_size=3))]
    parts += [field(7, each, draw(MORE)) for each in draw(st.lists(RAWS, max_size=3))]
    parts += draw(st.lists(OTHERS, max_size=2))
    parts += draw(st.lists(unknown(), max_size=1))
    return b"".join(draw(st.permutations(parts)))


@given(messages())
def test_messages_of_every_form(data: bytes) -> None:
    check(data)


@given(
    messages(),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3),
    st.integers(0, 400) | st.none(),
)
@example(b"", [], None)
@example(field(8, b"x") + b"\x00\x00", [], None)
@example(b"\x07", [], None)
@example(b"\x3a\x80\x80\x80\x80\x80\x00", [], None)
@example(b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", [], None)
@example(field(5, b"\x18" + b"\x80" * 9 + b"\x02"), [], None)
@example(field(5, b"\x18" + b"\x80" * 10 + b"\x01"), [], None)
def test_damaged_messages(data: bytes, damage: list[tuple[int, int]], cut: int | None) -> None:
    damaged = bytearray(data)
    for at, byte in damage:
        if damaged:
            damaged[at % len(damaged)] = byte
    check(bytes(damaged[:cut]))


@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    check(data)


def request(values: np.ndarray[Any, Any], name: str = "x") -> bytes:
    message = pb.ModelInferRequest(model_name="m", id="7")
    message.inputs.add(name=name, datatype="FP32", shape=values.shape)
    message.raw_input_contents.append(values.tobytes())
    encoded: bytes = message.SerializeToString()
    return encoded


def test_tensors_view_the_message_where_elements_are_aligned() -> None:
    views = 0
    for length in range(1, 9):  # of the name, which moves the tensor
        values = np.arange(6, dtype=np.float32).reshape(2, 3)
        data = request(values, "x" * length)
        array = oip_grpc.decode_infer(data).tensors[0].array
        assert array.flags.aligned
        assert (array == values).all()
        views += np.shares_memory(array, np.frombuffer(data, np.uint8))
    assert views == 2


def test_what_is_usual_takes_the_short_way() -> None:
    message = infer_message.read(request(np.zeros((1, 3), np.float32)))
    assert message.rest == b""
    assert message.inputs == [("x", "FP32", (1, 3), b"")]


@pytest.mark.parametrize("data", [b"\x0b", b"\x3a\x05abc", field(1, b"\xff"), b"\xba\x00\x00"])
def test_what_is_odd_is_left_to_the_generated_classes(data: bytes) -> None:
    with pytest.raises(OddError):
        infer_message.read(data)
    check(data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (field(7, b"") * 1_025, "too many entries in raw_input_contents"),
        (field(5, b"") * 1_025, "too many inputs"),
        (field(5, field(3, b"\x01" * 65)), "too many dimensions"),
        (field(5, field(3, b"\x01", wire_type=0) * 65), "too many dimensions"),
        (field(5, field(3, b"\x01" * 10_000)), "too many dimensions"),
    ],
)
def test_small_pieces_do_not_become_large_ones(data: bytes, said: str) -> None:
    """Found by a review: two bytes of a message became two hundred, 64 MiB of them gigabytes."""
    with pytest.raises(HeadraceError, match=said):
        oip_grpc.decode_infer(data)
