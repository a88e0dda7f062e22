"""GetFeatures replies: the bytes that protobuf makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features import Column, FeatureBatch, definitions_from_source
from features.types import FeatureStatus, from_words
from server.pb import headrace_pb2 as pb
from server.protocol.columns import messages_of_table, table_of_messages
from server.protocol.features_reply import (
    encode_packed_replies,
    encode_packed_reply,
    encode_replies,
    encode_reply,
)

DEFINITIONS = definitions_from_source(b"""
from features import *

who = Entity("who", ["who"])
kinds = [Int64, Float64, Bool, Float32]
fields = [Field("n" * (1 + 5 * i) + str(i), kinds[i % 4]) for i in range(12)]
source = EventSource("source", [Field("who", Int64), *fields])
view = FeatureView("view", who, source, [field.name for field in fields])
everything = FeatureService("everything", 1, [view])
floats = FeatureService("floats", 1, [view[[f.name for f in fields if f.dtype is not Int64]]])
things = EventSource("things", [
    Field("who", Int64), Field("text", String), Field("n", Int64), Field("raw", Bytes),
    Field("embedding", Array(Float32)), Field("x", Float64), Field("words", Array(String)),
])
mixed = FeatureService("mixed", 1, [
    FeatureView("v", who, things, ["text", "n", "raw", "embedding", "x", "words"])
])
""")
SERVICE, FLOATS, MIXED = map(DEFINITIONS.service, ("everything", "floats", "mixed"))


@st.composite
def batches(draw: st.DrawFn) -> FeatureBatch:
    rows = draw(st.sampled_from([1, 2, 130, 300]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    words = rng.integers(-(2**63), 2**63 - 1, (rows, 12)) >> rng.integers(0, 63, (rows, 12))
    shares = draw(st.sampled_from([[1.0, 0, 0, 0, 0], [0.6, 0.1, 0.1, 0.1, 0.1]]))
    status = rng.choice(np.arange(5, dtype=np.uint8), (rows, 12), p=shares)
    words[status != FeatureStatus.PRESENT] = 0
    for place, dtype in enumerate(SERVICE.dtypes):
        if dtype.numpy == np.bool_:
            words[:, place] &= 1
    # As an assembly with hidden columns gives it: not contiguous.
    wide = np.concatenate([words, words], axis=1)[:, :12]
    return FeatureBatch(SERVICE, wide, np.concatenate([status, status], axis=1)[:, :12])


@given(batches(), st.sampled_from(["everything", "", "ü" * 200]))
def test_the_columns_are_those_of_protobuf(batch: FeatureBatch, name: str) -> None:
    message = pb.GetFeaturesReply(
        service=name,
        features=messages_of_table({name: batch.column(name) for name in SERVICE.columns}),
        status=batch.status.tobytes(),
    )
    assert encode_reply(name, batch) == message.SerializeToString()


@given(batches())
def test_a_packed_reply_holds_the_same_values(batch: FeatureBatch) -> None:
    message = pb.GetFeaturesReply.FromString(encode_packed_reply("everything", batch))
    assert message.service == "everything"
    assert message.status == batch.status.tobytes()
    words = np.frombuffer(message.packed, "<i8").reshape(len(batch), 12)
    for place, name in enumerate(SERVICE.columns):
        column = from_words(words[:, place], None, SERVICE.dtypes[place])
        assert column.values.tobytes() == batch.column(name).values.tobytes()


@given(batches(), st.integers(1, 4))
def test_each_call_gets_its_rows(batch: FeatureBatch, rows: int) -> None:
    ends = np.array([*range(0, len(batch), rows), len(batch)])
    for encode_all, encode in (
        (encode_replies, encode_reply),
        (encode_packed_replies, encode_packed_reply),
    ):
        found = encode_all("everything", batch, ends)
        for start, end, reply in zip(ends, ends[1:], found, strict=False):
            part = FeatureBatch(SERVICE, batch.words[start:end], batch.status[start:end])
            assert bytes(reply) == encode("everything", part)


@given(st.integers(1, 150), st.integers(1, 5), st.booleans(), st.integers(0, 2**32))
def test_a_template_gives_what_is_written_value_by_value(
    rows: int, calls: int, one_is_null: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = (rows * calls, len(FLOATS.columns))
    words, status = rng.integers(-(2**63), 2**63 - 1, shape), np.zeros(shape, np.uint8)
    for place, dtype in enumerate(FLOATS.dtypes):
        if dtype.numpy == np.bool_:
            words[:, place] &= 1
    if one_is_null:
        status[-1, 0], words[-1, 0] = FeatureStatus.NULL, 0
    found = encode_replies(
        "floats", FeatureBatch(FLOATS, words, status), np.arange(calls + 1) * rows
    )
    for call, reply in enumerate(found):
        mine = slice(call * rows, (call + 1) * rows)
        batch = FeatureBatch(FLOATS, words[mine], status[mine])
        message = pb.GetFeaturesReply(
            service="floats",
            features=messages_of_table({name: batch.column(name) for name in FLOATS.columns}),
            status=batch.status.tobytes(),
        )
        assert bytes(reply) == message.SerializeToString()


def mixed_batch(rows: int) -> FeatureBatch:
    status = np.zeros((rows, 6), np.uint8)
    status[1:2] = 2
    kinds: list[list[Any]] = [
        ["ü", None, ""],
        [b"\0", None, b""],
        [np.array([0.5, 2.0], np.float32), None, np.array([], np.float32)],
        [("a", ""), None, ()],
    ]
    variables = {}
    for name, values in zip(("text", "raw", "embedding", "words"), kinds, strict=True):
        held = np.empty(rows, np.object_)
        for row in range(rows):
            held[row] = values[row]
        variables[f"v:{name}"] = Column(held, status[:, 0] == 0)
    words = np.arange(6 * rows).reshape(rows, 6) << 40
    words[:, [0, 2, 3, 5]] = 0
    words[1:2] = 0
    return FeatureBatch(MIXED, words, status, variables)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_values_of_any_length_stand_between_the_others(rows: int) -> None:
    batch = mixed_batch(rows)
    reply = pb.GetFeaturesReply.FromString(encode_reply("mixed", batch))
    assert [column.name for column in reply.features] == MIXED.columns
    table = table_of_messages(reply.features, "here")
    for name in MIXED.columns:
        wanted, got = batch.column(name), table[name]
        assert got.mask.tolist() == wanted.mask.tolist()
        for mine, theirs, ok in zip(wanted.values, got.values, wanted.mask, strict=True):
            assert not ok or np.array_equal(mine, theirs), name
    packed = pb.GetFeaturesReply.FromString(encode_packed_reply("mixed", batch))
    assert [column.name for column in packed.features] == [
        name for name in MIXED.columns if name in batch.variables
    ]
    assert np.frombuffer(packed.packed, "<i8").tolist() == batch.words.ravel().tolist()
