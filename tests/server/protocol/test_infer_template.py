"""Templates: whatever bytes come, the door says what the generated classes say, or nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from headrace.errors import HeadraceError
from server.execution.threads import RunThreads
from server.models.repository import ModelRepository
from server.protocol import infer_template
from server.protocol.infer_template import form_of
from server.protocol.oip_grpc import decode_infer
from server.wire.grpc.framing import frame
from tests.server.protocol.infer_worlds import World, load, request, rows_of

Field = tuple[int, bytes]  # number, content; all of a request's fields are length-delimited


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelRepository]:
    with RunThreads(1, 1) as executor:
        yield load(tmp_path_factory.mktemp("models"), executor)


def varint(value: int, padding: int = 0) -> bytes:
    """Encode, with `padding` bytes more than needed."""
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F)
    groups += [0] * padding
    return bytes([group | 0x80 for group in groups[:-1]] + [groups[-1]])


def encode(fields: list[Field], padding: list[int]) -> bytes:
    parts = []
    for (number, content), extra in zip(fields, padding, strict=True):
        parts += [varint(number << 3 | 2, extra % 2), varint(len(content), extra // 2), content]
    return b"".join(parts)


def fields_of(message: bytes) -> list[Field]:
    """Cut a canonical message into its top-level fields."""
    fields = []
    position = 0
    while position < len(message):
        number = message[position] >> 3
        position += 1
        length = shift = 0
        while True:
            byte = message[position]
            position += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        fields.append((number, message[position : position + length]))
        position += length
    return fields


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Valid requests of several models, ids, versions and wanted outputs."""
    model = draw(st.sampled_from(["mlp", "twin", "add", "fixed", "same_UINT8", "words"]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = 2 if model == "fixed" else draw(st.integers(1, 3))
    fields = {}
    if draw(st.booleans()):
        fields["model_version"] = "1"
    if draw(st.booleans()):
        fields["id"] = draw(st.text("ab1-é", min_size=1, max_size=5))
    wanted: list[str] = []
    if model in {"mlp", "twin"}:
        array = random.normal(size=(rows, 3)).astype(np.float32)
        inputs = {"features": ("FP32", array)}
        wanted = draw(st.sampled_from([[], ["probability"]]))
    elif model == "words":
        inputs = {"x": ("FP32", random.normal(size=(rows, 2)).astype(np.float32))}
        wanted = draw(st.sampled_from([[], ["text"], ["twice", "text"], ["twice"]]))
    elif model == "same_UINT8":
        width = draw(st.integers(1, 300))
        inputs = {"TEXT": ("UINT8", random.integers(0, 256, size=(rows, width)).astype(np.uint8))}
    else:
        names = draw(st.permutations(["INPUT0", "INPUT1"]))
        inputs = {
            name: ("INT32", random.integers(-9, 9, size=(rows, 4)).astype(np.int32))
            for name in names
        }
        wanted = draw(st.sampled_from([[], ["OUTPUT1"], ["OUTPUT1", "OUTPUT0"]]))
    return request(model, inputs, wanted=wanted, **fields)


@st.composite
def odd(draw: st.DrawFn, message: bytes) -> list[Field]:
    """The fields of a message, perhaps reordered, repeated, or with some that nobody knows."""
    fields = fields_of(message)
    for _ in range(draw(st.integers(0, 2))):
        extra = draw(
            st.sampled_from(
                [(99, b"unknown"), (1, b"mlp"), (2, b""), (3, b"other"), (3, b"\xff"), (7, b"1234"),
                 (4, b"\x0a\x08priority\x12\x02\x10\x01"), (4, b"\x0a\x07timeout\x12\x02\x10\x00"),
                 (6, b"\x0a\x04text"), (5, b"")]
            )
        )  # fmt: skip
        fields.insert(draw(st.integers(0, len(fields))), extra)
    if draw(st.booleans()):
        fields = draw(st.permutations(fields))
    return fields


async def said(world: World, message: bytes, *, teach: bool = False) -> bytes | tuple[str, str]:
    try:
        return await world.general(message, teach=teach)
    except HeadraceError as error:
        return error.code, error.message


async def check(world: World, bodies: list[bytes]) -> int:
    """The door answers as the general way does, or not at all; return how many it took."""
    calls = [world.call(body) for body in bodies]
    rest = {call[1] for call in world.door.take(calls, time.monotonic_ns())}
    for call, body in zip(calls, bodies, strict=True):
        if call[1] not in rest:
            expected = await said(world, body)
            assert world.books.replies[call[1]] == expected
            generated = pb.ModelInferResponse.FromString(world.books.replies[call[1]])
            assert generated.id == pb.ModelInferRequest.FromString(body).id
    return len(calls) - len(rest)


def with_other_raws(fields: list[Field], seed: int) -> list[Field]:
    random = np.random.default_rng(seed)
    return [
        (number, random.bytes(len(content)) if number == 7 else content)
        for number, content in fields
    ]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_message_is_answered_as_the_general_way_answers(
    repository: ModelRepository, data: st.DataObject
) -> None:
    """Learn one message; then others of its constants, and others with a byte changed."""
    fields = data.draw(odd(data.draw(messages())))
    padding = data.draw(st.lists(st.integers(0, 3), min_size=len(fields), max_size=len(fields)))
    if data.draw(st.booleans()):
        padding = [0] * len(fields)
    first = encode(fields, padding)
    again = [encode(with_other_raws(fields, seed), padding) for seed in range(3)]
    changed = []
    for _ in range(3):
        body = bytearray(data.draw(st.sampled_from(again)))
        place = data.draw(st.integers(0, len(body) - 1))
        body[place] = data.draw(st.integers(0, 255))
        changed.append(bytes(body))
    renamed = [
        encode([(n, b"zz%d" % len(c) if n == 3 else c) for n, c in fields], padding),
        encode([(n, bytes(reversed(c)) if n == 3 else c) for n, c in fields], padding),
    ]

    async def run() -> None:
        world = World(repository)
        assert await check(world, [first]) == 0
        answered = await said(world, first, teach=True)
        taken = await check(world, [*again, *changed, *renamed])
        if isinstance(answered, tuple):
            assert len(world.templates) == 0
            assert taken == 0
        elif len(world.templates):
            assert taken >= 3 or not pb.ModelInferRequest.FromString(first).id.isascii()

    asyncio.run(run())


@settings(max_examples=60, deadline=None)
@given(st.lists(messages(), min_size=1, max_size=12))
def test_a_mixed_tick_is_answered_as_each_alone(
    repository: ModelRepository, sent: list[bytes]
) -> None:
    async def run() -> None:
        world = World(repository)
        await world.learn(*sent)
        assert await check(world, [*sent, *sent]) % 2 == 0

    asyncio.run(run())


def test_what_tritonclient_writes_is_learnt() -> None:
    for message in (
        rows_of(1),
        rows_of(4, model_version="1"),
        rows_of(1, id="7"),
        rows_of(200),
        rows_of(1, wanted=["probability"], id="0f" * 18),
        request("add", {"INPUT0": ("INT32", np.ones((1, 4), np.int32)),
                        "INPUT1": ("INT32", np.ones((1, 4), np.int32))}),
    ):  # fmt: skip
        form = form_of(message, decode_infer(message))
        assert form is not None
        body = frame(message)
        assert form.fits(body)
        assert form.fits_all([body, body])
        assert not form.fits(body + b"\0")
        assert not form.fits_all([body, b""])
        variable = {at for place in (*form.raws, form.request_id) if place is not None
                    for at in range(place.start, place.stop)}  # fmt: skip
        for at in range(len(body)):
            other = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
            assert form.fits(other) == form.fits_all([body, other]) == (at in variable)
        assert [body[place] for place in form.raws] == list(
            pb.ModelInferRequest.FromString(message).raw_input_contents
        )


def typed_contents() -> bytes:
    message = pb.ModelInferRequest(model_name="mlp")
    tensor = message.inputs.add(name="features", datatype="FP32", shape=[1, 3])
    tensor.contents.fp32_contents.extend([1, 2, 3])
    return message.SerializeToString()


def with_parameter() -> bytes:
    message = pb.ModelInferRequest.FromString(rows_of(1))
    message.parameters["priority"].int64_param = 1
    return message.SerializeToString()


@pytest.mark.parametrize(
    "message",
    [
        typed_contents(),
        with_parameter(),
        rows_of(1) + b"\x0a\x03mlp",  # raws are not last
        # What looks like raws is within a field that nobody knows.
        typed_contents() + b"\x9a\x06\x0e\x3a\x0c" + np.array([1, 2, 3], "<f4").tobytes(),
        typed_contents() + b"\x9a\x06\x0b" + b"u" * 11,  # as long as raws would be, and none
        encode([*fields_of(rows_of(1, id="a"))[:-1], (3, b"a"), (7, b"r" * 12)], [0] * 5),
        rows_of(1) + b"\x98\x06\x01",  # an unknown field behind them
        b"\x9a\x06\x82\x20" + b"u" * 4098 + rows_of(1),  # too much to keep
        b"\x1a\x01a" + rows_of(1, id="a"),  # the id twice: which one counts is for protobuf
        rows_of(1) [:5] + b"\x9a\x06\x01u" + rows_of(1, id="a")[5:],  # not as a client writes it
        request("same_FP32", {"TEXT": ("FP32", np.zeros((0, 2), np.float32))}),
        pb.ModelInferRequest(model_name="mlp").SerializeToString(),
    ],
)  # fmt: skip
def test_what_has_no_simple_form_is_left_alone(message: bytes) -> None:
    assert form_of(message, decode_infer(message)) is None


async def test_a_frame_of_another_length_or_flag_is_none_of_ours(
    repository: ModelRepository,
) -> None:
    world = World(repository)
    await world.learn(rows_of(1))
    assert world.door.take([world.call(rows_of(1))], 0) == []
    connection, stream, head, body = world.call(rows_of(1))
    for other in (
        b"\1" + body[1:],
        body[:4] + bytes([body[4] - 1]) + body[5:],
        body[:-1],
        body + b"0",
    ):
        call = (connection, stream, head, other)
        assert world.door.take([call], 0) == [call]


async def test_an_id_that_is_not_ascii_goes_the_general_way(repository: ModelRepository) -> None:
    world = World(repository)
    await world.learn(rows_of(1, id="ab"))
    call = world.call(rows_of(1, id="é"))
    assert world.door.take([call], 0) == [call]


async def test_the_table_is_bounded_and_learns_nothing_twice(
    repository: ModelRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infer_template, "TEMPLATES_MAX", 3)
    world = World(repository)
    await world.learn(rows_of(1), rows_of(1), rows_of(1, seed=2))
    assert len(world.templates) == 1
    await world.learn(rows_of(2), rows_of(3))
    assert len(world.templates) == 3
    await world.learn(rows_of(4))
    assert len(world.templates) == 1
    assert world.templates.find(frame(rows_of(1))) is None
    assert world.templates.find(frame(rows_of(4, seed=3))) is not None


async def test_what_the_model_would_refuse_is_not_learnt(repository: ModelRepository) -> None:
    """Whoever calls `learn`: what it is told is checked against the model that answers now."""
    world = World(repository)
    wrong = rows_of(9)
    world.templates.learn(wrong, decode_infer(wrong))
    unknown = rows_of(1, model="nobody")
    world.templates.learn(unknown, decode_infer(unknown))
    assert len(world.templates) == 0
