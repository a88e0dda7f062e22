"""Entity keys: one id is one key however it was typed, and no two ids share one."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.entity_key import PART_BYTES_MAX, entity_key, entity_keys
from features.offline.keys import dense_keys
from features.sources import Entity
from features.types import Bytes, Column, Uuid
from headrace.errors import InvalidArgumentError

PAIR = Entity("pair", ["driver", "customer"])
ONE = Entity("one", ["id"])
parts = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.text(max_size=6))


def text(part: object) -> str | None:
    return None if part is None else str(part)


def test_parts_never_run_together() -> None:
    assert entity_key([1, 23]) != entity_key([12, 3])
    assert entity_key(["", "a"]) != entity_key(["a", ""])
    assert entity_key(["a"]) != entity_key(["a", ""])


@pytest.mark.parametrize("one", [12, np.int32(12), np.int64(12), np.uint8(12), "12"])
def test_an_id_is_one_key_however_it_was_typed(one: object) -> None:
    assert entity_key([one]) == entity_key([12])


def test_the_bytes_are_canonical() -> None:
    assert entity_key([-5, "ü"]) == b"\x01\x02\x00\x00\x00-5\x01\x02\x00\x00\x00\xc3\xbc"


def test_zero_and_the_empty_text_are_ids_and_null_is_none() -> None:
    assert entity_key([0]) != entity_key([""])
    assert entity_key([""]) is not None
    assert entity_key([1, None]) is None


@given(st.lists(parts, min_size=2, max_size=2), st.lists(parts, min_size=2, max_size=2))
def test_keys_are_equal_exactly_when_their_texts_are(one: list[object], two: list[object]) -> None:
    if None in one or None in two:
        assert (entity_key(one) is None) == (None in one)
        return
    same = [text(p) for p in one] == [text(p) for p in two]
    assert (entity_key(one) == entity_key(two)) == same


@pytest.mark.parametrize(
    "part", [1.5, True, ["x"], "\ud800", "x" * (PART_BYTES_MAX + 1), b"x" * (PART_BYTES_MAX + 1)]
)
def test_what_cannot_be_a_key_is_refused(part: object) -> None:
    with pytest.raises(InvalidArgumentError, match="entity's key is not usable"):
        entity_key([part])


def test_columns_give_one_key_a_row() -> None:
    inputs = {
        "driver": Column(np.array([1, 12], dtype=np.int32)),
        "customer": Column(np.array(["23", "3"], dtype=object), np.array([True, False])),
        "fare": Column(np.array([0.5, 1.0])),
    }
    assert entity_keys(PAIR, inputs) == [entity_key([1, 23]), None]


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9),
    st.lists(st.booleans(), min_size=9, max_size=9),
)
def test_a_column_of_integers_gives_the_keys_of_each(values: list[int], there: list[bool]) -> None:
    valid = np.array(there[: len(values)], dtype=np.bool_)
    keys = entity_keys(ONE, {"id": Column(np.array(values, dtype=np.int64), valid)})
    known = [value if ok else None for value, ok in zip(values, there, strict=False)]
    assert keys == [entity_key([value]) for value in known]
    largest = np.array([2**64 - 1], dtype=np.uint64)
    assert entity_keys(ONE, {"id": Column(largest)}) == [entity_key([2**64 - 1])]


def test_a_missing_or_wrong_column_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match=r"'driver' is missing.*no columns"):
        entity_keys(PAIR, {})
    with pytest.raises(InvalidArgumentError, match=r"'driver' is missing.*fare"):
        entity_keys(PAIR, {"fare": Column(np.array([0.5]))})
    with pytest.raises(InvalidArgumentError, match=r"'id'.*integers, text or bytes.*float64"):
        entity_keys(ONE, {"id": Column(np.array([0.5]))})


@given(
    st.lists(st.tuples(parts, parts), max_size=12), st.lists(st.tuples(parts, parts), max_size=12)
)
def test_dense_ids_of_history_meet_as_the_keys_do(
    events: list[tuple[object, object]], spine: list[tuple[object, object]]
) -> None:
    def table(rows: list[tuple[object, object]]) -> pa.Table:
        columns = {name: [text(row[i]) for row in rows] for i, name in enumerate(PAIR.join_keys)}
        return pa.table({name: pa.array(c, type=pa.string()) for name, c in columns.items()})

    event_ids, spine_ids, groups = dense_keys(PAIR, table(events), table(spine), "here")
    ids = event_ids.tolist() + spine_ids.tolist()
    keys = [entity_key(row) for row in events + spine]
    for i, one in enumerate(keys):
        assert (ids[i] < 0) == (one is None)
        assert ids[i] < groups
        for j, two in enumerate(keys):
            if one is not None:
                assert (one == two) == (ids[i] == ids[j])


def test_dense_ids_of_integers_meet_text() -> None:
    events = pa.table({"id": pa.array([7, None, 12], type=pa.int32())})
    spine = pa.table({"id": pa.array(["12", "7", None, "x"]).dictionary_encode()})
    event_ids, spine_ids, _ = dense_keys(ONE, events, spine, "here")
    assert spine_ids.tolist()[:2] == [event_ids[2], event_ids[0]]
    assert [event_ids[1], spine_ids[2]] == [-1, -1]
    assert spine_ids[3] not in event_ids


def test_dense_ids_refuse_what_is_no_key() -> None:
    floats = pa.table({"id": [0.5]})
    with pytest.raises(InvalidArgumentError, match=r"join key 'id'.*double"):
        dense_keys(ONE, floats, floats, "here")
    with pytest.raises(InvalidArgumentError, match="column 'id' is missing"):
        dense_keys(ONE, pa.table({"ID": ["a"]}), floats, "here")


def test_an_id_that_cannot_be_a_key_is_said_of_its_entity() -> None:
    with pytest.raises(InvalidArgumentError, match=r"entity 'one': .* not usable"):
        entity_keys(ONE, {"id": Column(np.array(["x" * (PART_BYTES_MAX + 1)], object))})


TYPED = Entity("typed", ["user", "page"], key_types={"user": Uuid, "page": Bytes})
USER = uuid.UUID("0190163d-8694-739b-aea5-966c26f8ad91")


def objects(*values: object) -> np.ndarray[Any, Any]:
    held = np.empty(len(values), object)
    for row, value in enumerate(values):
        held[row] = value
    return held


def test_a_uuid_is_one_in_whatever_form_and_bytes_are_no_text() -> None:
    users = objects(USER, str(USER).upper(), USER.hex, USER.bytes, None)
    pages = objects(b"12", b"12", b"12", b"12", b"")
    keys = entity_keys(TYPED, {"user": Column(users), "page": Column(pages)})
    assert keys == [entity_key([USER, b"12"])] * 4 + [None]
    assert entity_key([b"12"]) != entity_key(["12"])
    assert entity_key([USER]) != entity_key([USER.bytes]) != entity_key([str(USER)])


@pytest.mark.parametrize(
    ("user", "page", "says"),
    [
        ("no id", b"", r"'user' does not hold uuid.*text or 16 bytes.*'no id'"),
        (b"short", b"", r"'user' does not hold uuid"),
        (USER, "text", r"'page' does not hold bytes.*'text'"),
    ],
)
def test_a_key_of_another_type_than_declared_is_named(
    user: object, page: object, says: str
) -> None:
    inputs = {"user": Column(objects(user)), "page": Column(objects(page))}
    with pytest.raises(InvalidArgumentError, match=f"entity 'typed': join key {says}"):
        entity_keys(TYPED, inputs)
